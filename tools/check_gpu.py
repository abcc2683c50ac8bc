"""Does pyar run on this machine's GPU, is it right there, and how fast is it? One command for whoever has one.

    python tools/check_gpu.py --out gpu-report      # from pyar's source folder; under 20 minutes, no network

Builds pyar with CUDA where it is not, runs the tests that use a GPU, compute-sanitizer where it is installed, capture
and replay of CUDA graphs, and the benchmarks of both models beside PyTorch's ways: the eager loop, torch.compile with
max-autotune, and the loop in a CUDA graph; a result is checked before its time is taken. A part that fails or takes too
long is reported, and the next one runs. DIR gets report.txt, report.json and what each part printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What all parts together may take, in seconds; what a part leaves, the later ones do not get.
TOTAL_SECONDS = 1150
PEERS = ("torch_eager", "addmm_lstm", "torch_vectorised", "torch_compiled", "cuda_graph")

# Prints what is known of the machine as JSON. It runs in a process of its own: a driver that crashes is a finding.
FACTS = """
import json, torch
facts = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "available": torch.cuda.is_available()}
if facts["available"]:
    device = torch.cuda.get_device_properties(0)
    facts |= {"device": device.name, "capability": f"{device.major}.{device.minor}"}
    facts |= {"memory_gib": round(device.total_memory / 2**30, 1), "multiprocessors": device.multi_processor_count}
try:
    from pyar import build_info
    facts["pyar"] = build_info()
except Exception as error:
    facts["pyar"] = {"import_error": f"{type(error).__name__}: {error}"}
print(json.dumps(facts))
"""


@dataclass
class Part:
    """One part of the check: a command, and what its output says."""

    name: str
    command: list[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    # (folder of reports, exit status) → (whether all is well, what to say, more for the JSON); else the status says.
    judge: Callable[[Path, int], tuple[bool, str, Any]] | None = None
    needs: str | None = None  # a program without which the part is left out


@dataclass
class Finding:
    """What became of a part. status: passed, failed, timed out, left out."""

    name: str
    status: str
    summary: str
    seconds: float = 0.0
    command: str = ""
    details: Any = None


def run_command(command: list[str], limit: float, log: Path, environment: dict[str, str]) -> int | None:
    """The exit status, or None where the time was up; then every process that it started is ended."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def last_lines(log: Path, count: int = 5) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-count:])


def run_part(part: Part, out: Path, seconds_left: float) -> Finding:
    """Runs one part. Whatever happens in it, it comes back with a finding."""
    command = " ".join(part.command)
    if part.needs is not None and shutil.which(part.needs) is None:
        return Finding(part.name, "left out", f"{part.needs} is not installed", command=command)
    limit = min(part.limit, seconds_left)
    if limit <= 0:
        return Finding(part.name, "left out", "the parts before it took all the time", command=command)
    log = out / f"{part.name.replace(' ', '-')}.log"
    start = time.monotonic()
    details = None
    try:
        status = run_command(part.command, limit, log, part.environment)
        well, summary = status == 0, ""
        if part.judge is not None:
            judged, summary, details = part.judge(out, 1 if status is None else status)
            well = well and judged
        if status not in (0, None) and not summary:
            summary = f"exit status {status}: {last_lines(log)}"
        if status is None:
            summary = f"not done after {limit:.0f} s. {summary or last_lines(log)}"
        outcome = "timed out" if status is None else "passed" if well else "failed"
    except Exception as error:  # the next part runs all the same
        outcome, summary = "failed", f"{type(error).__name__}: {error}"
    return Finding(part.name, outcome, summary, round(time.monotonic() - start, 1), command, details)


def judge_tests(name: str) -> Callable[[Path, int], tuple[bool, str, Any]]:
    """Reads pytest's report: well only if the tests ran on the GPU: skipped ones show nothing."""

    def judge(out: Path, status: int) -> tuple[bool, str, Any]:
        path = out / f"{name}.xml"
        if not path.exists():
            return False, "", None
        cases = list(ElementTree.parse(path).iter("testcase"))
        failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
        skipped = [case for case in cases if case.find("skipped") is not None]
        passed = len(cases) - len(failed) - len(skipped)
        details = {
            "passed": passed,
            "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
            "skipped": sorted({reason(case) for case in skipped}),
        }
        unseen = [text for text in details["skipped"] if "CUDA" in text]  # there, but not on this GPU
        summary = f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped"
        if failed:
            summary += ": " + "; ".join(details["failed"][:10]) + (" …" if len(failed) > 10 else "")
        elif unseen or passed == 0:
            summary += f": the GPU was not tested: {'; '.join(details['skipped']) or 'no test was found'}"
        return passed > 0 and not failed and not unseen, summary, details

    return judge


def reason(case: ElementTree.Element) -> str:
    return (case.find("skipped").get("message") or "").strip()


