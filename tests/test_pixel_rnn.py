"""Row LSTM and Diagonal BiLSTM: what every pixel sees, and that it sees nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from oracle import all_states, assert_as_accurate, assert_follows_law, assert_inverse_cdf, random_states
from torch import Tensor

import pyar
from pyar.models.pixel_rnn import PixelRNN
from pyar.ops import pixel_rnn as ops
from pyar.reference import diagonal_bilstm, pixel_rnn, row_lstm
from pyar.reference import plane as plane_reference
from pyar.reference.philox import uniforms

needs_kernels = pytest.mark.skipif(not pyar.build_info()["extension"], reason="pyar's extension is not built")

SHAPES = [(5, 6, 1), (5, 6, 3), (12, 13, 1), (12, 13, 3)]


def row_layers(h: int, F: int, E: int, count: int, normal: Any) -> list[row_lstm.Layer]:
    return [
        row_lstm.Layer(normal(2, 4 * h, F), normal(3, 4 * h, h), normal(4 * h), normal(F, h), normal(F))
        for _ in range(count)
    ]


def diagonal_layers(h: int, F: int, E: int, count: int, normal: Any) -> list[diagonal_bilstm.Layer]:
    def direction(inputs: int) -> tuple[Tensor, ...]:
        return normal(4 * h, inputs), normal(2, 4 * h, h), normal(4 * h)

    return [diagonal_bilstm.Layer(*direction(F), *direction(F + E), normal(F, h), normal(F)) for _ in range(count)]


def seen(family: Any, layers: Any, shape: tuple[int, int, int], count: int) -> Tensor:
    """Which pixels' numbers the features of a pixel depend on, by the derivatives: bool [H·W, H·W, E]."""
    height, width, E = shape
    generator = torch.Generator().manual_seed(height * width + E)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    h, F = 2, 4
    first = pixel_rnn.First(normal(F, E, 3, 7), normal(F, E, 1, 3), normal(F))
    stack = layers(h, F, E, count, normal)
    image = normal(1, height, width, E)
    # One random combination of the features of a pixel: its derivative is zero only where that of each of them is.
    mix = normal(F)

    def combined(image: Tensor) -> Tensor:
        return (family.features(image, first, stack) @ mix).flatten()

    return torch.func.jacrev(combined)(image).reshape(height * width, height * width, E) != 0


def before(height: int, width: int) -> Tensor:
    """Which pixels come before which: bool [H·W, H·W]."""
    place = torch.arange(height * width)
    return place < place[:, None]


def row_lstm_field(height: int, width: int, count: int) -> Tensor:
    """What the Row LSTM's layers, one on the other, let through: bool [H·W, H·W].

    Mask A sees three rows up and three columns to both sides; a layer lets through the pixel, the one to its left, and
    at every row up one more to both sides.
    """
    field = torch.zeros(height * width, height * width, dtype=torch.bool)
    for i in range(height):
        for j in range(width):
            for up in range(i + 1):
                left, right = (j - 3 - count, j - 1) if up == 0 else (j - 3 - up - count, j + 2 + up)
                first = (i - up) * width
                field[i * width + j, first + max(left, 0) : first + min(right, width - 1) + 1] = True
    return field


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_diagonal_bilstm_sees_all_before_and_nothing_else(shape: tuple[int, int, int], count: int) -> None:
    pattern = seen(diagonal_bilstm, diagonal_layers, shape, count)
    assert torch.equal(pattern, before(*shape[:2])[..., None].expand_as(pattern))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_row_lstm_sees_its_triangle_and_nothing_else(shape: tuple[int, int, int], count: int) -> None:
    pattern = seen(row_lstm, row_layers, shape, count)
    assert torch.equal(pattern, row_lstm_field(*shape[:2], count)[..., None].expand_as(pattern))
    assert not (pattern & ~before(*shape[:2])[..., None]).any()


# ---- the layers' operation ----


class Case(NamedTuple):
    """A layer's arguments as the operation takes them."""

    x: Tensor
    own: Tensor | None
    weights: list[Tensor]

    def to(self, dtype: torch.dtype) -> Case:
        own = None if self.own is None else self.own.to(dtype)
        return Case(self.x.to(dtype), own, [w.to(dtype) for w in self.weights])

    def leaves(self) -> Case:
        own = None if self.own is None else self.own.clone().requires_grad_()
        return Case(self.x.clone().requires_grad_(), own, [w.clone().requires_grad_() for w in self.weights])

    @property
    def tensors(self) -> list[Tensor]:
        return [self.x, *([] if self.own is None else [self.own]), *self.weights]


