"""PixelCNN: what every pixel sees, exact probabilities, and a sampler that computes every feature once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oracle import all_states, assert_as_accurate, assert_inverse_cdf, random_states
from torch import Tensor

import pyar
from pyar.ops import pixel_cnn as ops
from pyar.reference import pixel_cnn as reference
from pyar.reference import plane
from pyar.reference.philox import uniforms

needs_kernels = pytest.mark.skipif(not pyar.build_info()["extension"], reason="pyar's extension is not built")


def random_model(*arguments: Any, seed: int = 0, scale: float = 1.0, **options: Any) -> pyar.PixelCNN:
    """Weights at which every layer's sums are of order `scale`, however many inputs it has."""
    model = pyar.PixelCNN(*arguments, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            inputs = parameter[0].numel() if name.endswith("weight") else 1
            parameter.normal_(std=scale * inputs**-0.5, generator=generator)
    return model


def context_of(model: pyar.PixelCNN, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.num_classes is not None:
        return {"context": torch.randint(model.num_classes, (count,), generator=generator)}
    if model.context_size is not None:
        return {"context": torch.randn(count, model.context_size, generator=generator)}
    return {}


def reference_outputs(model: pyar.PixelCNN, x: Tensor, context: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The head's outputs [B, D, P] for states by step, by the reference."""

    def convert(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(dtype)

    layers = [type(layer)(*map(convert, layer)) for layer in (layer.parameters_now() for layer in model.layers)]
    image = plane.numbers(x, model.num_states, dtype).view(-1, model.rows, model.columns, model.channels)
    features = reference.gated_features if model.gated else reference.plain_features
    context = None if context is None else convert(model._check_context(context, len(x)))
    f = features(image.permute(0, 3, 1, 2), layers, context).flatten(2).transpose(1, 2)
    return plane.outputs(f, x, *map(convert, model._head_parameters()))


def logits_of(outputs: Tensor, model: pyar.PixelCNN) -> Tensor:
    """What pyar.reference.draw takes."""
    return plane.mixture_log_probabilities(outputs, model.num_states) if model.output != "softmax" else outputs


SMALL = {"features": 6, "num_layers": 3, "first_kernel_size": 5}
VARIANTS = [
    pytest.param((5, 6), 2, SMALL, id="binary"),
    pytest.param((5, 6), 2, {**SMALL, "gated": False}, id="plain"),
    pytest.param((4, 5), 6, {**SMALL, "head_size": 9, "num_classes": 3}, id="levels-labels"),
    pytest.param(
        (4, 5, 3), 5, {**SMALL, "gated": False, "num_classes": 2, "scan": "up-left"}, id="plain-colour-labels"
    ),
    pytest.param((4, 3, 3), 4, {**SMALL, "context_size": 3, "scan": "left-up"}, id="colour-features"),
    pytest.param((3, 5), 256, {**SMALL, "output": "logistic-mixture", "num_mixtures": 3}, id="mixture"),
    pytest.param((3, 2, 3), 256, {**SMALL, "output": "logistic-mixture", "num_mixtures": 2}, id="colour-mixture"),
    pytest.param((3, 4), 256, SMALL, id="bytes"),
    pytest.param((9, 7), 2, {"features": 19, "num_layers": 4, "kernel_size": 5, "head_size": 21}, id="wide"),
    pytest.param((3, 3), 2, {"features": 5, "num_layers": 1}, id="one-layer"),
    pytest.param((1, 1), 3, SMALL, id="one-pixel"),
    pytest.param((1, 7), 2, SMALL, id="one-row"),
    pytest.param((7, 1), 2, SMALL, id="one-column"),
    pytest.param((5, 20), 3, {"features": 40, "num_layers": 3, "head_size": 30}, id="two-tiles"),
]


# --- The mathematics ---


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("shape", "num_states", "options"),
    [
        ((2, 3), 2, {}),
        ((2, 3), 3, {"num_classes": 2}),
        ((2, 1, 3), 3, {"scan": "down-left"}),
        ((2, 2), 5, {"output": "logistic-mixture", "num_mixtures": 2}),
    ],
)
def test_probabilities_sum_to_one(shape: tuple, num_states: int, options: dict, gated: bool) -> None:
    model = random_model(shape, num_states, 8, 3, gated=gated, **options)
    everything = all_states(model.dim, num_states)
    for label in range(model.num_classes or 1):
        context = {"context": torch.full((len(everything),), label)} if model.num_classes else {}
        assert model.log_prob(everything, **context).exp().sum().item() == pytest.approx(1, abs=1e-5)


def sees(model: pyar.PixelCNN, context: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """bool [D, D] by step: whether output i moves at all, and whether it moves clearly, when input j is changed."""
    x = random_states(count, model.dim, model.num_states, seed=2)

    def features_and_outputs(x: Tensor) -> Tensor:
        told = model._check_context(context.get("context"), len(x))
        return model._outputs(x, told)

    moved = []
    with torch.no_grad():
        before = features_and_outputs(x)
        for j in range(model.dim):
            changed = x.clone()
            changed[:, j] = (x[:, j] + 1 + j % (model.num_states - 1)) % model.num_states
            moved.append((features_and_outputs(changed) - before).abs().amax(dim=(0, 2)))
    moved = torch.stack(moved, dim=1)
    return moved > 0, moved > 1e-9


def within_reach(model: pyar.PixelCNN) -> Tensor:
    """bool [D, D] by step: whether input j comes before output i and lies in the rectangle that the gated form sees."""
    pixel = torch.arange(model.rows * model.columns)
    row, column = pixel // model.columns, pixel % model.columns
    reach = model.receptive_field
    above = row[:, None] - row
    aside = (column[:, None] - column).abs()
    seen = (pixel < pixel[:, None]) & (above <= reach) & (aside <= reach)
    channel = torch.arange(model.channels)
    lower = channel < channel[:, None]
    same = torch.eye(len(pixel), dtype=torch.bool)
    D = model.dim
    pairs = seen[:, None, :, None].expand(-1, model.channels, -1, model.channels)
    return (pairs | (same[:, None, :, None] & lower[None, :, None, :])).reshape(D, D)


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 6), (12, 13)])
@pytest.mark.parametrize(
    "options", [{"num_layers": 3}, {"num_layers": 2, "kernel_size": 5, "first_kernel_size": 3, "scan": "up-right"}]
)
def test_everything_before_is_seen_and_nothing_later(
    shape: tuple, channels: int, num_classes: int | None, options: dict
) -> None:
    """Every pair of output and input, by changing the input: no leak, and no blind spot in the stated rectangle."""
    model = random_model((*shape, channels), 4, 8, num_classes=num_classes, scale=1.5, **options).double()
    for label in range(num_classes or 1):
        count = 6
        context = {"context": torch.full((count,), label)} if num_classes else {}
        at_all, clearly = sees(model, context, count)
        expected = within_reach(model)
        assert not (at_all & ~expected).any()
        assert clearly[expected].all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 6), (12, 13)])
