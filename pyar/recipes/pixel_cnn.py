"""PixelCNN's recipes."""

from __future__ import annotations

from pyar.recipes import Published, Recipe, Size, until_a_plateau


def general(size: Size) -> Recipe:
    """PixelCNN for images that have no recipe of their own."""
    return Recipe(
        name="pixel-cnn",
        model="pixel-cnn",
        data=None,
        model_options={"features": 32, "num_layers": 7},
        training=until_a_plateau(size) | {"batch_size": 16, "clip_norm": 1.0, "eval_batch_size": 100},
    )


RECIPES = (
    Recipe(
        name="pixel-cnn-binarized-mnist",
        model="pixel-cnn",
        data="binarized-mnist",
        model_options={"features": 32, "num_layers": 7},
        training={
            "epochs": None,
            "time_budget": 3600.0,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "clip_norm": 1.0,
            "eval_every": 0.25,
            "eval_batch_size": 100,
        },
        published=(
            Published(81.30, "PixelCNN", "van den Oord et al. 2016"),
            Published(80.10, "gated PixelCNN", "van den Oord et al. 2016"),
        ),
    ),
)
