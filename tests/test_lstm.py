"""PixelLSTM's operations against the mathematics: float64, enumeration, inverse CDF, χ², invariances, bad input."""

from __future__ import annotations

import concurrent.futures
import itertools

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from oracle import (
    all_states,
    assert_as_accurate,
    assert_follows_law,
    assert_inverse_cdf,
    random_states,
)
from torch import Tensor

from pyar.native import _C, has_kernels
from pyar.ops.lstm import lstm_log_prob, lstm_logits, lstm_sample, round_weights
from pyar.reference import lstm as reference
from pyar.reference.philox import uniforms

pytestmark = pytest.mark.skipif(not has_kernels("cpu"), reason="the extension is not built")

Parameters = tuple[list[Tensor], Tensor, Tensor]


def parameters(
    K: int, H: int, layers: int = 1, *, scalar: bool = False, seed: int = 0, scale: float = 1.0
) -> Parameters:
    """Random parameters whose sums and logits are of order `scale` at any H."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return scale * std * torch.randn(*shape, generator=generator)

    weights = []
    for layer in range(layers):
        inputs = H if layer else (1 if scalar else K)
        weights += [normal(4 * H, inputs, std=1.0 if layer == 0 else H**-0.5), normal(4 * H, H, std=H**-0.5)]
        weights += [normal(4 * H, std=0.3), normal(4 * H, std=0.3)]
    return weights, normal(K, H, std=3 * H**-0.5), normal(K, std=0.5)


def cast(p: Parameters, dtype: torch.dtype) -> Parameters:
    return [w.to(dtype) for w in p[0]], p[1].to(dtype), p[2].to(dtype)


def leaves(p: Parameters) -> Parameters:
    return [w.detach().clone().requires_grad_() for w in p[0]], *(w.detach().clone().requires_grad_() for w in p[1:])


def gradients(value: Tensor, p: Parameters) -> list[Tensor]:
    return list(torch.autograd.grad(value, [*p[0], p[1], p[2]]))


def sample(p: Parameters, N: int, D: int, seed: int = 7, **options) -> tuple[Tensor, Tensor]:
    return lstm_sample(*p, seed=torch.tensor(seed), num_samples=N, num_dims=D, **options)


@pytest.mark.parametrize(("K", "H", "layers", "scalar"), [(2, 5, 1, False), (4, 9, 2, False), (5, 6, 3, True)])
def test_the_reference_is_torchs_lstm(K: int, H: int, layers: int, scalar: bool) -> None:
    """pyar.reference.lstm against nn.LSTM and nn.Linear written out, in float64."""
    p = cast(parameters(K, H, layers, scalar=scalar), torch.float64)
    lstm = torch.nn.LSTM(1 if scalar else K, H, layers, batch_first=True, dtype=torch.float64)
    head = torch.nn.Linear(H, K, dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in zip([*lstm.parameters(), *head.parameters()], [*p[0], *p[1:]], strict=True):
            parameter.copy_(value)
    x = random_states(6, 8, K)
    inputs = torch.zeros(6, 8, 1 if scalar else K, dtype=torch.float64)
    previous = x[:, :-1].long()
    inputs[:, 1:] = previous[..., None] / (K - 1) if scalar else torch.nn.functional.one_hot(previous, K).double()
    log_p = head(lstm(inputs)[0]).log_softmax(-1)
    expected = log_p.gather(2, x.long()[..., None]).sum((1, 2))
    torch.testing.assert_close(reference.log_prob(x, *p), expected, rtol=1e-12, atol=1e-12)
    logits = reference.logits(x, *p)
    logits = torch.stack((torch.zeros_like(logits), logits), -1) if K == 2 else logits
    torch.testing.assert_close(logits.log_softmax(-1), log_p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("D", "K", "layers", "scalar"), [(1, 2, 1, False), (6, 2, 3, True), (4, 4, 2, False)])
def test_the_references_probabilities_sum_to_one(D: int, K: int, layers: int, scalar: bool) -> None:
    p = cast(parameters(K, 7, layers, scalar=scalar), torch.float64)
    assert abs(reference.log_prob(all_states(D, K), *p).exp().sum().item() - 1) < 1e-10


@pytest.mark.parametrize(("K", "layers", "scalar"), [(2, 1, True), (3, 2, False)])
def test_the_references_conditionals_depend_on_earlier_dimensions_alone(K: int, layers: int, scalar: bool) -> None:
    p, x = cast(parameters(K, 7, layers, scalar=scalar), torch.float64), random_states(4, 6, K)
    before = reference.logits(x, *p).reshape(4, 6, -1)
    for i in range(6):
        changed = x.clone()
        changed[:, i] = (x[:, i] + 1) % K
        after = reference.logits(changed, *p).reshape(4, 6, -1)
        assert torch.equal(after[:, : i + 1], before[:, : i + 1])
        assert ((after - before)[:, i + 1 :].abs().amax(dim=(0, 2)) > 1e-8).all()


@pytest.mark.parametrize(("K", "layers", "scalar"), [(2, 1, True), (3, 2, False)])
def test_the_references_gradients(K: int, layers: int, scalar: bool) -> None:
    p, x = leaves(cast(parameters(K, 3, layers, scalar=scalar), torch.float64)), random_states(3, 4, K)
    for function in (reference.log_prob, reference.logits):
        call = lambda *tensors, function=function: function(x, tensors[:-2], *tensors[-2:])  # noqa: E731
        assert torch.autograd.gradcheck(call, [*p[0], *p[1:]])


@pytest.mark.each_level
@pytest.mark.parametrize("checkpoint_steps", [None, 0, 2])
@pytest.mark.parametrize(
    ("B", "D", "K", "H", "layers", "scalar"),
    [
        (1, 1, 2, 1, 1, False),
        (3, 7, 2, 5, 1, False),
        (7, 9, 3, 16, 1, True),
        (20, 11, 10, 33, 2, False),
        (130, 17, 3, 40, 2, False),
        (300, 9, 4, 64, 1, False),
        (1100, 4, 20, 17, 1, False),
        (5, 8, 256, 70, 3, False),
        (9, 6, 12, 20, 4, True),
    ],
)
def test_log_prob_and_gradients_are_as_accurate_as_float32(
    B: int, D: int, K: int, H: int, layers: int, scalar: bool, checkpoint_steps: int | None
) -> None:
    p, x = parameters(K, H, layers, scalar=scalar), random_states(B, D, K, zeros=0.3)
    weights = torch.linspace(-1.0, 2.0, B)

    def expected(dtype: torch.dtype, shift: int = 0) -> tuple[Tensor, list[Tensor]]:
        q = leaves(cast(p, dtype))
        log_prob = reference.log_prob(x.roll(shift, 0), *q)
        return log_prob.detach().roll(-shift, 0), gradients((log_prob * weights.roll(shift).to(dtype)).sum(), q)

    exact, exact_gradients = expected(torch.float64)
    rounded = [expected(torch.float32, shift) for shift in (0, B // 3, 2 * B // 3)]
    q = leaves(p)
    actual = lstm_log_prob(x, *q, checkpoint_steps=checkpoint_steps)
    assert_as_accurate(actual, rounded[0][0], exact, "log_prob")
    names = [f"{name}_l{i}" for i in range(layers) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    grads = gradients((actual * weights).sum(), q)
    for i, name in enumerate([*names, "head_weight", "head_bias"]):
        assert_as_accurate(grads[i], [one[1][i] for one in rounded], exact_gradients[i], f"gradient of {name}")
    with torch.no_grad():
        assert torch.equal(lstm_log_prob(x.long(), *p), actual)


@pytest.mark.each_level
def test_gradients_are_the_same_bits_for_every_checkpoint_and_thread_count(restore_threads: None) -> None:
    p, x = parameters(5, 24, 2), random_states(150, 40, 5)
    expected = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for checkpoint_steps in (0, 1, 7, 13, 100):
            q = leaves(p)
            grads = gradients(lstm_log_prob(x, *q, checkpoint_steps=checkpoint_steps).sum(), q)
            expected = grads if expected is None else expected
            assert all(torch.equal(one, two) for one, two in zip(grads, expected, strict=True))


@settings(max_examples=15)
@examples(
    B=st.integers(0, 20),
    D=st.integers(1, 8),
    K=st.sampled_from([2, 3, 16, 17]),
    H=st.integers(1, 35),
    layers=st.integers(1, 4),
    scalar=st.booleans(),
    checkpoint_steps=st.sampled_from([None, 0, 1, 3]),
    is_long=st.booleans(),
    is_strided=st.booleans(),
    seed=st.integers(0, 100),
)
def test_log_prob_and_gradients_of_any_shape_dtype_and_stride(
    B, D, K, H, layers, scalar, checkpoint_steps, is_long, is_strided, seed
) -> None:
    p, x = parameters(K, H, layers, scalar=scalar, seed=seed), random_states(B, D, K, seed=seed)
    upstream = torch.linspace(-1.0, 2.0, B)

    def value_and_gradients(function, dtype: torch.dtype, **options) -> list[Tensor]:
        q = leaves(cast(p, dtype))
        weights, head_weight, head_bias = q
        states = x.long() if is_long else x
        if is_strided and dtype == torch.float32:
            weights = [torch.stack((w, w), dim=-1)[..., 0] for w in weights]
            head_weight = head_weight.T.contiguous().T
            states = torch.stack((states, states), dim=2).flatten(1)[:, ::2]
        log_prob = function(states, weights, head_weight, head_bias, **options)
        return [log_prob.detach(), *gradients((log_prob * upstream).sum(), q)]

    actual = value_and_gradients(lstm_log_prob, torch.float32, checkpoint_steps=checkpoint_steps)
    exact = value_and_gradients(reference.log_prob, torch.float64)
    for one, two in zip(actual, exact, strict=True):
        scale = two.abs().max().item() if two.numel() else 0.0
        torch.testing.assert_close(one.double(), two, rtol=0, atol=2e-5 * (1 + scale))


def test_checkpoints_keep_less_memory() -> None:
    p, x = parameters(2, 32), random_states(64, 256, 2)
    kept = [torch.ops.pyar.lstm_log_prob(x, *p, steps, True)[1].numel() for steps in (0, 64)]
    assert kept[1] < kept[0] / 50
    assert torch.ops.pyar.lstm_log_prob(x, *p, 0, False)[1].numel() == 0


@pytest.mark.each_level
@pytest.mark.parametrize(("D", "K", "layers"), [(7, 2, 1), (4, 4, 2)])
def test_probabilities_sum_to_one(D: int, K: int, layers: int) -> None:
    total = lstm_log_prob(all_states(D, K), *parameters(K, 11, layers)).double().exp().sum().item()
    assert total == pytest.approx(1.0, abs=2e-6)


@pytest.mark.each_level
@settings(max_examples=25)
@examples(
    N=st.integers(0, 40),
    D=st.integers(1, 9),
    K=st.sampled_from([2, 3, 8, 10, 17, 100, 256]),
    H=st.integers(1, 50),
    layers=st.integers(1, 4),
    scalar=st.booleans(),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    first_index=st.sampled_from([0, 3, 2**40]),
    num_given=st.integers(0, 9),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_state_is_the_inverse_cdf_of_its_uniform(
    N, D, K, H, layers, scalar, temperature, first_index, num_given, seed
) -> None:
    p = parameters(K, H, layers, scalar=scalar, seed=seed % 100)
    forced = random_states(N, min(num_given, D), K)
    G = forced.shape[1]
    x, log_prob = sample(
        p, N, D, seed=seed, first_index=first_index, temperature=temperature, given=forced if G else None
    )
    assert x.dtype == torch.uint8
    assert x.shape == (N, D)
    assert torch.equal(x[:, :G], forced)
    if N == 0:
        return
    p64 = cast(p, torch.float64)
    logits = torch.stack(reference.step_logits(x, *p64), dim=1)
    assert_inverse_cdf(x, logits, uniforms(seed, first_index, N, D), temperature, G)
    expected = (logits / temperature).log_softmax(-1).gather(2, x.long()[..., None]).squeeze(-1)[:, G:].sum(1)
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.each_level
@pytest.mark.parametrize(("N", "K", "layers"), [(1, 2, 1), (13, 10, 2), (100, 10, 1), (250, 100, 1)])
def test_log_prob_of_a_sample_is_log_prob_to_the_bit(N: int, K: int, layers: int) -> None:
    p = parameters(K, 19, layers)
    x, log_prob = sample(p, N, 12)
    assert torch.equal(log_prob, lstm_log_prob(x, *p))


@pytest.mark.each_level
def test_samples_follow_the_enumerated_law() -> None:
    D, K, N = 4, 3, 40_000
    p, states = parameters(K, 8), all_states(D, K)
    log_law = reference.log_prob(states, *cast(p, torch.float64))
    wrong = reference.log_prob(states, *(p[0], p[1], p[2] + torch.tensor([0.1, 0.0, 0.0])))
    assert_follows_law(sample(p, N, D)[0], log_law, wrong, K)


def test_a_boundary_belongs_to_the_state_above_it() -> None:
    """Where u·Σw is w_0 + … + w_k in float32, the state drawn is k + 1: draws enough that there are such uniforms."""
    K, D, N = 255, 9, 60_000
    target = uniforms(5, 0, N, D) * K  # all weights are 1
    assert (target == target.floor()).sum() >= 2
    assert torch.equal(sample(parameters(K, 1, scale=0.0), N, D, seed=5)[0], target.floor().to(torch.uint8))


@pytest.mark.each_level
@pytest.mark.parametrize(("K", "H", "layers"), [(2, 20, 1), (10, 33, 2), (200, 17, 1)])
def test_samples_depend_on_nothing_but_the_seed_and_their_index(
    K: int, H: int, layers: int, restore_threads: None
) -> None:
    """Every batch size (teams of threads, slices, several slices), thread count and division gives the same bits."""
    p, D, N = parameters(K, H, layers), 10, 420
    x, log_prob = sample(p, N, D)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        for first, count in [(0, N), (0, 1), (3, 2), (17, 8), (5, 15), (100, 16), (9, 47), (200, 100), (11, 409)]:
            part, part_log_prob = sample(p, count, D, first_index=first)
            assert torch.equal(part, x[first : first + count])
            assert torch.equal(part_log_prob, log_prob[first : first + count])


@pytest.mark.parametrize("steps", [0, 8])
def test_what_is_kept_holds_nothing_of_earlier_memory(steps: int) -> None:
    p, x = parameters(3, 17, 2), random_states(3, 9, 3)
    kept = torch.ops.pyar.lstm_log_prob(x, *p, steps, True)[1]
    for _ in range(5):
        rubbish = torch.full_like(kept, torch.nan)
        del rubbish  # the next block of that size is likely to be this one
        assert torch.equal(torch.ops.pyar.lstm_log_prob(x, *p, steps, True)[1], kept)


def test_concurrent_and_nested_calls_agree_and_end() -> None:
    """Small batches are drawn by threads that wait for each other: more callers than processors must not block them."""
    p = parameters(4, 48)
    expected = sample(p, 3, 60)[0]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for x, _ in pool.map(lambda _: sample(p, 3, 60), range(24)):
            assert torch.equal(x, expected)


def copied(p: Parameters) -> Parameters:
    return [w.clone() for w in p[0]], p[1].clone(), p[2].clone()


def uncached_log_prob(x: Tensor, p: Parameters) -> Tensor:
    """lstm_log_prob by the path that never uses packed parameters of an earlier call."""
    return lstm_log_prob(x, *leaves(p)).detach()


def cache() -> dict[str, int]:
    return _C.lstm_cache_facts()


def with_storage_of_its_own(w: Tensor, value: Tensor) -> None:
    w.set_(value.clone())


CHANGES = {
    "in place": lambda w, value: w.copy_(value),
    "data": lambda w, value: w.data.copy_(value),
    "numpy": lambda w, value: w.numpy().__setitem__(..., value.numpy()),
    "set_": with_storage_of_its_own,
}


@pytest.mark.each_level
@pytest.mark.parametrize(
    ("change", "H", "threads"), [("in place", 20, 1), ("data", 140, 2), ("numpy", 140, 1), ("set_", 20, 2)]
)
def test_no_change_of_the_parameters_goes_unnoticed(change: str, H: int, threads: int, restore_threads: None) -> None:
    """One number at a time, in every parameter: kept packed parameters are used for exactly those they were made of."""
    torch.set_num_threads(threads)
    p, N, D = parameters(3, H, 2, seed=1), 20, 4
    x = sample(p, N, D)[0]
    for i, w in enumerate([*p[0], *p[1:]]):
        for position in (0, w.numel() // 2 + 1, w.numel() - 1):
            for _ in range(3):  # so that what was there before the change is kept
                drawn = sample(p, N, D)
            hits = cache()["hits"]
            before = lstm_log_prob(x, *p)
            assert torch.equal(sample(p, N, D)[0], drawn[0])
            assert cache()["hits"] == hits + 2
            value = w.clone()
            value.view(-1)[position] += 3.0
            CHANGES[change](w, value)
            assert torch.equal(w, value)
            after = lstm_log_prob(x, *p)
            assert torch.equal(after, uncached_log_prob(x, p))
            assert not torch.equal(after, before), (i, position)
            y, log_prob = sample(p, N, D)
            assert torch.equal(log_prob, uncached_log_prob(y, p))


@pytest.mark.each_level
def test_models_of_one_shape_take_turns() -> None:
    """Also where an earlier one's memory is used again, and where they differ in the sign of a zero or the dtype."""
    p, q = parameters(3, 24, seed=1), parameters(3, 24, seed=2)
    x = random_states(30, 6, 3)
    expected = [uncached_log_prob(x, one) for one in (p, q)]
    drawn = [sample(one, 30, 6)[0] for one in (copied(p), copied(q))]
    rounded = sample((round_weights(p[0], torch.bfloat16), *p[1:]), 30, 6)
    for _ in range(4):
        for one, log_prob, samples in zip((p, q), expected, drawn, strict=True):
            assert torch.equal(lstm_log_prob(x, *one), log_prob)
            assert torch.equal(lstm_log_prob(x, *copied(one)), log_prob)
            assert torch.equal(sample(one, 30, 6)[0], samples)
        assert torch.equal(sample(p, 30, 6, weight_dtype=torch.bfloat16)[1], rounded[1])
    for column in (p[0][0].T.contiguous().T, torch.stack([p[0][0]] * 2, -1)[..., 0]):  # the same numbers, not in rows
        assert torch.equal(lstm_log_prob(x, [column, *p[0][1:]], *p[1:]), expected[0])


