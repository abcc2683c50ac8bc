"""NADE's recipes. Chosen by validation NLL."""

from __future__ import annotations

from pyar.recipes import Published, Reached, Recipe, Size, until_a_plateau

_IMAGES = {"epochs": None, "time_budget": 600.0, "learning_rate": 2e-3, "weight_decay": 0.1}
_NADE = Published(88.33, "NADE, fixed order", "Uria et al. 2016, table 3")


def general(size: Size) -> Recipe:
    """NADE for data that have no recipe of their own."""
    # More than 32 states are grey values: ordered, and too many to learn each by itself.
    scalar = size.num_states > 32
    inputs, outputs = 1 if scalar else size.num_states - 1, 1 if size.num_states == 2 else size.num_states
    # At most some 50 million weights, which training keeps six times.
    hidden_size = max(32, min(500, 50_000_000 // (size.dim * (inputs + outputs))))
    # Fewer rows are sooner overfitted: 400 of 180 and of 784 bits lose 1.5 and 2.5 nats at 0.1 against 1.
    weight_decay = max(0.1, min(1.0, 400 / size.rows))
    return Recipe(
        name="nade",
        model="nade",
        data=None,
        model_options={"hidden_size": hidden_size, "input": "scalar" if scalar else "onehot"},
        training=until_a_plateau(size) | {"learning_rate": 2e-3, "weight_decay": weight_decay},
    )


RECIPES = (
    Recipe(
        name="nade-digits",
        model="nade",
        data="digits",
        # Grey values are ordered, and 1,439 images are too few to learn that from a weight for every one of 17 states.
        model_options={"hidden_size": 500, "input": "scalar"},
        training={"epochs": 120, "learning_rate": 2e-3, "patience": 20},
        reached=Reached(
            test_nll=88.09,
            test_error=0.93,
            valid_nll=88.27,
            seconds=40,
            threads=1,
            processor="AMD EPYC (family 25, model 17)",
            commit="d252cae",
        ),
        tolerance=2.0,  # 179 images, and training carries the last digits of its sums far
    ),
    Recipe(
        name="nade-binarized-mnist",
        model="nade",
        data="binarized-mnist",
        model_options={"hidden_size": 500},
        training=_IMAGES | {"time_budget": 270.0, "eval_every": 2.0},
        reached=Reached(
            test_nll=86.95,
            test_error=0.22,
            valid_nll=87.66,
            seconds=270,
            threads=2,
            processor="AMD EPYC (family 26, model 2)",
            commit="4327087",
        ),
        published=(_NADE,),
        log="docs/runs/nade-binarized-mnist-default.jsonl",
    ),
    Recipe(
        name="nade-binarized-mnist-20m",
        model="nade",
        data="binarized-mnist",
        model_options={"hidden_size": 500},
        training=_IMAGES | {"time_budget": 1200.0, "eval_every": 2.0},
        default=False,
        threads=1,
        reached=Reached(
            test_nll=86.95,
            test_error=0.22,
            valid_nll=87.66,
            seconds=1201,
            threads=1,
            processor="AMD EPYC, AVX-512",
            commit="be53d41",
        ),
        published=(_NADE,),
        log="docs/runs/nade-binarized-mnist-20m.jsonl",
    ),
    Recipe(
        name="nade-mnist",
        model="nade",
        data="mnist",
        model_options={"hidden_size": 500},
        training=_IMAGES,
    ),
    Recipe(
        name="nade-mnist-levels-10-9m",
        model="nade",
        data="mnist",
        preparation={"levels": 10},
        model_options={"hidden_size": 500},
        training=_IMAGES | {"time_budget": 540.0},
        default=False,
        threads=1,
        reached=Reached(
            test_nll=235.66,
            test_error=0.64,
            valid_nll=238.82,
            seconds=541,
            threads=1,
            processor="AMD EPYC, AVX-512",
            commit="be53d41",
            bits_per_dimension=0.434,
        ),
        tolerance=1.5,
        log="docs/runs/nade-mnist-levels-10-9m.jsonl",
    ),
    Recipe(
        name="nade-fashion-mnist",
        model="nade",
        data="fashion-mnist",
        model_options={"hidden_size": 500},
        training=_IMAGES,
    ),
)
