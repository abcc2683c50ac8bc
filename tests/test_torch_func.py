"""torch.func and batched gradients: every transform gives what a loop of plain calls gives."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from oracle import random_states
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

import pyar
from pyar.models import AutoregressiveModel
from pyar.native import has_kernels
from pyar.reference import nade as reference

B, D = 6, 5
BUILDERS = {
    "nade": lambda: pyar.NADE(D, 2, 7),
    "nade-3": lambda: pyar.NADE(D, 3, 7, order=[3, 0, 4, 2, 1]),
    "nade-mlp": lambda: pyar.NADE(D, 3, 7, input="scalar", mlp_sizes=[4, 6]),
    "pixel-lstm": lambda: pyar.PixelLSTM(D, 3, 6, 2),
    "pixel-lstm-bfloat16": lambda: pyar.PixelLSTM(D, 2, 6, 2, weight_dtype="bfloat16"),
}
METHODS = ["log_prob", "mean_nll", "conditional_log_prob", "logits"]
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


class Method(nn.Module):
    """A model's method as a forward, which is what functional_call calls."""

    def __init__(self, model: AutoregressiveModel, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *arguments: Tensor) -> Tensor:
        return getattr(self.model, self.name)(*arguments)


def randomise(model: AutoregressiveModel, seed: int = 0) -> AutoregressiveModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model


@pytest.fixture(params=BUILDERS)
def model(request: pytest.FixtureRequest) -> AutoregressiveModel:
    return randomise(BUILDERS[request.param]())


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def functional(model: AutoregressiveModel, method: str) -> Callable[..., Tensor]:
    """(parameters, *arguments) → the sum of the method's result."""
    module = Method(model, method)

    def total(parameters: dict[str, Tensor], *arguments: Tensor) -> Tensor:
        named = {f"model.{name}": value for name, value in parameters.items()}
        return functional_call(module, named, arguments).sum()

    return total


def gradients(model: AutoregressiveModel, method: str, *arguments: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(getattr(model, method)(*arguments).sum(), list(model.parameters())))


def loop(model: AutoregressiveModel, method: str, x: Tensor) -> list[Tensor]:
    """The gradients of every row on its own, stacked."""
    each = [gradients(model, method, row[None]) for row in x]
    return [torch.stack(parts) for parts in zip(*each, strict=True)]


def assert_all_close(actual: dict[str, Tensor] | tuple[Tensor, ...], expected: list[Tensor]) -> None:
    actual = list(actual.values()) if isinstance(actual, dict) else list(actual)
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)
        assert two.abs().sum() > 0


