"""The face that all models share, and what is NADE's own."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import all_states, assert_follows_law, assert_inverse_cdf, random_states
from torch import Tensor

import pyar
from pyar.models import AutoregressiveModel, model_class
from pyar.reference.philox import uniforms

D = 5
ORDER = [3, 0, 4, 2, 1]
BUILDERS = {
    "nade": lambda **more: pyar.NADE(D, 2, 9, **more),
    "nade-3": lambda **more: pyar.NADE(D, 3, 9, **more),
    "nade-3-scalar": lambda **more: pyar.NADE(D, 3, 9, input="scalar", **more),
    "nade-mlp": lambda **more: pyar.NADE(D, 2, 9, mlp_sizes=[7, 6], **more),
    "pixel-lstm": lambda **more: pyar.PixelLSTM(D, 2, 8, **more),
    "pixel-lstm-3": lambda **more: pyar.PixelLSTM(D, 3, 8, 2, input="scalar", **more),
}


def randomise(model: AutoregressiveModel) -> AutoregressiveModel:
    """Parameters at which the conditionals differ clearly from one another."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.dim() < 2 else noise * 2 / parameter.shape[-1] ** 0.5)
    return model


@pytest.fixture(params=[None, ORDER], ids=["in-order", "permuted"])
def order(request: pytest.FixtureRequest) -> list[int] | None:
    return request.param


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Callable[..., AutoregressiveModel]:
    return BUILDERS[request.param]


@pytest.fixture
def model(build: Callable, order: list[int] | None, device: torch.device) -> AutoregressiveModel:
    return randomise(build(order=order)).to(device)


def states(model: AutoregressiveModel) -> Tensor:
    return all_states(D, model.num_states).to(next(model.parameters()).device)


def steps(model: AutoregressiveModel) -> list[int]:
    return list(range(D)) if model.order is None else model.order.tolist()


def test_probabilities_sum_to_one(model: AutoregressiveModel) -> None:
    log_prob = model.log_prob(states(model))
    assert log_prob.dtype == torch.float32
    assert abs(log_prob.double().exp().sum().item() - 1) < 1e-5


def test_each_conditional_depends_on_the_steps_before_it(model: AutoregressiveModel) -> None:
    K, order = model.num_states, steps(model)
    x = random_states(6, D, K).to(states(model).device)
    before = model.logits(x)
    assert before.shape == ((6, D) if K == 2 else (6, D, K))
    for step, dimension in enumerate(order):
        changed = x.clone()
        changed[:, dimension] = (x[:, dimension] + 1) % K
        moved = (model.logits(changed) - before).reshape(6, D, -1).abs().amax(dim=(0, 2))[order]
        assert (moved[: step + 1] == 0).all()
        assert (moved[step + 1 :] > 1e-5).all()


def test_logits_make_up_log_prob(model: AutoregressiveModel) -> None:
    x = random_states(20, D, model.num_states).to(states(model).device)
    logits = model.logits(x)
    if model.num_states == 2:
        logits = torch.stack((torch.zeros_like(logits), logits), dim=-1)
    picked = logits.log_softmax(dim=-1).gather(-1, x.long()[..., None]).sum(dim=(1, 2))
    torch.testing.assert_close(model.log_prob(x), picked)
    assert torch.equal(model.log_prob(x.long()), model.log_prob(x))


def test_an_order_permutes_the_dimensions(build: Callable) -> None:
    plain, permuted = randomise(build()), randomise(build(order=ORDER))
    x = random_states(20, D, plain.num_states)
    in_order = x[:, ORDER]
    assert torch.equal(permuted.log_prob(x), plain.log_prob(in_order))
    assert torch.equal(permuted.logits(x)[:, ORDER], plain.logits(in_order))
    assert torch.equal(permuted.mean_nll(x), plain.mean_nll(in_order))
    drawn, log_prob = permuted.sample_and_log_prob(20, seed=1)
    assert torch.equal(drawn[:, ORDER], plain.sample(20, seed=1))
    torch.testing.assert_close(log_prob, permuted.log_prob(drawn))


