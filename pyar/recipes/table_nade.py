"""TableNADE's recipes."""

from __future__ import annotations

from pyar.recipes import Recipe, Size, until_a_plateau


def general(size: Size) -> Recipe:
    """TableNADE for tables that have no recipe of their own."""
    few = size.rows < 5000  # that a network of this size would learn by heart
    return Recipe(
        name="table-nade",
        model="table-nade",
        data=None,
        model_options={"hidden_sizes": [200, 200], "dropout": 0.1 if few else 0.0},
        training=until_a_plateau(size)
        | {
            "learning_rate": 3e-3,
            "weight_decay": 0.1 if few else 0.01,
            "clip_norm": 5.0,
            "ema": 0.998,
            "plateau_patience": 10,
        }
        | {"min_learning_rate": 2e-4, "max_steps": 20_000},
    )


RECIPES: tuple[Recipe, ...] = ()
