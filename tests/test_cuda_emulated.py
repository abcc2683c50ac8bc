"""The CUDA kernels, run thread by thread on the CPU (see cuda_emulator): their arithmetic, barriers, tails, exchanges.

What this cannot show, the memory model and the arithmetic of a real GPU, is in test_cuda.py.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import cuda_emulator
import pytest
import torch
from oracle import (
    NadeParameters,
    assert_as_accurate,
    assert_inverse_cdf,
    nade_parameters,
    random_states,
)
from torch import Tensor

from pyar.ops.lstm import round_weights
from pyar.reference import lstm as lstm_reference
from pyar.reference import nade as reference
from pyar.reference.philox import uniforms

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the CUDA emulator needs g++")

# B, D, H, K, scalar, sizes of the added layers, multiprocessors, bytes of shared memory a block may have.
NADE_CASES = {
    "tail of everything": (3, 5, 7, 2, False, (), 4, 232448),
    "two blocks of dimensions, several units a block": (9, 18, 33, 3, True, (), 2, 232448),
    "sixteen hidden units a lane": (5, 6, 130, 10, False, (), 4, 232448),
    "two warps a sample": (2, 4, 600, 2, True, (), 4, 232448),
    "two warps a sample, many states": (2, 3, 516, 40, False, (), 4, 232448),
    "most states": (2, 3, 12, 256, False, (), 4, 232448),
    "rows not staged": (5, 4, 20, 17, False, (), 1, 48000),
    "rows not staged, two warps a sample": (3, 3, 516, 5, False, (), 1, 48000),
    "samples fill the GPU": (40, 4, 5, 2, False, (), 1, 232448),
    "an added layer, some blocks of dimensions at a time": (3, 35, 3, 2, False, (2,), 2, 232448),
    "two added layers, several panels": (9, 18, 33, 3, True, (70, 5), 1, 232448),
    "an added layer of more inputs than a part": (2, 3, 300, 10, False, (130,), 4, 232448),
    "an added layer, two warps a sample": (2, 3, 5, 3, False, (600,), 4, 232448),
    "an added layer, most states": (2, 3, 12, 256, False, (9,), 4, 232448),
    "an added layer, little shared memory": (9, 3, 400, 4, False, (560,), 1, 48000),
    "three added layers, several slabs": (70, 4, 3, 3, False, (6, 8, 5), 4, 232448),
}


@pytest.fixture(scope="module", autouse=True)
def emulator() -> None:
    cuda_emulator.load(Path(__file__).parents[1] / "build" / "cuda_emulator")


@pytest.fixture(params=NADE_CASES.values(), ids=NADE_CASES.keys())
def nade(request, monkeypatch) -> tuple[Tensor, NadeParameters]:
    """States and parameters, on a GPU of the case's size."""
    B, D, H, K, scalar, mlp_sizes, multiprocessors, shared = request.param
    monkeypatch.setenv("PYAR_EMULATOR_SMS", str(multiprocessors))
    monkeypatch.setenv("PYAR_EMULATOR_SHARED", str(shared))
    return random_states(B, D, K, zeros=0.3), nade_parameters(D, K, H, scalar=scalar, mlp_sizes=mlp_sizes)


def arguments(p: NadeParameters) -> tuple:
    return *p[:4], list(p.mlp)


def sample(p: NadeParameters, N: int, first_index: int = 0, temperature: float = 1.0, given: Tensor | None = None):
    seed = torch.tensor(-5)
    return torch.ops.pyar_emulated.nade_sample(*arguments(p), seed, N, first_index, temperature, given)


