"""NADE's operations against the reference: values, gradients, samples, bits, errors and torch's machinery."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from oracle import (
    NadeParameters,
    all_states,
    assert_as_accurate,
    assert_follows_law,
    assert_inverse_cdf,
    nade_parameters,
    random_states,
)
from torch import Tensor

from pyar.native import has_kernels
from pyar.ops.nade import nade_log_prob, nade_logits, nade_mean_nll, nade_sample
from pyar.reference import nade as reference
from pyar.reference.draw import log_probability
from pyar.reference.philox import uniforms

# D, K, H, options: odd sizes, every form of input and output, more than a cache line of everything.
SHAPES = [
    pytest.param(1, 2, 1, {}, id="smallest"),
    pytest.param(50, 2, 33, {}, id="binary"),
    pytest.param(50, 2, 33, {"scalar": True}, id="binary-scalar"),
    pytest.param(37, 3, 40, {}, id="onehot-3"),
    pytest.param(30, 10, 67, {}, id="onehot-10"),
    pytest.param(30, 10, 67, {"scalar": True}, id="scalar-10"),
    pytest.param(5, 256, 21, {}, id="onehot-256"),
    pytest.param(33, 2, 30, {"mlp_sizes": (19,)}, id="binary-mlp"),
    pytest.param(20, 5, 18, {"mlp_sizes": (23, 9), "scalar": True}, id="scalar-mlp"),
    pytest.param(784, 2, 50, {}, id="binary-784"),
    pytest.param(300, 10, 20, {}, id="onehot-300"),
]

pytestmark = pytest.mark.skipif(not has_kernels("cpu"), reason="the extension is not built")


def seed_on(device: torch.device, seed: int) -> Tensor:
    return torch.tensor(seed, dtype=torch.int64, device=device)


def outputs64(x: Tensor, parameters: NadeParameters) -> Tensor:
    """The float64 conditionals' outputs given x: [B, D, P] on the CPU."""
    on_cpu = parameters.map(lambda tensor: tensor.detach().cpu().double())
    return torch.stack(list(reference.outputs(x.cpu(), *on_cpu)), dim=1)


@pytest.mark.each_level
@pytest.mark.parametrize("zeros", [0.0, 0.85])
@pytest.mark.parametrize(("D", "K", "H", "options"), SHAPES)
def test_values_are_the_references(D: int, K: int, H: int, options: dict, zeros: float, device: torch.device) -> None:
    parameters = nade_parameters(D, K, H, device=device, **options)
    x = random_states(19, D, K, zeros=zeros).to(device)
    for ours, theirs in [
        (nade_log_prob, reference.log_prob),
        (nade_logits, reference.logits),
        (nade_mean_nll, reference.mean_nll),
    ]:
        actual = ours(x, *parameters)
        assert actual.device == x.device
        assert_as_accurate(actual, theirs(x, *parameters), theirs(x, *parameters.double()), ours.__name__)


def gradients(function, x: Tensor, parameters: NadeParameters, upstream: Tensor | None) -> list[Tensor]:
    leaves = parameters.leaves()
    result = function(x, *leaves)
    upstream = torch.ones_like(result) if upstream is None else upstream.to(result.dtype)
    return list(torch.autograd.grad(result, leaves.tensors, upstream, allow_unused=True, materialize_grads=True))


def reference_gradients(
    function, x: Tensor, parameters: NadeParameters, upstream: Tensor | None
) -> list[tuple[Tensor, ...]]:
    """The float32 gradients of every parameter for three orders of the batch."""
    orders = [torch.randperm(len(x), generator=torch.Generator().manual_seed(i)).to(x.device) for i in range(3)]
    in_order = [upstream if upstream is None or upstream.dim() == 0 else upstream[order] for order in orders]
    results = [gradients(function, x[order], parameters, up) for order, up in zip(orders, in_order, strict=True)]
    return list(zip(*results, strict=True))


