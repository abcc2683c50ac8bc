"""A NADE as a variational ansatz for the two-dimensional Ising model, next to the exact answer.

Spins s = ±1 on an L×L torus have the energy E = −Σ s_i s_j over neighbours, and at inverse temperature β the free
energy F = −ln Z / β, Z = Σ exp(−β E). A model q that can be sampled and knows ln q bounds it from above:

    F ≤ F_q = E_q[E + ln q / β],   equal only for q = exp(−β E) / Z.

Minimising F_q needs no data. Its gradient is E_q[(βE + ln q − baseline) ∇ ln q] / β (REINFORCE): draw a batch with its
log-probabilities, `sample_and_log_prob`, and weight ∇ log_prob with how much worse than average each sample is. So that
this works at the transition too, where half of the probability has the other magnetisation,

* the ansatz is symmetric, q(s) = (p(s) + p(−s)) / 2 with the NADE's p. Because neither E nor q changes when all spins
  flip, samples of p serve for averages over q, and E_p[(βE + ln q − baseline) ∇ ln p] / β is the gradient;
* the NADE starts as a local model, in which every output looks at the neighbours of its spin that are drawn before it;
* β rises from 70 % of its value, so that the model learns short distances first.

Weighting the samples by exp(−β E) / q removes what bias is left. The effective sample size says how much of the samples
such a weighted average really uses: 100 % for a perfect q.

    python examples/ising.py --out ising.png

It takes less than two minutes on two cores. (Wu, Wang & Zhang, "Solving statistical mechanics using variational
autoregressive networks", Phys. Rev. Lett. 122, 080602 (2019), is the method's paper.)
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import pyar

CRITICAL_BETA = math.log(1 + math.sqrt(2)) / 2  # 0.4407: Onsager's transition


def energy(x: Tensor, side: int) -> Tensor:
    """States 0/1 [B, L²] → energies [B] on the torus, every bond once."""
    spins = (2 * x.to(torch.int8) - 1).view(-1, side, side)
    bonds = spins * (spins.roll(1, 1) + spins.roll(1, 2))
    return -bonds.sum((1, 2), dtype=torch.float32)


def enumerated_free_energy(side: int, beta: float) -> float:
    """−ln Z / β by summing over all 2^(L²) states."""
    states = torch.arange(2 ** (side * side))[:, None] >> torch.arange(side * side)[None] & 1
    return -torch.logsumexp(-beta * energy(states, side).double(), 0).item() / beta


def kaufman_free_energy(side: int, beta: float) -> float:
    """−ln Z / β of the L×L torus, L even: Kaufman's four products (Phys. Rev. 76, 1232 (1949)).

    Z = ½ (2 sinh 2β)^(L²/2) (Π 2cosh(L γ_odd/2) + Π 2sinh(L γ_odd/2) + Π 2cosh(L γ_even/2) + Π 2sinh(L γ_even/2))
    with cosh γ_k = cosh 2β coth 2β − cos(πk/L) and γ_0 = 2β + ln tanh β, which changes sign at the transition.
    """
    k = np.arange(2 * side)
    gamma = np.arccosh(np.cosh(2 * beta) / np.tanh(2 * beta) - np.cos(np.pi * k / side))
    gamma[0] = 2 * beta + math.log(math.tanh(beta))
    half = side * np.abs(gamma) / 2
    log_cosh, log_sinh = half + np.log1p(np.exp(-2 * half)), half + np.log(-np.expm1(-2 * half))
    logs = [log_cosh[1::2].sum(), log_sinh[1::2].sum(), log_cosh[::2].sum(), log_sinh[::2].sum()]
    signs = [1, 1, 1, np.sign(gamma[0])]
    largest = max(logs)
    total = sum(sign * math.exp(value - largest) for sign, value in zip(signs, logs, strict=True))
    log_z = -math.log(2) + side * side / 2 * math.log(2 * math.sinh(2 * beta)) + largest + math.log(total)
    return float(-log_z / beta)


def local_nade(side: int, beta: float) -> pyar.NADE:
    """A NADE whose output d reads hidden unit d alone, and that the neighbours of spin d that come before it."""
    spins = side * side
    lattice = torch.arange(spins).view(side, side)
    earlier = torch.zeros(spins, spins)  # [d, i]: 1 where i is a neighbour of d and comes before it
    for neighbour in (lattice.roll(step, axis) for step in (1, -1) for axis in (0, 1)):
        earlier[lattice.flatten(), neighbour.flatten()] = 1
    earlier = earlier.tril()
    model = pyar.NADE(spins, num_states=2, hidden_size=spins)
    with torch.no_grad():  # a_d = Σ s_i over these neighbours, s = 2x − 1; logit_d = 9β (σ(a_d) − ½); and some noise
        model.W.copy_((2 * earlier.T + 0.02 * torch.randn(spins, spins))[:, None])
        model.c.copy_(-earlier.sum(1))
        model.V.copy_((9 * beta * torch.eye(spins) + 0.02 * torch.randn(spins, spins))[:, None])
        model.b.copy_(-model.V.sum(2) / 2)
    return model


@torch.no_grad()
def sample_symmetric(model: pyar.NADE, num_samples: int, seed: int, first_index: int = 0) -> tuple[Tensor, Tensor]:
    """Samples of the NADE's p [B, L²], and ln q = ln (p(s) + p(−s)) / 2 of each [B]."""
    x, log_p = model.sample_and_log_prob(num_samples, seed=seed, first_index=first_index)
    return x, torch.logaddexp(log_p, model.log_prob(1 - x)) - math.log(2)