def same(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_nade_log_prob_and_logits(nade):
    x, p = nade
    log_prob = torch.ops.pyar_emulated.nade_log_prob(x, *arguments(p))
    assert_as_accurate(log_prob, reference.log_prob(x, *p), reference.log_prob(x, *p.double()), "log_prob")
    logits = torch.ops.pyar_emulated.nade_logits(x, *arguments(p))
    logits = logits.squeeze(-1) if p.num_states == 2 else logits
    assert_as_accurate(logits, reference.logits(x, *p), reference.logits(x, *p.double()), "logits")


def test_nade_gradients(nade):
    x, p = nade
    B, op = x.shape[0], torch.ops.pyar_emulated
    upstream = torch.linspace(-1.0, 2.0, B)
    logits_upstream = torch.linspace(-1.0, 1.5, B * p.b.numel()).view(B, *p.b.shape)

    def log_prob_loss(q, order):
        return (reference.log_prob(x[order], *q) * upstream[order].to(q.W.dtype)).sum()

    def logits_loss(q, order):
        logits = reference.logits(x[order], *q).view(logits_upstream.shape)
        return (logits * logits_upstream[order].to(q.W.dtype)).sum()

    def mean_nll_loss(q, order):
        return reference.mean_nll(x[order], *q)

    def gradients(loss, parameters, order):
        leaves = parameters.leaves()
        return torch.autograd.grad(loss(leaves, order), leaves.tensors)

    results = {
        log_prob_loss: op.nade_log_prob_backward(upstream, x, *arguments(p)),
        logits_loss: op.nade_logits_backward(logits_upstream, x, *arguments(p)),
    }
    if not p.mlp:
        loss, *mean_nll_gradients = op.nade_mean_nll(x, *p[:4])
        assert_as_accurate(loss, reference.mean_nll(x, *p), reference.mean_nll(x, *p.double()), "mean_nll")
        results[mean_nll_loss] = *mean_nll_gradients, []
    names = ["W", "c", "V", "b", *(f"mlp[{i}]" for i in range(len(p.mlp)))]
    orders = [torch.randperm(B, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for loss, result in results.items():
        float32 = zip(*(gradients(loss, p, order) for order in orders), strict=True)
        float64 = gradients(loss, p.double(), orders[0])
        for name, actual, *expected in zip(names, [*result[:4], *result[4]], float32, float64, strict=True):
            assert_as_accurate(actual, *expected, f"gradient of {name}")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("num_given", [0, 2])
def test_nade_samples(nade, temperature, num_given):
    states, p = nade
    N, D = states.shape
    given = states[:, :num_given].contiguous() if num_given else None
    x, log_prob = sample(p, N, 2**32 - 1, temperature, given)
    u = uniforms(-5, 2**32 - 1, N, D)
    double = p.double()
    outputs = torch.stack(list(reference.outputs(x, *double)), dim=1)
    assert torch.equal(x[:, :num_given], states[:, :num_given])
    assert_inverse_cdf(x, outputs, u, temperature, num_given)
    if num_given == 0 and temperature == 1.0:
        assert_as_accurate(log_prob, reference.log_prob(x, *p), reference.log_prob(x, *double), "log_prob")
        assert torch.equal(log_prob, torch.ops.pyar_emulated.nade_log_prob(x, *arguments(p)))


def test_nade_results_do_not_depend_on_the_batch_or_on_the_order_of_the_threads(nade, monkeypatch):
    x, p = nade
    B, op = x.shape[0], torch.ops.pyar_emulated

    def everything():
        gradients = op.nade_log_prob_backward(torch.ones(B), x, *arguments(p))
        return *sample(p, B, 3), op.nade_log_prob(x, *arguments(p)), *gradients[:4], *gradients[4]

    whole = everything()
    monkeypatch.setenv("PYAR_EMULATOR_SEED", "1")
    assert same(whole, everything())
    assert same([part[-1:] for part in whole[:2]], sample(p, 1, 3 + B - 1))
    assert torch.equal(whole[2][-1:], op.nade_log_prob(x[-1:], *arguments(p)))


def test_nade_in_slabs():
    # More samples than a slab's start values (here 32): the gradients of several launches add up.
    x, p = random_states(70, 33, 2), nade_parameters(33, 2, 3)
    upstream = torch.linspace(-1.0, 1.0, 70)
    leaves = p.double().leaves()
    expected = torch.autograd.grad((reference.log_prob(x, *leaves) * upstream).sum(), leaves.tensors)
    for actual, exact in zip(
        torch.ops.pyar_emulated.nade_log_prob_backward(upstream, x, *p[:4], [])[:4], expected, strict=True
    ):
        torch.testing.assert_close(actual.double(), exact, rtol=2e-6, atol=2e-6)


MLP_SIZES = pytest.mark.parametrize("mlp_sizes", [(), (5,)], ids=["no added layers", "an added layer"])


@MLP_SIZES
def test_nade_that_is_no_distribution_gives_nan_and_state_0(mlp_sizes):
    p = nade_parameters(5, 3, 4, mlp_sizes=mlp_sizes)
    p.b[2, 1] = float("nan")
    x, log_prob = sample(p, 6)
    assert log_prob.isnan().all()
    assert (x[:, 2] == 0).all()
    assert (x < 3).all()
    binary = nade_parameters(5, 2, 4, mlp_sizes=mlp_sizes)
    binary.b[2] = float("inf")
    x, log_prob = sample(binary, 6)
    assert log_prob.isnan().all()
    assert (x[:, 2] == 0).all()


def test_added_layers_keep_nan():
    p = nade_parameters(3, 3, 4, mlp_sizes=(5,))
    p.mlp[1][2] = float("nan")
    assert sample(p, 2)[1].isnan().all()
    assert torch.ops.pyar_emulated.nade_log_prob(random_states(2, 3, 3), *arguments(p)).isnan().all()


@MLP_SIZES
def test_nade_states_out_of_range_are_harmless_and_give_nan(mlp_sizes):
    p = nade_parameters(20, 3, 4, mlp_sizes=mlp_sizes)
    x = random_states(4, 20, 3)
    x[1, 17] = 255
    log_prob = torch.ops.pyar_emulated.nade_log_prob(x, *arguments(p))
    assert log_prob.isnan().tolist() == [False, True, False, False]
    gradients = torch.ops.pyar_emulated.nade_log_prob_backward(torch.ones(4), x, *arguments(p))
    assert gradients[1].isnan().all()
    x_sampled, log_prob = sample(p, 4, given=x[:, :18].contiguous())
    assert log_prob.isnan().tolist() == [False, True, False, False]
    assert (x_sampled < 3).all()


@MLP_SIZES
@pytest.mark.parametrize("K", [2, 5])
def test_nade_of_no_samples(K, mlp_sizes):
    p = nade_parameters(4, K, 3, mlp_sizes=mlp_sizes)
    x = torch.empty(0, 4, dtype=torch.uint8)
    op = torch.ops.pyar_emulated
    assert op.nade_log_prob(x, *arguments(p)).shape == (0,)
    assert op.nade_logits(x, *arguments(p)).shape == (0, 4, p.b.shape[1])
    assert [part.shape[0] for part in sample(p, 0)] == [0, 0]
    gradients = op.nade_log_prob_backward(torch.empty(0), x, *arguments(p))
    assert same([*gradients[:4], *gradients[4]], [torch.zeros_like(q) for q in p.tensors])
    if not mlp_sizes:
        loss, *gradients = op.nade_mean_nll(x, *p[:4])
        assert loss.isnan()
        assert same(gradients, [torch.zeros_like(q) for q in p[:4]])


def test_nade_arguments_that_do_not_fit_are_refused():
    p, x = nade_parameters(4, 3, 5), random_states(2, 4, 3)
    op = torch.ops.pyar_emulated
    with pytest.raises(RuntimeError, match=r"W has shape \[4, 1, 5\], expected \[4, 2, 5\]"):
        op.nade_log_prob(x, p.W[:, :1].contiguous(), p.c, p.V, p.b, [])
    with pytest.raises(RuntimeError, match=r"x has shape \[2, 3\], expected \[\*, 4\]"):
        op.nade_log_prob(x[:, :3].contiguous(), *p[:4], [])
    with pytest.raises(RuntimeError, match="c has the wrong dtype"):
        op.nade_log_prob(x, p.W, p.c.double(), p.V, p.b, [])
    with pytest.raises(RuntimeError, match=r"mlp weight has shape \[2, 4\], expected \[\*, 5\]"):
        op.nade_log_prob(x, *p[:4], [torch.ones(2, 4), torch.ones(2)])
    with pytest.raises(RuntimeError, match=r"V has shape \[4, 3, 5\], expected \[4, 3, 2\]"):
        op.nade_log_prob(x, *p[:4], [torch.ones(2, 5), torch.ones(2)])
    with pytest.raises(RuntimeError, match="at most 16 added layers, got 34 tensors"):
        op.nade_log_prob(x, *p[:4], [torch.ones(5, 5), torch.ones(5)] * 17)
    with pytest.raises(RuntimeError, match="temperature must be positive"):
        sample(p, 1, temperature=0.0)
    with pytest.raises(RuntimeError, match="1 to 4096 hidden units, got 5000"):
        op.nade_log_prob(x, *nade_parameters(4, 3, 5000)[:4], [])


# N, D, H, K, layers, scalar, multiprocessors, bytes of shared memory a block may have.
LSTM_CASES = {
    "one block a group": (3, 5, 40, 10, 1, True, 4, 232448),
    "one sample": (1, 6, 5, 2, 1, False, 4, 232448),
    "two layers": (9, 4, 33, 3, 2, False, 4, 232448),
    "a block for every strip": (7, 4, 100, 3, 1, False, 4, 100000),
    "strips of 16": (6, 4, 100, 3, 1, False, 30, 40000),
    "strips of 8": (6, 4, 64, 3, 1, False, 30, 30000),
    "three layers, spread": (5, 4, 70, 5, 3, True, 6, 60000),
    "from the L2 cache, several strips a block": (6, 4, 130, 3, 2, False, 3, 99000),
    "most states": (40, 3, 20, 256, 1, False, 4, 232448),
    "several launches": (600, 2, 8, 3, 1, False, 1, 232448),
}


def lstm_parameters(H: int, K: int, layers: int, scalar: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 4 - 2) * H**-0.5

    weights = []
    for layer in range(layers):
        inputs = H if layer else 1 if scalar else K
        weights += [uniform(4 * H, inputs), uniform(4 * H, H), uniform(4 * H), uniform(4 * H)]
    return weights, 3 * uniform(K, H), uniform(K)


def lstm_sample(parameters, N, D, first_index=0, temperature=1.0, given=None, name="lstm_sample"):
    op = getattr(torch.ops.pyar_emulated, name)
    return op(*parameters, torch.tensor(11), N, first_index, D, temperature, given)


def check_lstm_samples(case, monkeypatch, name, exact_weights):
    """The samples and log-probabilities of an operation are those of the model with exact_weights(weights)."""
    N, D, H, K, layers, scalar, multiprocessors, shared = case
    monkeypatch.setenv("PYAR_EMULATOR_SMS", str(multiprocessors))
    monkeypatch.setenv("PYAR_EMULATOR_SHARED", str(shared))
    parameters = lstm_parameters(H, K, layers, scalar)
    draw = functools.partial(lstm_sample, parameters, name=name)
    weights, head_weight, head_bias = exact_weights(parameters[0]), *parameters[1:]
    double = [w.double() for w in weights], head_weight.double(), head_bias.double()
    u = uniforms(11, 7, N, D)

    x, log_prob = draw(N, D, 7)
    outputs = torch.stack(lstm_reference.step_logits(x, *double), dim=1)
    assert_inverse_cdf(x, outputs, u)
    float32 = lstm_reference.log_prob(x, weights, head_weight, head_bias)
    assert_as_accurate(log_prob, float32, lstm_reference.log_prob(x, *double), "log_prob")

    # The same bits from another order of the threads, and of the last sample from a batch of its own.
    monkeypatch.setenv("PYAR_EMULATOR_SEED", "1")
    assert same((x, log_prob), draw(N, D, 7))
    assert same((x[-1:], log_prob[-1:]), draw(1, D, 7 + N - 1))

    given = random_states(N, 2, K)
    x, log_prob = draw(N, D, 7, 1.3, given)
    assert torch.equal(x[:, :2], given)
    assert_inverse_cdf(x, torch.stack(lstm_reference.step_logits(x, *double), dim=1), u, 1.3, 2)
    if D == 2:
        assert (log_prob == 0).all()


@pytest.mark.parametrize("case", LSTM_CASES.values(), ids=LSTM_CASES.keys())
def test_lstm_samples(case, monkeypatch):
    check_lstm_samples(case, monkeypatch, "lstm_sample", lambda weights: weights)


# As LSTM_CASES.
LSTM_BFLOAT16_CASES = {
    "one sample, a block for every strip": (1, 6, 40, 10, 1, True, 4, 232448),
    "one block a group": (3, 5, 40, 10, 1, False, 1, 232448),
    "one strip, with padding": (9, 6, 5, 2, 1, False, 4, 232448),
    "two layers": (9, 4, 33, 3, 2, False, 4, 232448),
    "tiles of 32": (40, 4, 33, 3, 2, False, 3, 232448),
    "all four warps have several tiles of inputs": (5, 3, 150, 4, 1, False, 10, 232448),
    "three layers, spread": (5, 4, 70, 5, 3, True, 6, 100000),
    "from the L2 cache, several strips a block": (6, 4, 130, 3, 2, False, 3, 60000),
    "from the L2 cache, tiles of 32": (60, 3, 100, 3, 1, False, 2, 70000),
    "most states": (40, 3, 20, 256, 1, False, 4, 232448),
    "several launches": (600, 2, 8, 3, 1, False, 1, 232448),
    "h does not fit: the float kernel with rounded weights": (6, 4, 70, 3, 2, True, 3, 16000),
}


@pytest.mark.parametrize("case", LSTM_BFLOAT16_CASES.values(), ids=LSTM_BFLOAT16_CASES.keys())
def test_lstm_samples_with_bfloat16_weights(case, monkeypatch):
    check_lstm_samples(
        case, monkeypatch, "lstm_sample_bfloat16", lambda weights: round_weights(weights, torch.bfloat16)
    )


LSTM_OPERATIONS = pytest.mark.parametrize("name", ["lstm_sample", "lstm_sample_bfloat16"])


@LSTM_OPERATIONS
def test_lstm_that_is_no_distribution_gives_nan_and_state_0(name):
    weights, head_weight, head_bias = lstm_parameters(6, 3, 1, False)
    weights[1][0, 0] = float("nan")
    x, log_prob = lstm_sample((weights, head_weight, head_bias), 5, 4, name=name)
    assert log_prob.isnan().all()
    assert (x[:, 1:] == 0).all()


@LSTM_OPERATIONS
def test_lstm_of_no_samples(name):
    x, log_prob = lstm_sample(lstm_parameters(6, 3, 1, False), 0, 4, name=name)
    assert x.shape == (0, 4)
    assert log_prob.shape == (0,)


def test_lstm_arguments_that_do_not_fit_are_refused():
    weights, head_weight, head_bias = lstm_parameters(6, 3, 2, False)
    with pytest.raises(RuntimeError, match=r"weight_hh has shape \[24, 5\], expected \[24, 6\]"):
        lstm_sample(([*weights[:5], weights[5][:, :5], *weights[6:]], head_weight, head_bias), 1, 4)
    with pytest.raises(RuntimeError, match="4 tensors for each of 1 to 4 layers, got 7"):
        lstm_sample((weights[:7], head_weight, head_bias), 1, 4)
    with pytest.raises(RuntimeError, match=r"given has shape \[1, 5\], more than 4"):
        lstm_sample((weights, head_weight, head_bias), 1, 4, given=torch.zeros(1, 5, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (1, "wait for ever"),
        (2, "behind the shared memory"),
        (3, "misaligned asynchronous copy"),
        (5, "wait for ever"),
        (6, "wait for ever"),
    ],
    ids=["a barrier for half of the threads", "beyond shared memory", "alignment", "an endless wait", "half a warp"],
)
def test_the_emulator_finds_mistakes(which, message):
    assert torch.ops.pyar_emulated.faulty(torch.zeros(68), 0).tolist() == [*range(1, 64), 0]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pyar_emulated.faulty(torch.zeros(68), which)


def test_the_emulator_delays_copies_that_nobody_waits_for():
    assert torch.ops.pyar_emulated.faulty(torch.full((68,), 7.0), 4).tolist() != [7.0] * 64