def assert_gradients_are_the_references(
    B: int, D: int, K: int, H: int, options: dict, zeros: float, device: torch.device
) -> None:
    parameters = nade_parameters(D, K, H, device=device, **options)
    x = random_states(B, D, K, zeros=zeros).to(device)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(B, generator=generator).to(device)
    cotangent = torch.randn(B, D, *([] if K == 2 else [K]), generator=generator).to(device)
    for ours, theirs, upstream in [
        (nade_log_prob, reference.log_prob, weights),
        (nade_logits, reference.logits, cotangent),
        (nade_mean_nll, reference.mean_nll, torch.tensor(-1.75, device=device)),
    ]:
        actual = gradients(ours, x, parameters, upstream)
        float32 = reference_gradients(theirs, x, parameters, upstream)
        float64 = gradients(theirs, x, parameters.double(), upstream)
        names = ["W", "c", "V", "b", *(f"mlp[{i}]" for i in range(len(parameters.mlp)))]
        for name, *triple in zip(names, actual, float32, float64, strict=True):
            assert_as_accurate(*triple, f"{ours.__name__}'s gradient of {name}")


@pytest.mark.each_level
@pytest.mark.parametrize("zeros", [0.0, 0.85])
@pytest.mark.parametrize(("D", "K", "H", "options"), SHAPES)
def test_gradients_are_the_references(
    D: int, K: int, H: int, options: dict, zeros: float, device: torch.device
) -> None:
    assert_gradients_are_the_references(19, D, K, H, options, zeros, device)


