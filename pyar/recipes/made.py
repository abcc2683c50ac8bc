"""MADE's recipes."""

from __future__ import annotations

from pyar.recipes import Recipe, Size, until_a_plateau


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


RECIPES: tuple[Recipe, ...] = ()