@pytest.mark.each_level
def test_parameters_are_kept_from_their_second_call_on() -> None:
    p = parameters(4, 21, seed=77)
    counts = [cache()]
    for _ in range(5):
        sample(p, 2, 3)
        counts.append(cache())
    misses = [after["misses"] - before["misses"] for before, after in itertools.pairwise(counts)]
    hits = [after["hits"] - before["hits"] for before, after in itertools.pairwise(counts)]
    assert (misses, hits) == ([1, 1, 0, 0, 0], [0, 0, 1, 1, 1])
    lstm_log_prob(random_states(2, 3, 4), *p)
    assert cache()["hits"] == counts[-1]["hits"] + 1
    for _ in range(5):  # new in every call: nothing of them is kept
        for w in (*p[0], *p[1:]):
            w.mul_(0.9)
        kept = cache()
        sample(p, 2, 3)
        assert cache() == {**kept, "misses": kept["misses"] + 1}


def test_what_is_kept_is_bounded() -> None:
    """By the number of sets, and by their bytes; one set that is too large leaves the others alone."""
    limit = 2**26
    for seed in range(12):
        for _ in range(2):
            sample(parameters(2, 10, seed=seed), 1, 1)
    assert cache()["models"] == 8
    for seed in range(6):
        p = parameters(2, 700, seed=seed)
        for _ in range(3):
            x, log_prob = sample(p, 1, 2)
            assert cache()["bytes"] <= limit
        assert torch.equal(log_prob, uncached_log_prob(x, p))
    assert cache()["bytes"] > limit // 2
    kept, p = cache(), parameters(2, 1500)
    for _ in range(3):
        sample(p, 1, 1)
    assert cache() == {**kept, "misses": kept["misses"] + 3}


