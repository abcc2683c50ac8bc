"""The Diagonal BiLSTM's recipes."""

from __future__ import annotations

from pyar.recipes import Published, Reached, Recipe, Size, until_a_plateau


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
        model_options={"hidden_size": 16, "num_layers": 7},
        training={
            "epochs": 100,  # more than the time allows: the learning rate follows the clock
            "time_budget": 3600.0,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "warmup_steps": 200,
            "clip_norm": 1.0,
            "ema": 0.999,
            "eval_every": 1.0,
            "eval_batch_size": 200,
        },
        threads=1,
        reached=Reached(
            test_nll=79.70,
            test_error=0.20,
            valid_nll=80.07,
            seconds=3619,
            threads=1,
            processor="AMD EPYC (family 25, model 17)",
            commit="ea0f642",
        ),
        published=(Published(79.20, "Diagonal BiLSTM", "van den Oord et al. 2016"),),
        log="docs/runs/diagonal-bilstm-binarized-mnist.jsonl",
    ),
)