def layer_case(diagonal: bool, sizes: tuple[int, ...], by_sample: bool, seed: int = 0) -> Case:
    """Float64 arguments, sizes (B, rows, columns, F, h, E), whose gates are of order one."""
    B, R, C, F, h, E = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(*shape, generator=generator, dtype=torch.float64)

    b = (B, 4 * h) if by_sample else (4 * h,)
    up = [normal(F, h, std=h**-0.5), normal(F)]
    if not diagonal:
        W, U = normal(2, 4 * h, F, std=F**-0.5), normal(3, 4 * h, h, std=h**-0.5)
        return Case(normal(B, R, C, F), None, [W, U, normal(*b), *up])
    own = normal(B, R, C, E) if E else None
    weights = []
    for inputs in (F, F + E):
        weights += [normal(4 * h, inputs, std=F**-0.5), normal(2, 4 * h, h, std=h**-0.5), normal(*b)]
    return Case(normal(B, R, C, F), own, [*weights, *up])


def layer_by_reference(x: Tensor, own: Tensor | None, weights: list[Tensor]) -> Tensor:
    spread = [
        w[:, None, None] if w.dim() == 2 and w.shape[0] == len(x) and i in (2, 5) else w for i, w in enumerate(weights)
    ]
    if len(weights) == 5:
        return row_lstm.layer_map(x, row_lstm.Layer(*spread))
    return diagonal_bilstm.layer_map(x, x[..., :0] if own is None else own, diagonal_bilstm.Layer(*spread))


def value_and_gradients(function: Any, case: Case, flip: bool = False) -> list[Tensor]:
    """The layer's output and all gradients; `flip` computes them with the images of the batch in the other order."""
    case = case.leaves()
    if flip:
        weights = [w.flip(0) if i in (2, 5) and w.dim() == 2 else w for i, w in enumerate(case.weights)]
        y = function(case.x.flip(0), None if case.own is None else case.own.flip(0), weights).flip(0)
    else:
        y = function(case.x, case.own, case.weights)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, case.tensors, upstream)]


# (B, rows, columns, F, h, E): one unit and many, units and features that fill no vector, single rows and columns, a
# batch of several groups, more rows or columns than one sum of the weights' gradients runs over.
SIZES = [
    (3, 5, 6, 8, 3, 1),
    (2, 12, 13, 32, 16, 3),
    (5, 1, 4, 20, 20, 0),
    (2, 7, 1, 33, 17, 2),
    (1, 1, 1, 1, 1, 1),
    (37, 4, 9, 16, 8, 1),
    (1, 9, 20, 70, 64, 1),
    (2, 130, 3, 4, 3, 1),
    (1, 2, 150, 4, 3, 0),
]