@pytest.mark.each_level
@pytest.mark.parametrize("B", [128, 300])
@pytest.mark.parametrize(("K", "options"), [(2, {}), (7, {}), (3, {"scalar": True}), (5, {"mlp_sizes": (11,)})])
def test_gradients_of_batches_that_are_divided(B: int, K: int, options: dict, device: torch.device) -> None:
    """The CPU computes the gradients of 128 samples at a time at most and adds those of the next 128 to them."""
    assert_gradients_are_the_references(B, 14, K, 20, options, 0.5, device)


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("K", [2, 4])
def test_mean_nll_is_the_log_prob_route(K: int, scalar: bool, device: torch.device) -> None:
    parameters = nade_parameters(40, K, 24, scalar=scalar, device=device)
    x = random_states(31, 40, K).to(device)
    leaves, other = parameters.leaves(), parameters.leaves()
    fused = nade_mean_nll(x, *leaves)
    fused.backward()
    composed = -nade_log_prob(x, *other).mean()
    composed.backward()
    torch.testing.assert_close(fused, composed, rtol=1e-6, atol=0)
    for one, two in zip(leaves.tensors, other.tensors, strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_gradients_of_some_parameters_only(device: torch.device) -> None:
    parameters = nade_parameters(6, 3, 5, device=device)
    x = random_states(4, 6, 3).to(device)
    every = gradients(nade_log_prob, x, parameters, None)
    for i in range(4):
        leaves = list(parameters.leaves())
        leaves[:4] = [tensor.requires_grad_(j == i) for j, tensor in enumerate(leaves[:4])]
        nade_log_prob(x, *leaves).sum().backward()
        assert torch.equal(leaves[i].grad, every[i])
        assert all(leaves[j].grad is None for j in range(4) if j != i)


def test_samples_with_zero_upstream_gradient_do_not_count(device: torch.device) -> None:
    parameters = nade_parameters(12, 2, 9, device=device)
    x = random_states(8, 12, 2).to(device)
    weights = torch.tensor([0.0, 2.0] * 4, device=device)
    masked = gradients(nade_log_prob, x, parameters, weights)
    chosen = gradients(nade_log_prob, x[1::2].contiguous(), parameters, weights[1::2].contiguous())
    for one, two in zip(masked, chosen, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@st.composite
def cases(draw) -> tuple[NadeParameters, Tensor]:
    """Parameters and states of any shape, dtype and stride."""
    K = draw(st.sampled_from([2, 3, 4, 7, 10, 16, 17, 255, 256]))
    D = draw(st.integers(1, 12 if K > 20 else 40))
    H = draw(st.integers(1, 70))
    B = draw(st.integers(0, 20))
    mlp_sizes = draw(st.lists(st.integers(1, 30), max_size=2))
    seed = draw(st.integers(0, 2**20))
    parameters = nade_parameters(
        D,
        K,
        H,
        scalar=draw(st.booleans()),
        mlp_sizes=mlp_sizes,
        seed=seed,
        scale=draw(st.sampled_from([0.1, 1.0, 3.0])),
    )
    x = random_states(B, D, K, seed=seed, zeros=draw(st.sampled_from([0.0, 0.5, 0.95, 1.0])))
    if draw(st.booleans()):
        x = x.long()
    match draw(st.sampled_from(["contiguous", "transposed", "strided", "expanded"])):
        case "transposed":
            x = x.T.contiguous().T
        case "strided":
            x = torch.stack((x, x), dim=2).flatten(1)[:, ::2]
        case "expanded":
            x = x[:1].expand(B, D) if B else x
    if draw(st.booleans()):
        parameters = parameters.map(lambda tensor: torch.stack((tensor, tensor), dim=-1)[..., 0])
        assert parameters.W.stride(-1) == 2
    return parameters, x


@hypothesis_given(cases())
def test_any_shape_dtype_and_stride(device: torch.device, case: tuple[NadeParameters, Tensor]) -> None:
    parameters, x = case[0].map(lambda tensor: tensor.to(device)), case[1].to(device)
    upstream = torch.linspace(-1, 2, len(x), device=device)
    for ours, theirs in [(nade_log_prob, reference.log_prob), (nade_logits, reference.logits)]:
        assert_as_accurate(ours(x, *parameters), theirs(x, *parameters), theirs(x, *parameters.double()))
    for triple in zip(
        gradients(nade_log_prob, x, parameters, upstream),
        reference_gradients(reference.log_prob, x, parameters, upstream),
        gradients(reference.log_prob, x, parameters.double(), upstream),
        strict=True,
    ):
        assert_as_accurate(*triple, "gradient")


@hypothesis_given(cases(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 3, 2**32 - 2, 2**50]))
def test_samples_of_any_shape(
    device: torch.device, case: tuple[NadeParameters, Tensor], seed: int, first_index: int
) -> None:
    parameters, given = case[0].map(lambda tensor: tensor.to(device)), case[1].to(device)
    N, D = given.shape
    given = given[:, : D // 2]
    x, log_prob = nade_sample(
        *parameters, seed=seed_on(device, seed), num_samples=N, first_index=first_index, temperature=0.9, given=given
    )
    assert x.dtype == torch.uint8
    assert torch.equal(x[:, : D // 2], given.to(torch.uint8))
    outputs = outputs64(x, parameters)
    assert_inverse_cdf(x.cpu(), outputs, uniforms(seed, first_index, N, D), 0.9, first_step=D // 2)
    expected = log_probability(outputs / 0.9, x.cpu())[:, D // 2 :].sum(dim=1)
    torch.testing.assert_close(log_prob.cpu().double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.each_level
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("D", "K", "H", "options"), SHAPES)
def test_samples_are_the_inverse_cdf(
    D: int, K: int, H: int, options: dict, temperature: float, device: torch.device
) -> None:
    parameters = nade_parameters(D, K, H, device=device, **options)
    N = 70
    x, log_prob = nade_sample(
        *parameters, seed=seed_on(device, 5), num_samples=N, first_index=9, temperature=temperature
    )
    outputs = outputs64(x, parameters)
    assert_inverse_cdf(x.cpu(), outputs, uniforms(5, 9, N, D), temperature)
    expected = log_probability(outputs / temperature, x.cpu()).sum(dim=1)
    torch.testing.assert_close(log_prob.cpu().double(), expected, rtol=1e-5, atol=2e-5)
    if temperature == 1:
        torch.testing.assert_close(log_prob, nade_log_prob(x, *parameters), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize(("K", "options"), [(2, {}), (3, {}), (4, {"scalar": True}), (2, {"mlp_sizes": (8,)})])
def test_samples_follow_the_law(K: int, options: dict, temperature: float, device: torch.device) -> None:
    parameters = nade_parameters(4, K, 9, device=device, **options)
    x, _ = nade_sample(*parameters, seed=seed_on(device, 1), num_samples=200_000, temperature=temperature)
    states = all_states(4, K)
    wrong = parameters._replace(
        b=parameters.b + 0.06 * temperature * torch.eye(parameters.b.shape[1], device=device)[0]
    )
    laws = [log_probability(outputs64(states, which) / temperature, states).sum(dim=1) for which in (parameters, wrong)]
    assert_follows_law(x, *laws, K)


@pytest.mark.parametrize("K", [2, 3, 7, 256])
def test_a_model_of_zeros_draws_the_uniform_itself(K: int, device: torch.device) -> None:
    """With all logits 0 the state is ⌊K·u⌋ and every log-probability −D log K."""
    D, N = 9, 300
    parameters = nade_parameters(D, K, 6, scale=0.0, device=device)
    x, log_prob = nade_sample(*parameters, seed=seed_on(device, 77), num_samples=N, first_index=2**40)
    expected = (uniforms(77, 2**40, N, D).double() * K).floor().to(torch.uint8)
    assert torch.equal(x.cpu(), expected)
    torch.testing.assert_close(log_prob.cpu(), torch.full((N,), -D * math.log(K)), rtol=1e-6, atol=0)


def test_a_boundary_belongs_to_the_state_above_it(device: torch.device) -> None:
    """Where u·Σw is w_0 + … + w_k in float32, the state drawn is k + 1: draws enough that there are such uniforms."""
    K, D, N = 255, 9, 60_000
    target = uniforms(5, 0, N, D) * K  # all weights are 1
    assert (target == target.floor()).sum() >= 2
    x, _ = nade_sample(*nade_parameters(D, K, 1, scale=0.0, device=device), seed=seed_on(device, 5), num_samples=N)
    assert torch.equal(x.cpu(), target.floor().to(torch.uint8))


@pytest.mark.each_level
@pytest.mark.parametrize(("K", "options"), [(2, {}), (2, {"mlp_sizes": (12,)}), (10, {}), (10, {"scalar": True})])
def test_bits_do_not_depend_on_threads_or_chunks(
    K: int, options: dict, device: torch.device, restore_threads: None
) -> None:
    D, N = 30, 203
    parameters = nade_parameters(D, K, 41, device=device, **options)
    x = random_states(N, D, K, zeros=0.5).to(device)
    weights = torch.linspace(-1, 1, N, device=device)

    def everything() -> list[Tensor]:
        return [
            *nade_sample(*parameters, seed=seed_on(device, 3), num_samples=N, first_index=50),
            nade_log_prob(x, *parameters),
            nade_logits(x, *parameters),
            nade_mean_nll(x, *parameters),
            *gradients(nade_log_prob, x, parameters, weights),
            *gradients(nade_mean_nll, x, parameters, None),
        ]

    torch.set_num_threads(1)
    alone = everything()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for one, two in zip(alone, everything(), strict=True):
            assert torch.equal(one, two)
    drawn, drawn_log_prob, log_prob, logits = alone[:4]
    for start, size in [(0, 1), (1, 1), (3, 7), (10, 64), (74, 129)]:
        rows = slice(start, start + size)
        part, part_log_prob = nade_sample(
            *parameters, seed=seed_on(device, 3), num_samples=size, first_index=50 + start
        )
        assert torch.equal(part, drawn[rows])
        assert torch.equal(part_log_prob, drawn_log_prob[rows])
        assert torch.equal(nade_log_prob(x[rows], *parameters), log_prob[rows])
        assert torch.equal(nade_logits(x[rows], *parameters), logits[rows])


def test_given_dimensions_do_not_change_what_is_drawn_after(device: torch.device) -> None:
    """Forcing what would have been drawn anyway changes nothing; the log-probability is that of the rest."""
    parameters = nade_parameters(10, 3, 8, device=device)
    free, _ = nade_sample(*parameters, seed=seed_on(device, 4), num_samples=40)
    for G in (0, 1, 6, 10):
        forced, log_prob = nade_sample(*parameters, seed=seed_on(device, 4), num_samples=40, given=free[:, :G])
        assert torch.equal(forced, free)
        expected = log_probability(outputs64(free, parameters), free.cpu())[:, G:].sum(dim=1)
        torch.testing.assert_close(log_prob.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(log_prob, torch.zeros(40, device=device))


@pytest.mark.each_level
@pytest.mark.parametrize("K", [2, 3])
def test_extreme_parameters_stay_exact(K: int, device: torch.device) -> None:
    """Saturated units and logits in the hundreds: no overflow, and the tails keep their value."""
    parameters = nade_parameters(12, K, 20, scale=60.0, device=device)
    x = random_states(25, 12, K).to(device)
    assert_as_accurate(
        nade_log_prob(x, *parameters),
        reference.log_prob(x, *parameters),
        reference.log_prob(x, *parameters.double()),
    )
    assert nade_log_prob(x, *parameters).min() < -100
    for actual in gradients(nade_log_prob, x, parameters, None):
        assert torch.isfinite(actual).all()
    drawn, log_prob = nade_sample(*parameters, seed=seed_on(device, 0), num_samples=25)
    assert_inverse_cdf(drawn.cpu(), outputs64(drawn, parameters), uniforms(0, 0, 25, 12))
    assert torch.isfinite(log_prob).all()


@pytest.mark.each_level
def test_activations_of_any_size(device: torch.device) -> None:
    """Two states: the kernels keep e^(−a) while |a| is below 80, and a beyond. Some samples pass 80 early, some late,
    some never, and each has the same bits in every batch."""
    D = 120
    parameters = nade_parameters(D, 2, 40, device=device)
    parameters = parameters._replace(W=96 * parameters.W)
    x = random_states(40, D, 2).to(device)
    x[:8, :90] = 0
    x[8:12] = 0
    steps = torch.where(x.cpu()[:, :, None] > 0, parameters.W.detach().cpu().double()[:, 0], 0).cumsum(1)
    largest = (steps + parameters.c.detach().cpu()).abs().amax(2)
    assert (largest[8:12] < 80).all()
    assert (largest[12:, -1] > 80).any()
    assert (largest > 80).any(1).sum() > 15
    for function in (nade_log_prob, nade_logits):
        theirs = getattr(reference, function.__name__.removeprefix("nade_"))
        together = function(x, *parameters)
        assert_as_accurate(together, theirs(x, *parameters), theirs(x, *parameters.double()), function.__name__)
        for start, size in ((0, 1), (5, 3), (11, 20)):
            assert torch.equal(function(x[start : start + size], *parameters), together[start : start + size])
    actual = gradients(nade_log_prob, x, parameters, None)
    float32 = reference_gradients(reference.log_prob, x, parameters, None)
    float64 = gradients(reference.log_prob, x, parameters.double(), None)
    for name, *triple in zip("WcVb", actual, float32, float64, strict=True):
        assert_as_accurate(*triple, f"gradient of {name}")
    drawn, log_prob = nade_sample(*parameters, seed=seed_on(device, 1), num_samples=60)
    assert_inverse_cdf(drawn.cpu(), outputs64(drawn, parameters), uniforms(1, 0, 60, D))
    for start, size in ((0, 1), (30, 9)):
        part = nade_sample(*parameters, seed=seed_on(device, 1), num_samples=size, first_index=start)
        assert torch.equal(part[0], drawn[start : start + size])
        assert torch.equal(part[1], log_prob[start : start + size])


@pytest.mark.each_level
@pytest.mark.parametrize("std", [0.01, 0.05, 0.3])
def test_errors_do_not_grow_over_many_changes(std: float, device: torch.device) -> None:
    """784 dimensions, half ones: a product of some 400 factors is as accurate as a sum of as many terms."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((784, 1, 64), (64,), (784, 1, 64), (784, 1))
    parameters = NadeParameters(*(std * torch.randn(shape, generator=generator) for shape in shapes)).map(
        lambda tensor: tensor.to(device)
    )
    x = random_states(30, 784, 2).to(device)
    for function in (nade_log_prob, nade_logits):
        theirs = getattr(reference, function.__name__.removeprefix("nade_"))
        assert_as_accurate(
            function(x, *parameters), theirs(x, *parameters), theirs(x, *parameters.double()), function.__name__
        )


@pytest.mark.parametrize("where", ["W", "c"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_parameters_that_are_no_numbers_reach_the_result(where: str, value: float, device: torch.device) -> None:
    """As in the reference: NaN becomes NaN, an infinite activation a unit that is surely on or off."""
    parameters = nade_parameters(20, 2, 18, device=device)
    getattr(parameters, where).view(-1)[3] = value
    x = random_states(11, 20, 2).to(device)
    expected = reference.log_prob(x, *parameters.double())
    assert expected.isnan().any() == math.isnan(value)
    torch.testing.assert_close(nade_log_prob(x, *parameters).double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.each_level
@pytest.mark.parametrize("state", [0, 1])
def test_sure_conditionals_keep_their_digits(state: int) -> None:
    """With p = p(x), neither ln p = −(1 − p) nor its slope 1 − p in the logit becomes zero where p rounds to 1."""
    x = torch.full((1, 161), state, dtype=torch.uint8)
    zeros, sign = nade_parameters(161, 2, 5, scale=0.0), 2 * state - 1
    parameters = zeros._replace(b=torch.linspace(-80, 80, 161)[:, None])
    for function in (nade_log_prob, lambda *arguments: -nade_mean_nll(*arguments)):
        actual = gradients(function, x, parameters, None)[3]
        expected = sign * torch.sigmoid(-sign * parameters.b.double())
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)
    for logit in (10.0, 20.0, 40.0, 80.0):
        actual = nade_log_prob(x, *zeros._replace(b=torch.full((161, 1), sign * logit)))
        expected = 161 * torch.nn.functional.logsigmoid(torch.tensor([logit], dtype=torch.float64))
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)


def test_empty_batches(device: torch.device) -> None:
    for K, mlp_sizes in [(2, ()), (5, ()), (5, (4,))]:
        parameters = nade_parameters(6, K, 7, mlp_sizes=mlp_sizes, device=device)
        x = torch.empty(0, 6, dtype=torch.uint8, device=device)
        assert nade_log_prob(x, *parameters).shape == (0,)
        assert nade_logits(x, *parameters).shape == ((0, 6) if K == 2 else (0, 6, K))
        assert nade_mean_nll(x, *parameters).isnan()
        for gradient in gradients(nade_log_prob, x, parameters, None):
            assert torch.equal(gradient, torch.zeros_like(gradient))
        drawn, log_prob = nade_sample(*parameters, seed=seed_on(device, 0), num_samples=0)
        assert (drawn.shape, log_prob.shape) == ((0, 6), (0,))


def test_arguments_are_left_as_they_are(device: torch.device) -> None:
    parameters = nade_parameters(8, 4, 9, mlp_sizes=(5,), device=device)
    before = parameters.map(torch.clone)
    x = random_states(6, 8, 4).to(device)
    x_before = x.clone()
    nade_log_prob(x, *parameters)
    gradients(nade_log_prob, x, parameters, None)
    nade_sample(*parameters, seed=seed_on(device, 0), num_samples=6, given=x[:, :3])
    assert torch.equal(x, x_before)
    assert all(torch.equal(one, two) for one, two in zip(parameters.tensors, before.tensors, strict=True))


PEAK_MEMORY = """
import torch
from pathlib import Path
from oracle import nade_parameters, random_states
from pyar.ops.nade import nade_log_prob, nade_mean_nll, nade_sample

def megabytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024

torch.set_num_threads(1)
parameters, x = nade_parameters(784, 2, 500).leaves(), random_states(1000, 784, 2, zeros=0.87)
for step in (
    lambda x: nade_mean_nll(x, *parameters).backward(),
    lambda x: nade_log_prob(x, *parameters).sum().backward(),
    lambda x: nade_sample(*parameters, seed=torch.tensor(0), num_samples=len(x)),
):
    step(x[:2])  # loads what is loaded once, and makes the gradients
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc_pid_clear_refs(5)
    before = megabytes("VmRSS")
    step(x)
    print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_peak_memory_is_far_below_a_tensor_of_batch_dimensions_and_units() -> None:
    """A gradient step of B = 1000 at D = 784, H = 500 takes less than 100 MB beside what is there; B·D·H is 1.6 GB."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    # Blocks of memory from the system and back to it at once: none that was freed before serves unseen.
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-c", PEAK_MEMORY]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peaks = [float(line) for line in result.stdout.split()]
    assert len(peaks) == 3
    assert 5 < peaks[0] < 100, peaks
    assert peaks[1] < 100, peaks  # less than the first, which has left its work space behind
    assert peaks[2] < 30, peaks


def test_gradients_at_the_same_time_are_those_one_after_the_other():
    cases = [(nade_parameters(D, 3, H), random_states(B, D, 3)) for D, H, B in ((60, 40, 150), (30, 90, 20), (9, 7, 5))]

    def gradients(case):
        leaves = case[0].leaves()
        return torch.autograd.grad(nade_mean_nll(case[1], *leaves[:4]), leaves.tensors)

    expected = [gradients(case) for case in cases]
    with ThreadPoolExecutor(6) as pool:
        for turn in range(10):
            order = [(i + turn) % 3 for i in range(12)]
            for i, actual in zip(order, pool.map(gradients, [cases[i] for i in order]), strict=True):
                for one, other in zip(actual, expected[i], strict=True):
                    assert torch.equal(one, other)
