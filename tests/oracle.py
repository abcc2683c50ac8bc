"""What the tests judge by: enumeration, float64, the inverse CDF and χ²."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import scipy.stats
import torch
from torch import Tensor

from pyar.reference.draw import draw, log_probabilities


class NadeParameters(NamedTuple):
    """NADE's parameters as every function of pyar.reference.nade and pyar.ops.nade takes them."""

    W: Tensor
    c: Tensor
    V: Tensor
    b: Tensor
    mlp: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        return [*self[:4], *self.mlp]

    @property
    def num_states(self) -> int:
        return 2 if self.V.shape[1] == 1 else self.V.shape[1]

    def map(self, function: Callable[[Tensor], Tensor]) -> NadeParameters:
        return NadeParameters(*(function(tensor) for tensor in self[:4]), tuple(map(function, self.mlp)))

    def double(self) -> NadeParameters:
        return self.map(lambda tensor: tensor.detach().double())

    def leaves(self) -> NadeParameters:
        """Fresh copies that gather gradients."""
        return self.map(lambda tensor: tensor.detach().clone().requires_grad_())


def nade_parameters(
    D: int,
    K: int,
    H: int,
    *,
    scalar: bool = False,
    mlp_sizes: Sequence[int] = (),
    seed: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> NadeParameters:
    """Random parameters whose activations and logits are of order `scale` at any D and H."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return (scale * std * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(device, dtype)

    P = 1 if K == 2 else K
    sizes = (H, *mlp_sizes)
    mlp = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        mlp += [normal(fan_out, fan_in, std=1.5 * fan_in**-0.5), normal(fan_out, std=0.3)]
    return NadeParameters(
        normal(D, H, std=2 * D**-0.5) if scalar else normal(D, K - 1, H, std=D**-0.5),
        normal(H, std=0.5),
        normal(D, P, sizes[-1], std=2 * sizes[-1] ** -0.5),
        normal(D, P, std=0.5),
        tuple(mlp),
    )


class AnyOrderParameters(NamedTuple):
    """DeepNADE's and TableNADE's parameters as the functions of pyar.ops take them."""

    W: Tensor
    U: Tensor
    c: Tensor
    hidden: tuple[Tensor, ...]
    V: Tensor
    b: Tensor
    activation: str

    def map(self, function: Any) -> AnyOrderParameters:
        first, hidden = (function(tensor) for tensor in self[:3]), tuple(map(function, self.hidden))
        return AnyOrderParameters(*first, hidden, function(self.V), function(self.b), self.activation)

    def double(self) -> AnyOrderParameters:
        return self.map(lambda tensor: tensor.double())


def random_states(B: int, D: int, K: int, seed: int = 0, zeros: float = 0.0) -> Tensor:
    """uint8 [B, D], uniform but for a further share of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(K, (B, D), generator=generator, dtype=torch.uint8)
    return x.masked_fill_(torch.rand(B, D, generator=generator) < zeros, 0)


def all_states(D: int, K: int) -> Tensor:
    """Every vector of {0 … K−1}^D: uint8 [K^D, D], the last dimension running fastest."""
    return torch.tensor(list(itertools.product(range(K), repeat=D)), dtype=torch.uint8)


def assert_as_accurate(
    actual: Tensor, float32: Tensor | Sequence[Tensor], float64: Tensor, what: str = "result"
) -> None:
    """The rule for every kernel: at most twice the error of the float32 reference, judged by the float64 one.

    Errors are the largest of all elements. Where the result is a sum over the batch, float32 may hold the results for
    several orders of the batch, so that a small case is not judged by the luck of one order's rounding. The floor is
    two roundings of the largest element: a float32 reference that happens to be exact asks for nothing that float32
    cannot hold.
    """
    references = [float32] if isinstance(float32, Tensor) else float32
    assert actual.dtype == torch.float32, f"{what} is {actual.dtype}"
    assert actual.shape == float64.shape, f"{what} is {list(actual.shape)}, expected {list(float64.shape)}"
    if actual.numel() == 0:
        return
    exact = float64.detach().double().cpu()
    error = (actual.detach().double().cpu() - exact).abs().max().item()
    allowed = 2 * max((reference.detach().double().cpu() - exact).abs().max().item() for reference in references)
    floor = 2 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    assert error <= allowed + floor, f"{what}: error {error:.3g}, allowed {allowed:.3g} + floor {floor:.3g}"


def assert_inverse_cdf(
    x: Tensor, outputs: Tensor, u: Tensor, temperature: float = 1.0, first_step: int = 0, margin: float = 1e-5
) -> None:
    """Every drawn state is the inverse CDF of its uniform under float64 conditionals.

    Only where the uniform lies within `margin` of a boundary of the float64 CDF may a state next to it be drawn.

    Args:
        x: uint8 [N, D], drawn.
        outputs: float64 [N, D, P], the conditionals' outputs given x, at temperature 1.
        u: [N, D].
        first_step: the columns before it were given, not drawn.
    """
    outputs = (outputs / temperature)[:, first_step:].flatten(0, 1)
    u = u[:, first_step:].flatten().double()
    drawn = x[:, first_step:].flatten().long()
    if drawn.numel() == 0:
        return
    expected = draw(outputs, u)
    cdf = torch.nn.functional.pad(log_probabilities(outputs).exp().cumsum(dim=-1), (1, 0))
    below, above = (cdf.gather(1, drawn[:, None] + i).squeeze(1) for i in (0, 1))
    is_explained = (below - margin < u) & (u < above + margin)
    wrong = (drawn != expected) & ~is_explained
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} states are not the inverse CDF of their uniform"
    # Uniforms that close to one of K boundaries are rare: the exception must not swallow the rule.
    num_differing, num_states = int((drawn != expected).sum()), cdf.shape[1] - 1
    assert num_differing <= 2 + 2 * margin * num_states * drawn.numel(), f"{num_differing} states differ at boundaries"


def chi_square_p_value(x: Tensor, log_law: Tensor, K: int) -> float:
    """The p-value of Pearson's χ² test that the rows of x follow a law over all_states(D, K).

    Cells are pooled until each expects at least 10 draws.
    """
    N, D = x.shape
    place = K ** torch.arange(D - 1, -1, -1)
    counts = torch.bincount((x.long().cpu() * place).sum(dim=1), minlength=K**D).double()
    expected, cell = (N * log_law.double().cpu().exp()).sort(descending=True)
    counts = counts[cell]
    is_large = expected >= 10
    observed = torch.cat((counts[is_large], counts[~is_large].sum()[None]))
    expected = torch.cat((expected[is_large], expected[~is_large].sum()[None]))
    if expected[-1] < 10:
        observed[-2], expected[-2] = observed[-2:].sum(), expected[-2:].sum()
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    return float(scipy.stats.chi2.sf(statistic, len(expected) - 1))


def assert_follows_law(x: Tensor, log_law: Tensor, wrong_log_law: Tensor, K: int) -> None:
    """The rows of x pass χ² against their law, and the same draws reject a slightly wrong one: the test has power."""
    p_value = chi_square_p_value(x, log_law, K)
    assert p_value > 1e-3, f"the samples do not follow the enumerated law: p = {p_value:.2g}"
    wrong_p_value = chi_square_p_value(x, wrong_log_law, K)
    assert wrong_p_value < 1e-6, f"the test has no power: it accepts a wrong law with p = {wrong_p_value:.2g}"
