"""DeepNADE's recipes."""

from __future__ import annotations

from pyar.recipes import Published, Reached, Recipe, Size, until_a_plateau


def general(size: Size) -> Recipe:
    """DeepNADE for data that have no recipe of their own."""
    outputs = 1 if size.num_states == 2 else size.num_states
    # At most some 50 million weights, which training keeps six times.
    units = max(32, min(2000, 40_000_000 // (size.dim * (size.num_states + outputs))))
    return Recipe(
        name="deep-nade",
        model="deep-nade",
        data=None,
        # One wide layer: of 1,400 rows of 180 bits two layers of 500 units learn by heart what they should generalise
        # (88.3 nats on the valid split against 82.8), and of 5,000 rows of 123 bits too (14.3 against 14.0).
        model_options={"hidden_sizes": [units]},
        training=until_a_plateau(size)
        | {"batch_size": 100, "weight_decay": 0.3 if size.rows < 10_000 else 0.1, "ema": 0.999},
    )


RECIPES = (
    Recipe(
        name="deep-nade-binarized-mnist",
        model="deep-nade",
        data="binarized-mnist",
        model_options={"hidden_sizes": [500, 500], "dropout": 0.05},
        training={
            "epochs": 5000,  # more than the time allows: the learning rate follows the clock
            "time_budget": 5400.0,
            "batch_size": 200,
            "learning_rate": 1.5e-3,
            "warmup_steps": 500,
            "weight_decay": 0.05,
            "ema": 0.999,
            "eval_every": 10.0,
            "amp": True,
        },
        orders=32,
        threads=1,
        reached=Reached(
            test_nll=88.85,
            test_error=0.23,
            valid_nll=89.54,
            seconds=5402,
            threads=1,
            processor="AMD EPYC (family 25, model 17)",
            commit="ea0f642",
            mixture_nll=85.95,
        ),
        published=(
            Published(89.17, "DeepNADE, two layers", "Uria et al. 2016, table 3"),
            Published(85.10, "EoNADE, two layers, 128 orders", "Uria et al. 2016, table 3", orders=128),
        ),
        log="docs/runs/deep-nade-binarized-mnist.jsonl",
    ),
)