def train(side: int, beta: float, steps: int, batch: int, lr: float) -> tuple[pyar.NADE, list[float]]:
    """A NADE trained on nothing but the free energy, and F_q per spin of every batch once β has its value."""
    torch.manual_seed(1944)
    model = local_nade(side, beta)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    history = []
    for step in range(steps):
        current_beta = beta * min(1.0, 0.7 + 0.3 * step / (0.4 * steps))
        x, log_q = sample_symmetric(model, batch, seed=step)
        cost = current_beta * energy(x, side) + log_q
        optimizer.zero_grad()
        ((cost - cost.mean()) * model.log_prob(x)).mean().backward()
        optimizer.step()
        schedule.step()
        if current_beta == beta:
            history.append(cost.mean().item() / beta / side**2)
    return model, history


@dataclass
class Result:
    """Free energies per spin with their standard errors; history from train; samples uint8 [16, L²]."""

    side: int
    exact: float
    variational: tuple[float, float]
    reweighted: tuple[float, float]
    effective_sample_size: float
    history: list[float]
    samples: Tensor


def measure(model: pyar.NADE, history: list[float], side: int, beta: float, exact: float) -> Result:
    """What the trained model gives on fresh samples, twenty batches of a thousand; prints it."""
    batches = [sample_symmetric(model, 1000, seed=2**32, first_index=1000 * i) for i in range(20)]
    x, log_q = (torch.cat(parts) for parts in zip(*batches, strict=True))
    cost = (beta * energy(x, side) + log_q).double()
    log_mean_weight = (torch.logsumexp(-cost, 0) - math.log(len(x))).item()
    weights = (-cost - log_mean_weight).exp()  # exp(−β E) / q over their mean
    size = 1 / weights.square().mean().item()
    scale, root = beta * side**2, math.sqrt(len(x))
    variational = cost.mean().item() / scale, cost.std().item() / scale / root
    reweighted = -log_mean_weight / scale, weights.std().item() / scale / root
    exact /= side**2
    print(f"{side}×{side}, β = {beta:.4f}: exact free energy per spin {exact:.5f}")
    for name, (value, error) in (("variational", variational), ("reweighted ", reweighted)):
        print(f"  {name} {value:.5f} ± {error:.5f}, off by {100 * (1 - value / exact):+.4f} %")
    print(f"  KL divergence {scale * (variational[0] - exact):.3f} nats, effective sample size {100 * size:.1f} %")
    # Samples of q are those of p, half of them flipped.
    return Result(side, exact, variational, reweighted, size, history, torch.cat((x[:8], 1 - x[8:16])))


def draw(results: list[Result], beta: float, path: str) -> None:
    figure, grid = plt.subplots(1, len(results) + 1, figsize=(4 * len(results) + 4, 3.9), layout="constrained")
    for axes, result in zip(grid, results, strict=False):
        axes.plot(result.history, color="0.55", linewidth=0.8, label="variational, each batch")
        axes.axhline(result.exact, color="black", linestyle="--", label="exact")
        axes.margins(y=0.25)
        size = f"effective sample size {100 * result.effective_sample_size:.1f} %"
        axes.set_title(f"{result.side}×{result.side}, β = {beta:.4f}\n{size}", fontsize=10)
        axes.set(xlabel="training steps at this β", ylabel="free energy per spin")
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    last = results[-1]
    sheet = torch.full((4, 4, last.side + 1, last.side + 1), 0.5)
    sheet[:, :, 1:, 1:] = last.samples.view(4, 4, last.side, last.side)
    sheet = torch.nn.functional.pad(sheet.transpose(1, 2).flatten(0, 1).flatten(1), (0, 1, 0, 1), value=0.5)
    grid[-1].imshow(sheet.numpy(), cmap="gray", vmin=0, vmax=1)
    grid[-1].set_axis_off()
    grid[-1].set_title(f"16 independent configurations\n{last.side}×{last.side}", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beta", type=float, default=CRITICAL_BETA, help="inverse temperature (default: critical)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default: %(default)s)")
    parser.add_argument("--side", type=int, default=16, help="side of the larger lattice, even (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=500, help="samples a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-3, help="Adam's learning rate at first (default: %(default)s)")
    parser.add_argument("--out", default="ising.png", help="the picture to draw (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.side < 4 or options.side % 2:
        parser.error(f"--side must be an even number from 4 on, got {options.side}")

    beta, results = options.beta, []
    for side, exact in ((4, enumerated_free_energy(4, beta)), (options.side, kaufman_free_energy(options.side, beta))):
        model, history = train(side, beta, options.steps, options.batch, options.lr)
        results.append(measure(model, history, side, beta, exact))
    draw(results, beta, options.out)
    print(f"drew {options.out}")
    return results


if __name__ == "__main__":
    main()
