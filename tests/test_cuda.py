"""The CUDA kernels on a GPU: against the float64 reference and the CPU kernels, on streams, in graphs, at the limits.

Every test here needs a GPU and is skipped without one; test_cuda_emulated.py runs the same kernels on the CPU.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import pytest
import torch
from oracle import NadeParameters, assert_as_accurate, assert_inverse_cdf, nade_parameters, random_states
from torch import Tensor

from pyar import native
from pyar.ops.lstm import lstm_sample, round_weights
from pyar.ops.nade import nade_log_prob, nade_logits, nade_mean_nll, nade_sample
from pyar.reference import lstm as lstm_reference
from pyar.reference import nade as reference
from pyar.reference.philox import uniforms

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device, or torch none of CUDA"),
    pytest.mark.skipif(not native.has_kernels("cuda"), reason="pyar is built without CUDA"),
]

SEED = 123456789
# D, K, H, scalar, sizes of the added layers: every number of warps a sample, staged rows and not, tails.
NADE_SHAPES = [
    (5, 2, 7, False, ()),
    (40, 2, 33, True, ()),
    (784, 2, 500, False, ()),
    (100, 10, 500, False, ()),
    (30, 17, 130, False, ()),
    (20, 64, 600, True, ()),
    (12, 256, 1030, False, ()),
    (7, 3, 4096, False, ()),
    (20, 2, 33, True, (40,)),
    (100, 10, 500, False, (300, 130)),
    (12, 256, 70, False, (600,)),
    (7, 3, 4096, False, (4096,)),
]
# H, K, layers, scalar: weights in one block, spread over blocks in strips of 32, 16 and 8 units, from the L2 cache. In
# bfloat16: in one block, spread over blocks, from the L2 cache; 1500 samples take tiles of 32 where they fit.
LSTM_SHAPES = [
    (5, 2, 1, False),
    (60, 10, 1, True),
    (128, 3, 2, False),
    (256, 10, 1, False),
    (512, 10, 1, False),
    (1024, 4, 1, False),
    (300, 256, 4, True),
    (2048, 2, 1, False),
    (2048, 2, 2, False),
]


def cuda(p: NadeParameters) -> NadeParameters:
    return p.map(lambda tensor: tensor.cuda())


def seed_on(device: str, seed: int = SEED) -> Tensor:
    return torch.tensor(seed, device=device)


def lstm_parameters(H: int, K: int, layers: int, scalar: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    lstm = torch.nn.LSTM(1 if scalar else K, H, layers)
    generator = torch.Generator().manual_seed(0)
    weights = [(torch.rand(w.shape, generator=generator) * 4 - 2) * H**-0.5 for w in lstm._flat_weights]
    head = (torch.rand(K, H, generator=generator) * 6 - 3) * H**-0.5
    return weights, head, torch.rand(K, generator=generator)


def lstm_cuda(parameters):
    weights, head_weight, head_bias = parameters
    return [w.cuda() for w in weights], head_weight.cuda(), head_bias.cuda()


def assert_same(left, right) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


def nade_of(shape) -> NadeParameters:
    D, K, H, scalar, mlp_sizes = shape
    return nade_parameters(D, K, H, scalar=scalar, mlp_sizes=mlp_sizes)


@pytest.mark.parametrize("B", [1, 37])
@pytest.mark.parametrize("shape", NADE_SHAPES, ids=str)
def test_nade_against_the_reference(shape, B):
    p, x = nade_of(shape), random_states(B, shape[0], shape[1], zeros=0.5)
    on_gpu, double = cuda(p), p.double()
    log_prob = nade_log_prob(x.cuda(), *on_gpu)
    assert_as_accurate(log_prob, reference.log_prob(x, *p), reference.log_prob(x, *double), "log_prob")
    logits = nade_logits(x.cuda(), *on_gpu)
    assert_as_accurate(logits, reference.logits(x, *p), reference.logits(x, *double), "logits")

    upstream = torch.linspace(-1.0, 2.0, B)

    def gradients(loss, parameters, order):
        leaves = parameters.leaves()
        device = leaves.W.device
        value = loss(x[order].to(device), leaves, upstream[order].to(device, leaves.W.dtype))
        return torch.autograd.grad(value, leaves.tensors)

    orders = [torch.randperm(B, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for name, kernel_loss, reference_loss in (
        ("log_prob", lambda x, q, g: (nade_log_prob(x, *q) * g).sum(), lambda x, q, g: reference.log_prob(x, *q) @ g),
        ("mean_nll", lambda x, q, g: nade_mean_nll(x, *q), lambda x, q, g: reference.mean_nll(x, *q)),
    ):
        actual = gradients(kernel_loss, on_gpu, slice(None))
        assert_same(actual, gradients(kernel_loss, on_gpu, slice(None)))
        float32 = zip(*(gradients(reference_loss, p, order) for order in orders), strict=True)
        float64 = gradients(reference_loss, double, slice(None))
        for index, compared in enumerate(zip(actual, float32, float64, strict=True)):
            assert_as_accurate(*compared, f"{name}: gradient of parameter {index}")


@pytest.mark.parametrize("N", [1, 3, 200, 1500])
@pytest.mark.parametrize("shape", NADE_SHAPES, ids=str)
def test_nade_samples_are_those_of_the_cpu(shape, N):
    D, K = shape[:2]
    p = nade_of(shape)
    on_gpu = cuda(p)
    x, log_prob = nade_sample(*on_gpu, seed=seed_on("cuda"), num_samples=N, first_index=5, temperature=0.9)
    outputs = torch.stack(list(reference.outputs(x, *on_gpu.double())), dim=1)
    assert_inverse_cdf(x.cpu(), outputs.cpu(), uniforms(SEED, 5, N, D), 0.9)
    x_cpu, log_prob_cpu = nade_sample(*p, seed=seed_on("cpu"), num_samples=N, first_index=5, temperature=0.9)
    same = (x.cpu() == x_cpu).all(dim=1)
    # A whole sample differs from its first differing state on: about D K in 10⁶ do.
    assert (~same).sum() <= 2 + N * D * K * 1e-5
    torch.testing.assert_close(log_prob.cpu()[same], log_prob_cpu[same], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", NADE_SHAPES, ids=str)
def test_nade_results_do_not_depend_on_the_batch(shape):
    p = cuda(nade_of(shape))
    x, log_prob = nade_sample(*p, seed=seed_on("cuda"), num_samples=700, first_index=0)
    for first, count in ((0, 1), (5, 130), (699, 1)):
        part = nade_sample(*p, seed=seed_on("cuda"), num_samples=count, first_index=first)
        assert_same(part, (x[first : first + count], log_prob[first : first + count]))
    assert torch.equal(log_prob, nade_log_prob(x, *p))
    assert torch.equal(log_prob[17:18], nade_log_prob(x[17:18], *p))


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("N", [1, 40, 1500])
@pytest.mark.parametrize("shape", LSTM_SHAPES, ids=str)
def test_lstm_samples(shape, N, weight_dtype):
    H, K, layers, scalar = shape
    D = 20
    parameters = lstm_parameters(H, K, layers, scalar)
    on_gpu = lstm_cuda(parameters)
    draw = functools.partial(lstm_sample, *on_gpu, seed=seed_on("cuda"), num_dims=D, weight_dtype=weight_dtype)
    x, log_prob = draw(num_samples=N, first_index=9)
    weights, head_weight, head_bias = on_gpu
    exact_weights = weights if weight_dtype == torch.float32 else round_weights(weights, weight_dtype)
    double = [w.double() for w in exact_weights], head_weight.double(), head_bias.double()
    outputs = torch.stack(lstm_reference.step_logits(x, *double), dim=1)
    assert_inverse_cdf(x.cpu(), outputs.cpu(), uniforms(SEED, 9, N, D))
    torch.testing.assert_close(log_prob.double(), lstm_reference.log_prob(x, *double), rtol=1e-5, atol=1e-4)
    assert_same(draw(num_samples=N, first_index=9), (x, log_prob))
    assert_same(draw(num_samples=1, first_index=9 + N - 1), (x[-1:], log_prob[-1:]))
    x_cpu, _ = lstm_sample(
        *parameters, seed=seed_on("cpu"), num_dims=D, num_samples=N, first_index=9, weight_dtype=weight_dtype
    )
    assert (x.cpu() != x_cpu).any(dim=1).sum() <= 2 + N * D * K * 1e-5


def test_forced_dimensions():
    given = random_states(6, 3, 10)
    p = cuda(nade_parameters(9, 10, 40))
    x, _ = nade_sample(*p[:4], seed=seed_on("cuda"), num_samples=6, given=given.cuda())
    assert torch.equal(x[:, :3].cpu(), given)
    x, _ = lstm_sample(
        *lstm_cuda(lstm_parameters(64, 10, 1, False)),
        seed=seed_on("cuda"),
        num_samples=6,
        num_dims=9,
        given=given.cuda(),
    )
    assert torch.equal(x[:, :3].cpu(), given)


def test_gradients_are_the_same_bits_every_time():
    p, x = cuda(nade_parameters(300, 10, 200)).leaves(), random_states(500, 300, 10).cuda()
    runs = [torch.autograd.grad(nade_mean_nll(x, *p[:4]), p.tensors) for _ in range(3)]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_work_goes_to_the_current_stream():
    p = cuda(nade_parameters(50, 2, 64))
    expected = nade_sample(*p[:4], seed=seed_on("cuda"), num_samples=10)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    blocked = p.map(torch.zeros_like)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s; work on another stream would overtake it and see zeros
        for empty, tensor in zip(blocked[:4], p[:4], strict=True):
            empty.copy_(tensor)
        drawn = nade_sample(*blocked[:4], seed=seed_on("cuda"), num_samples=10)
    stream.synchronize()
    assert_same(drawn, expected)


def test_graphs_capture_and_replay_with_new_seeds_and_data():
    p = cuda(nade_parameters(40, 3, 70))
    deep = cuda(nade_parameters(40, 3, 70, mlp_sizes=(30,)))
    lstm = lstm_cuda(lstm_parameters(256, 3, 1, False))
    seed, x = seed_on("cuda", 1), random_states(30, 40, 3).cuda()
    deep_upstream = torch.linspace(-1.0, 1.0, 30 * 40 * 3, device="cuda").view(30, 40, 3)

    def work():
        with torch.no_grad():
            return (
                *nade_sample(*p[:4], seed=seed, num_samples=30),
                nade_log_prob(x, *p[:4]),
                *torch.ops.pyar.nade_mean_nll(x, *p[:4]),
                *nade_sample(*deep, seed=seed, num_samples=30),
                *torch.ops.pyar.nade_logits_backward(deep_upstream, x, *deep[:4], list(deep.mlp))[:4],
                *lstm_sample(*lstm, seed=seed, num_samples=30, num_dims=40),
                *lstm_sample(*lstm, seed=seed, num_samples=30, num_dims=40, weight_dtype=torch.bfloat16),
            )

    warm_up = torch.cuda.Stream()
    with torch.cuda.stream(warm_up):
        work()
    warm_up.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for new_seed in (2, 3):
        seed.fill_(new_seed)
        x.copy_(random_states(30, 40, 3, seed=new_seed))
        graph.replay()
        assert_same(captured, work())


def test_parameters_that_are_no_numbers_give_nan():
    p = cuda(nade_parameters(6, 4, 30))
    p.V[3, 0, 0] = float("nan")
    x, log_prob = nade_sample(*p[:4], seed=seed_on("cuda"), num_samples=8)
    assert log_prob.isnan().all()
    assert (x[:, 3] == 0).all()
    weights, head_weight, head_bias = lstm_cuda(lstm_parameters(256, 4, 1, False))
    weights[1][0, 0] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        _, log_prob = lstm_sample(
            weights, head_weight, head_bias, seed=seed_on("cuda"), num_samples=8, num_dims=5, weight_dtype=dtype
        )
        assert log_prob.isnan().all()


def test_states_out_of_range_are_harmless():
    p, x = cuda(nade_parameters(40, 3, 30)), random_states(9, 40, 3)
    x[4, 20] = 200
    assert torch.ops.pyar.nade_log_prob(x.cuda(), *p[:4], []).isnan().nonzero().tolist() == [[4]]


def test_empty_batches():
    p = cuda(nade_parameters(4, 3, 5))
    assert nade_log_prob(torch.empty(0, 4, dtype=torch.uint8, device="cuda"), *p[:4]).shape == (0,)
    assert nade_sample(*p[:4], seed=seed_on("cuda"), num_samples=0)[0].shape == (0, 4)
    lstm = lstm_cuda(lstm_parameters(8, 3, 1, False))
    assert lstm_sample(*lstm, seed=seed_on("cuda"), num_samples=0, num_dims=4)[0].shape == (0, 4)


def test_the_longest_and_the_widest_models():
    D = 10_000
    p = cuda(nade_parameters(D, 2, 64))
    x, log_prob = nade_sample(*p[:4], seed=seed_on("cuda"), num_samples=5)
    assert torch.equal(nade_log_prob(x, *p[:4]), log_prob)
    exact = reference.log_prob(x, *p.double())
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-3)
    wide = cuda(nade_parameters(20, 256, 4096)).leaves()
    x = random_states(50, 20, 256).cuda()
    loss = nade_mean_nll(x, *wide[:4])
    loss.backward()
    torch.testing.assert_close(loss.double(), reference.mean_nll(x, *wide.double()), rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 30 << 30,
    reason="needs 30 GB of GPU memory",
)
def test_more_than_2_to_the_31_elements():
    # logits [B, D, P] with 2.2·10⁹ elements; the last samples' lie behind 2³¹.
    D, K, B = 800, 256, 10_500
    p = cuda(nade_parameters(D, K, 8))
    x = random_states(B, D, K).cuda()
    logits = nade_logits(x, *p[:4])
    assert logits.numel() > 2**31
    assert torch.equal(logits[-2:], nade_logits(x[-2:], *p[:4]))
    assert torch.equal(logits[:2], nade_logits(x[:2], *p[:4]))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_device_is_used_and_the_current_one_kept():
    p = nade_parameters(30, 3, 50)
    expected = nade_sample(*cuda(p)[:4], seed=seed_on("cuda:0"), num_samples=20)
    second = p.map(lambda tensor: tensor.to("cuda:1"))
    drawn = nade_sample(*second[:4], seed=seed_on("cuda:1"), num_samples=20)
    assert torch.cuda.current_device() == 0
    assert drawn[0].device == torch.device("cuda:1")
    assert_same([part.cuda(0) for part in drawn], expected)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool, request):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", sys.executable]
    command += [str(request.path.with_name("small_cases.py")), "cuda"]
    root = request.config.rootpath
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