@pytest.mark.each_level
def test_threads_share_what_is_kept() -> None:
    """More models than are kept, drawn from by threads at once, while one thread's own model changes all the time."""
    models = [parameters(3, 32, seed=seed) for seed in range(10)]
    expected = [uncached_log_prob(sample(copied(p), 5, 6)[0], p) for p in models]

    def work(worker: int) -> bool:
        own = parameters(3, 32, seed=100 + worker)
        for turn in range(40):
            i = (turn // 3 + worker) % len(models)
            right = torch.equal(sample(models[i], 5, 6)[1], expected[i])
            own[0][1].data[turn % 128, turn % 32] += 1.0
            x, log_prob = sample(own, 5, 6)
            if not right or not torch.equal(log_prob, uncached_log_prob(x, own)):
                return False
        return True

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


@pytest.mark.each_level
def test_bfloat16_weights_are_the_rounded_weights() -> None:
    p = parameters(10, 37, 2)
    for w in p[0]:  # what lies halfway between two numbers of bfloat16 goes to the even one
        w[::3] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8]).repeat(w[::3].numel())[: w[::3].numel()].view_as(w[::3]) / 8
    rounded = (round_weights(p[0], torch.bfloat16), *p[1:])
    x, log_prob = sample(p, 60, 20, weight_dtype=torch.bfloat16)
    for one, two in zip((x, log_prob), sample(rounded, 60, 20), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(log_prob, lstm_log_prob(x, *rounded))
    difference = (lstm_log_prob(x, *p) - lstm_log_prob(x, *rounded)).abs()
    assert 0 < difference.max() < 0.02 * lstm_log_prob(x, *p).abs().max()
    for pattern in (0x7FFFFFFF, -1):  # NaN of either sign, which adding up to round would carry to zero
        p[0][1].view(torch.int32)[0, 0] = pattern
        with pytest.raises(RuntimeError, match="NaN or infinite"):
            sample(p, 3, 4, weight_dtype=torch.bfloat16)


def test_gradients_pass_straight_through_the_rounding() -> None:
    """To the bit those at the rounded weights; matrices read once, biases and the head are not rounded."""
    p, x = parameters(5, 12, 2), random_states(9, 7, 5)
    q = leaves(p)
    grads = gradients(lstm_log_prob(x, round_weights(q[0], torch.bfloat16), *q[1:]).sum(), q)
    rounded = leaves((round_weights(p[0], torch.bfloat16), *p[1:]))
    for one, two in zip(grads, gradients(lstm_log_prob(x, *rounded).sum(), rounded), strict=True):
        assert torch.equal(one, two)
    changed = [not torch.equal(one, two) for one, two in zip(rounded[0], p[0], strict=True)]
    assert changed == [False, True, False, False, True, True, False, False]
    for one, two in zip(rounded[0], p[0], strict=True):
        assert ((one - two).abs() <= 2**-8 * two.abs()).all()
    assert all(one is two for one, two in zip(round_weights(p[0], torch.float32), p[0], strict=True))


@pytest.mark.each_level
@pytest.mark.parametrize("N", [2, 40])
def test_extreme_weights(N: int) -> None:
    """Saturated gates and logits of ±1e4 give the reference's results; what is not a distribution is refused."""
    weights, head_weight, head_bias = parameters(4, 16, scale=100.0)
    p = weights, head_weight, torch.tensor([1e4, -1e4, 0.0, 1e4])
    x, log_prob = sample(p, N, 6)
    assert set(x.unique().tolist()) <= {0, 3}
    expected = reference.log_prob(x, *cast(p, torch.float64))
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-4, atol=1e-2)
    q = leaves(p)
    assert all(g.isfinite().all() for g in gradients(lstm_log_prob(x, *q).sum(), q))
    for shift in (-500.0, 500.0):  # logits are free up to a constant
        shifted = head_bias + shift
        x, log_prob = sample((weights, head_weight / 50, shifted), N, 6)
        expected = lstm_log_prob(x, weights, head_weight / 50, head_bias)
        torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(lstm_log_prob(x, weights, head_weight / 50, shifted), expected, rtol=1e-4, atol=1e-3)
    forbidden = (weights, torch.zeros(4, 16), torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]))
    x, log_prob = sample(forbidden, 50, 6)
    assert set(x.unique().tolist()) == {0, 2}
    torch.testing.assert_close(log_prob, torch.full((50,), -6 * torch.tensor(2.0).log().item()))
    for bad in (float("nan"), float("inf")):
        for spoil in range(3):
            spoiled = [w.clone() for w in weights], head_weight.clone(), head_bias.clone()
            (spoiled[0][1] if spoil == 0 else spoiled[spoil])[0] = bad
            if spoil == 0 and bad == float("inf"):
                continue  # saturates a gate, which is a result like any other unless inf − inf turns up
            with pytest.raises(RuntimeError, match="NaN or infinite"):
                sample(spoiled, N, 6)
            if bad != bad:
                assert lstm_log_prob(random_states(N, 6, 4), *spoiled).isnan().all()


