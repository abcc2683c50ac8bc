"""Writes the files that later releases must be able to read: `python tests/formats/write.py tests/formats/VERSION`.

Run once with the code of a release whose files differ from the last one's, and never again.

Models: MODEL.safetensors and, in MODEL.json, states x and the log_prob that this release gave them. Runs: a folder run
stopped in the middle of an epoch, and in expected.json how it ended when this release went on with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

import pyar
from pyar.checkpoint import STATE_FILE, save_model
from pyar.cli import main
from pyar.training import Trainer

MODELS = {
    "nade": lambda: pyar.NADE(9, hidden_size=4),
    "nade-layers": lambda: pyar.NADE(5, 3, 4, input="scalar", mlp_sizes=(3, 2), order=[4, 2, 0, 1, 3]),
    "pixel-lstm": lambda: pyar.PixelLSTM(9, hidden_size=3),
    "pixel-lstm-layers": lambda: pyar.PixelLSTM(5, 3, 3, 2, input="scalar", weight_dtype="bfloat16", order=range(5)),
}
TRAIN = ["--binarize", "dynamic", "--hidden-size", "2", "--epochs", "2", "--batch-size", "300", "--ema", "0.9"]
TRAIN += ["--patience", "7", "--clip-norm", "1", "--weight-decay", "0.1", "--warmup-steps", "3", "--samples", "0"]
QUIET = ["--no-progress", "--threads", "1"]
STOP_AT = 7  # of 10 steps


def write_model(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape))
    save_model(model, folder / f"{name}.safetensors", {"note": "weights at random"})
    x = torch.randint(0, model.num_states, (6, model.dim), dtype=torch.uint8)
    expected = {"x": x.tolist(), "log_prob": model.log_prob(x).tolist()}
    (folder / f"{name}.json").write_text(json.dumps(expected) + "\n")


def write_run(name: str, folder: Path) -> None:
    inner = Trainer._step

    def stop(self: Trainer, *arguments: object) -> object:
        if self.step + 1 == STOP_AT:
            signal.raise_signal(signal.SIGINT)
        return inner(self, *arguments)

    Trainer._step = stop
    assert main(["train", name, *TRAIN, *QUIET, "--out", str(folder)]) == 130
    Trainer._step = inner
    finished = Path(f"{folder}.finished")
    shutil.copytree(folder, finished)
    assert main(["train", "--resume", str(finished), *QUIET, "--samples", "0"]) == 0
    result = json.loads((finished / "result.json").read_text())
    expected = {name: result[name] for name in ("reason", "steps", "best_step", "best_valid_nll", "test")}
    (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    shutil.rmtree(finished)
    (folder / "learning_curve.png").unlink()
    print((folder / STATE_FILE).stat().st_size, "bytes of training state")


if __name__ == "__main__":
    os.environ.pop("PYAR_DATA", None)
    target = Path(sys.argv[1])
    target.mkdir()
    for name in MODELS:
        write_model(name, target)
    for name in ("nade", "pixel-lstm"):
        write_run(name, target / f"{name}-run")