def judge_benchmark(job: str) -> Callable[[Path, int], tuple[bool, str, Any]]:
    """Reads a benchmark's results: well if every one of pyar's own was right; says where it is slower than a peer."""

    def judge(out: Path, status: int) -> tuple[bool, str, Any]:
        path = out / f"{job}.json"
        if not path.exists():
            return False, "", None
        document = json.loads(path.read_text())
        lines, well = [], bool(document["records"])
        for record in document["records"]:
            ours, *peers = sorted(record["outcomes"], key=lambda outcome: outcome["contender"] != "pyar")
            case = f"{record['model']} {record['task']}, B={record['B']}, K={record['K']}, H={record['H']}"
            if ours["status"] != "ok":
                well = False
                lines.append(f"{case}: pyar's result is {ours['status']} {ours.get('reason', '')}".rstrip())
                continue
            line = f"{case}: {ours['median_ms']:.4g} ms"
            timed = [peer for peer in peers if "median_ms" in peer]
            if timed:
                best = min(timed, key=lambda peer: peer["median_ms"])
                ratio = best["median_ms"] / ours["median_ms"]
                line += (
                    f", {best['contender']} {best['median_ms']:.4g} ms ({ratio:.2f}×{' SLOWER' if ratio < 1 else ''})"
                )
            failed = [
                f"{peer['contender']} {peer['status']}" for peer in peers if peer["status"] in ("wrong", "failed")
            ]
            lines.append(line + "".join(f"; {text}" for text in failed))
        return well, "\n".join(lines), document

    return judge


def parts(out: Path, facts: dict[str, Any]) -> list[Part]:
    """What is run on a machine of which these facts are known."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    made: list[Part] = []
    capability = facts.get("capability")
    if capability is not None and capability not in facts["pyar"].get("cuda_archs", []):
        pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-e", "."]
        made.append(Part("build", pip, 300, {"PYAR_CUDA": "1", "PYAR_CUDA_ARCH_LIST": capability}))

    def tests(name: str, which: str, limit: float, *files: str) -> Part:
        command = [*pytest, *files, "-k", which, f"--junitxml={out / name}.xml"]
        return Part(name, command, limit, judge=judge_tests(name))

    made.append(tests("graphs", "graphs", 60, "tests/test_cuda.py"))
    everywhere = ("tests", "--ignore=tests/test_cuda_emulated.py")
    made.append(tests("tests", "cuda and not sanitizer and not graphs", 240, *everywhere))
    small_cases = [python, "tests/small_cases.py", "cuda"]
    for tool in ("memcheck", "racecheck", "initcheck"):
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99"]
        path = {"PYTHONPATH": str(ROOT)}
        made.append(Part(tool, [*sanitizer, *small_cases], 80, path, needs="compute-sanitizer"))
    for job in ("nade", "lstm"):
        command = [python, "-m", "benchmarks", job, "--device", "cuda", "--peers", ",".join(PEERS)]
        command += ["--budget", "0.5", "--out", str(out)]
        made.append(Part(job, command, 210, judge=judge_benchmark(job)))
    return made


def describe_machine(out: Path) -> tuple[Finding, dict[str, Any]]:
    """What this machine is: the device, the driver, versions, the commit."""
    facts: dict[str, Any] = {}

    def judge(out: Path, status: int) -> tuple[bool, str, Any]:
        lines = (out / "device.log").read_text().splitlines()
        facts.update(json.loads(lines[-1]))
        facts["python"] = sys.version.split()[0]
        queries = {
            "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            "nvcc": ["nvcc", "--version"],
            "commit": ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        }
        for name, command in queries.items():
            facts[name] = None
            if shutil.which(command[0]) is not None:
                told = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
                facts[name] = told.splitlines()[-1] if told else None
        if not facts["available"]:
            return False, f"torch {facts['torch']} (CUDA {facts['torch_cuda'] or 'none'}) sees no CUDA device", facts
        return True, f"{facts['device']}, driver {facts['driver']}, torch {facts['torch']}", facts

    return run_part(Part("device", [sys.executable, "-c", FACTS], 60, judge=judge), out, 60), facts


def report(findings: list[Finding], facts: dict[str, Any]) -> str:
    """The findings in words."""
    marks = {"passed": "ok", "failed": "FAILED", "timed out": "TIME UP", "left out": "left out"}
    lines = []
    for finding in findings:
        first, *others = finding.summary.splitlines() or [""]
        lines.append(f"{finding.name:<10}{marks[finding.status]:<9}{finding.seconds:6.0f} s  {first}".rstrip())
        lines += [f"{'':<29}{line}" for line in others]
    wrong = [finding.name for finding in findings if finding.status in ("failed", "timed out")]
    left_out = [finding.name for finding in findings if finding.status == "left out"]
    lines += ["", f"Not all is well: {', '.join(wrong)}." if wrong else f"All is well on {facts.get('device')}."]
    if left_out:
        lines.append(f"Left out: {', '.join(left_out)}.")
    return "\n".join(lines)


def check(findings: list[Finding], todo: list[Part], out: Path, seconds: float) -> None:
    """Runs the parts one after the other, until the time is up, and prints what became of each."""
    start = time.monotonic()
    for part in todo:
        print(f"{part.name} …", end=" ", flush=True)
        findings.append(run_part(part, out, seconds - (time.monotonic() - start)))
        print(findings[-1].status, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), metavar="DIR", help="default: gpu-report")
    out = parser.parse_args(arguments).out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    finding, facts = describe_machine(out)
    findings = [finding]
    todo = parts(out, facts)
    try:
        check(findings, todo, out, TOTAL_SECONDS - finding.seconds)
    except KeyboardInterrupt:
        findings.append(Finding("the rest", "left out", "interrupted"))
    text = report(findings, facts)
    document = {"started": started, "machine": facts, "parts": [asdict(finding) for finding in findings]}
    (out / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "report.txt").write_text(text + "\n")
    print(f"\n{text}\n\nWritten to {out}: report.txt, report.json, and what each part printed.")
    return 1 if any(finding.status in ("failed", "timed out") for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
