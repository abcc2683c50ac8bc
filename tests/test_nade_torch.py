"""NADE's operations within torch: registration, compilation, autocast, modes of autograd, and bad arguments."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from oracle import NadeParameters, nade_parameters, random_states
from torch import Tensor

import pyar
from pyar.native import has_kernels
from pyar.ops.nade import nade_conditional_log_prob, nade_log_prob, nade_logits, nade_mean_nll, nade_sample

pytestmark = pytest.mark.skipif(not has_kernels("cpu"), reason="the extension is not built")

D, K, H, B = 7, 3, 6, 5


def weighted_mean_nll(x: Tensor, *parameters: object, **named: object) -> Tensor:
    return nade_mean_nll(x, *parameters, **named, weights=torch.linspace(-1, 2, B, device="cpu").to(x.device))


VALUES = [nade_log_prob, nade_conditional_log_prob, nade_logits, nade_mean_nll, weighted_mean_nll]
CASES = [pytest.param(2, (), id="binary"), pytest.param(3, (), id="onehot"), pytest.param(3, (4,), id="mlp")]


def case(K: int, mlp_sizes: tuple[int, ...], device: torch.device) -> tuple[NadeParameters, Tensor, Tensor]:
    parameters = nade_parameters(D, K, H, mlp_sizes=mlp_sizes, device=device)
    seed = torch.tensor(5, dtype=torch.int64, device=device)
    return parameters, random_states(B, D, K).to(device), seed


@pytest.mark.parametrize(("K", "mlp_sizes"), CASES)
def test_opcheck(K: int, mlp_sizes: tuple[int, ...], device: torch.device) -> None:
    """Schema, shape inference and autograd registration, as torch itself checks them."""
    parameters, x, seed = case(K, mlp_sizes, device)
    W, c, V, b, mlp = parameters.leaves()
    torch.library.opcheck(torch.ops.pyar.nade_log_prob.default, (x, W, c, V, b, list(mlp)))
    torch.library.opcheck(torch.ops.pyar.nade_logits.default, (x, W, c, V, b, list(mlp)))
    if device.type == "cpu":
        weights = torch.linspace(-1, 2, B).requires_grad_()
        torch.library.opcheck(torch.ops.pyar.nade_conditional_log_prob.default, (x, W, c, V, b, list(mlp)))
        torch.library.opcheck(torch.ops.pyar.nade_weighted_mean_nll.default, (x, weights, W, c, V, b, list(mlp)))
    if not mlp_sizes:
        torch.library.opcheck(torch.ops.pyar.nade_mean_nll.default, (x, W, c, V, b))
    W, c, V, b, mlp = parameters
    given = x[:, :2].contiguous()
    for arguments in [(seed, B, 3, 0.5, given), (seed, 4, 0, 1.0, None)]:
        torch.library.opcheck(torch.ops.pyar.nade_sample.default, (W, c, V, b, list(mlp), *arguments))
    gradient = torch.ones(B, device=device)
    torch.library.opcheck(torch.ops.pyar.nade_log_prob_backward.default, (gradient, x, W, c, V, b, list(mlp)))
    if device.type == "cpu":
        gradient = torch.ones(B, D)
        torch.library.opcheck(torch.ops.pyar.nade_log_prob_backward.default, (gradient, x, W, c, V, b, list(mlp)))
        for gradient in (torch.ones(3, B), torch.ones(3, B, D)):
            arguments = (gradient, x.expand(3, B, D), W, c, V, b, list(mlp))
            torch.library.opcheck(torch.ops.pyar.nade_log_prob_backward_each.default, arguments)
    gradient = torch.ones(B, D, V.shape[1], device=device)
    torch.library.opcheck(torch.ops.pyar.nade_logits_backward.default, (gradient, x, W, c, V, b, list(mlp)))


@pytest.mark.parametrize(("K", "mlp_sizes"), CASES)
def test_compiles_without_a_break(K: int, mlp_sizes: tuple[int, ...], device: torch.device) -> None:
    torch._dynamo.reset()  # so that tests do not share its limit of recompilations
    parameters, x, seed = case(K, mlp_sizes, device)

    def compiled(function: Callable) -> Callable:
        return torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=False)

    for function in VALUES:
        eager, traced = parameters.leaves(), parameters.leaves()
        expected, actual = function(x, *eager), compiled(function)(x, *traced)
        assert torch.equal(actual, expected)
        weights = torch.linspace(-1, 2, expected.numel(), device=device).view_as(expected)
        (expected * weights).sum().backward()
        (actual * weights).sum().backward()
        for one, two in zip(eager.tensors, traced.tensors, strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-6, atol=1e-7)
        assert torch.equal(compiled(function)(x.long(), *parameters), expected)

    def draw(given: Tensor | None) -> tuple[Tensor, Tensor]:
        return nade_sample(*parameters, seed=seed, num_samples=B, first_index=2, temperature=0.7, given=given)

    for given in (None, x[:, :3], x[0, :3].long()):
        for one, two in zip(compiled(draw)(given), draw(given), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("order", [None, [3, 0, 6, 2, 5, 1, 4]])
def test_a_compiled_model_is_the_model(order: list[int] | None) -> None:
    """A training step and sampling through torch.compile's default backend."""
    torch._dynamo.reset()
    model = pyar.NADE(D, K, H, order=order)
    x = random_states(B, D, K)
    loss = torch.compile(model.mean_nll, fullgraph=True)(x)
    assert torch.equal(loss, model.mean_nll(x))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for one, two in zip(gradients, torch.autograd.grad(model.mean_nll(x), list(model.parameters())), strict=True):
        torch.testing.assert_close(one, two)
    sample = torch.compile(model.sample, fullgraph=True)
    assert torch.equal(sample(9, seed=4, temperature=0.8), model.sample(9, seed=4, temperature=0.8))


