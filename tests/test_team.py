"""Threads that share the work: the same bits with any number of them, and nobody waits for one that does not run."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pyar
from pyar.native import _C

pytestmark = pytest.mark.skipif(_C is None, reason="needs the native extension")


def random_model(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def operations() -> dict[str, Callable[[], list[Tensor]]]:
    """Every operation, on work that is large enough to be shared."""
    nade = random_model(pyar.NADE(150, 2, 300))
    deep = random_model(pyar.NADE(60, 3, 120, mlp_sizes=(130,)))
    wide = random_model(pyar.NADE(30, 256, 160))  # whose lone samples are a team's work
    lstm = random_model(pyar.PixelLSTM(40, 5, 70, 2))
    made = random_model(pyar.MADE(60, 2, hidden_sizes=(200,)))
    generator = torch.Generator().manual_seed(1)

    def states(model: torch.nn.Module, B: int) -> Tensor:
        return torch.randint(model.num_states, (B, model.dim), generator=generator, dtype=torch.uint8)

    def gradient(model: torch.nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
        value = loss(x)
        return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]

    binary, ternary, grey = states(nade, 150), states(deep, 70), states(lstm, 60)
    return {
        "NADE's log_prob": lambda: [nade.log_prob(binary).detach()],
        "NADE's logits": lambda: [nade.logits(binary).detach()],
        "NADE's mean_nll": lambda: gradient(nade, binary, nade.mean_nll),
        "NADE's gradient": lambda: gradient(nade, binary, lambda x: nade.log_prob(x).square().sum()),
        "NADE's gradient, added layers": lambda: gradient(deep, ternary, lambda x: deep.log_prob(x).square().sum()),
        "NADE's sample": lambda: list(nade.sample_and_log_prob(150, seed=1)),
        "NADE's lone sample": lambda: list(wide.sample_and_log_prob(1, seed=2)),
        "MADE's sample": lambda: list(made.sample_and_log_prob(300, seed=5)),
        "PixelLSTM's gradient": lambda: gradient(lstm, grey, lambda x: lstm.log_prob(x).square().sum()),
        "PixelLSTM's sample": lambda: list(lstm.sample_and_log_prob(60, seed=3)),
        "PixelLSTM's lone sample": lambda: list(lstm.sample_and_log_prob(1, seed=4)),
    }


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_piece_is_done_once_and_a_seat_is_one_threads_own(restore_threads: None) -> None:
    torch.set_num_threads(4)
    before = _C.team_facts()["pieces_by_workers"]
    for pieces in (0, 1, 2, 3, 50):
        done: list[int] = []
        seated: dict[int, int] = {}

        def work(piece: int, seat: int) -> None:
            assert seat not in seated, "two threads have one seat"  # noqa: B023
            seated[seat] = threading.get_ident()  # noqa: B023
            time.sleep(0.001)  # lets others in
            done.append(piece)  # noqa: B023
            del seated[seat]  # noqa: B023

        _C.share(4, pieces, work)
        assert sorted(done) == list(range(pieces))
    assert _C.team_facts()["pieces_by_workers"] > before, "nobody has helped"


def test_what_a_piece_raises_is_raised(restore_threads: None) -> None:
    torch.set_num_threads(3)

    def work(piece: int, seat: int) -> None:
        time.sleep(0.001)
        if piece % 4 == 3:
            raise KeyError(f"piece {piece}")

    for _ in range(20):
        with pytest.raises(KeyError, match="piece"):
            _C.share(3, 12, work)
    done: list[int] = []
    _C.share(3, 12, lambda piece, seat: done.append(piece))
    assert sorted(done) == list(range(12))  # it is over


def test_a_piece_that_was_claimed_is_waited_for(restore_threads: None) -> None:
    torch.set_num_threads(2)
    caller = threading.get_ident()
    for _ in range(10):
        done: list[int] = []

        def work(piece: int, seat: int) -> None:
            if threading.get_ident() != caller:
                time.sleep(0.03)  # far longer than the calling thread spins
            done.append(piece)  # noqa: B023

        _C.share(2, 3, work)
        assert sorted(done) == [0, 1, 2]


def test_results_are_the_same_bits_for_every_number_of_threads(restore_threads: None) -> None:
    torch.set_num_threads(1)
    alone = {name: run() for name, run in operations().items()}
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for name, run in operations().items():
            before = _C.team_facts()["pieces_by_workers"]
            for _ in range(200):  # until a worker has been quick enough
                assert same(alone[name], run()), f"{name} with {threads} threads"
                if _C.team_facts()["pieces_by_workers"] > before:
                    break
            assert _C.team_facts()["pieces_by_workers"] > before, f"nobody has helped with {name}"


def test_nobody_waits_for_a_worker_that_does_not_run(restore_threads: None) -> None:
    torch.set_num_threads(1)
    alone = {name: run() for name, run in operations().items()}
    torch.set_num_threads(3)
    _C.share(3, 9, lambda piece, seat: None)  # the workers exist
    before = _C.team_facts()["pieces_by_workers"]
    _C.hold_workers(True)
    try:
        for name, run in operations().items():
            assert same(alone[name], run()), name
    finally:
        _C.hold_workers(False)
    assert _C.team_facts()["pieces_by_workers"] == before, "they were not held"


STARVE = """
import os, sys, time
cpus = sorted(os.sched_getaffinity(0))
import torch
from tests.test_team import _C, operations, same
torch.set_num_threads(1)
alone = {name: run() for name, run in operations().items()}
_C.pretend_processors(2)
torch.set_num_threads(2)
_C.share(2, 100, lambda piece, seat: time.sleep(1e-4))
workers = [int(t) for t in os.listdir("/proc/self/task") if open(f"/proc/self/task/{t}/comm").read() == "pyar\\n"]
assert len(workers) == 1, workers
hog = os.fork()
if hog == 0:
    os.sched_setaffinity(0, cpus[-1:])
    while os.getppid() != 1: pass
    os._exit(0)
