"""The Diagonal BiLSTM's recipes. They have not been measured yet, so they promise nothing."""

from __future__ import annotations

from pyar.recipes import Published, Recipe, Size, until_a_plateau

_IMAGES = {
    "epochs": None,
    "time_budget": 3600.0,
    "batch_size": 20,
    "learning_rate": 3e-3,
    "warmup_steps": 200,
    "clip_norm": 1.0,
    "eval_batch_size": 200,
}


def general(size: Size) -> Recipe:
    """The Diagonal BiLSTM for images that have no recipe of their own."""
    return Recipe(
        name="diagonal-bilstm",
        model="diagonal-bilstm",
        data=None,
        training=until_a_plateau(size) | {"learning_rate": 3e-3, "clip_norm": 1.0, "eval_batch_size": 200},
    )


RECIPES = (
    Recipe(
        name="diagonal-bilstm-binarized-mnist",
        model="diagonal-bilstm",
        data="binarized-mnist",
        training=_IMAGES,
        threads=1,
        published=(Published(79.20, "Diagonal BiLSTM", "van den Oord et al. 2016"),),
    ),
)