@pytest.mark.parametrize("by_sample", [False, True], ids=["bias", "context"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("diagonal", [False, True], ids=["row", "diagonal"])
def test_layers_scanned_by_torch_are_the_references(diagonal: bool, sizes: tuple[int, ...], by_sample: bool) -> None:
    case = layer_case(diagonal, sizes, by_sample)
    for actual, expected in zip(
        value_and_gradients(ops.layer_by_torch, case), value_and_gradients(layer_by_reference, case), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@needs_kernels
@pytest.mark.each_level
@pytest.mark.parametrize("most_kept", [0, 2**40], ids=["again", "kept"])
@pytest.mark.parametrize("by_sample", [False, True], ids=["bias", "context"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("diagonal", [False, True], ids=["row", "diagonal"])
def test_layers_are_as_accurate_as_the_reference(
    diagonal: bool, sizes: tuple[int, ...], by_sample: bool, most_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "MOST_KEPT", most_kept)
    case = layer_case(diagonal, sizes, by_sample).to(torch.float32)
    exact = value_and_gradients(layer_by_reference, case.to(torch.float64))
    in_float32 = value_and_gradients(layer_by_reference, case)
    in_other_order = value_and_gradients(layer_by_reference, case, flip=True)
    actual = value_and_gradients(ops._layer, case)
    for number, (value, *references, expected) in enumerate(
        zip(actual, in_float32, in_other_order, exact, strict=True)
    ):
        assert_as_accurate(value, references, expected, what=f"result {number}")


@needs_kernels
@pytest.mark.parametrize("diagonal", [False, True], ids=["row", "diagonal"])
def test_a_layer_of_no_images(diagonal: bool) -> None:
    for by_sample in (False, True):
        case = layer_case(diagonal, (0, 3, 4, 8, 5, 2), by_sample).to(torch.float32)
        y, *gradients = value_and_gradients(ops._layer, case)
        assert y.shape == (0, 3, 4, 8)
        for gradient, tensor in zip(gradients, case.tensors, strict=True):
            assert gradient.shape == tensor.shape
            assert (gradient == 0).all()


@needs_kernels
@pytest.mark.parametrize("diagonal", [False, True], ids=["row", "diagonal"])
def test_opcheck(diagonal: bool) -> None:
    for keep in (False, True):
        for own_gradient in (False, True):
            case = layer_case(diagonal, (2, 3, 4, 8, 5, 2), False).to(torch.float32).leaves()
            own = case.own if own_gradient or case.own is None else case.own.detach()
            torch.library.opcheck(torch.ops.pyar.pixel_rnn_layer.default, (case.x, own, case.weights, diagonal, keep))
    case = layer_case(diagonal, (2, 3, 4, 8, 5, 2), True).to(torch.float32)
    _, kept = torch.ops.pyar.pixel_rnn_layer(*case, diagonal, True)
    arguments = (torch.ones_like(case.x), *case, kept, diagonal, case.own is not None)
    torch.library.opcheck(torch.ops.pyar.pixel_rnn_layer_backward.default, arguments)
    model = image_model(MODELS[diagonal], (3, 4), 2, num_classes=2)
    (first, layers, head), _ = sampler_arguments(model, 2)
    flat = [weight for weights in layers for weight in weights]
    arguments = [[tensor.detach() for tensor in tensors] for tensors in (first, flat, head)]
    arguments += [diagonal, 3, 4, 2, 0, torch.tensor(1), 2, 0, 1.0, None, None]
    torch.library.opcheck(torch.ops.pyar.pixel_rnn_sample.default, tuple(arguments))


@needs_kernels
@pytest.mark.each_level
@pytest.mark.parametrize("diagonal", [False, True], ids=["row", "diagonal"])
def test_the_bits_of_an_image_are_those_of_every_batch_and_gradients_those_of_every_thread_count(
    diagonal: bool,
) -> None:
    case = layer_case(diagonal, (70, 4, 5, 24, 12, 1), False).to(torch.float32)
    whole = value_and_gradients(ops._layer, case)
    for rows in (slice(0, 1), slice(3, 20)):
        own = None if case.own is None else case.own[rows]
        assert torch.equal(ops._layer(case.x[rows], own, case.weights), whole[0][rows])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, value_and_gradients(ops._layer, case), whole))
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_bad_layers_are_refused_by_name() -> None:
    case = layer_case(True, (2, 3, 4, 8, 5, 2), False).to(torch.float32)
    with pytest.raises(ValueError, match=r"W_right must be \[20, 10\], got \[20, 8\]"):
        ops._layer(case.x, case.own, [*case.weights[:3], case.weights[0], *case.weights[4:]])
    with pytest.raises(ValueError, match=r"x must be \[2, 3, 4, 8\], got \[2, 3, 4, 7\]"):
        ops._layer(case.x[..., :7], case.own, case.weights)
    with pytest.raises(ValueError, match=r"x must be \[B, rows, columns, F\], got \[2, 4, 8\]"):
        ops._layer(case.x[:, 0], case.own, case.weights)
    with pytest.raises(TypeError, match=r"x must be float32, got torch\.float64"):
        ops._layer(case.x.double(), case.own, case.weights)
    leaves = case.leaves()
    (gradient,) = torch.autograd.grad(ops._layer(*leaves).sum(), leaves.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


# ---- the models ----


def image_model(kind: type[PixelRNN], shape: tuple, num_states: int, seed: int = 0, **options: Any) -> PixelRNN:
    """A small model with weights large enough for conditionals far from uniform."""
    model = kind(shape, num_states, **{"hidden_size": 4, "num_layers": 2, **options})
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    return model


MODELS = [pyar.RowLSTM, pyar.DiagonalBiLSTM]
VARIANTS = [
    pytest.param((2, 3), 2, {}, id="binary"),
    pytest.param((2, 1, 3), 3, {}, id="colour"),
    pytest.param((2, 2), 5, {"output": "logistic-mixture", "num_mixtures": 2}, id="mixture"),
    pytest.param((3, 2), 2, {"num_classes": 3, "scan": "up-left"}, id="labels"),
    pytest.param((2, 3), 2, {"context_size": 2, "scan": "left-up"}, id="features"),
]


def context_of(model: PixelRNN, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.num_classes is not None:
        return {"context": torch.randint(model.num_classes, (count,), generator=generator)}
    if model.context_size is not None:
        return {"context": torch.randn(count, model.context_size, generator=generator)}
    return {}


def reference_outputs(model: PixelRNN, x: Tensor, context: Tensor | None) -> Tensor:
    """The conditionals' outputs by pyar.reference alone, in the dtype of the model: x by step."""
    kind = row_lstm if isinstance(model, pyar.RowLSTM) else diagonal_bilstm
    first = pixel_rnn.First(model.above.weight, model.left.weight, model.above.bias)
    layers = [kind.Layer(**{name: getattr(layer, name) for name in kind.Layer._fields}) for layer in model.layers]
    values = plane_reference.numbers(x, model.num_states, model.above.weight.dtype)
    image = values.view(len(x), model.rows, model.columns, model.channels)
    features = kind.features(image, first, layers, context).flatten(1, 2)
    return plane_reference.outputs(features, x, *model._head_parameters())


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
@pytest.mark.parametrize("kind", MODELS)
def test_models_are_the_reference(kind: type[PixelRNN], shape: tuple, num_states: int, options: dict) -> None:
    model = image_model(kind, shape, num_states, **options)
    x = random_states(9, model.dim, num_states)
    context = model._check_context(context_of(model, 9).get("context"), 9)
    actual = model._outputs(x, context)
    expected = reference_outputs(model, x, context)
    exact = reference_outputs(model.double(), x, None if context is None else context.double())
    assert_as_accurate(actual, expected, exact)


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
@pytest.mark.parametrize("kind", MODELS)
def test_probabilities_sum_to_one_given_any_context(
    kind: type[PixelRNN], shape: tuple, num_states: int, options: dict
) -> None:
    model = image_model(kind, shape, num_states, **options)
    everything = all_states(model.dim, num_states)
    for context in context_of(model, 2).get("context", [None]):
        told = {} if context is None else {"context": context.expand(len(everything), *context.shape)}
        assert model.log_prob(everything, **told).exp().sum().item() == pytest.approx(1, abs=2e-5)


@pytest.mark.each_level
@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
@pytest.mark.parametrize("kind", MODELS)
def test_samples_are_inverse_cdfs_and_carry_their_log_prob(
    kind: type[PixelRNN], shape: tuple, num_states: int, options: dict
) -> None:
    shape = (shape[0] + 3, shape[1] + 4, *shape[2:])
    model = image_model(kind, shape, num_states, **options)
    told = context_of(model, 40)
    for temperature in (1.0, 0.7):
        x, log_prob = model.sample_and_log_prob(40, seed=3, first_index=7, temperature=temperature, **told)
        logits = model.logits(x, **told).double()
        logits = logits[..., None] if num_states == 2 else logits
        order = torch.arange(model.dim) if model.order is None else model.order
        assert_inverse_cdf(x[:, order], logits[:, order], uniforms(3, 7, 40, model.dim)[:, order], temperature)
        if temperature == 1.0:
            torch.testing.assert_close(log_prob, model.log_prob(x, **told), rtol=1e-5, atol=1e-4)


def sampler_arguments(model: PixelRNN, count: int) -> tuple[tuple, dict[str, Any]]:
    """What pixel_rnn_sample takes for a model, with a seed and some pixels given."""
    context = model._check_context(context_of(model, count).get("context"), count)
    parameters = model._first(), [layer.weights_now(context) for layer in model.layers], model._head_parameters()
    return parameters, {
        "shape": (model.rows, model.columns),
        "num_states": model.num_states,
        "output": model.output,
        "seed": torch.tensor(11),
        "num_samples": count,
        "given": random_states(count, model.dim // 3, model.num_states),
        "dims": model.order,
    }


@needs_kernels
@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_native_sampler_draws_what_torch_draws(
    kind: type[PixelRNN], shape: tuple, num_states: int, options: dict
) -> None:
    model = image_model(kind, (shape[0] + 3, shape[1] + 4, *shape[2:]), num_states, hidden_size=9, **options)
    parameters, told = sampler_arguments(model, 25)
    with torch.no_grad():
        x, log_prob = ops.pixel_rnn_sample(*parameters, **told)
        expected, expected_log_prob = ops.cached_sample(*parameters, **told)
    same = (x == expected).all(dim=1)
    assert same.sum() >= 24  # a uniform may fall between two roundings of a boundary
    torch.testing.assert_close(log_prob[same], expected_log_prob[same], rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.each_level
@pytest.mark.parametrize("kind", MODELS)
def test_samples_are_the_same_for_every_number_of_threads(kind: type[PixelRNN]) -> None:
    model = image_model(kind, (4, 5), 3, hidden_size=20)
    threads, drawn = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            drawn.append(model.sample_and_log_prob(41, seed=2))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *drawn))


@needs_kernels
@pytest.mark.parametrize("kind", MODELS)
def test_parameters_that_are_no_numbers_are_told(kind: type[PixelRNN]) -> None:
    model = image_model(kind, (3, 4), 2)
    model.layers[0].up.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        model.sample(3)


@pytest.mark.parametrize("kind", MODELS)
def test_samples_follow_the_law(kind: type[PixelRNN]) -> None:
    model, wrong = (image_model(kind, (2, 3), 2, seed) for seed in (0, 1))
    everything = all_states(6, 2)
    assert_follows_law(
        model.sample(20_000, seed=1), model.log_prob(everything).detach(), wrong.log_prob(everything).detach(), 2
    )


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}], ids=["plain", "labels"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_sample_of_a_seed_is_the_same_in_every_batch(kind: type[PixelRNN], options: dict) -> None:
    model = image_model(kind, (5, 4, 2), 3, **options)
    context = context_of(model, 60).get("context")

    def draw(first: int, count: int) -> Tensor:
        told = {} if context is None else {"context": context[first : first + count]}
        return model.sample(count, seed=5, first_index=first, **told)

    x = draw(0, 60)
    assert torch.equal(torch.cat([draw(0, 1), draw(1, 42), draw(43, 17)]), x)
    assert draw(0, 0).shape == (0, 40)


@pytest.mark.parametrize("kind", MODELS)
def test_given_pixels_are_kept_and_the_rest_is_drawn_as_if_they_had_been(kind: type[PixelRNN]) -> None:
    model = image_model(kind, (5, 4, 2), 3)
    x, _ = model.sample_and_log_prob(20, seed=5)
    conditionals = model.conditional_log_prob(x)
    for count in (0, 7, 8, 25, 40):  # within a pixel, a row, and all
        again, log_prob = model.sample_and_log_prob(20, seed=5, given=x[:, :count])
        assert torch.equal(again, x)
        torch.testing.assert_close(log_prob, conditionals[:, count:].sum(dim=1), rtol=1e-5, atol=1e-4)
    other = random_states(20, 25, 3)
    drawn = model.sample(20, seed=5, given=other)
    assert torch.equal(drawn[:, :25], other)
    logits = model.logits(drawn).double()
    assert_inverse_cdf(drawn, logits, uniforms(5, 0, 20, 40), first_step=25)


@pytest.mark.parametrize("kind", MODELS)
def test_a_hook_runs_and_a_replaced_layer_is_refused(kind: type[PixelRNN]) -> None:
    model = image_model(kind, (3, 4), 2)
    x = random_states(5, 12, 2)
    before = model.log_prob(x)
    handle = model.layers[0].register_forward_hook(lambda module, inputs, output: 0.5 * output)
    assert not torch.allclose(model.log_prob(x), before)
    with pytest.raises(RuntimeError, match=r"layers\[0\] has forward or backward hooks"):
        model.sample(1)
    handle.remove()
    torch.nn.utils.parametrizations.weight_norm(model.layers[1], "up")
    torch.testing.assert_close(model.log_prob(x), before)
    model.layers[1].parametrizations.up.original0.data.mul_(2)
    assert not torch.allclose(model.log_prob(x), before)
    samples, log_prob = model.sample_and_log_prob(5, seed=0)
    torch.testing.assert_close(log_prob, model.log_prob(samples), rtol=1e-5, atol=1e-5)
    model.layers[0] = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"layers\[0\] must be a \w+LSTMLayer"):
        model.log_prob(x)


@pytest.mark.parametrize("kind", MODELS)
def test_checkpoints(kind: type[PixelRNN], tmp_path: Path) -> None:
    model = image_model(kind, (3, 4), 2, num_classes=3)
    again = kind(**model.config)
    again.load_state_dict(model.state_dict())
    x, told = random_states(5, 12, 2), context_of(model, 5)
    assert torch.equal(again.log_prob(x, **told), model.log_prob(x, **told))


@needs_kernels
@pytest.mark.parametrize("kind", MODELS)
def test_compiled_training(kind: type[PixelRNN]) -> None:
    model = image_model(kind, (3, 4), 2)
    x = random_states(5, 12, 2)
    model.mean_nll(x).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.compile(model.mean_nll, backend="aot_eager", fullgraph=True)(x).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@needs_kernels
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_of_every_example(kind: type[PixelRNN]) -> None:
    model = image_model(kind, (3, 4), 2)
    x = random_states(3, 12, 2)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (row[None],)).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for number in range(3):
        gradients = torch.autograd.grad(model.log_prob(x[number : number + 1]).sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(each[name][number], gradient)
