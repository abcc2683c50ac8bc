"""DeepNADE's recipes."""

from __future__ import annotations

from pyar.recipes import Published, Reached, Recipe, Size, until_a_plateau


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


RECIPES = (
    Recipe(
        name="deep-nade-binarized-mnist",
        model="deep-nade",
        data="binarized-mnist",
        # Without dropout the valid NLL stands still at 93.3 from 280 epochs on while the train NLL goes on falling.
        model_options={"hidden_sizes": [500, 500], "dropout": 0.15},
        training={
            "epochs": 380,
            "batch_size": 200,
            "learning_rate": 1.5e-3,
            "warmup_steps": 500,
            "ema": 0.999,
            "eval_every": 5.0,
        },
        orders=32,
        threads=1,
        reached=Reached(
            test_nll=91.91,
            test_error=0.24,
            valid_nll=92.56,
            seconds=2766,
            threads=1,
            processor="AMD EPYC (family 25, model 17)",
            commit="c527958",
            mixture_nll=88.69,
        ),
        published=(
            Published(89.17, "DeepNADE, two layers", "Uria et al. 2016, table 3"),
            Published(85.10, "EoNADE, two layers, 128 orders", "Uria et al. 2016, table 3", orders=128),
        ),
    ),
)