def test_compiled_code_refuses_bad_states() -> None:
    """Looking at the values would break the graph; the kernels do it instead."""
    parameters, x, _ = case(K, (), torch.device("cpu"))
    compiled = torch.compile(nade_log_prob, fullgraph=True, backend="aot_eager")
    for bad in (x.long() - 1, x.long() + 256, x + K):
        with pytest.raises(RuntimeError, match="state"):
            compiled(bad, *parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    parameters, x, seed = case(K, (4,), device)
    expected = [function(x, *parameters) for function in VALUES]
    drawn = nade_sample(*parameters, seed=seed, num_samples=B)
    with torch.autocast(device.type, dtype):
        for function, value in zip(VALUES, expected, strict=True):
            assert torch.equal(function(x, *parameters), value)
        for one, two in zip(nade_sample(*parameters, seed=seed, num_samples=B), drawn, strict=True):
            assert torch.equal(one, two)
        leaves = parameters.leaves()
        nade_mean_nll(x, *leaves).backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in leaves.tensors)


def test_modes_without_gradients(device: torch.device) -> None:
    parameters, x, seed = case(K, (), device)
    leaves = parameters.leaves()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for function in VALUES:
                result = function(x, *leaves)
                assert not result.requires_grad
                torch.testing.assert_close(result, function(x, *parameters), rtol=1e-6, atol=0)
    drawn, log_prob = nade_sample(*leaves, seed=seed, num_samples=B)
    assert not log_prob.requires_grad
    assert nade_log_prob(drawn, *leaves).requires_grad


