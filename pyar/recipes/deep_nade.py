"""DeepNADE's recipes."""

from __future__ import annotations

from pyar.recipes import Recipe, Size, until_a_plateau


def general(size: Size) -> Recipe:
    """DeepNADE for data that have no recipe of their own."""
    outputs = 1 if size.num_states == 2 else size.num_states
    # At most some 50 million weights, which training keeps six times.
    units = max(32, min(500, 40_000_000 // (size.dim * (size.num_states + outputs))))
    return Recipe(
        name="deep-nade",
        model="deep-nade",
        data=None,
        model_options={"hidden_sizes": [units, units]},
        training=until_a_plateau(size) | {"ema": 0.999},
    )


RECIPES: tuple[Recipe, ...] = ()
