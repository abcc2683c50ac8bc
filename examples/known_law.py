"""A table of eight mixed columns whose law is known in closed form: how near TableNADE comes to it.

Categories, yes/no, measurements and a count, which depend on one another. The model learns from 20,000 rows; then

1. the Kullback–Leibler divergence from the law, mean of log p − log q over fresh rows, for mixtures of more and more
   orders: 0 would be the law itself;
2. what the model says of a conditional, P(flag | z), beside the truth.

    python examples/known_law.py --steps 10000

It takes a minute or two on one core.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import pyar
from pyar.tables import Binary, Categorical, Columns, Integer, Real

COLUMNS = {
    "group": Categorical((0, 1, 2)),
    "member": Binary((0, 1)),
    "x": Real(),
    "y": Real(),
    "count": Integer(0, 6),
    "z": Real(),
    "flag": Binary((0, 1)),
    "grade": Categorical((0, 1, 2, 3)),
}
P_GROUP = np.array([0.5, 0.3, 0.2])
P_MEMBER = np.array([0.2, 0.5, 0.8])  # given the group
MEANS = np.array([-2.0, 0.0, 2.0])  # of x, given the group
P_GRADE = np.array([0.4, 0.3, 0.2, 0.1])  # from below or from above, as flag says


def sigmoid(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))


def draw(rows: int, seed: int) -> pd.DataFrame:
    """Rows of the law."""
    generator = np.random.default_rng(seed)
    group = generator.choice(3, rows, p=P_GROUP)
    member = (generator.random(rows) < P_MEMBER[group]).astype(int)
    x = MEANS[group] + np.where(member == 1, 0.5, 1.0) * generator.normal(size=rows)
    y = 0.8 * x + 0.6 * generator.normal(size=rows)
    count = generator.binomial(6, sigmoid(x))
    z = np.where(generator.random(rows) < 0.3, -1.5, 1.0) + 0.4 * generator.normal(size=rows)
    flag = (generator.random(rows) < sigmoid(2 * z)).astype(int)
    grade = generator.choice(4, rows, p=P_GRADE)
    grade = np.where(flag == 1, grade, 3 - grade)
    columns = (group, member, x, y, count, z, flag, grade)
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def log_density(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The law's log-density of every row, in nats."""
    group, member, x, y, count, z, flag, grade = (rows[name].to_numpy() for name in COLUMNS)

    def normal(value: NDArray, mean: NDArray | float, scale: NDArray | float) -> NDArray:
        return -0.5 * ((value - mean) / scale) ** 2 - np.log(scale * math.sqrt(2 * math.pi))

    def bernoulli(value: NDArray, p: NDArray) -> NDArray:
        return np.log(np.where(value == 1, p, 1 - p))

    choose = np.array([math.comb(6, k) for k in range(7)])
    total = np.log(P_GROUP[group]) + bernoulli(member, P_MEMBER[group])
    total += normal(x, MEANS[group], np.where(member == 1, 0.5, 1.0)) + normal(y, 0.8 * x, 0.6)
    total += np.log(choose[count]) + count * np.log(sigmoid(x)) + (6 - count) * np.log(sigmoid(-x))
    total += np.logaddexp(math.log(0.3) + normal(z, -1.5, 0.4), math.log(0.7) + normal(z, 1.0, 0.4))
    total += bernoulli(flag, sigmoid(2 * z)) + np.log(P_GRADE[np.where(flag == 1, grade, 3 - grade)])
    return total


def remember(average: torch.Tensor, weights: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """A moving average that early on has a shorter memory, so that it forgets the initial weights."""
    return torch.lerp(average, weights, 1 - min(0.999, (1 + int(count)) / (10 + int(count))))


def train(columns: Columns, x: torch.Tensor, steps: int) -> pyar.TableNADE:
    """A TableNADE with the averaged weights of a plain Adam run."""
    torch.manual_seed(0)
    model = pyar.TableNADE(columns, (200, 200)).initialize_from_marginals(x)
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=remember)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_loss(x[torch.randint(len(x), (200,))]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    return average.module.eval()


def main(arguments: list[str] | None = None) -> dict[int, float]:
    """Prints both parts; returns the divergence by the number of orders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="of training [%(default)s]")
    parser.add_argument("--rows", type=int, default=20_000, help="to learn from [%(default)s]")
    options = parser.parse_args(arguments)

    rows, fresh = draw(options.rows, 0), draw(4000, 1)
    columns = Columns(COLUMNS).standardized(rows)
    model = train(columns, columns.encode(rows), options.steps)
    truth, x, divergences = log_density(fresh), columns.encode(fresh), {}
    for orders in (1, 2, 4, 8):
        with torch.no_grad():
            excess = truth - model.log_prob(x, orders=orders).double().numpy()
        divergences[orders] = float(excess.mean())
        error = excess.std() / math.sqrt(len(excess))
        print(f"{orders} order{'s' if orders > 1 else ' '}  KL {divergences[orders]:.4f} ± {error:.4f} nats")

    asked = pd.DataFrame({"z": [-1.5, 0.0, 1.0]})
    with torch.no_grad():
        logits = model.conditionals(columns.encode(asked, subset=True))["flag"][:, 0]
    for z, p in zip(asked["z"], torch.sigmoid(logits).tolist(), strict=True):
        print(f"P(flag = 1 | z = {z:4.1f}) = {p:.3f}, in truth {sigmoid(2 * z):.3f}")
    return divergences


if __name__ == "__main__":
    torch.set_num_threads(1)  # steps of so small a network gain nothing from a second
    main()