def test_the_plain_form_sees_nothing_later_and_has_its_blind_spot(shape: tuple, channels: int) -> None:
    model = random_model((*shape, channels), 4, 8, 3, first_kernel_size=3, gated=False, scale=1.5).double()
    at_all, clearly = sees(model, {}, 6)
    expected = within_reach(model)
    assert not (at_all & ~expected).any()
    # What a path of masked kernels reaches: a row up allows one more column to the right, and no more.
    pixel = torch.arange(model.rows * model.columns)
    row, column = pixel // model.columns, pixel % model.columns
    above, right = row[:, None] - row, column - column[:, None]
    blind = ((right > above) & (above > 0)).repeat_interleave(channels, 0).repeat_interleave(channels, 1)
    assert not (at_all & blind).any()
    assert clearly[expected & ~blind].all()
    assert (expected & blind).any()


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
def test_values_are_as_accurate_as_the_reference(shape: tuple, num_states: int, options: dict) -> None:
    model = random_model(shape, num_states, **options)
    x = random_states(7, model.dim, num_states)
    context = context_of(model, 7)
    exact, float32 = (
        reference_outputs(model, x, context.get("context"), dtype) for dtype in (torch.float64, torch.float32)
    )
    told = model._check_context(context.get("context"), 7)
    assert_as_accurate(model._outputs(x, told), float32, exact, "outputs")


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS[:7])
def test_gradients_are_the_references(shape: tuple, num_states: int, options: dict) -> None:
    model = random_model(shape, num_states, **options).double()
    x = random_states(5, model.dim, num_states)
    context = context_of(model, 5)
    told = None if not context else context["context"]
    if told is not None and told.is_floating_point():
        told = told.double()
    told = torch.nn.functional.one_hot(told, model.num_classes).double() if model.num_classes else told
    outputs = model.head(model._features(x, told), x).sum()
    layers = [layer.parameters_now() for layer in model.layers]
    image = plane.numbers(x, num_states, torch.float64).view(5, model.rows, model.columns, model.channels)
    features = reference.gated_features if model.gated else reference.plain_features
    f = features(image.permute(0, 3, 1, 2), layers, told).flatten(2).transpose(1, 2)
    expected = plane.outputs(f, x, *model._head_parameters()).sum()
    torch.testing.assert_close(outputs, expected)
    parameters = list(model.parameters())
    actual = torch.autograd.grad(outputs, parameters)
    for ours, theirs in zip(actual, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gated", [True, False])
def test_reference_gradients_are_those_of_differences(gated: bool) -> None:
    model = random_model((2, 3), 3, 2, 2, first_kernel_size=3, gated=gated, num_classes=2).double()
    x = random_states(2, 6, 3)
    image = plane.numbers(x, 3, torch.float64).view(2, 1, 2, 3)
    context = torch.eye(2, dtype=torch.float64)
    layers = [layer.parameters_now() for layer in model.layers]
    leaves = [tensor.detach().requires_grad_() for layer in layers for tensor in layer if tensor is not None]

    def call(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        rebuilt = [type(layer)(*(None if old is None else next(rest) for old in layer)) for layer in layers]
        return (reference.gated_features if gated else reference.plain_features)(image, rebuilt, context)

    assert torch.autograd.gradcheck(call, leaves)


# --- Sampling ---


@pytest.mark.each_level
@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
def test_samples_are_the_inverse_cdf(shape: tuple, num_states: int, options: dict) -> None:
    model = random_model(shape, num_states, **options)
    N, G, temperature = 37, model.dim // 3, 0.8
    given = random_states(N, G, num_states, seed=5)
    context = context_of(model, N)
    x, log_prob = model.sample_and_log_prob(
        N, seed=17, first_index=1000, temperature=temperature, given=given, **context
    )
    steps = x if model.order is None else x[:, model.order]
    assert torch.equal(steps[:, :G], given)
    u = uniforms(17, 1000, N, model.dim)
    u = u if model.order is None else u[:, model.order]
    told = context.get("context")
    exact, float32 = (
        logits_of(reference_outputs(model, steps, told, dtype), model) for dtype in (torch.float64, torch.float32)
    )
    assert_inverse_cdf(steps, exact, u, temperature, first_step=G)
    law = [plane.log_probability(logits[:, G:] / temperature, steps[:, G:]).sum(dim=1) for logits in (float32, exact)]
    assert_as_accurate(log_prob, law[0], law[1], "log-probability")


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
def test_every_sampler_draws_the_same(shape: tuple, num_states: int, options: dict) -> None:
    """The one in use, the one of devices without kernels, and a full forward pass for every step."""
    model = random_model(shape, num_states, **options)
    N = 9
    context = context_of(model, N)
    given = random_states(N, model.dim // 4, num_states, seed=5)
    expected = model.sample_and_log_prob(N, seed=3, first_index=5, given=given, temperature=1.2, **context)
    told = model._check_context(context.get("context"), N)
    with torch.no_grad():
        cached = ops.cached_sample(
            [layer.parameters_now() for layer in model.layers],
            model._head_parameters(),
            (model.rows, model.columns),
            num_states,
            model.output,
            torch.tensor(3),
            N,
            5,
            1.2,
            given,
            told,
            model.order,
        )
        naive = plane.sample(
            lambda x: logits_of(model._outputs(x, told), model), model.dim, 3, N, 5, 1.2, given, model.order
        )
    for x, log_prob in (cached, naive):
        assert torch.equal(model._dimensions(x), expected[0])
        torch.testing.assert_close(log_prob, expected[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
def test_a_samples_log_probability_is_its_log_prob(shape: tuple, num_states: int, options: dict) -> None:
    model = random_model(shape, num_states, **options)
    context = context_of(model, 20)
    x, log_prob = model.sample_and_log_prob(20, seed=2, **context)
    torch.testing.assert_close(log_prob, model.log_prob(x, **context), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.conditional_log_prob(x, **context).sum(dim=1), log_prob, rtol=1e-5, atol=1e-4)


def test_all_given_and_nobody_to_draw() -> None:
    for options in ({}, {"gated": False}):
        model = random_model((3, 4), 3, 5, 2, **options)
        given = random_states(5, 12, 3)
        x, log_prob = model.sample_and_log_prob(5, seed=1, given=given)
        assert torch.equal(x, given)
        assert torch.equal(log_prob, torch.zeros(5))
        x, log_prob = model.sample_and_log_prob(0, seed=1)
        assert (x.shape, x.dtype, log_prob.shape) == ((0, 12), torch.uint8, (0,))
        assert model.log_prob(x).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("gated", [True, False])
def test_no_distribution_no_sample(gated: bool, bad: float) -> None:
    model = random_model((3, 4), 2, 5, 2, gated=gated)
    with torch.no_grad():
        model.head.outputs[0].bias.fill_(bad)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        model.sample(20, seed=1)


# --- The module ---


@pytest.mark.parametrize("gated", [True, False])
def test_layers_as_pytorch_users_expect(gated: bool) -> None:
    """Parametrizations take effect, hooks run in log_prob, and replaced layers are refused."""
    model = random_model((4, 5), 2, 6, 3, gated=gated)
    x = random_states(4, 20, 2)
    before = model.log_prob(x)
    name = "vertical" if gated else "above"
    torch.nn.utils.parametrizations.weight_norm(getattr(model.layers[1], name))
    torch.testing.assert_close(model.log_prob(x), before)
    with torch.no_grad():
        getattr(model.layers[1], name).parametrizations.weight.original0.mul_(2)
    assert not torch.allclose(model.log_prob(x), before)
    drawn, log_prob = model.sample_and_log_prob(5, seed=1)
    torch.testing.assert_close(log_prob, model.log_prob(drawn), rtol=1e-5, atol=1e-5)
    calls = []
    handle = getattr(model.layers[0], name).register_forward_hook(lambda *_: calls.append(1))
    model.log_prob(x)
    assert calls == [1]
    with pytest.raises(RuntimeError, match=rf"layers\[0\]\.{name} has forward or backward hooks"):
        model.sample(2)
    handle.remove()
    setattr(model.layers[2], name, torch.nn.Conv2d(6, 12, 3, padding=1))
    with pytest.raises(ValueError, match=rf"layers\[2\]\.{name} must have "):
        model.log_prob(x)
    setattr(model.layers[2], name, torch.nn.Identity())
    for call in (model.log_prob, lambda _: model.sample(2)):
        with pytest.raises(TypeError, match=rf"layers\[2\]\.{name} must be a torch\.nn\.Conv2d"):
            call(x)


@pytest.mark.parametrize("gated", [True, False])
def test_compiles_and_gives_gradients_of_every_example(gated: bool) -> None:
    torch._dynamo.reset()
    model = random_model((3, 4), 3, 5, 2, gated=gated, num_classes=2)
    x, context = random_states(4, 12, 3), torch.tensor([0, 1, 1, 0])
    traced = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(traced(x, context=context), model.log_prob(x, context=context))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def log_prob(weights: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (row[None],), {"context": label[None]})[0]

    each = torch.func.vmap(torch.func.grad(log_prob), (None, 0, 0))(weights, x, context)
    for i in range(4):
        model.zero_grad()
        model.log_prob(x[i : i + 1], context=context[i : i + 1]).sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(each[name][i], parameter.grad, rtol=1e-4, atol=1e-5)


def test_autocast() -> None:
    model = random_model((4, 5), 3, 8, 2)
    x = random_states(4, 20, 3)
    expected, drawn = model.log_prob(x), model.sample_and_log_prob(20, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        actual, again = model.log_prob(x), model.sample_and_log_prob(20, seed=1)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.5)
    assert torch.equal(again[0], drawn[0])  # sampling stays in float32
    assert torch.equal(again[1], drawn[1])


def test_checkpoints(tmp_path: Any) -> None:
    from pyar.checkpoint import save_model

    model = random_model((4, 3, 3), 4, 6, 2, num_classes=3, scan="down-right", head_size=7)
    save_model(model, tmp_path / "model.safetensors")
    again = pyar.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    context = torch.tensor([0, 2])
    x = model.sample(2, seed=1, context=context)
    assert torch.equal(again.sample(2, seed=1, context=context), x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size must be odd and at least 3, got 4"),
        ({"first_kernel_size": 1}, ValueError, "first_kernel_size must be odd and at least 3, got 1"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"gated": 1}, TypeError, "gated must be True or False, got int 1"),
    ],
)
def test_bad_arguments_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyar.PixelCNN((4, 4), **options)


def test_bad_shapes_are_named() -> None:
    model = random_model((4, 5), 2, 6, 2)
    with pytest.raises(ValueError, match=r"x must be \[B, 20\], got \[2, 4, 5\]"):
        model.log_prob(torch.zeros(2, 4, 5, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"convert the model with \.float\(\)"):
        model.double().sample(1)


# --- The kernels ---


@needs_kernels
@pytest.mark.each_level
@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
def test_a_sample_has_the_same_bits_in_every_batch(
    shape: tuple, num_states: int, options: dict, restore_threads: None
) -> None:
    if not options.get("gated", True):
        pytest.skip("the plain form is sampled by torch's operations")
    model = random_model(shape, num_states, **options)
    context = context_of(model, 50).get("context")

    def sample(first: int, last: int) -> tuple[Tensor, Tensor]:
        told = {} if context is None else {"context": context[first:last]}
        return model.sample_and_log_prob(last - first, seed=11, first_index=7 + first, **told)

    torch.set_num_threads(1)
    x, log_prob = sample(0, 50)
    for threads, first, last in [(1, 3, 4), (1, 10, 33), (2, 0, 50), (3, 0, 50), (2, 5, 6), (5, 5, 8), (3, 17, 40)]:
        torch.set_num_threads(threads)
        part = sample(first, last)
        assert torch.equal(part[0], x[first:last])
        assert torch.equal(part[1], log_prob[first:last])


@needs_kernels
def test_opcheck() -> None:
    for options, given, dims, gates in [({}, None, None, None), ({"num_classes": 2}, random_states(3, 5, 3), True, 1)]:
        model = random_model((2, 3), 3, 5, 2, **options)
        layers = [layer.parameters_now() for layer in model.layers]
        tensors = [tensor.detach() for layer in layers for tensor in layer[:-1] if tensor is not None]
        head = [tensor.detach() for tensor in model._head_parameters()]
        order = None if dims is None else torch.randperm(6)
        added = None if gates is None else torch.randn(3, 2, 20)
        arguments = (tensors, head, added, 2, 3, 3, 0, torch.tensor(3), 3, 1, 0.7, given, order)
        torch.library.opcheck(torch.ops.pyar.pixel_cnn_sample.default, arguments)


@needs_kernels
def test_the_operation_refuses_what_does_not_fit() -> None:
    model = random_model((2, 3), 3, 5, 2)
    layers = [layer.parameters_now() for layer in model.layers]
    tensors = [tensor.detach() for layer in layers for tensor in layer[:-1] if tensor is not None]
    head = [tensor.detach() for tensor in model._head_parameters()]
    rest = (None, 2, 3, 3, 0, torch.tensor(3), 3, 1, 0.7, None, None)
    for bad, message in [
        ((tensors[:-1], head), "layers must hold 9 tensors"),
        (([tensors[0][:, :, :2], *tensors[1:]], head), r"vertical must be \[10, 1, 3, 7\]"),
        ((tensors, [head[0][:, :4], *head[1:]]), "vertical must be"),
        ((tensors, [*head[:3], head[3][:, :2], head[4]]), r"V must be \[1, 3, 5\]"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.pyar.pixel_cnn_sample(*bad, *rest)