def test_the_graph_may_be_used_again(device: torch.device) -> None:
    parameters, x, _ = case(K, (), device)
    for function in (nade_log_prob, nade_mean_nll, weighted_mean_nll):
        leaves = parameters.leaves()
        loss = function(x, *leaves).sum()
        first = torch.autograd.grad(loss, leaves.tensors, retain_graph=True)
        expected = [gradient.clone() for gradient in first]
        for gradient in first:
            gradient.zero_()  # whose it is to change
        for one, two in zip(expected, torch.autograd.grad(loss, leaves.tensors), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_second_derivatives_are_refused(device: torch.device) -> None:
    parameters, x, _ = case(K, (), device)
    for function in VALUES:
        leaves = parameters.leaves()
        gradients = torch.autograd.grad(function(x, *leaves).sum(), leaves.tensors, create_graph=True)
        with pytest.raises(RuntimeError, match=r"second derivatives|double backward"):
            sum(gradient.square().sum() for gradient in gradients).backward()


def test_seeds_are_all_64_bits(device: torch.device) -> None:
    parameters, _, _ = case(2, (), device)

    def draw(seed: int) -> Tensor:
        return nade_sample(*parameters, seed=torch.tensor(seed, device=device), num_samples=64)[0]

    draws = [draw(seed) for seed in (1, 1 + 2**32, 1 - 2**63, -1)]
    for i, one in enumerate(draws):
        assert all(not torch.equal(one, other) for other in draws[:i])


def replaced(**changes: object) -> dict[str, object]:
    parameters = nade_parameters(D, K, H, mlp_sizes=(4,))
    return {"x": random_states(B, D, K), **parameters._asdict(), **changes}


BAD_ARGUMENTS = [
    ({"x": torch.zeros(B, D)}, TypeError, "x must be uint8 or int64, got torch.float32"),
    ({"x": torch.zeros(B, D + 1).byte()}, ValueError, r"x must be \[B, 7\], got \[5, 8\]"),
    ({"x": torch.full((B, D), K)}, ValueError, "x must hold states 0 … 2, got values 3 … 3"),
    ({"x": torch.zeros(B, D, dtype=torch.uint8, device="meta")}, ValueError, "x is on meta, the parameters on cpu"),
    ({"W": torch.zeros(D, K - 1, H).double()}, TypeError, r"W must be float32, got torch.float64; .*\.float\(\)"),
    ({"W": torch.zeros(D, K - 1, H).bfloat16()}, TypeError, "W must be float32, got torch.bfloat16"),
    ({"W": torch.zeros(D, K, H)}, ValueError, r"W must be \[7, 2, 6\], got \[7, 3, 6\]"),
    ({"W": torch.zeros(D + 1, H)}, ValueError, r"W must be \[7, 6\], got \[8, 6\]"),
    ({"W": torch.zeros(H)}, ValueError, r"W must be .*got \[6\]"),
    ({"W": None}, TypeError, "W must be a tensor .*got NoneType"),
    ({"c": torch.zeros(H + 1)}, ValueError, r"must be .*7"),
    ({"c": torch.zeros(1, H)}, ValueError, r"c must be \[H\].*got \[1, 6\]"),
    ({"V": torch.zeros(D, K, 5)}, ValueError, r"V must be \[7, 3, 4\], got \[7, 3, 5\]"),
    ({"V": torch.zeros(D, K, 4, device="meta")}, ValueError, "is on cpu, .*meta"),
    ({"V": torch.zeros(D, 257, 4)}, ValueError, "V must have at most 256 .*got 257"),
    ({"b": torch.zeros(D)}, ValueError, r"b must be \[7, 3\], got \[7\]"),
    ({"b": torch.zeros(D, K).half()}, TypeError, "b must be float32, got torch.float16"),
    ({"mlp": (torch.zeros(4, H),)}, ValueError, "mlp must hold a weight and a bias .*got 1 tensor"),
    ({"mlp": (torch.zeros(4, H + 1), torch.zeros(4))}, ValueError, r"mlp weight 1 must be \[4, 6\], got \[4, 7\]"),
    ({"mlp": (torch.zeros(4, H), torch.zeros(5))}, ValueError, r"mlp bias 1 must be \[4\], got \[5\]"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused(changes: dict, error: type[Exception], message: str) -> None:
    arguments = replaced(**changes)
    for function in VALUES:
        with pytest.raises(error, match=message):
            function(**arguments)
    if "x" not in changes:
        del arguments["x"]
        with pytest.raises(error, match=message):
            nade_sample(**arguments, seed=torch.tensor(0), num_samples=2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": 5}, TypeError, r"seed must be an int64 tensor \[\], .*got int"),
        ({"seed": torch.tensor(5.0)}, TypeError, "seed must be an int64 tensor .*got torch.float32"),
        ({"seed": torch.tensor([5])}, ValueError, r"seed must be \[\], got \[1\]"),
        ({"seed": torch.zeros((), dtype=torch.int64, device="meta")}, ValueError, "seed is on meta, .* cpu"),
        ({"num_samples": -1}, ValueError, "num_samples must not be negative, got -1"),
        ({"num_samples": 1.5}, TypeError, "num_samples must be an integer, got float 1.5"),
        ({"first_index": -1}, ValueError, "first_index must not be negative, got -1"),
        ({"first_index": 2**63 - 1}, ValueError, r"first_index \+ num_samples must be below 2\*\*63"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive and finite, got nan"),
        ({"given": torch.zeros(3, 2).byte()}, ValueError, "given must have a row for each of the 4 samples, got 3"),
        ({"given": torch.zeros(4, D + 1).byte()}, ValueError, r"G at most 7, got \[4, 8\]"),
        ({"given": torch.full((4, 2), K).byte()}, ValueError, "given must hold states 0 … 2, got values 3 … 3"),
        ({"given": torch.zeros(4, 2)}, TypeError, "given must be uint8 or int64, got torch.float32"),
    ],
)
def test_bad_sampling_arguments_are_refused(changes: dict, error: type[Exception], message: str) -> None:
    arguments = {**nade_parameters(D, K, H)._asdict(), "seed": torch.tensor(0), "num_samples": 4, **changes}
    with pytest.raises(error, match=message):
        nade_sample(**arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["W", "c", "V", "b"])
def test_parameters_that_are_no_numbers(bad: float, name: str) -> None:
    """Log-probabilities show them; there is nothing to draw from."""
    for K in (2, 3):
        parameters = nade_parameters(D, K, H)
        getattr(parameters, name).view(-1)[-1 if name in "Vb" else 0] = bad
        x = torch.tensor([[1], [0]], dtype=torch.uint8).expand(2, D)
        is_harmless = name in ("W", "c") and bad == math.inf  # a saturated unit
        assert bool(torch.isfinite(nade_log_prob(x, *parameters)).all()) == is_harmless
        if not is_harmless:
            with pytest.raises(RuntimeError, match="NaN or infinite"):
                nade_sample(*parameters, seed=torch.tensor(1), num_samples=50)


@pytest.mark.parametrize("position", [0, 1])
def test_added_layers_that_are_no_numbers(position: int) -> None:
    """The ReLU between does not make a NaN a zero."""
    parameters, x, seed = case(K, (4,), torch.device("cpu"))
    parameters.mlp[position].view(-1)[0] = math.nan
    assert nade_log_prob(x, *parameters).isnan().all()
    assert nade_logits(x, *parameters).isnan().all()
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        nade_sample(*parameters, seed=seed, num_samples=20)


@pytest.mark.parametrize("bad_row", [0, 100, 249])
@pytest.mark.parametrize("K", [2, 3])
def test_one_sample_without_a_distribution_is_enough(K: int, bad_row: int) -> None:
    parameters, _, seed = case(K, (), torch.device("cpu"))
    parameters.W[0, 0] = math.nan  # what state 1 of dimension 0 adds
    given = torch.zeros(250, 1, dtype=torch.uint8)
    _, log_prob = nade_sample(*parameters, seed=seed, num_samples=250, given=given)
    assert torch.isfinite(log_prob).all()
    given[bad_row] = 1
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        nade_sample(*parameters, seed=seed, num_samples=250, given=given)
