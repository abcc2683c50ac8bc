"""The Row LSTM's recipes."""

from __future__ import annotations

from pyar.recipes import Published, Reached, Recipe, Size, until_a_plateau


def general(size: Size) -> Recipe:
    """The Row LSTM for images that have no recipe of their own."""
    return Recipe(
        name="row-lstm",
        model="row-lstm",
        data=None,
        training=until_a_plateau(size) | {"learning_rate": 3e-3, "clip_norm": 1.0, "eval_batch_size": 200},
    )


RECIPES = (
    Recipe(
        name="row-lstm-binarized-mnist",
        model="row-lstm",
        data="binarized-mnist",
        # After nine epochs the train and the valid NLL are the same: more of both, time and units, would lower them.
        model_options={"hidden_size": 16, "num_layers": 7},
        training={
            "epochs": 100,  # more than the time allows: the learning rate follows the clock
            "time_budget": 3720.0,
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
            test_nll=82.71,
            test_error=0.20,
            valid_nll=83.14,
            seconds=3731,
            threads=1,
            processor="AMD EPYC (family 25, model 17)",
            commit="ea0f642",
        ),
        published=(Published(80.54, "Row LSTM", "van den Oord et al. 2016"),),
        log="docs/runs/row-lstm-binarized-mnist.jsonl",
    ),
)
