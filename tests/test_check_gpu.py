"""tools/check_gpu.py where there is no GPU: its parts one by one, with made-up programs, and its report."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_cases
import torch

ROOT = Path(__file__).parent.parent
H100 = {"available": True, "device": "NVIDIA H100", "capability": "9.0", "torch": "2.13.0", "pyar": {"cuda_archs": []}}


@pytest.fixture(scope="module")
def check_gpu() -> SimpleNamespace:
    spec = importlib.util.spec_from_file_location("check_gpu", ROOT / "tools" / "check_gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_gpu"] = module
    spec.loader.exec_module(module)
    return module


def script(text: str) -> list[str]:
    return ["sh", "-c", text]


def test_it_stops_at_nothing(check_gpu, tmp_path):
    def trips(out: Path, status: int) -> tuple[bool, str, None]:
        raise KeyError("no such result")

    started = time.monotonic()
    parts = [
        check_gpu.Part("fails", script("echo before; echo the last word; exit 3"), 20),
        check_gpu.Part("crashes", script("kill -SEGV $$"), 20),
        check_gpu.Part("hangs", script("echo still there; sleep 60 & echo $! > pid; wait"), 1),
        check_gpu.Part("trips", script("true"), 20, judge=trips),
        check_gpu.Part("no such command", ["/no/such/command"], 20),
        check_gpu.Part("no such tool", script("true"), 20, needs="no-such-tool"),
        check_gpu.Part("works", script('test "$WITH" = this'), 20, {"WITH": "this"}),
    ]
    for part in parts:
        part.command = [word.replace("> pid", f"> {tmp_path}/pid") for word in part.command]
    findings = []
    check_gpu.check(findings, parts, tmp_path, 100)
    found = {finding.name: (finding.status, finding.summary) for finding in findings}
    assert found["fails"] == ("failed", "exit status 3: before\nthe last word")
    assert found["crashes"][0] == "failed"
    assert found["hangs"] == ("timed out", "not done after 1 s. still there")
    assert found["trips"] == ("failed", "KeyError: 'no such result'")
    assert found["no such command"][0] == "failed"
    assert found["no such tool"] == ("left out", "no-such-tool is not installed")
    assert found["works"] == ("passed", "")
    assert time.monotonic() - started < 30
    child = int((tmp_path / "pid").read_text())
    assert not os.path.exists(f"/proc/{child}") or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]

    report = check_gpu.report(findings, H100)
    assert "Not all is well: fails, crashes, hangs, trips, no such command." in report
    assert "Left out: no such tool." in report
    assert "All is well" not in report


def test_the_time_of_all_parts_is_bounded(check_gpu, tmp_path):
    assert check_gpu.TOTAL_SECONDS < 20 * 60
    findings = []
    parts = [check_gpu.Part(name, script("sleep 20"), 20) for name in ("first", "second")]
    check_gpu.check(findings, parts, tmp_path, 0.5)
    assert [finding.status for finding in findings] == ["timed out", "left out"]
    assert findings[1].summary == "the parts before it took all the time"


def test_the_parts_are_those_of_the_machine(check_gpu, tmp_path):
    parts = {part.name: part for part in check_gpu.parts(tmp_path, H100)}
    assert list(parts) == ["build", "graphs", "tests", "memcheck", "racecheck", "initcheck", "nade", "lstm"]
    assert {"--no-build-isolation", "--no-deps", "--no-index"} <= set(parts["build"].command)
    assert parts["build"].environment == {"PYAR_CUDA": "1", "PYAR_CUDA_ARCH_LIST": "9.0"}
    assert all(part.limit > 0 for part in parts.values())
    built = {**H100, "pyar": {"cuda_archs": ["8.0", "9.0"]}}
    assert "build" not in [part.name for part in check_gpu.parts(tmp_path, built)]


def test_the_peers_and_options_are_the_benchmarks_own(check_gpu, tmp_path):
    from benchmarks.__main__ import parse_arguments

    for part in check_gpu.parts(tmp_path, H100)[-2:]:
        options = parse_arguments(part.command[3:])
        assert (options.jobs, options.device, options.out) == ([part.name], "cuda", tmp_path)
        assert {"torch_eager", "torch_compiled", "cuda_graph"} <= set(options.peers.split(","))


TESTS = """
import pytest
def test_passes_on_cuda(): pass
@pytest.mark.skipif({skips}, reason="this machine has no CUDA device")
def test_gpu_on_cuda(): pass
def test_third_on_cuda(): assert not {fails}
"""


@pytest.mark.parametrize(
    ("skips", "fails", "well", "says"),
    [
        (False, False, True, "3 passed, 0 failed, 0 skipped"),
        (False, True, False, "2 passed, 1 failed, 0 skipped: test_made::test_third_on_cuda"),
        (True, False, False, "2 passed, 0 failed, 1 skipped: the GPU was not tested: this machine has no CUDA device"),
    ],
)
def test_tests_are_judged_by_what_ran(check_gpu, tmp_path, monkeypatch, skips, fails, well, says):
    (tmp_path / "test_made.py").write_text(TESTS.format(skips=skips, fails=fails))
    monkeypatch.setattr(check_gpu, "ROOT", tmp_path)
    part = next(part for part in check_gpu.parts(tmp_path, H100) if part.name == "tests")
    command = [word for word in part.command if word not in ("tests", "--ignore=tests/test_cuda_emulated.py")]
    part = check_gpu.Part("tests", command, 60, judge=part.judge)
    finding = check_gpu.run_part(part, tmp_path, 60)
    assert (finding.status == "passed", finding.summary) == (well, says)


def test_tests_that_never_wrote_a_report_have_failed(check_gpu, tmp_path):
    finding = check_gpu.run_part(
        check_gpu.Part("tests", script("echo broken; exit 4"), 20, judge=check_gpu.judge_tests("tests")), tmp_path, 20
    )
    assert (finding.status, finding.summary) == ("failed", "exit status 4: broken")


def outcome(contender: str, status: str = "ok", median_ms: float | None = None) -> dict:
    return {"contender": contender, "status": status} | ({} if median_ms is None else {"median_ms": median_ms})


def judge(check_gpu, folder: Path, *outcomes: dict) -> tuple[bool, str]:
    record = {"model": "nade", "task": "sample", "B": 1, "K": 2, "H": 500, "outcomes": list(outcomes)}
    (folder / "nade.json").write_text(json.dumps({"records": [record]}))
    return check_gpu.judge_benchmark("nade")(folder, 0)[:2]


def test_benchmarks_are_judged_by_their_results(check_gpu, tmp_path):
    case = "nade sample, B=1, K=2, H=500: "
    ours, eager = outcome("pyar", median_ms=0.4), outcome("PyTorch eager loop", median_ms=40.0)
    assert judge(check_gpu, tmp_path, eager, ours) == (True, f"{case}0.4 ms, PyTorch eager loop 40 ms (100.00×)")
    fast = outcome("CUDA graph of the loop", median_ms=0.2)
    says = f"{case}0.4 ms, CUDA graph of the loop 0.2 ms (0.50× SLOWER); torch.compile wrong"
    assert judge(check_gpu, tmp_path, eager, ours, fast, outcome("torch.compile", "wrong")) == (True, says)
    assert judge(check_gpu, tmp_path, eager, outcome("pyar", "wrong")) == (False, f"{case}pyar's result is wrong")


def test_benchmarks_that_were_ended_early_keep_what_they_measured(check_gpu, tmp_path):
    judge(check_gpu, tmp_path, outcome("pyar", median_ms=0.4))
    part = check_gpu.Part("nade", script("sleep 20"), 0.3, judge=check_gpu.judge_benchmark("nade"))
    finding = check_gpu.run_part(part, tmp_path, 20)
    assert finding.status == "timed out"
    assert finding.summary == "not done after 0 s. nade sample, B=1, K=2, H=500: 0.4 ms"
    assert finding.details["records"]


def test_the_committed_results_can_be_read(check_gpu, tmp_path):
    for job in ("nade", "lstm"):
        shutil.copy(ROOT / "benchmarks" / "results" / f"{job}.json", tmp_path)
        well, says, _ = check_gpu.judge_benchmark(job)(tmp_path, 0)
        assert well
        assert f"{job} sample, B=1," in says


def test_the_whole_run_writes_its_report(check_gpu, tmp_path, monkeypatch, capsys):
    def parts(out: Path, facts: dict) -> list:
        assert facts["torch"] == torch.__version__
        return [check_gpu.Part("fails", script("exit 1"), 20), check_gpu.Part("works", script("true"), 20)]

    monkeypatch.setattr(check_gpu, "parts", parts)
    out = tmp_path / "new" / "report"
    assert check_gpu.main(["--out", str(out)]) == 1
    document = json.loads((out / "report.json").read_text())
    assert [part["name"] for part in document["parts"]] == ["device", "fails", "works"]
    assert document["parts"][2]["status"] == "passed"
    assert {"torch", "torch_cuda", "driver", "nvcc", "commit", "pyar"} <= document["machine"].keys()
    text = (out / "report.txt").read_text()
    assert text in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert "sees no CUDA device" in text


def test_ctrl_c_still_writes_the_report(check_gpu, tmp_path, monkeypatch):
    def interrupt(*arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check_gpu, "check", interrupt)
    check_gpu.main(["--out", str(tmp_path)])
    assert json.loads((tmp_path / "report.json").read_text())["parts"][-1]["summary"] == "interrupted"


def test_the_sanitizers_small_cases_run(capsys):
    small_cases.main("cpu")
    assert "every kernel has run on cpu" in capsys.readouterr().out


def test_the_sanitizers_run_the_small_cases(check_gpu, tmp_path, monkeypatch):
    """With a made-up compute-sanitizer, which runs what it is given, on the CPU."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\necho "sanitizer $1 $2"\nshift 4\nexec "$1" "$2" cpu\n')
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    part = next(part for part in check_gpu.parts(tmp_path, H100) if part.name == "memcheck")
    finding = check_gpu.run_part(part, tmp_path, 60)
    assert finding.status == "passed", finding.summary
    assert (tmp_path / "memcheck.log").read_text() == "sanitizer --tool memcheck\nevery kernel has run on cpu\n"
