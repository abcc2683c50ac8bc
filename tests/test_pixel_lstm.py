"""PixelLSTM as a model."""

from __future__ import annotations

import pytest
import torch
from oracle import all_states, random_states

import pyar
from pyar.checkpoint import save_model
from pyar.reference import lstm as reference


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input": "scalar"},
        {"num_layers": 2},
        {"order": [2, 0, 3, 1]},
        {"checkpoint_steps": 2},
        {"weight_dtype": "bfloat16"},
        {"weight_dtype": "bfloat16", "num_layers": 3, "input": "scalar"},
    ],
)
def test_an_exact_distribution(options: dict) -> None:
    torch.manual_seed(0)
    model = pyar.PixelLSTM(4, 3, 10, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    states = all_states(4, 3)
    log_prob = model.log_prob(states)
    assert log_prob.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    logits = model.logits(states)
    torch.testing.assert_close(logits.log_softmax(-1).gather(2, states.long()[..., None]).sum((1, 2)), log_prob)
    x, drawn = model.sample_and_log_prob(30, seed=3)
    torch.testing.assert_close(drawn, model.log_prob(x).detach())
    assert torch.equal(x[10:], model.sample(20, seed=3, first_index=10))


def test_parameters_are_torchs_and_the_config_rebuilds_the_model() -> None:
    model = pyar.PixelLSTM(5, 4, 6, 2, input="scalar", checkpoint_steps=3, weight_dtype="float32")
    assert model.lstm.weight_ih_l0.shape == (24, 1)
    assert model.lstm.batch_first
    copy = pyar.PixelLSTM(**model.config)
    copy.load_state_dict(model.state_dict())
    x = random_states(7, 5, 4)
    assert torch.equal(copy.log_prob(x), model.log_prob(x))
    steps = reference.log_prob(x, model._weights(), model.head.weight, model.head.bias)
    torch.testing.assert_close(model.log_prob(x), steps)


def test_rounded_weights_are_one_model_in_every_method() -> None:
    """bfloat16 means the model with these weights rounded; it can be switched on and off, and the parameters stay."""
    torch.manual_seed(0)
    model, copy = pyar.PixelLSTM(6, 3, 20, 2), pyar.PixelLSTM(6, 3, 20, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
        copy.load_state_dict(model.state_dict())
        for name in ("weight_hh_l0", "weight_ih_l1", "weight_hh_l1"):
            getattr(copy.lstm, name).copy_(getattr(copy.lstm, name).bfloat16().float())
    x, observed = random_states(40, 6, 3), torch.arange(6) < 2
    own = model.log_prob(x)
    model.weight_dtype = "bfloat16"
    assert model.config["weight_dtype"] == "bfloat16"
    assert "weight_dtype='bfloat16'" in repr(model)
    assert torch.equal(model.log_prob(x), copy.log_prob(x))
    assert torch.equal(model.logits(x), copy.logits(x))
    assert torch.equal(model.complete(x, observed, 3, seed=2), copy.complete(x, observed, 3, seed=2))
    y, log_prob = model.sample_and_log_prob(50, seed=4)
    assert torch.equal(y, copy.sample(50, seed=4))
    assert torch.equal(log_prob, model.log_prob(y))
    assert not torch.equal(own, model.log_prob(x))
    for one in (model, copy):
        one.mean_nll(x).backward()
    for one, two in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)
    model.weight_dtype = "float32"
    assert torch.equal(model.log_prob(x), own)


def test_the_weight_dtype_is_stored(tmp_path, monkeypatch) -> None:
    model, x = pyar.PixelLSTM(5, 3, 6, weight_dtype="bfloat16"), random_states(7, 5, 3)
    save_model(model, tmp_path / "model.safetensors")
    loaded = pyar.load(tmp_path / "model.safetensors")
    assert loaded.weight_dtype == "bfloat16"
    assert torch.equal(loaded.log_prob(x), model.log_prob(x))
    assert torch.equal(loaded.lstm.weight_hh_l0, model.lstm.weight_hh_l0)  # float32, not rounded
    # A checkpoint from before there was a choice.
    config = {key: value for key, value in model._config().items() if key != "weight_dtype"}
    monkeypatch.setattr(model, "_config", lambda: config)
    save_model(model, tmp_path / "old.safetensors")
    assert pyar.load(tmp_path / "old.safetensors").weight_dtype == "float32"


@pytest.mark.parametrize(("num_layers", "weight_dtype"), [(1, "float32"), (2, "float32"), (2, "bfloat16")])
def test_training_learns_a_copy_task(num_layers: int, weight_dtype: str) -> None:
    """x_d repeats x_0: a state must be carried through all steps, which the loss ln 2 needs and 6·ln 2 does not."""
    torch.manual_seed(0)
    x = torch.tensor([[0] * 6, [1] * 6], dtype=torch.uint8).repeat(8, 1)
    model = pyar.PixelLSTM(6, 2, 16, num_layers, weight_dtype=weight_dtype).initialize_from_marginals(x)
    start = model.mean_nll(x).item()
    assert start == pytest.approx(6 * torch.tensor(2.0).log().item(), rel=0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.mean_nll(x).backward()
        optimizer.step()
    assert model.mean_nll(x).item() < 0.8


@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16"])
def test_a_compiled_model_is_the_model(weight_dtype: str) -> None:
    torch._dynamo.reset()
    model = pyar.PixelLSTM(5, 3, 8, weight_dtype=weight_dtype)
    x = random_states(6, 5, 3)
    # Dynamo leaves modules that hold a torch.nn.LSTM alone unless it is told not to.
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), model.log_prob(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_layers": 5}, ValueError, "num_layers"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"hidden_size": 2.0}, TypeError, "hidden_size"),
        ({"num_states": 1}, ValueError, "num_states"),
        ({"input": "pixels"}, ValueError, "input"),
        ({"checkpoint_steps": -1}, ValueError, "checkpoint_steps"),
        ({"checkpoint_steps": 1.5}, TypeError, "checkpoint_steps"),
        ({"weight_dtype": "float16"}, ValueError, "weight_dtype must be 'float32' or 'bfloat16', got 'float16'"),
        ({"weight_dtype": torch.bfloat16}, ValueError, "weight_dtype"),
    ],
)
def test_bad_arguments(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyar.PixelLSTM(**{"dim": 4, "num_states": 3, "hidden_size": 5, **options})
