"""What all image models share: the output head, scans, context."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from oracle import all_states, assert_inverse_cdf, random_states
from torch import Tensor, nn

import pyar
from pyar.models.plane import ImageModel, Scan, scan_order
from pyar.reference import plane as reference
from pyar.reference.draw import log_probabilities
from pyar.reference.philox import uniforms

SCANS = Scan.__args__


class Trunk(ImageModel):
    """Features that are sums over the pixels before, weighted by how far they are away; and over the context."""

    name = "trunk"

    def __init__(self, image_shape: Any, num_states: int = 2, **options: Any) -> None:
        super().__init__(image_shape, num_states, features=5, **options)
        self.weight = nn.Parameter(torch.empty(self.rows * self.columns, self.channels, self.features))
        self.gate = nn.Linear(self.context_width, self.features, bias=False) if self.context_width else None
        self._reset_head()
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def _config(self) -> dict[str, Any]:
        return {}

    def _features(self, steps: Tensor, context: Tensor | None) -> Tensor:
        pixels = reference.numbers(steps, self.num_states).unflatten(1, (-1, self.channels))
        count = pixels.shape[1]
        distance = torch.arange(count)[:, None] - torch.arange(count)
        weights = torch.where((distance > 0)[..., None, None], self.weight[distance.clamp(min=0)], 0.0)
        features = torch.einsum("bqc,pqcf->bpf", pixels, weights)
        return features if context is None else features + self.gate(context)[:, None]

    def _sample(self, num_samples, seed, first_index, temperature, given, context=None):
        def conditionals(x: Tensor) -> Tensor:
            logits = self._logits(x, context)
            return logits[..., None] if self.num_states == 2 else logits

        return reference.sample(
            conditionals, self.dim, int(seed), num_samples, first_index, temperature, given, self.order
        )


VARIANTS = [
    pytest.param((2, 3), 2, {}, id="binary"),
    pytest.param((2, 3), 3, {}, id="levels"),
    pytest.param((2, 1, 3), 3, {}, id="colour"),
    pytest.param((2, 2), 5, {"output": "logistic-mixture", "num_mixtures": 2}, id="mixture"),
    pytest.param((1, 2, 2), 5, {"output": "logistic-mixture", "num_mixtures": 3}, id="colour-mixture"),
    pytest.param((3, 2), 2, {"num_classes": 3, "scan": "up-left"}, id="labels"),
    pytest.param((2, 1, 2), 3, {"context_size": 2, "scan": "left-up"}, id="features"),
]


def context_of(model: ImageModel, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.num_classes is not None:
        return {"context": torch.randint(model.num_classes, (count,), generator=generator)}
    if model.context_size is not None:
        return {"context": torch.randn(count, model.context_size, generator=generator)}
    return {}


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
def test_probabilities_sum_to_one_given_any_context(shape: tuple, num_states: int, options: dict) -> None:
    model = Trunk(shape, num_states, **options)
    everything = all_states(model.dim, num_states)
    for context in context_of(model, 3).get("context", [None]):
        told = {} if context is None else {"context": context.expand(len(everything), *context.shape)}
        assert model.log_prob(everything, **told).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
def test_channels_and_pixels_see_what_came_before(shape: tuple, num_states: int, options: dict) -> None:
    model = Trunk(shape, num_states, **options)
    x = random_states(16, model.dim, num_states)
    told = context_of(model, 16)
    before = model.logits(x, **told).reshape(16, model.dim, -1)
    order = list(range(model.dim)) if model.order is None else model.order.tolist()
    for step, dim in enumerate(order):
        changed = x.clone()
        changed[:, dim] = (x[:, dim] + 1) % num_states
        moved = (model.logits(changed, **told).reshape(16, model.dim, -1) - before).abs().amax(dim=(0, 2))
        assert (moved[order[: step + 1]] == 0).all()
        assert (moved[order[step + 1 :]] > 1e-5).all()


@pytest.mark.parametrize(("shape", "num_states", "options"), VARIANTS)
def test_samples_are_inverse_cdfs_and_carry_their_log_prob(shape: tuple, num_states: int, options: dict) -> None:
    model = Trunk(shape, num_states, **options)
    told = context_of(model, 50)
    x, log_prob = model.sample_and_log_prob(50, seed=3, first_index=7, **told)
    torch.testing.assert_close(log_prob, model.log_prob(x, **told), rtol=1e-5, atol=1e-5)
    logits = model.logits(x, **told).double()
    assert_inverse_cdf(x, logits[..., None] if num_states == 2 else logits, uniforms(3, 7, 50, model.dim))
    torch.testing.assert_close(model.conditional_log_prob(x, **told).sum(dim=1), log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.mean_nll(x, **told), -log_prob.mean())
    torch.testing.assert_close(model.training_loss(x, **told), -log_prob.mean())
    weights = torch.linspace(-1, 1, 50)
    torch.testing.assert_close(model.mean_nll(x, weights, **told), -(weights * log_prob).mean(), rtol=1e-4, atol=1e-5)
    again = type(model)(**model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, **told), model.log_prob(x, **told))


def test_the_head_is_the_references() -> None:
    """Scalar by scalar, and the module as the reference."""
    model = Trunk((2, 2, 3), 4).double()
    W, w, E, V, b = model._head_parameters()
    x = random_states(3, model.dim, 4)
    features = torch.randn(3, 4, 5, dtype=torch.float64)
    outputs = reference.outputs(features, x, W, w, E, V, b)
    torch.testing.assert_close(model.head(features, x).double(), outputs, rtol=1e-6, atol=1e-5)
    red, green = int(x[1, 3]), int(x[1, 4])
    a = w + W @ features[1, 1].relu()
    for channel, h in enumerate((a, a + E[0, red], a + E[1, red] + E[2, green])):
        torch.testing.assert_close(outputs[1, 3 + channel], b[channel] + V[channel] @ h.relu())


def test_a_mixture_has_what_the_logistic_distributions_have_around_each_value() -> None:
    outputs = torch.randn(7, 3 * 4, dtype=torch.float64)
    weights, means, log_scales = outputs.chunk(3, dim=1)
    edges = torch.cat((torch.tensor([-math.inf]), (torch.arange(255) + 0.5) * 2 / 255 - 1, torch.tensor([math.inf])))
    cdf = torch.sigmoid((edges.double()[:, None, None] - means) / log_scales.exp())
    expected = (weights.softmax(dim=1) * (cdf[1:] - cdf[:-1])).sum(dim=2).T
    actual = reference.mixture_log_probabilities(outputs, 256)
    torch.testing.assert_close(actual.exp(), expected)
    x = torch.randint(256, (7,))
    chosen = reference.mixture_log_probability(outputs, x, 256)
    torch.testing.assert_close(chosen, actual.gather(1, x[:, None]).squeeze(1))


@pytest.mark.parametrize("scale", [-20.0, -7.0, 0.0, 5.0])
@pytest.mark.parametrize("mean", [-30.0, -1.0, 0.3, 40.0])
def test_a_mixture_sums_to_one_far_outside_and_at_any_width(mean: float, scale: float) -> None:
    outputs = torch.tensor([[0.0, 1.0, mean, 0.1, scale, scale]], requires_grad=True)
    log_p = reference.mixture_log_probabilities(outputs, 256)
    assert torch.isfinite(log_p).all()
    assert log_p.double().exp().sum().item() == pytest.approx(1, abs=2e-5)
    log_p.sum().backward()
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("scan", SCANS)
def test_scans(scan: str) -> None:
    """The first line of a scan is the side of the image that its second word leaves, taken in the way of its first."""
    H, W, C = 3, 4, 2
    numbers = torch.arange(H * W * C).view(H, W, C)
    order = torch.tensor(scan_order((H, W, C), scan)).view(-1, C)
    along, across = scan.split("-")
    assert (order[:, 1] == order[:, 0] + 1).all()
    side = {"down": numbers[0], "up": numbers[-1], "right": numbers[:, 0], "left": numbers[:, -1]}[across][:, 0]
    first = order[: len(side), 0]
    assert torch.equal(first, side.flip(0) if along in ("left", "up") else side)
    model = Trunk((H, W, C), 2, scan=scan)
    assert (model.rows, model.columns) == ((H, W) if along in ("left", "right") else (W, H))


@pytest.mark.parametrize("scan", SCANS)
def test_the_half_that_comes_first_can_be_completed_from(scan: str) -> None:
    model = Trunk((4, 4), 2, scan=scan)
    x = random_states(2, 16, 2)
    halves = {"down": (slice(0, 2), slice(None)), "up": (slice(2, 4), slice(None))}
    halves |= {"right": (slice(None), slice(0, 2)), "left": (slice(None), slice(2, 4))}
    for across, half in halves.items():
        observed = torch.zeros(4, 4, dtype=torch.bool)
        observed[half] = True
        if across == scan.split("-")[1]:
            completed = model.complete(x, observed.flatten(), 3, seed=1)
            assert torch.equal(completed[..., observed.flatten()], x[:, None, observed.flatten()].expand(2, 3, 8))
        else:
            with pytest.raises(ValueError, match=r"another scan has another side.*pyar\.DeepNADE completes from any"):
                model.complete(x, observed.flatten())


def test_completions_follow_the_context_of_their_row() -> None:
    model = Trunk((2, 3), 2, num_classes=3)
    x = random_states(2, 6, 2)
    observed = torch.arange(6) < 2
    completed = model.complete(x, observed, 4, seed=5, context=torch.tensor([2, 0]))
    given = x[:, :2].repeat_interleave(4, dim=0)
    drawn = model.sample(8, seed=5, given=given, context=torch.tensor([2] * 4 + [0] * 4))
    assert torch.equal(completed.flatten(0, 1), drawn)
    for one in (torch.tensor(1), torch.tensor([1, 1])):
        assert torch.equal(
            model.complete(x, observed, 4, seed=5, context=one)[0],
            model.complete(x[:1], observed, 4, seed=5, context=torch.tensor([1]))[0],
        )
    assert torch.equal(
        model.sample(5, seed=1, context=torch.tensor(2)), model.sample(5, seed=1, context=torch.full((5,), 2))
    )


@pytest.mark.parametrize(
    ("options", "context", "error", "message"),
    [
        ({}, torch.zeros(2), ValueError, "context must be None: the model was built without num_classes"),
        ({"num_classes": 3}, None, ValueError, r"context must be labels int64 \[2\], 0 … 2, got None"),
        ({"num_classes": 3}, [0, 1], TypeError, r"context must be labels int64 \[2\], 0 … 2, got list"),
        ({"num_classes": 3}, torch.zeros(2), TypeError, "context must be labels .* got torch.float32"),
        ({"num_classes": 3}, torch.tensor(1), ValueError, r"context must be labels .* got \[\]"),
        ({"num_classes": 3}, torch.tensor([0, 3]), ValueError, "context must be labels .* got values 0 … 3"),
        ({"num_classes": 3}, torch.tensor([0, -1]), ValueError, "context must be labels .* got values -1 … 0"),
        ({"context_size": 4}, torch.zeros(2, 3), ValueError, r"features float32 \[2, 4\], got \[2, 3\]"),
        ({"context_size": 4}, torch.zeros(2, 4).double(), TypeError, "features .* got torch.float64"),
        ({"context_size": 4}, torch.zeros(2, 4, device="meta"), ValueError, "context is on meta"),
    ],
)
def test_context_is_checked(options: dict, context: Any, error: type[Exception], message: str) -> None:
    model = Trunk((2, 2), 2, **options)
    x = random_states(2, 4, 2)
    for call in (model, model.log_prob, model.logits, model.conditional_log_prob, model.mean_nll, model.training_loss):
        with pytest.raises(error, match=message):
            call(x, context=context)
    if message.endswith(r"\[\]"):
        return
    with pytest.raises(error, match=message):
        model.sample(2, context=context)
    with pytest.raises(error, match=message):
        model.complete(x, torch.arange(4) < 1, context=context)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None,), {}, ValueError, "image_shape must be .* got None: the model is one of images"),
        ((16,), {}, TypeError, "image_shape must be a sequence of integers, got int 16"),
        (((4,),), {}, ValueError, r"image_shape must be \(height, width\) or \(height, width, channels\), got \(4,\)"),
        (((4, 0),), {}, ValueError, "image_shape must be at least 1, got 0"),
        (((4, 4), 257), {}, ValueError, "num_states must be in 2 … 256, got 257"),
        (((4, 4),), {"scan": "down-up"}, ValueError, "scan must be 'right-down' or .* got 'down-up'"),
        (((4, 4),), {"output": "logistic-mixture"}, ValueError, "num_states > 2, got num_states=2"),
        (((4, 4),), {"output": "gaussian"}, ValueError, "output must be 'softmax' or 'logistic-mixture'"),
        (((4, 4),), {"num_classes": 2, "context_size": 2}, ValueError, "num_classes or context_size, not both"),
        (((4, 4),), {"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        (((4, 4),), {"head_size": 1.5}, TypeError, "head_size must be an integer, got float 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Trunk(*arguments, **options)


def test_no_images() -> None:
    model = Trunk((2, 2, 3), 4, num_classes=2)
    x, context = torch.zeros(0, 12, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    assert model.log_prob(x, context=context).shape == (0,)
    assert model.logits(x, context=context).shape == (0, 12, 4)
    assert model.sample(0, context=context).shape == (0, 12)


def test_the_scan_is_no_weight_and_survives_a_meta_device() -> None:
    model = Trunk((2, 3), 2, scan="up-right")
    assert "order" not in model.state_dict()
    with torch.device("meta"):
        empty = Trunk((2, 3), 2, scan="up-right")
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    x = random_states(5, 6, 2)
    assert torch.equal(empty.log_prob(x), model.log_prob(x))


def test_untrained_models_start_at_the_marginals() -> None:
    x = torch.tensor([[0, 1, 2, 2], [0, 1, 2, 2], [0, 2, 1, 1]])
    model = Trunk((2, 1, 2), 3)
    model._reset_head()
    model.initialize_from_marginals(x)
    frequencies = model.logits(x).softmax(-1).detach().mean(dim=0)
    torch.testing.assert_close(frequencies[0], torch.tensor([4.0, 2.0, 3.0]) / 9, rtol=0, atol=0.05)
    torch.testing.assert_close(frequencies[1], torch.tensor([1.0, 4.0, 4.0]) / 9, rtol=0, atol=0.05)


@pytest.mark.parametrize("options", [{}, {"output": "logistic-mixture"}])
def test_hooks_run_and_replaced_layers_are_refused(options: dict) -> None:
    model = Trunk((2, 2), 5, **options)
    x = random_states(3, 4, 5)
    calls = []
    handle = model.head.hidden.register_forward_hook(lambda *_: calls.append(1))
    model.log_prob(x)
    assert calls == [1]
    with pytest.raises(RuntimeError, match=r"head\.hidden has forward or backward hooks"):
        model.sample(1)
    handle.remove()
    model.head.outputs[0] = nn.Sequential(model.head.outputs[0])
    for call in (model.log_prob, lambda _: model.sample(1)):
        with pytest.raises(TypeError, match=r"head\.outputs\[0\] must be a torch\.nn\.Linear"):
            call(x)


def test_states_as_numbers() -> None:
    x = torch.arange(5)
    assert reference.numbers(x, 5).tolist() == [-1, -0.5, 0, 0.5, 1]
    assert reference.numbers(torch.tensor([0, 1]), 2).tolist() == [-1, 1]


def test_the_naive_sampler_draws_by_the_law() -> None:
    """Every state of two dimensions at the uniforms that the enumerated law says."""
    model = Trunk((1, 2), 3)
    x = model.sample(2000, seed=11)
    u = uniforms(11, 0, 2000, 2).double()
    law = log_probabilities(model.logits(x).double()).exp()
    for d, k in itertools.product(range(2), range(3)):
        low, high = law[:, d, :k].sum(dim=1), law[:, d, : k + 1].sum(dim=1)
        inside = (u[:, d] > low + 1e-6) & (u[:, d] < high - 1e-6)
        assert (x[inside, d] == k).all()


def test_the_package_knows_no_family_by_the_name_of_the_common_face() -> None:
    assert "plane" not in pyar.models.model_names()
