"""RNADE's recipes."""

from __future__ import annotations

from pyar.recipes import Recipe, Size, until_a_plateau


def general(size: Size) -> Recipe:
    """RNADE for data that have no recipe of their own."""
    return Recipe(
        name="rnade",
        model="rnade",
        data=None,
        model_options={},
        training=until_a_plateau(size) | {"learning_rate": 3e-3, "clip_norm": 5.0},
    )


RECIPES: tuple[Recipe, ...] = ()