@pytest.mark.parametrize("bad_row", [0, 100, 249])
def test_one_sample_without_a_distribution_is_enough(bad_row: int) -> None:
    p = parameters(3, 6)
    p[0][0][:, 1] = torch.nan  # what state 1 adds to the gates
    given = torch.zeros(250, 1, dtype=torch.uint8)
    assert sample(p, 250, 1, given=given)[1].eq(0).all()
    given[bad_row] = 1
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        sample(p, 250, 2, given=given)


def test_logits_are_the_references() -> None:
    for K, D in ((2, 9), (5, 9), (3, 1)):
        p, x = parameters(K, 12, 2), random_states(6, D, K)
        expected = reference.logits(x, *cast(p, torch.float64))
        torch.testing.assert_close(lstm_logits(x, *p).double(), expected, rtol=1e-4, atol=1e-5)


def test_empty_batch() -> None:
    p = leaves(parameters(3, 5))
    x = torch.zeros(0, 4, dtype=torch.uint8)
    value = lstm_log_prob(x, *p)
    assert value.shape == (0,)
    assert all((g == 0).all() for g in gradients(value.sum(), p))
    assert lstm_logits(x, *p).shape == (0, 4, 3)
    assert sample(p, 0, 4)[0].shape == (0, 4)


@pytest.mark.parametrize("layers", [1, 2])
def test_opcheck(layers: int) -> None:
    p, x, seed = parameters(3, 6, layers), random_states(5, 7, 3), torch.tensor(5)
    weights, head_weight, head_bias = leaves(p)
    for steps in (0, 3):
        torch.library.opcheck(torch.ops.pyar.lstm_log_prob.default, (x, weights, head_weight, head_bias, steps, True))
        conditional = torch.ops.pyar.lstm_conditional_log_prob.default
        torch.library.opcheck(conditional, (x, weights, head_weight, head_bias, steps, True))
        kept = torch.ops.pyar.lstm_log_prob(x, *p, steps, True)[1]
        for gradient in (torch.ones(5), torch.ones(5, 7)):
            torch.library.opcheck(torch.ops.pyar.lstm_log_prob_backward.default, (gradient, x, *p, kept, steps))
    for name in ("lstm_sample", "lstm_sample_bfloat16"):
        for rest in [(seed, 5, 3, 7, 0.5, x[:, :2].contiguous()), (seed, 4, 0, 7, 1.0, None)]:
            torch.library.opcheck(getattr(torch.ops.pyar, name).default, (*p, *rest))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()
    p, x = parameters(3, 6, 2), random_states(5, 7, 3)
    compiled = torch.compile(lstm_log_prob, fullgraph=True, backend="aot_eager")
    eager, traced = leaves(p), leaves(p)
    expected, actual = lstm_log_prob(x, *eager), compiled(x, *traced)
    assert torch.equal(actual, expected)
    for one, two in zip(gradients(expected.sum(), eager), gradients(actual.sum(), traced), strict=True):
        assert torch.equal(one, two)
    draw = torch.compile(lambda: sample(p, 4, 7)[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(draw(), sample(p, 4, 7)[0])


def test_modes_of_autograd_and_autocast() -> None:
    p, x = leaves(parameters(3, 6)), random_states(5, 7, 3)
    expected = lstm_log_prob(x, *p)
    with torch.inference_mode():
        assert torch.equal(lstm_log_prob(x, *p), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lstm_log_prob(x, *p), expected)
        assert sample(p, 3, 4)[1].dtype == torch.float32
    first = torch.autograd.grad(expected.sum(), p[1], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivatives"):
        first.sum().backward()


def test_bad_arguments_are_named() -> None:
    p, x = parameters(3, 6), random_states(4, 5, 3)
    for states, error, message in [
        (x.float(), TypeError, "x must be uint8 or int64"),
        (x[0], ValueError, r"x must be \[B, D\]"),
        (x[:, :0], ValueError, "D at least 1"),
        (x + 3, ValueError, "x must hold states 0 … 2"),
        (x.long() - 3, ValueError, "x must hold states 0 … 2"),
    ]:
        with pytest.raises(error, match=message):
            lstm_log_prob(states, *p)
    with pytest.raises(RuntimeError, match="must hold states"):
        torch.ops.pyar.lstm_log_prob(x + 3, *p, 0, False)
    with pytest.raises(RuntimeError, match="given must hold states"):
        torch.ops.pyar.lstm_sample(*p, torch.tensor(0), 4, 0, 5, 1.0, x + 3)
    with pytest.raises(ValueError, match="checkpoint_steps"):
        lstm_log_prob(x, *p, checkpoint_steps=-1)
    with pytest.raises(ValueError, match="4 layers, got 3 tensors"):
        lstm_log_prob(x, p[0][:3], *p[1:])
    with pytest.raises(ValueError, match="weight_hh_l0 must be"):
        lstm_log_prob(x, [p[0][0], p[0][1][:, :5], *p[0][2:]], *p[1:])
    with pytest.raises(TypeError, match="must be float32"):
        lstm_log_prob(x, *cast(p, torch.float64))
    for options, error, message in [
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"first_index": -1}, ValueError, "first_index"),
        ({"given": x[:3]}, ValueError, "given"),
        ({"given": x + 3}, ValueError, "given must hold states"),
        ({"weight_dtype": torch.float16}, ValueError, "weight_dtype"),
    ]:
        with pytest.raises(error, match=message):
            sample(p, 4, 5, **options)
    with pytest.raises(ValueError, match="num_dims"):
        sample(p, 4, 0)