for worker in workers:
    os.sched_setaffinity(worker, cpus[-1:])
    os.setpriority(os.PRIO_PROCESS, worker, 15)
os.sched_setaffinity(0, cpus[:1])
try:
    for name, run in operations().items():
        if "lone" in name or "mean_nll" in name:
            assert same(alone[name], run()), name
finally:
    os.kill(hog, 9)
"""


def run_python(code: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=root, capture_output=True, text=True, **options
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's scheduler")
def test_a_worker_that_starves_changes_nothing() -> None:
    """It shares its processor with a busy process, and one turn in thirty there."""
    process = run_python(STARVE)
    assert process.returncode == 0, process.stderr


QUOTA = """
import os, sys
group = sys.argv[1]
if group:
    open(group + "/cgroup.procs", "w").write(str(os.getpid()))
else:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
import torch
from tests.test_team import _C, operations, same
torch.set_num_threads(1)
alone = {name: run() for name, run in operations().items()}
torch.set_num_threads(3)
assert _C.team_facts()["threads"] == 1, _C.team_facts()
for pretended in (0, 3):  # as many threads as the quota is worth, and more
    _C.pretend_processors(pretended)
    for name, run in operations().items():
        assert same(alone[name], run()), name
"""


@pytest.fixture
def group_of_half_a_processor() -> Iterator[str]:
    """A control group of 5 ms in every 10; empty where this process may not make one."""
    for root, limits in (
        ("/sys/fs/cgroup/cpu", {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "5000"}),
        ("/sys/fs/cgroup", {"cpu.max": "5000 10000"}),
    ):
        group = Path(root, f"pyar-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, value in limits.items():
                (group / name).write_text(value)
        except OSError:
            group.rmdir()
            continue
        yield str(group)
        while (group / "cgroup.procs").read_text():
            time.sleep(0.01)
        group.rmdir()
        return
    yield ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_no_more_threads_than_the_quota_is_worth(group_of_half_a_processor: str) -> None:
    process = run_python(QUOTA, group_of_half_a_processor)
    assert process.returncode == 0, process.stderr


def test_threads_that_call_at_once_share_the_workers(restore_threads: None) -> None:
    torch.set_num_threads(3)
    run = operations()
    names = list(run)
    wanted = {name: run[name]() for name in names}
    wrong: list[str] = []

    def call(index: int) -> None:
        for turn in range(2 * len(names)):
            name = names[(turn + index) % len(names)]
            if not same(wanted[name], run[name]()):
                wrong.append(name)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def work_in_child(connection) -> None:
    sample = random_model(pyar.NADE(150, 2, 300)).sample(150, seed=1)
    connection.send((sample.tolist(), _C.team_facts()["pieces_by_workers"]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_workers_of_its_own(restore_threads: None) -> None:
    torch.set_num_threads(3)
    wanted = random_model(pyar.NADE(150, 2, 300)).sample(150, seed=1)
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        here, there = context.Pipe()
        child = context.Process(target=work_in_child, args=(there,))
        child.start()
        sample, _ = here.recv()
        child.join()
        assert child.exitcode == 0
        assert torch.equal(torch.tensor(sample, dtype=wanted.dtype), wanted)
    assert torch.equal(random_model(pyar.NADE(150, 2, 300)).sample(150, seed=1), wanted)  # here they still work


EXIT = """
import torch, pyar
from pyar.native import _C
_C.pretend_processors(3)
torch.set_num_threads(3)
model = pyar.NADE(784, 2, 300)
model.mean_nll(torch.randint(2, (200, 784), dtype=torch.uint8)).backward()
for _ in range(5):
    model.sample(100)
"""


def test_a_process_ends_cleanly_while_its_workers_are_awake() -> None:
    for _ in range(3):
        process = run_python(EXIT)
        assert (process.returncode, process.stderr) == (0, "")


def test_workers_compute_as_the_calling_thread_does(restore_threads: None) -> None:
    """Numbers too small for full precision are zeros where torch.set_flush_denormal says so, whoever computes them."""
    model = random_model(pyar.NADE(150, 2, 300))
    x = torch.ones(128, 150, dtype=torch.uint8)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model.log_prob(x).sum() * 2e-38, list(model.parameters())))

    results = {}
    try:
        for flush in (False, True):
            if not torch.set_flush_denormal(flush):
                pytest.skip("this processor cannot flush them")
            torch.set_num_threads(1)
            results[flush] = gradients()
            torch.set_num_threads(4)
            for _ in range(10):
                assert same(results[flush], gradients())
    finally:
        torch.set_flush_denormal(False)
    assert not same(results[False], results[True]), "these numbers are not small enough to tell"