def test_grad(model: AutoregressiveModel, method: str) -> None:
    x = random_states(B, D, model.num_states)
    assert_all_close(grad(functional(model, method))(dict(model.named_parameters()), x), gradients(model, method, x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_gradients_of_every_sample(model: AutoregressiveModel, method: str, dtype: torch.dtype) -> None:
    total = functional(model, method)
    x = random_states(B, D, model.num_states).to(dtype)
    actual = vmap(grad(lambda parameters, row: total(parameters, row[None])), in_dims=(None, 0))(
        dict(model.named_parameters()), x
    )
    assert_all_close(actual, loop(model, method, x))
    across = vmap(grad(lambda parameters, row: total(parameters, row[None])), in_dims=(None, 1))(
        dict(model.named_parameters()), x.T
    )
    assert_all_close(across, loop(model, method, x))


def test_gradients_of_every_group(model: AutoregressiveModel, method: str) -> None:
    x = random_states(B, D, model.num_states).view(3, 2, D)
    actual = vmap(grad(functional(model, method)), in_dims=(None, 0))(dict(model.named_parameters()), x)
    each = [gradients(model, method, part) for part in x]
    assert_all_close(actual, [torch.stack(parts) for parts in zip(*each, strict=True)])


def test_the_gradient_of_what_is_mapped(model: AutoregressiveModel, method: str) -> None:
    total, x = functional(model, method), random_states(B, D, model.num_states)
    mapped = grad(lambda parameters: vmap(lambda row: total(parameters, row[None]))(x).sum())
    expected = [gradient.sum(dim=0) for gradient in loop(model, method, x)]
    assert_all_close(mapped(dict(model.named_parameters())), expected)


@pytest.mark.parametrize("name", ["log_prob", "conditional_log_prob", "logits"])
def test_jacobians(model: AutoregressiveModel, name: str) -> None:
    """By torch.func.jacrev, is_grads_batched and torch.autograd.functional: the rows are single gradients."""
    x = random_states(B, D, model.num_states)
    module, parameters = Method(model, name), list(model.parameters())
    y = getattr(model, name)(x)
    basis = torch.eye(y.numel()).view(-1, *y.shape)
    each = [torch.autograd.grad(y, parameters, row, retain_graph=True) for row in basis]
    expected = [torch.stack(parts) for parts in zip(*each, strict=True)]
    batched = torch.autograd.grad(y, parameters, basis, is_grads_batched=True, retain_graph=True)
    assert_all_close(batched, expected)

    def flat(named: dict[str, Tensor]) -> Tensor:
        return functional_call(module, {f"model.{key}": value for key, value in named.items()}, (x,)).flatten()

    assert_all_close(jacrev(flat)(dict(model.named_parameters())), expected)
    names = [key for key, _ in model.named_parameters()]
    vectorised = torch.autograd.functional.jacobian(
        lambda *values: flat(dict(zip(names, values, strict=True))), tuple(parameters), vectorize=True
    )
    assert_all_close(vectorised, expected)


def test_batched_gradients_of_the_loss(model: AutoregressiveModel) -> None:
    x, weights = random_states(B, D, model.num_states), torch.linspace(-1, 2, B).requires_grad_()
    for loss, inputs in [
        (model.mean_nll(x), list(model.parameters())),
        (model.mean_nll(x, weights), [*model.parameters(), weights]),
    ]:
        single = torch.autograd.grad(loss, inputs, retain_graph=True)
        batched = torch.autograd.grad(loss, inputs, torch.tensor([1.0, -3.0]), is_grads_batched=True)
        for one, two in zip(batched, single, strict=True):
            torch.testing.assert_close(one, torch.stack((two, -3 * two)), **CLOSE)


def test_weighted_gradients_of_every_sample(model: AutoregressiveModel) -> None:
    x, weights = random_states(B, D, model.num_states), torch.linspace(-1, 2, B)
    total = functional(model, "mean_nll")
    actual, to_weights = vmap(
        grad(lambda parameters, row, weight: total(parameters, row[None], weight[None]), argnums=(0, 2)),
        in_dims=(None, 0, 0),
    )(dict(model.named_parameters()), x, weights)
    expected = [gradient * weights.view(-1, *[1] * (gradient.dim() - 1)) for gradient in loop(model, "mean_nll", x)]
    assert_all_close(actual, expected)
    torch.testing.assert_close(to_weights, -model.log_prob(x), **CLOSE)


@pytest.mark.parametrize("rows", ["shared", "own"])
def test_ensembles(model: AutoregressiveModel, method: str, rows: str) -> None:
    members = [randomise(copy.deepcopy(model), seed) for seed in (1, 2, 3)]
    parameters, buffers = stack_module_state(members)
    module = Method(copy.deepcopy(model).to("meta"), method)
    x = random_states(B, D, model.num_states)
    xs = x.expand(3, B, D) if rows == "shared" else torch.stack((x, x.flip(0), random_states(B, D, 2, seed=4)))

    def run(own: dict[str, Tensor], constants: dict[str, Tensor], states: Tensor) -> Tensor:
        named = {f"model.{key}": value for key, value in {**own, **constants}.items()}
        return functional_call(module, named, (states,))

    in_dims, states = ((0, 0, None), x) if rows == "shared" else ((0, 0, 0), xs)
    actual = vmap(run, in_dims)(parameters, buffers, states)
    torch.testing.assert_close(
        actual, torch.stack([getattr(member, method)(own) for member, own in zip(members, xs, strict=True)]), **CLOSE
    )
    total = vmap(grad(lambda *arguments: run(*arguments).sum()), in_dims)(parameters, buffers, states)
    each = [gradients(member, method, own) for member, own in zip(members, xs, strict=True)]
    assert_all_close(total, [torch.stack(parts) for parts in zip(*each, strict=True)])


def test_gradients_of_every_sample_of_an_ensemble(model: AutoregressiveModel) -> None:
    """Two vmaps, one within the other, around a gradient."""
    members = [randomise(copy.deepcopy(model), seed) for seed in (1, 2)]
    parameters, _ = stack_module_state(members)
    total, x = functional(model, "log_prob"), random_states(B, D, model.num_states)
    each_row = vmap(grad(lambda own, row: total(own, row[None])), in_dims=(None, 0))
    actual = vmap(each_row, in_dims=(0, None))(parameters, x)
    each = [loop(member, "log_prob", x) for member in members]
    assert_all_close(actual, [torch.stack(parts) for parts in zip(*each, strict=True)])


def test_ensembles_are_sampled(model: AutoregressiveModel) -> None:
    members = [randomise(copy.deepcopy(model), seed) for seed in (1, 2, 3)]
    parameters, buffers = stack_module_state(members)

    class Sample(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(model)

        def forward(self) -> tuple[Tensor, Tensor]:
            return self.model.sample_and_log_prob(7, seed=3)

    module = Sample()

    def run(own: dict[str, Tensor], constants: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return functional_call(module, {f"model.{key}": value for key, value in {**own, **constants}.items()}, ())

    x, log_prob = vmap(run)(parameters, buffers)
    for index, member in enumerate(members):
        expected, expected_log_prob = member.sample_and_log_prob(7, seed=3)
        assert torch.equal(x[index], expected)
        torch.testing.assert_close(log_prob[index], expected_log_prob)


def test_bad_states_are_refused_under_vmap(model: AutoregressiveModel) -> None:
    """Their values cannot be looked at there; the kernels do it."""
    for bad in (random_states(B, D, 2) + model.num_states, random_states(B, D, 2).long() - 1):
        with pytest.raises(RuntimeError, match="state"):
            vmap(lambda row: model.log_prob(row[None]))(bad)
    with pytest.raises(ValueError, match=r"x must be \[B, 5\], got \[1, 4\]"):
        vmap(lambda row: model.log_prob(row[None]))(random_states(B, D - 1, 2))


def test_second_derivatives_are_refused(model: AutoregressiveModel) -> None:
    total, x = functional(model, "log_prob"), random_states(B, D, model.num_states)
    squares = grad(lambda own: sum(value.square().sum() for value in grad(total)(own, x).values()))
    with pytest.raises(RuntimeError, match="no second derivatives"):
        squares(dict(model.named_parameters()))


def test_transforms_may_be_compiled(model: AutoregressiveModel) -> None:
    torch._dynamo.reset()
    total, x = functional(model, "log_prob"), random_states(B, D, model.num_states)
    each = vmap(grad(lambda parameters, row: total(parameters, row[None])), in_dims=(None, 0))
    compiled = torch.compile(each, backend="aot_eager")
    assert_all_close(compiled(dict(model.named_parameters()), x), loop(model, "log_prob", x))


@pytest.mark.skipif(not has_kernels("cpu"), reason="the extension is not built")
@pytest.mark.parametrize("is_conditional", [False, True])
@pytest.mark.parametrize(("K", "mlp_sizes"), [(2, ()), (3, (4,))])
def test_gradients_of_groups_are_those_of_each(K: int, mlp_sizes: tuple[int, ...], is_conditional: bool) -> None:
    """Whatever the sizes; an example whose gradient is zero is left out, and a group of such has zero gradients."""
    model = randomise(pyar.NADE(D, K, 7, mlp_sizes=mlp_sizes))
    parameters = (model.W, model.c, model.V, model.b, model._mlp_parameters())
    for G, n in [(1, 1), (7, 1), (3, 200), (2, 0), (0, 3)]:
        x = random_states(G * n, D, K).view(G, n, D)
        upstream = torch.randn((G, n, D) if is_conditional else (G, n), generator=torch.Generator().manual_seed(0))
        if G == 7:
            upstream[3:5] = 0
        *actual, mlp = torch.ops.pyar.nade_log_prob_backward_each(upstream, x, *parameters)
        for group in range(G):
            *expected, layers = torch.ops.pyar.nade_log_prob_backward(upstream[group], x[group], *parameters)
            for one, two in zip([*actual, *mlp], [*expected, *layers], strict=True):
                assert torch.equal(one[group], two)
        assert actual[0].shape == (G, *model.W.shape)


@pytest.mark.parametrize(
    ("K", "input", "mlp_sizes"), [(2, "onehot", ()), (5, "onehot", ()), (5, "scalar", ()), (3, "scalar", (7, 20))]
)
def test_gradients_of_one_sample_are_the_references(K: int, input: str, mlp_sizes: tuple[int, ...]) -> None:
    model = randomise(pyar.NADE(21, K, 37, input=input, mlp_sizes=mlp_sizes))
    parameters = [model.W, model.c, model.V, model.b, *model._mlp_parameters()]
    exact = [parameter.detach().double().requires_grad_() for parameter in parameters]
    for x in random_states(4, 21, K)[:, None]:
        expected = torch.autograd.grad(reference.log_prob(x, *exact[:4], exact[4:]).sum(), exact)
        for one, two in zip(torch.autograd.grad(model.log_prob(x).sum(), parameters), expected, strict=True):
            torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-6)
