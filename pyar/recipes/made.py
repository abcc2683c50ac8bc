"""MADE's recipes."""

from __future__ import annotations

from pyar.recipes import Published, Reached, Recipe, Size, until_a_plateau


def general(size: Size) -> Recipe:
    """MADE for data that have no recipe of their own."""
    # More than 32 states are grey values: ordered, and too many to learn each by itself.
    scalar = size.num_states > 32
    inputs, outputs = 1 if scalar else size.num_states - 1, 1 if size.num_states == 2 else size.num_states
    # At most some 50 million weights, which training keeps six times: direct connections where they leave room.
    direct = size.dim**2 * inputs * outputs <= 10_000_000
    units = max(32, min(500, 40_000_000 // (size.dim * (inputs + outputs))))
    return Recipe(
        name="made",
        model="made",
        data=None,
        model_options={
            "hidden_sizes": [units, units],
            "direct": direct,
            "input": "scalar" if scalar else "onehot",
        },
        training=until_a_plateau(size) | {"weight_decay": 0.1, "ema": 0.999},
    )


RECIPES = (
    Recipe(
        name="made-binarized-mnist",
        model="made",
        data="binarized-mnist",
        # On the valid split, without dropout: one layer of 4,000 units 88.82, of 2,000 89.39, two of 500 90.28.
        model_options={"hidden_sizes": [4000], "dropout": 0.2},
        training={
            "epochs": 40,
            "learning_rate": 1e-3,
            "weight_decay": 0.3,
            "ema": 0.999,
            "eval_every": 2.0,
        },
        threads=1,
        reached=Reached(
            test_nll=88.14,
            test_error=0.22,
            valid_nll=88.93,
            seconds=656,
            threads=1,
            processor="AMD EPYC (family 25, model 17)",
            commit="4b43385",
        ),
        published=(Published(88.40, "MADE, one mask", "Germain et al. 2015"),),
        log="docs/runs/made-binarized-mnist.jsonl",
    ),
)