@settings(max_examples=25)
@given(
    family=st.sampled_from([pyar.NADE, pyar.PixelLSTM]),
    order=st.integers(1, 12).flatmap(lambda dim: st.permutations(range(dim))),
    K=st.sampled_from([2, 3, 10]),
    is_long=st.booleans(),
    is_transposed=st.booleans(),
)
def test_any_order_permutes_the_dimensions(
    family: type[AutoregressiveModel], order: list[int], K: int, is_long: bool, is_transposed: bool
) -> None:
    dim = len(order)
    plain, permuted = randomise(family(dim, K, 6)), randomise(family(dim, K, 6, order=order))
    x = random_states(9, dim, K)
    x = x.long() if is_long else x
    x = x.T.contiguous().T if is_transposed else x
    in_order = x[:, order]
    assert torch.equal(permuted.log_prob(x), plain.log_prob(in_order))
    assert torch.equal(permuted.logits(x)[:, order], plain.logits(in_order))
    assert torch.equal(permuted.mean_nll(x), plain.mean_nll(in_order))
    kept = order[: dim // 2]
    observed = torch.zeros(dim, dtype=torch.bool)
    observed[kept] = True
    completed = permuted.complete(x, observed, 2, seed=3)
    assert torch.equal(completed[:, :, kept], x[:, None, kept].expand(-1, 2, -1).to(torch.uint8))
    given_rows = in_order[:, : len(kept)].repeat_interleave(2, dim=0)
    assert torch.equal(completed.flatten(0, 1)[:, order], plain.sample(18, seed=3, given=given_rows))


def test_mean_nll_and_its_gradient(model: AutoregressiveModel) -> None:
    x = random_states(20, D, model.num_states).to(states(model).device)
    loss = model.mean_nll(x)
    torch.testing.assert_close(loss, -model.log_prob(x).mean())
    fused = torch.autograd.grad(loss, list(model.parameters()))
    composed = torch.autograd.grad(-model.log_prob(x).mean(), list(model.parameters()))
    for one, two in zip(fused, composed, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert sum(float(gradient.abs().sum()) for gradient in fused) > 0


def test_conditionals_make_up_log_prob(model: AutoregressiveModel) -> None:
    K, x = model.num_states, random_states(40, D, model.num_states).to(states(model).device)
    conditional = model.conditional_log_prob(x)
    assert conditional.shape == (40, D)
    assert conditional.dtype == torch.float32
    logits = model.logits(x)
    if K == 2:
        logits = torch.stack((torch.zeros_like(logits), logits), dim=-1)
    picked = logits.log_softmax(dim=-1).gather(-1, x.long()[..., None]).squeeze(-1)
    torch.testing.assert_close(conditional, picked, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(conditional.sum(dim=1), model.log_prob(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.conditional_log_prob(x.long()), conditional)
    assert model.conditional_log_prob(x[:0]).shape == (0, D)
    if model.order is not None:  # column d is dimension d
        first = model.order[0]
        assert (conditional[:, first] == conditional[x[:, first] == x[0, first], first][0])[
            x[:, first] == x[0, first]
        ].all()


def test_conditionals_are_differentiable(model: AutoregressiveModel) -> None:
    """Any gradient of [B, D]: judged by that of the logits."""
    x = random_states(20, D, model.num_states).to(states(model).device)
    upstream = torch.randn(20, D, generator=torch.Generator().manual_seed(1)).to(x.device)
    logits = model.logits(x)
    if model.num_states == 2:
        logits = torch.stack((torch.zeros_like(logits), logits), dim=-1)
    picked = logits.log_softmax(dim=-1).gather(-1, x.long()[..., None]).squeeze(-1)
    actual = torch.autograd.grad(model.conditional_log_prob(x), list(model.parameters()), upstream)
    expected = torch.autograd.grad(picked, list(model.parameters()), upstream)
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_mean_nll_weighs_the_examples(model: AutoregressiveModel) -> None:
    x = random_states(20, D, model.num_states).to(states(model).device)
    weights = torch.linspace(-2, 3, 20, device=x.device).requires_grad_()
    loss, composed = model.mean_nll(x, weights), -(weights * model.log_prob(x)).mean()
    torch.testing.assert_close(loss, composed)
    everything = [*model.parameters(), weights]
    for one, two in zip(
        torch.autograd.grad(2 * loss, everything), torch.autograd.grad(2 * composed, everything), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
        assert one.abs().sum() > 0
    (alone,) = torch.autograd.grad(model.mean_nll(x, weights), weights)
    torch.testing.assert_close(alone, -model.log_prob(x) / 20)
    ones = torch.ones(20, device=x.device)
    pairs = [model.mean_nll(x), model.mean_nll(x, ones)]
    torch.testing.assert_close(*pairs)
    for one, two in zip(*(torch.autograd.grad(value, list(model.parameters())) for value in pairs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(model.mean_nll(x, weights), composed)
    assert model.mean_nll(x[:0], weights[:0]).isnan()


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0] * 4, TypeError, "weights must be a tensor or None, got list"),
        (torch.ones(4).double(), TypeError, "weights must be float32, got torch.float64"),
        (torch.ones(4).long(), TypeError, "weights must be float32, got torch.int64"),
        (torch.ones(3), ValueError, r"weights must be \[4\], one for each row of x, got \[3\]"),
        (torch.ones(4, 1), ValueError, r"weights must be \[4\], .* got \[4, 1\]"),
        (torch.ones(()), ValueError, r"weights must be \[4\], .* got \[\]"),
        (torch.ones(4, device="meta"), ValueError, "weights are on meta, x on cpu"),
    ],
)
def test_bad_weights_are_refused(build: Callable, weights: object, error: type[Exception], message: str) -> None:
    model = build()
    with pytest.raises(error, match=message):
        model.mean_nll(random_states(4, D, model.num_states), weights)


def test_samples_follow_the_law(model: AutoregressiveModel) -> None:
    wrong = copy.deepcopy(model)
    bias = wrong.b if isinstance(wrong, pyar.NADE) else wrong.head.bias
    with torch.no_grad():
        bias[..., -1] += 0.1
        laws = [which.log_prob(states(model)) for which in (model, wrong)]
    assert_follows_law(model.sample(150_000, seed=8), *laws, model.num_states)


def test_samples_are_the_inverse_cdf_of_their_uniforms(model: AutoregressiveModel) -> None:
    given = random_states(1, 2, model.num_states)[0].to(states(model).device)
    x, log_prob = model.sample_and_log_prob(300, seed=2**64 - 1, first_index=2**33, temperature=0.7, given=given)
    assert x.dtype == torch.uint8
    assert (x[:, steps(model)[:2]] == given).all()
    outputs = model.logits(x).detach().reshape(300, D, -1)[:, steps(model)].double().cpu()
    drawn = x[:, steps(model)].cpu()
    assert_inverse_cdf(drawn, outputs, uniforms(2**64 - 1, 2**33, 300, D), 0.7, first_step=2)
    full = outputs if outputs.shape[2] > 1 else torch.cat((torch.zeros_like(outputs), outputs), dim=2)
    picked = (full / 0.7).log_softmax(dim=2).gather(2, drawn.long()[..., None])[:, 2:].sum(dim=(1, 2))
    torch.testing.assert_close(log_prob.cpu().double(), picked, rtol=1e-5, atol=1e-5)


def test_returned_log_prob_is_that_of_the_samples(model: AutoregressiveModel) -> None:
    x, log_prob = model.sample_and_log_prob(100, seed=1)
    torch.testing.assert_close(log_prob, model.log_prob(x), rtol=1e-5, atol=1e-5)
    assert not log_prob.requires_grad
    assert torch.equal(x, model.sample(100, seed=1))


def test_the_seed_promise(model: AutoregressiveModel, restore_threads: None) -> None:
    whole = model.sample(50, seed=6, first_index=100)
    torch.set_num_threads(1)
    parts = [model.sample(size, seed=6, first_index=100 + start) for start, size in [(0, 1), (1, 16), (17, 33)]]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(model.sample(50, seed=7, first_index=100), whole)
    assert not torch.equal(model.sample(50, seed=6, first_index=150), whole)


def test_manual_seed_and_generators_govern_the_draws(model: AutoregressiveModel) -> None:
    torch.manual_seed(4)
    first, second = model.sample(30), model.sample(30)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(model.sample(30), first)
    generator = torch.Generator(first.device).manual_seed(4)
    assert torch.equal(model.sample(30, generator=generator), first)
    assert torch.equal(model.sample(30, generator=generator), second)


def test_given_may_be_one_row_or_many(model: AutoregressiveModel) -> None:
    row = torch.tensor([1, 0], device=states(model).device)
    alike = model.sample(9, seed=3, given=row)
    assert torch.equal(alike, model.sample(9, seed=3, given=row.expand(9, 2)))
    assert torch.equal(alike, model.sample(9, seed=3, given=row.to(torch.uint8)))
    everything = random_states(9, D, model.num_states).to(row.device)
    forced, log_prob = model.sample_and_log_prob(9, seed=3, given=everything)
    assert torch.equal(forced[:, steps(model)], everything)
    assert (log_prob == 0).all()
    assert torch.equal(model.sample(9, seed=3, given=everything[:, :0]), model.sample(9, seed=3))


def test_completions_follow_the_conditional_law(model: AutoregressiveModel) -> None:
    K, device = model.num_states, states(model).device
    kept, free = steps(model)[:2], sorted(steps(model)[2:])
    observed = torch.zeros(D, dtype=torch.bool, device=device)
    observed[kept] = True
    x = torch.full((2, D), 255, dtype=torch.uint8, device=device)  # what is not observed is not read
    x[0, kept], x[1, kept] = torch.tensor([1, 0], device=device).byte(), torch.tensor([0, K - 1], device=device).byte()
    completed = model.complete(x, observed, 60_000, seed=5)
    assert completed.shape == (2, 60_000, D)
    candidates = torch.empty(K ** len(free), D, dtype=torch.uint8, device=device)
    candidates[:, free] = all_states(len(free), K).to(device)
    laws = []
    for row in (0, 1):
        assert (completed[row][:, kept] == x[row, kept]).all()
        candidates[:, kept] = x[row, kept]
        joint = model.log_prob(candidates).detach()
        laws.append(joint - joint.logsumexp(dim=0))
    for row in (0, 1):
        assert_follows_law(completed[row][:, free], laws[row], laws[1 - row], K)


def test_completions_are_numbered_samples(model: AutoregressiveModel) -> None:
    """Completion j of row b is sample first_index + b·num_samples + j of the seed."""
    observed = torch.zeros(D, dtype=torch.bool, device=states(model).device)
    observed[steps(model)[:3]] = True
    x = random_states(4, D, model.num_states).to(observed.device)
    completed = model.complete(x.long(), observed, 3, seed=9, first_index=70, temperature=0.8)
    given = x[:, steps(model)[:3]].repeat_interleave(3, dim=0)
    drawn = model.sample(12, seed=9, first_index=70, temperature=0.8, given=given)
    assert torch.equal(completed, drawn.view(4, 3, D))
    row = model.complete(x[2:3], observed, 3, seed=9, first_index=76, temperature=0.8)
    assert torch.equal(row[0], completed[2])
    assert torch.equal(model.complete(x, ~torch.zeros_like(observed), 1)[:, 0], x)
    nothing = model.complete(x, torch.zeros_like(observed), 2, seed=9)
    assert torch.equal(nothing.view(8, D), model.sample(8, seed=9))


def test_empty_batches(model: AutoregressiveModel) -> None:
    x = states(model)[:0]
    assert model.log_prob(x).shape == (0,)
    assert model.logits(x).shape[:2] == (0, D)
    assert model.sample(0).shape == (0, D)
    observed = torch.zeros(D, dtype=torch.bool, device=x.device)
    assert model.complete(x, observed, 3).shape == (0, 3, D)
    assert model.complete(states(model)[:4], observed, 0).shape == (4, 0, D)


def test_config_builds_the_like(model: AutoregressiveModel) -> None:
    config = json.loads(json.dumps(model.config))
    like = model_class(model.name)(**config)
    assert type(like) is type(model)
    assert like.config == model.config
    like.load_state_dict(model.cpu().state_dict())
    x = random_states(7, D, model.num_states)
    assert torch.equal(like.log_prob(x), model.log_prob(x))
    assert torch.equal(like.sample(7, seed=1), model.sample(7, seed=1))
    assert f"dim={D}, num_states={model.num_states}" in repr(like)


def test_copies_are_independent(model: AutoregressiveModel) -> None:
    other = copy.deepcopy(model)
    x = states(model)[:4]
    before = model.log_prob(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert torch.equal(model.log_prob(x), before)


def test_inference_mode(model: AutoregressiveModel) -> None:
    x = states(model)[:6]
    expected, drawn = model.log_prob(x), model.sample(6, seed=1)
    with torch.inference_mode():
        assert torch.equal(model.log_prob(x), expected)
        assert torch.equal(model.sample(6, seed=1), drawn)


def test_parameters_that_are_no_numbers(build: Callable) -> None:
    for bad in (math.nan, math.inf):
        model = randomise(build())
        with torch.no_grad():
            (model.b if isinstance(model, pyar.NADE) else model.head.bias).view(-1)[0] = bad
        assert not torch.isfinite(model.log_prob(states(model))).all()
        with pytest.raises(RuntimeError, match="NaN or infinite"):
            model.sample(10, seed=0)


BAD_STATES = [
    (torch.zeros(3, D), TypeError, r"x .*uint8 or int64.*float32"),
    (torch.zeros(3, D, dtype=torch.int32), TypeError, r"x .*uint8 or int64.*int32"),
    (torch.zeros(3, D, dtype=torch.bool), TypeError, r"x .*uint8 or int64.*bool"),
    (torch.zeros(3, D + 1, dtype=torch.uint8), ValueError, rf"x .*{D}.*\[3, {D + 1}\]"),
    (torch.zeros(3, D - 1, dtype=torch.uint8), ValueError, rf"x .*{D}.*\[3, {D - 1}\]"),
    (torch.zeros(D, dtype=torch.uint8), ValueError, rf"x .*{D}.*\[{D}\]"),
    (torch.zeros(2, 3, D, dtype=torch.uint8), ValueError, rf"x .*{D}.*\[2, 3, {D}\]"),
    (torch.full((3, D), 3, dtype=torch.uint8), ValueError, r"x .*0 … 2.* 3"),
    (torch.full((3, D), -1), ValueError, r"x .*0 … 2.* -1"),
    (torch.full((3, D), 256), ValueError, r"x .*0 … 2.* 256"),
    (torch.zeros(3, D, dtype=torch.uint8, device="meta"), ValueError, r"x .*meta.*cpu"),
    ([[0] * D], TypeError, r"x .*[Tt]ensor.*list"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_STATES)
@pytest.mark.parametrize("name", ["nade-3", "pixel-lstm-3"])
def test_bad_states_are_refused(
    name: str, order: list[int] | None, x: Tensor, error: type[Exception], message: str
) -> None:
    model = BUILDERS[name](order=order)
    for method in (model.log_prob, model.logits, model.conditional_log_prob, model.mean_nll, model):
        with pytest.raises(error, match=message):
            method(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": -1}, ValueError, "num_samples must not be negative, got -1"),
        ({"num_samples": 2.0}, TypeError, "num_samples must be an integer, got float 2.0"),
        ({"num_samples": True}, TypeError, "num_samples must be an integer, got bool True"),
        ({"first_index": -3}, ValueError, "first_index must not be negative, got -3"),
        ({"first_index": "0"}, TypeError, "first_index must be an integer, got str '0'"),
        ({"first_index": 2**63 - 3}, ValueError, r"first_index \+ num_samples must be below 2\*\*63"),
        ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ({"temperature": -1.0}, ValueError, "temperature must be positive and finite, got -1.0"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive and finite, got nan"),
        ({"temperature": math.inf}, ValueError, "temperature must be positive and finite, got inf"),
        ({"temperature": "1"}, TypeError, "temperature must be a number, got str '1'"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "a seed or a generator, not both"),
        ({"given": torch.zeros(3, 2).long()}, ValueError, "given must have a row for each of the 4 samples, got 3"),
        ({"given": torch.zeros(4, D + 1).long()}, ValueError, rf"given .*G at most {D}.*\[4, {D + 1}\]"),
        ({"given": torch.zeros(D + 1).long()}, ValueError, rf"given .*G at most {D}"),
        ({"given": torch.zeros(4, 2, 1).long()}, ValueError, r"given .*\[4, 2, 1\]"),
        ({"given": torch.tensor(1)}, ValueError, r"given .*\[\]"),
        ({"given": torch.zeros(4, 2)}, TypeError, "given must be uint8 or int64, got torch.float32"),
        ({"given": [0, 1]}, TypeError, "given must be a tensor or None, got list"),
        ({"given": torch.tensor([0, 3])}, ValueError, "given must hold states 0 … 2, got values 0 … 3"),
        ({"given": torch.tensor([0, -1])}, ValueError, "given must hold states 0 … 2, got values -1 … 0"),
        ({"given": torch.zeros(2, dtype=torch.uint8, device="meta")}, ValueError, "given is on meta, .* cpu"),
    ],
)
@pytest.mark.parametrize("name", ["nade-3", "pixel-lstm-3"])
def test_bad_sampling_arguments_are_refused(name: str, arguments: dict, error: type[Exception], message: str) -> None:
    model = BUILDERS[name]()
    for method in (model.sample, model.sample_and_log_prob):
        with pytest.raises(error, match=message):
            method(**{"num_samples": 4, **arguments})


def mask(*dimensions: int) -> Tensor:
    observed = torch.zeros(D, dtype=torch.bool)
    observed[list(dimensions)] = True
    return observed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"observed": mask(3, 4)}, ValueError, r"dimension 4 \(step 2\) is observed, but dimension 0 \(step 1\)"),
        ({"observed": mask(0)}, ValueError, r"dimension 0 \(step 1\) is observed, but dimension 3 \(step 0\)"),
        ({"observed": mask().long()}, TypeError, "observed must be a bool mask, got torch.int64"),
        ({"observed": [True] * D}, TypeError, "observed must be a tensor, got list"),
        ({"observed": mask()[:-1]}, ValueError, r"observed must be \[5\].* got \[4\]"),
        ({"observed": mask().expand(2, D)}, ValueError, r"observed must be \[5\].* got \[2, 5\]"),
        ({"x": torch.zeros(2, D - 1).byte()}, ValueError, r"x must be \[B, 5\], got \[2, 4\]"),
        ({"x": torch.zeros(D).byte()}, ValueError, r"x must be \[B, 5\], got \[5\]"),
        ({"x": torch.zeros(2, D)}, TypeError, "x.* must be uint8 or int64, got torch.float32"),
        ({"x": [[0] * D]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.full((2, D), 9)}, ValueError, "x's observed part must hold states 0 … 2, got values 9 … 9"),
        ({"num_samples": -1}, ValueError, "num_samples must not be negative, got -1"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"first_index": 2**63 - 2}, ValueError, r"first_index \+ num_samples must be below"),
    ],
)
def test_bad_completions_are_refused(arguments: dict, error: type[Exception], message: str) -> None:
    model = pyar.NADE(D, 3, 4, order=ORDER)
    with pytest.raises(error, match=message):
        model.complete(**{"x": torch.zeros(2, D).byte(), "observed": mask(3, 0), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": 2.0}, TypeError, "dim must be an integer, got float 2.0"),
        ({"num_states": 1}, ValueError, "num_states must be in 2 … 256, got 1"),
        ({"num_states": 257}, ValueError, "num_states must be in 2 … 256, got 257"),
        ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1, got 0"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an integer, got bool True"),
        ({"input": "one-hot"}, ValueError, "input must be 'onehot' or 'scalar', got 'one-hot'"),
        ({"mlp_sizes": (3, 0)}, ValueError, "mlp_sizes must be at least 1, got 0"),
        ({"order": [0, 1, 2, 3]}, ValueError, "order must be a permutation of 0 … 4"),
        ({"order": [0, 1, 2, 3, 3]}, ValueError, "order must be a permutation of 0 … 4"),
        ({"order": [0.0, 1, 2, 3, 4]}, TypeError, "float"),
    ],
)
def test_bad_constructor_arguments_are_refused(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyar.NADE(**{"dim": D, **arguments})


def test_nade_parameters_are_the_papers() -> None:
    def shapes(model: pyar.NADE) -> dict[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    assert shapes(pyar.NADE(4, 2, 3)) == {"W": (4, 1, 3), "c": (3,), "V": (4, 1, 3), "b": (4, 1)}
    assert shapes(pyar.NADE(4, 6, 3)) == {"W": (4, 5, 3), "c": (3,), "V": (4, 6, 3), "b": (4, 6)}
    assert shapes(pyar.NADE(4, 6, 3, input="scalar", mlp_sizes=(7,))) == {
        "W": (4, 3),
        "c": (3,),
        "V": (4, 6, 7),
        "b": (4, 6),
        "mlp.0.weight": (7, 3),
        "mlp.0.bias": (7,),
    }
    assert pyar.NADE(4).hidden_size == 500


@pytest.mark.parametrize("num_states", [2, 4])
def test_nade_starts_at_the_marginals(num_states: int, order: list[int] | None) -> None:
    x = random_states(3000, D, num_states, zeros=0.6)
    x[:, 2] = 0  # a state never seen has a probability all the same
    model = pyar.NADE(D, num_states, 16, order=order).initialize_from_marginals(x)
    counts = torch.stack([(x == state).sum(dim=0) for state in range(num_states)], dim=1)
    expected = ((counts + 1) / (3000 + num_states)).log()
    with torch.no_grad():
        model.V.zero_()
        logits = model.logits(x[:1])[0]
    if num_states == 2:
        logits = torch.stack((torch.zeros_like(logits), logits), dim=-1)
    torch.testing.assert_close(logits.log_softmax(dim=-1), expected)
    assert torch.equal(model.b, pyar.NADE(D, num_states, 16, order=order).initialize_from_marginals(x.long()).b)
    with pytest.raises(ValueError, match=r"x must be \[B, 5\], got \[3, 4\]"):
        model.initialize_from_marginals(torch.zeros(3, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="x must hold states"):
        model.initialize_from_marginals(torch.full((3, D), num_states))


def test_a_loaded_order_is_the_one_in_use() -> None:
    model, other = randomise(pyar.NADE(D, 2, 4, order=ORDER)), pyar.NADE(D, 2, 4, order=range(D))
    other.load_state_dict(model.state_dict())
    assert other.config == model.config
    x = random_states(10, D, 2)
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    assert torch.equal(other.sample(10, seed=1), model.sample(10, seed=1))
