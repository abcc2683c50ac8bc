"""The package without its extension: one warning with the remedy, and the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyar
from pyar import native

ROOT = Path(__file__).parent.parent

PROGRAM = """
import sys, warnings
sys.modules["pyar._C"] = None  # importing it raises ImportError
import torch, pyar

assert not pyar.build_info()["extension"]
models = torch.load(sys.argv[1], weights_only=True)
result = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name, (family, config, state, x) in models.items():
        model = getattr(pyar, family)(**config)
        model.load_state_dict(state)
        loss = model.mean_nll(x)
        drawn, log_prob = model.sample_and_log_prob(20, seed=5, first_index=3, temperature=0.9)
        weighted = model.mean_nll(x, torch.linspace(-1, 2, 6))

        def one(parameters, row):
            return torch.func.functional_call(model, parameters, (row[None],)).sum()

        parameters = dict(model.named_parameters())
        each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))(parameters, x)
        result[name] = {
            "conditional_log_prob": model.conditional_log_prob(x).detach(),
            "weighted": weighted.detach(),
            "weighted_gradients": list(torch.autograd.grad(weighted, list(model.parameters()))),
            "each": [gradient.detach() for gradient in each.values()],
            "log_prob": model.log_prob(x).detach(),
            "logits": model.logits(x).detach(),
            "mean_nll": loss.detach(),
            "gradients": list(torch.autograd.grad(loss, list(model.parameters()))),
            "drawn": drawn,
            "drawn_log_prob": log_prob,
        }
torch.save({"result": result, "warnings": [str(warning.message) for warning in caught]}, sys.argv[2])
"""


def build_models() -> dict[str, pyar.models.AutoregressiveModel]:
    torch.manual_seed(3)
    models = {
        "binary": pyar.NADE(12, 2, 9),
        "grey": pyar.NADE(12, 5, 9, input="scalar", mlp_sizes=(7,), order=list(reversed(range(12)))),
        "lstm": pyar.PixelLSTM(12, 3, 8),
    }
    with torch.no_grad():
        for model in models.values():
            for parameter in model.parameters():
                parameter.normal_(std=0.5)
    return models


@pytest.fixture(scope="module")
def without_extension(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a process that cannot import pyar._C computes and warns."""
    folder = tmp_path_factory.mktemp("fallback")
    models = {}
    for name, model in build_models().items():
        x = torch.randint(model.num_states, (6, 12), generator=torch.Generator().manual_seed(0))
        models[name] = (type(model).__name__, model.config, model.state_dict(), x)
    torch.save(models, folder / "models.pt")
    command = [sys.executable, "-c", PROGRAM, str(folder / "models.pt"), str(folder / "result.pt")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, check=True, env=environment)
    return torch.load(folder / "result.pt", weights_only=True)


def test_says_so_once_with_the_remedy(without_extension: dict) -> None:
    assert len(without_extension["warnings"]) == 1
    message = without_extension["warnings"][0]
    assert "native extension could not be imported" in message
    assert "Remedy: " in message
    assert "`pip install -e .`" in message  # this is the source folder


@pytest.mark.parametrize("name", build_models())
def test_gives_the_same_numbers(without_extension: dict, name: str) -> None:
    model, theirs = build_models()[name], without_extension["result"][name]
    x = torch.randint(model.num_states, (6, 12), generator=torch.Generator().manual_seed(0))
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(model.log_prob(x).detach(), theirs["log_prob"], **close)
    torch.testing.assert_close(model.logits(x).detach(), theirs["logits"], **close)
    loss = model.mean_nll(x)
    torch.testing.assert_close(loss.detach(), theirs["mean_nll"], **close)
    for ours, other in zip(torch.autograd.grad(loss, list(model.parameters())), theirs["gradients"], strict=True):
        torch.testing.assert_close(ours, other, **close)
    torch.testing.assert_close(model.conditional_log_prob(x).detach(), theirs["conditional_log_prob"], **close)
    weighted = model.mean_nll(x, torch.linspace(-1, 2, 6))
    torch.testing.assert_close(weighted.detach(), theirs["weighted"], **close)
    gradients = torch.autograd.grad(weighted, list(model.parameters()))
    for ours, other in zip(gradients, theirs["weighted_gradients"], strict=True):
        torch.testing.assert_close(ours, other, **close)
    each = [torch.autograd.grad(model.log_prob(row[None]), list(model.parameters())) for row in x]
    for ours, other in zip(zip(*each, strict=True), theirs["each"], strict=True):
        torch.testing.assert_close(torch.stack(ours), other, **close)
    drawn, log_prob = model.sample_and_log_prob(20, seed=5, first_index=3, temperature=0.9)
    assert torch.equal(drawn, theirs["drawn"])
    torch.testing.assert_close(log_prob, theirs["drawn_log_prob"], **close)


@pytest.mark.skipif(native._C is None, reason="the extension is not built")
@pytest.mark.parametrize(
    ("device_type", "reason", "remedy"),
    [
        ("cuda", "built without CUDA", "PYAR_CUDA=1 pip install"),
        ("mps", "no kernels for mps devices", "move the model to a CPU or CUDA device"),
    ],
)
def test_every_reason_has_a_remedy(device_type: str, reason: str, remedy: str) -> None:
    with pytest.warns(UserWarning, match=f"{reason}; the slow PyTorch reference runs instead. Remedy: .*{remedy}"):
        native.warn_reference.__wrapped__(device_type)  # beneath the cache that makes it speak once
