"""Hooks, parametrizations and replaced layers: they take effect at every call, or are refused; nothing is ignored."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import random_states
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import pyar
from pyar.checkpoint import save_model
from pyar.models import AutoregressiveModel

D, K = 5, 3
TARGETS = {
    "head": (lambda: pyar.PixelLSTM(D, K, 6, 2), lambda model: model.head, "weight"),
    "lstm": (lambda: pyar.PixelLSTM(D, K, 6, 2), lambda model: model.lstm, "weight_hh_l1"),
    "mlp[1]": (lambda: pyar.NADE(D, K, 6, mlp_sizes=[7, 4]), lambda model: model.mlp[1], "weight"),
    "W": (lambda: pyar.NADE(D, 2, 6, order=[3, 0, 4, 2, 1]), lambda model: model, "W"),
    "V": (lambda: pyar.NADE(D, K, 6, mlp_sizes=[4]), lambda model: model, "V"),
}


def old_weight_norm(layer: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer, name)


KINDS: dict[str, Callable[[nn.Module, str], object]] = {
    "weight_norm": old_weight_norm,
    "spectral_norm": lambda layer, name: nn.utils.spectral_norm(layer.eval(), name),
    "prune": lambda layer, name: prune.random_unstructured(layer, name, amount=0.5),
    "twice pruned": lambda layer, name: [prune.l1_unstructured(layer, name, amount=0.3) for _ in range(2)],
    "parametrizations.weight_norm": lambda layer, name: parametrizations.weight_norm(layer, name),
    "parametrizations.spectral_norm": lambda layer, name: parametrizations.spectral_norm(layer.eval(), name),
}


def randomise(model: AutoregressiveModel) -> AutoregressiveModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7, generator=generator)
    return model


def assert_the_same(model: AutoregressiveModel, plain: AutoregressiveModel) -> None:
    """Every method of the one gives what the other gives."""
    x = random_states(7, D, model.num_states)
    for name in ("log_prob", "logits", "conditional_log_prob", "mean_nll", "__call__"):
        torch.testing.assert_close(getattr(model, name)(x), getattr(plain, name)(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.sample(20, seed=3), plain.sample(20, seed=3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_they_take_effect_at_every_call(target: str, kind: str) -> None:
    build, layer_of, name = TARGETS[target]
    model, plain = randomise(build()), build()
    torch.manual_seed(0)
    KINDS[kind](layer_of(model), name)
    model.eval()
    x = random_states(7, D, model.num_states)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.log_prob(x)
    for _ in range(3):
        # The plain model with the weights that the layer itself would now compute with.
        if layer_of(model) is not model:
            inputs = torch.zeros(1, 1, layer_of(model).in_features if target != "lstm" else K)
            layer_of(model)(inputs)
        else:
            model(x[:1])
        for key, parameter in plain.named_parameters():
            owner, _, last = key.rpartition(".")
            parameter.data.copy_(getattr(model.get_submodule(owner), last))
        assert_the_same(model, plain)
        optimizer.zero_grad()
        model.mean_nll(x).backward()
        model.mean_nll(x).backward()  # the graph of the weights is built anew
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert not torch.allclose(before, model.log_prob(x))


def test_pruned_weights_stay_zero_in_training() -> None:
    model = randomise(pyar.NADE(D, 2, 6))
    prune.random_unstructured(model, "W", amount=0.5)
    x, mask = random_states(20, D, 2), model.W_mask.bool()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.mean_nll(x).backward()
        assert (model.W_orig.grad[~mask] == 0).all()
        assert (model.W_orig.grad[:-1][mask[:-1]] != 0).any()
        optimizer.step()
    prune.remove(model, "W")
    assert (model.W[~mask] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_saved_is_a_plain_model_that_loads(target: str, kind: str, tmp_path: Path) -> None:
    build, layer_of, name = TARGETS[target]
    model = randomise(build())
    KINDS[kind](layer_of(model), name)
    model.eval()
    x = random_states(7, D, model.num_states)
    earlier, expected = copy.deepcopy(model.state_dict()), model.log_prob(x).detach()
    save_model(model, tmp_path / "model")
    assert_the_same(model, pyar.load(tmp_path / "model"))
    model.mean_nll(x).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    save_model(model, tmp_path / "earlier", state_dict=earlier)
    torch.testing.assert_close(pyar.load(tmp_path / "earlier").log_prob(x), expected)
    assert not torch.allclose(model.log_prob(x), expected)


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrizations_of_every_parameter() -> None:
    for build in (lambda: pyar.NADE(D, K, 6, mlp_sizes=[4]), lambda: pyar.PixelLSTM(D, K, 6, 2)):
        model, doubled = randomise(build()), randomise(build())
        with torch.no_grad():
            for parameter in doubled.parameters():
                parameter.mul_(2)
        for key, _ in list(model.named_parameters()):
            owner, _, last = key.rpartition(".")
            parametrize.register_parametrization(model.get_submodule(owner), last, Scaled())
        assert_the_same(model, doubled)


@pytest.mark.parametrize("target", ["head", "lstm", "mlp[1]"])
def test_hooks_run_and_take_effect(target: str) -> None:
    build, layer_of, _ = TARGETS[target]
    model = randomise(build())
    layer, x, seen = layer_of(model), random_states(6, D, K), []
    expected = model.log_prob(x)

    def watch(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen.append((inputs[0].shape, module))

    handle = layer.register_forward_hook(watch)
    methods = ("log_prob", "logits", "conditional_log_prob", "mean_nll")
    values = {}
    for name in methods:
        values[name] = getattr(model, name)(x)
        assert seen
        seen.clear()
    torch.testing.assert_close(values["log_prob"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values["conditional_log_prob"].sum(dim=1), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values["mean_nll"], -expected.mean(), rtol=1e-5, atol=1e-5)
    assert model.log_prob(x[:0]).shape == (0,)
    with pytest.raises(
        RuntimeError, match=rf"{target.replace('[', '.').replace(']', '.')} has forward or backward hooks"
    ):
        model.sample(3, seed=1)
    handle.remove()
    drawn = model.sample(3, seed=1)
    torch.testing.assert_close(model.logits(x), values["logits"], rtol=1e-5, atol=1e-5)

    changes = [
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2, *inputs[1:])),
        layer.register_forward_hook(
            lambda module, inputs, output: (output[0] * 2, output[1]) if target == "lstm" else output * 2
        ),
    ]
    for handle in changes:
        assert not torch.allclose(model.log_prob(x), expected, rtol=1e-3)
        handle.remove()
    handle = layer.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output))
    model.mean_nll(x).backward()
    assert seen
    handle.remove()
    assert torch.equal(model.log_prob(x), expected)
    assert torch.equal(model.sample(3, seed=1), drawn)


def test_hooks_and_rounded_weights_are_refused() -> None:
    model = pyar.PixelLSTM(D, K, 6, weight_dtype="bfloat16")
    model.head.register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(RuntimeError, match="layers with hooks are computed in float32, but weight_dtype is 'bfloat16'"):
        model.log_prob(random_states(2, D, K))


class LoRA(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 1


class SubclassedLoRA(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def with_own_forward(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    layer.forward = lambda x: x
    return layer


REPLACED = [
    ("head", LoRA, TypeError, "head must be a torch.nn.Linear, .* got LoRA"),
    ("head", lambda old: SubclassedLoRA(6, K), TypeError, "head .* got SubclassedLoRA with another forward"),
    ("head", with_own_forward, TypeError, "head .* got Linear with another forward"),
    ("head", lambda old: nn.Sequential(old, nn.Dropout(0.1)), TypeError, "head .* got Sequential"),
    ("head", lambda old: nn.Linear(6, K + 1), ValueError, "head must have out_features=3, got out_features=4"),
    ("head", lambda old: nn.Linear(6, K, bias=False), ValueError, "head must have a bias"),
    ("lstm", lambda old: nn.GRU(K, 6, 2, batch_first=True), TypeError, "lstm must be a torch.nn.LSTM, .* got GRU"),
    ("lstm", lambda old: nn.LSTM(K, 6, 2), ValueError, "lstm must have batch_first=True, got batch_first=False"),
    *(
        (
            "lstm",
            lambda old, more=more: nn.LSTM(K, 6, **{"num_layers": 2, "batch_first": True, **more}),
            ValueError,
            text,
        )
        for more, text in [
            ({"dropout": 0.5}, "lstm must have dropout=0, got dropout=0.5"),
            ({"bidirectional": True}, "lstm must have bidirectional=False, got bidirectional=True"),
            ({"proj_size": 3}, "lstm must have proj_size=0, got proj_size=3"),
            ({"bias": False}, "lstm must have bias=True, got bias=False"),
            ({"num_layers": 3}, "lstm must have num_layers=2, got num_layers=3"),
        ]
    ),
    ("mlp.0", LoRA, TypeError, r"mlp\[0\] must be a torch.nn.Linear, .* got LoRA"),
    ("mlp.1", lambda old: nn.Dropout(0.5), TypeError, r"mlp\[1\] must be a torch.nn.Linear, .* got Dropout"),
    ("mlp.1", lambda old: nn.Identity(), TypeError, r"mlp\[1\] must be .* got Identity"),
    ("mlp.0", lambda old: nn.Linear(6, 8), ValueError, r"mlp\[0\] must have out_features=7, got out_features=8"),
    ("mlp", lambda old: nn.Sequential(*old), TypeError, "mlp must be the torch.nn.ModuleList of 2 .* got Sequential"),
    ("mlp", lambda old: old[:1], TypeError, "mlp must be the torch.nn.ModuleList of 2"),
    ("mlp", lambda old: nn.ModuleList([*old, nn.Dropout()]), TypeError, "mlp must be the torch.nn.ModuleList of 2"),
]


@pytest.mark.parametrize(("path", "replace", "error", "message"), REPLACED)
def test_replaced_layers_are_refused(
    path: str, replace: Callable[[nn.Module], nn.Module], error: type[Exception], message: str
) -> None:
    model = pyar.NADE(D, K, 6, mlp_sizes=[7, 4]) if path.startswith("mlp") else pyar.PixelLSTM(D, K, 6, 2)
    owner, _, name = path.rpartition(".")
    new = replace(model.get_submodule(path))
    setattr(model.get_submodule(owner), name, new)
    x = random_states(2, D, K)
    observed = torch.zeros(D, dtype=torch.bool)
    for use in (
        lambda: model.log_prob(x),
        lambda: model(x),
        lambda: model.logits(x),
        lambda: model.conditional_log_prob(x),
        lambda: model.mean_nll(x),
        lambda: model.sample(2),
        lambda: model.complete(x, observed),
    ):
        with pytest.raises(error, match=message):
            use()


def test_like_layers_are_taken() -> None:
    model, x = pyar.PixelLSTM(D, K, 6, 2), random_states(4, D, K)
    before = model.log_prob(x)
    model.head, model.lstm = nn.Linear(6, K), nn.LSTM(K, 6, 2, batch_first=True)
    assert not torch.allclose(model.log_prob(x), before)


def test_what_is_computed_cannot_be_set() -> None:
    x = random_states(9, D, K)
    nade, lstm = pyar.NADE(D, K, 6), pyar.PixelLSTM(D, K, 6)
    parametrize.register_parametrization(nade, "b", Scaled())
    prune.identity(lstm.head, "bias")
    for model, name in ((nade, "b"), (lstm, "head.bias")):
        with pytest.raises(RuntimeError, match=f"{name} is computed by a parametrization or a hook"):
            model.initialize_from_marginals(x)
