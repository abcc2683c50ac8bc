"""The benchmarks tell the truth: every contender is right on small cases, a wrong one is called wrong and has no time,
and the tables of README and site are those of the stored results."""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import check, guard, images, peers, plots, printing, report, rnade, series, summary, sweep, tables
from benchmarks.__main__ import COMMITTED, parse_arguments
from benchmarks.cases import Case, build_inputs, mnist_like
from benchmarks.check import Checker
from benchmarks.machine import Machine
from benchmarks.peers.torch_made import Made
from benchmarks.runner import Outcome, Runner
from pyar import native

pytestmark = pytest.mark.skipif(native._C is None, reason="the extension is not built")

NADE = {"D": 12, "H": 16, "data": "dense"}
LSTM = {"D": 10, "H": 8}
CASES = [
    *(Case("nade", task, K, 7, **NADE) for task in ("log_prob", "gradient", "sample") for K in (2, 5)),
    *(Case("lstm", task, 5, 6, num_layers=2, **LSTM) for task in ("log_prob", "gradient", "sample")),
    Case("lstm", "sample", 2, 6, **LSTM),
    *(Case("made", task, 2, 7, num_layers=2, **NADE) for task in ("log_prob", "gradient", "sample")),
    *(Case("deep-nade", task, 2, 60, num_layers=2, **NADE) for task in ("log_prob", "sample")),
]
APPLICABLE = {
    ("nade", "log_prob"): {"ours", "jax_scan", "numba_loop", "torch_eager", "torch_vectorised", "torch_compiled"},
    ("nade", "gradient"): {"ours", "jax_scan", "torch_eager", "torch_vectorised", "torch_compiled"},
    ("nade", "sample"): {"ours", "jax_scan", "numba_loop", "torch_eager", "torch_compiled"},
    ("lstm", "log_prob"): {"ours", "jax_scan", "nn_lstm"},
    ("lstm", "gradient"): {"ours", "jax_scan", "nn_lstm"},
    ("lstm", "sample"): {"ours", "jax_scan", "addmm_lstm", "torch_eager", "torch_compiled"},
    ("made", "log_prob"): {"ours", "torch_dense"},
    ("made", "gradient"): {"ours", "torch_dense"},
    ("made", "sample"): {"ours", "torch_cached", "torch_passes"},
    ("deep-nade", "log_prob"): {"ours", "torch_cached", "torch_passes", "torch_stacked"},
    ("deep-nade", "sample"): {"ours", "torch_cached", "torch_passes"},
}
PICTURES = re.compile(r'<img src="([^"]+)"')
MACHINE = Machine(threads=1, peak=1e11, bandwidth={1: 1e11, 64: 1e10})


@functools.cache
def checker(case: Case) -> Checker:
    return Checker(case, build_inputs(case))


def prepare(module: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> peers.Work:
    if module.endswith("jax_scan"):
        pytest.importorskip("jax")
        monkeypatch.setattr("benchmarks.peers.jax_scan.UNROLLS", (4,))
    elif module.endswith("numba_loop"):
        pytest.importorskip("numba")
    elif module.endswith("torch_compiled"):  # traced, but not through the C++ compiler
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    threads = torch.get_num_threads()
    try:
        return importlib.import_module(module).prepare(case, checker(case).inputs, threads)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("module", list(peers.CONTENDERS), ids=lambda module: module.split(".")[-1])
@pytest.mark.parametrize("case", CASES, ids=Case.describe)
def test_contender_is_right_or_says_that_it_has_no_such_job(case, module, monkeypatch):
    name = module.split(".")[-1]
    applicable = name in APPLICABLE[case.model, case.task]
    applicable |= name == "numba_loop" and case.model == "lstm" and case.task == "sample" and case.num_layers == 1
    if not applicable:
        with pytest.raises(peers.NotApplicable, match=r"\w"):
            prepare(module, case, monkeypatch)
        return
    work = prepare(module, case, monkeypatch)
    assert checker(case).error(work.to_numpy(work.call())) <= 1
    assert checker(case).error(work.to_numpy(work.call())) <= 1, "right once, wrong when called again"


@pytest.mark.parametrize("case", CASES, ids=Case.describe)
def test_check_refuses_wrong_results(case, monkeypatch):
    work = prepare("benchmarks.ours", case, monkeypatch)
    right = work.to_numpy(work.call())
    for name, value in right.items():
        wrong = {**right, name: value.copy()}
        if value.dtype == np.uint8:
            wrong[name][-1, -1] = (value[-1, -1] + 1) % case.K
        else:
            wrong[name] = value + 1e-3 * np.abs(value).max()
        assert checker(case).error(wrong) > 1, name
        if value.dtype != np.uint8:
            not_a_number = value.copy()
            not_a_number.flat[-1] = np.nan
            assert not checker(case).error({**right, name: not_a_number}) <= 1, name
        if value.ndim:
            assert checker(case).error({**right, name: value[:-1]}) > 1, name
    if case.task != "sample":
        assert checker(case).error({}) > 1


def test_inputs_are_the_same_every_time_and_have_the_share_of_zeros_they_claim():
    for K, zeros in ((2, 0.868), (10, 0.826), (256, 0.809)):
        assert (mnist_like(1797, 784, K, None) == 0).mean() == pytest.approx(zeros, abs=0.02)
        assert mnist_like(50, 100, K, None).max() < K
    first, second = build_inputs(CASES[0]), build_inputs(CASES[0])
    assert np.array_equal(first.x, second.x)
    assert all(np.array_equal(value, second.parameters[name]) for name, value in first.parameters.items())


def test_case_refuses_unknown_words():
    with pytest.raises(ValueError, match=r"task must be one of .*got 'train'"):
        Case("nade", "train", 2, 1)


def test_floor_is_linear_in_the_work_and_bounded_by_reading_the_parameters():
    def floor(**changes):
        return MACHINE.floor_seconds(
            Case(**{"model": "lstm", "task": "sample", "K": 10, "B": 1000, "H": 256} | changes), 0.5
        )

    # The figure that two cores of 200 GFLOP/s are known for, 2.05 s, is without the output layer's 1 %.
    assert floor() == pytest.approx(784 * 1000 * (4 * 256**2 + 10 * 256) * 2 / 1e11)
    assert floor(task="gradient") == pytest.approx(3 * floor())
    assert floor(D=1568) == pytest.approx(2 * floor())
    assert floor(B=1) == pytest.approx(784 * 4 * (4 * 256**2 + 10 * 256) / 1e11)


def test_floor_takes_the_least_time_that_reading_can_take():
    megabyte = 1 << 20
    machine = Machine(threads=1, peak=1e15, bandwidth={1: 8e9, 2: 4e9, 4: 1e9, 8: 2e9})

    def milliseconds(megabytes):
        return 1e3 * machine.stream_seconds(megabytes * megabyte) / megabyte

    assert milliseconds(0.5) == pytest.approx(0.5 / 8e6), "smaller than any that was measured"
    assert milliseconds(1.01) == pytest.approx(1.01 / 8e6), "no slower than a smaller stream that was measured"
    assert milliseconds(3) == pytest.approx(1 / 8e6 + 2 / 4e6), "one megabyte stays in the nearest cache"
    # Two megabytes stay in nearer caches; and as eight were read faster than four, that reading counts for the rest.
    assert milliseconds(4) == pytest.approx(2 / 4e6 + 2 / 2e6)


def test_level_keeps_everybody_to_it():
    code = (
        "from benchmarks.limits import set_variables; set_variables(1, 'avx2'); import numpy, torch, pyar\n"
        "from torch._inductor.cpu_vec_isa import pick_vec_isa\n"
        "print(pyar.build_info()['cpu_level'], torch.backends.cpu.get_cpu_capability(), pick_vec_isa())\n"
        "import numba, benchmarks.peers.numba_loop as peer\n"
        "signature = (numba.float32[:], numba.float32[:, :], numba.float32[:], numba.float32[:])\n"
        "peer.conditional.compile(signature)\n"
        "print('zmm' in peer.conditional.inspect_asm(signature))\n"
        "import jax; f = jax.jit(lambda x: jax.numpy.tanh(x) * x)\n"
        "print(f(jax.numpy.ones(1000)).sum() > 0)\n"
    )
    pytest.importorskip("numba")
    pytest.importorskip("jax")
    if "avx2" not in native._C.build_facts()["cpu_levels_supported"]:
        pytest.skip("this processor does not have it")
    result = subprocess.run([sys.executable, "-c", code], cwd=COMMITTED.parent.parent, capture_output=True, text=True)
    assert result.stdout.split() == ["avx2", "AVX2", "avx2", "False", "True"], result.stderr


def test_machine_limits_are_measured():
    peak = native._C.multiply_add_peak(1, 0.01)
    assert 1e8 < peak < 1e13
    assert 1e8 < native._C.load_bandwidth(1, 0.01, 1 << 20) < 1e13
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        native._C.multiply_add_peak(0)
    with pytest.raises(ValueError, match="bytes must be at least 256 a thread, got 3"):
        native._C.load_bandwidth(1, 0.1, 3)


@pytest.mark.parametrize(("task", "terms"), [("log_prob", 784), ("gradient", 78_400), ("sample", 0)])
def test_only_what_float32_summation_explains_counts_as_imprecise(task, terms):
    """The line between imprecise and wrong is that of adding `terms` numbers one after the other in float32."""
    judge = checker(Case("lstm", task, 2, 100, H=8))
    tolerance = check.TOLERANCE[task]
    bound = terms * 2.0**-24 / tolerance
    assert judge.status(1.0) == "ok"
    assert judge.status(1.001) == ("imprecise" if terms else "wrong")
    assert judge.status(1.001 * max(bound, 1.0)) == "wrong"
    assert judge.status(float("inf")) == judge.status(float("nan")) == "wrong"


def test_imprecise_results_are_marked(capsys):
    marked = record(CASES[0], **{"pyar": 1.0, "nn.LSTM": 2.0})
    marked["outcomes"][1] |= {"status": "imprecise", "error_over_tolerance": 1.6}
    printing.print_record(CASES[0], marked)
    assert "IMPRECISE (1.6 of tolerance)" in capsys.readouterr().out
    text = report.render({"nade": {**full_documents()["nade"], "records": [marked]}})
    assert "| 2† (2.0×) |" in text
    assert "The largest error: nn.LSTM at " in text
    assert "†" not in report.render(full_documents())
    marked["outcomes"][0]["status"] = "imprecise"
    assert tables.count_failures({"records": [marked]}) == 1, "pyar itself may not be imprecise"


WRONG_PEER = """
from benchmarks import ours
from benchmarks.peers import Work

def prepare(case, inputs, threads):
    work = ours.prepare(case, inputs, threads)
    return Work(work.call, lambda raw: {"log_prob": work.to_numpy(raw)["log_prob"] * 1.001})
"""
FAILING_PEER = """
import os
from benchmarks.peers import Work

def prepare(case, inputs, threads):
    return Work(lambda: os._exit(3), lambda raw: {})
"""


def test_wrong_missing_and_failing_peers_are_named_and_have_no_time(tmp_path, monkeypatch, capsys):
    (tmp_path / "wrong_peer.py").write_text(WRONG_PEER)
    (tmp_path / "failing_peer.py").write_text(FAILING_PEER)
    (tmp_path / "missing_peer.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    case = CASES[0]
    modules = ["benchmarks.ours", "wrong_peer", "failing_peer", "missing_peer", "benchmarks.peers.nn_lstm"]
    with Runner(modules, MACHINE, budget=0.02) as runner:
        record = runner.run(case)
    outcomes = {outcome["contender"]: outcome for outcome in record["outcomes"]}
    statuses = {name: outcome["status"] for name, outcome in outcomes.items()}
    assert statuses == {
        "pyar": "ok",
        "wrong_peer": "wrong",
        "failing_peer": "failed",
        "missing_peer": "missing",
        "nn.LSTM": "not applicable",
    }
    assert outcomes["pyar"]["median_ms"] > 0
    assert outcomes["pyar"]["p20_ms"] <= outcomes["pyar"]["median_ms"] <= outcomes["pyar"]["p80_ms"]
    assert not any("median_ms" in outcome for name, outcome in outcomes.items() if name != "pyar")
    assert "exit code 3" in outcomes["failing_peer"]["reason"]

    printing.print_record(case, record)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert "WRONG" in lines["wrong_peer"]
    assert " ms" not in lines["wrong_peer"]
    assert "missing: No module named 'a_package_that_nobody_has'" in lines["missing_peer"]


def record(case: Case, **milliseconds: float) -> dict:
    outcomes = [
        {"contender": name, "status": "ok", "median_ms": value, "p20_ms": 0.98 * value, "p80_ms": 1.02 * value}
        | {"repetitions": 9, "fraction_of_floor": 1 / value, "error_over_tolerance": 0.1}
        for name, value in milliseconds.items()
    ]
    return {**case.to_json(), "share_of_zeros": 0.87, "floor_ms": 1.0, "outcomes": outcomes}


def document(*records: dict) -> dict:
    environment = {"commit": "0123456789ab", "date": "2026-01-01 00:00 UTC", "processor": "P", "level": "avx2"}
    return {"job": "nade", "environment": environment, "machine": {"threads": 2}, "records": list(records)}


def test_comparison_marks_what_became_slower(tmp_path, capsys):
    case = CASES[0]
    (tmp_path / "nade.json").write_text(json.dumps(document(record(case, pyar=2.0, numba=9.0))))
    now = document(record(case, pyar=3.0, numba=9.1), record(CASES[1], pyar=1.0))
    now["machine"]["threads"] = 1
    now["environment"]["level_limit"] = "avx2"
    tables.print_comparison(now, tables.read_earlier(tmp_path, "nade"))
    printed = capsys.readouterr().out
    assert "another number of threads: 2 then, 1 now" in printed
    assert "another level: avx2 then, avx2, to which everybody was limited now" in printed
    assert "2 → 3 ms (1.50×) slower" in printed
    assert "9 → 9.1 ms (1.01×) \n" in printed
    assert CASES[1].describe() not in printed
    with pytest.raises(SystemExit, match=r"lstm\.json"):
        tables.read_earlier(tmp_path, "lstm")


def test_command_line(capsys):
    options = parse_arguments(["nade", "lstm", "--threads", "1", "--peers", "numba_loop"])
    assert isinstance(options, argparse.Namespace)
    assert options.jobs == ["nade", "lstm"]
    for wrong in (["flops"], ["nade", "--threads", "0"], ["nade", "--device", "tpu"]):
        with pytest.raises(SystemExit):
            parse_arguments(wrong)
    assert "--threads must be 1 to" in capsys.readouterr().err


def full_documents() -> dict[str, dict]:
    """Documents of all three jobs with something of everything."""
    machine = {"threads": 2, "multiply_add_peak_gflops": 200.0, "load_bandwidth_gbytes": {"1": 50.0}}
    nade = Case("nade", "sample", 2, 100)
    lost = Case("nade", "sample", 10, 1)
    lstm = Case("lstm", "sample", 10, 1, H=256, num_layers=2)
    documents = {
        "nade": document(record(nade, **{"pyar": 4.0, "JAX lax.scan": 37.04}), record(lost, pyar=2.0, numba=1.0)),
        "lstm": document(record(lstm, pyar=1234.0)),
        "sweep": document(
            *({"axis": "B", **record(Case("nade", "sample", 2, B), pyar=0.1 * B)} for B in (1, 10, 100)),
            {"axis": "B", **record(Case("nade", "sample", 2, 1000), pyar=100.0, numba=99.0)},
            *({"axis": "K", **record(Case("nade", "sample", K, 10), pyar=K**0.5)} for K in (2, 8)),
        ),
    }
    documents["nade"]["records"][1]["outcomes"] += [
        {"contender": "JAX lax.scan", "status": "missing", "reason": "No module named 'jax'"},
        {"contender": "torch.compile", "status": "wrong", "error_over_tolerance": 7.0},
    ]
    for name in documents:
        documents[name]["machine"] = machine
        documents[name]["environment"]["versions"] = {"torch": "2.13.0", "jax": None}
        documents[name]["data"] = {"mnist-like": "mnist-like: digits"}
    documents["sweep"]["threads"] = [{"threads": n, **record(nade, pyar=11.0 - 3.0 * n)} for n in (1, 2)]
    documents["sweep"]["memory"] = [
        {**nade.to_json(), "contender": "pyar", "status": "ok", "extra_megabytes": 12.3},
        {**nade.to_json(), "contender": "JAX lax.scan", "status": "missing", "reason": "No module named 'jax'"},
    ]
    documents["sweep"]["import"] = {"torch_seconds": 1.5, "pyar_seconds": 1.75}
    documents["sweep"]["build"] = {"status": "ok", "seconds": 61.0}
    return documents


def test_report_says_what_the_results_say(tmp_path):
    text = report.render(full_documents())
    rows = [line for line in text.splitlines() if line.startswith("| sample")]
    assert rows[0] == "| sample, K=2, B=100 | mnist-like, 87 % zeros | **4** (25 %) | 37 (9.3×) | – | – |"
    assert rows[1] == "| sample, K=10, B=1 | mnist-like, 87 % zeros | **2** (50 %) | missing | 1 (0.5×) | WRONG |"
    assert rows[2] == "| sample, K=10, B=1, H=256, 2 layers | mnist-like, 87 % zeros | **1234** (0 %) |"
    assert "pyar was the fastest in 1 of the 3 cases compared" in text
    assert (
        "In 1 it was not the fastest:\n\n* NADE sample, K=10, B=1, mnist-like data: numba takes 0.50 of pyar's time; "
        "pyar reaches 50 % of the floor, numba 100 %: what pyar loses here is not known."
    ) in text
    assert (
        "In 1 it was level with the fastest peer, within 3 %:\n\n* NADE sample, K=2, B=1000, mnist-like data: numba "
        "takes 0.99 of pyar's time;"
    ) in text
    assert "In 6 more pyar was measured alone" in text


def test_report_gives_the_reason_for_every_loss():
    def says(case, ours, zeros=0.87):
        lost = record(case, pyar=1.0, numba=0.9) | {"share_of_zeros": zeros}
        lost["outcomes"][0]["fraction_of_floor"] = ours
        return report.render({"nade": {**full_documents()["nade"], "records": [lost]}})

    assert "pyar reaches 80 % of the floor, numba 111 %: both do the same multiply-adds" in says(CASES[6], 0.8)
    assert "with so few zeros pyar has no runs" in says(CASES[0], 0.2, zeros=0.5)
    assert "is not known" in says(CASES[0], 0.2)


def test_report_has_a_table_for_everything_that_only_the_sweep_measures():
    text = report.render({"sweep": full_documents()["sweep"]})
    assert "| NADE sample | 1.00 (100 → 1,000) | – | – | 0.50 (2 → 8) |" in text
    assert "All other powers lie between 0.50 and 1.00." in text
    assert "| pyar's time in ms | 1 thread | 2 threads |" in text
    assert "| NADE sample, K=2, B=100 | 8 | 5 (1.60× as fast) |" in text
    assert "| peak extra memory of one call, MB | pyar | JAX lax.scan |" in text
    assert "| NADE sample, K=2, B=100 | 12 | missing |" in text
    assert "`import pyar` takes 1.8 s" in text
    assert "`pip install .` takes 61 s" in text


def test_report_names_the_plots_that_are_drawn(tmp_path):
    documents = full_documents()
    for chosen in ({}, {"nade", "lstm"}, {"sweep"}, {"nade", "lstm", "sweep"}):
        kept = {job: documents[job] for job in chosen}
        drawn = {path.name for path in plots.draw_plots(kept, tmp_path)}
        assert set(PICTURES.findall(report.render(kept))) == {f"{report.PLOTS}/{name}" for name in drawn}


def test_report_replaces_only_its_section(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "nade.json").write_text(json.dumps(full_documents()["nade"]))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_report(results, page, None)
    once = page.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "37 (9.3×)" in once
    assert "old" not in once
    report.write_report(results, page, None)
    assert page.read_text() == once
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="must have the line"):
        report.write_report(results, page, None)
    with pytest.raises(SystemExit, match="no results in"):
        report.write_report(tmp_path, None, None)


def test_plots_are_drawn(tmp_path):
    documents = full_documents()
    drawn = plots.draw_plots(documents, tmp_path)
    assert {path.name for path in drawn} == {"speed.png", "floor.png", "growth.png"}
    for path in drawn:
        with Image.open(path) as image:
            assert image.text["Results"] == series.digest(documents)


def test_speed_plot_does_not_join_times_of_different_machines():
    documents = full_documents()
    sampling = ("nade", "sample", 2, 500)
    panel = series.speed_panels(documents)[sampling]
    # The table's figure at B = 100, for it has more repetitions; the sweep's at others.
    assert series.times(panel, "B")["pyar"] == [(1, 0.1), (10, 1.0), (100, 4.0), (1000, 100.0)]
    assert series.times(panel, "B")["JAX lax.scan"] == [(100, 37.04)]
    documents["sweep"]["environment"]["processor"] = "another"
    panel = series.speed_panels(documents)[sampling]
    assert series.times(panel, "B")["pyar"] == [(1, 0.1), (10, 1.0), (100, 10.0), (1000, 100.0)]


def test_report_of_busy_neighbours():
    def beside(*milliseconds: float) -> dict:
        return {str(count): {"median_ms": value} for count, value in enumerate(milliseconds)}

    document = {
        "environment": full_documents()["nade"]["environment"],
        "threads": 2,
        "records": [
            {"contender": "pyar", "work": "NADE gradient", "beside": beside(4.0, 8.0, 10.0)},
            {"contender": "pyar, one thread", "work": "NADE gradient", "beside": beside(8.0, 8.0, 20.0)},
            {"contender": "torch", "work": "nn.Linear", "beside": beside(3.0, 9.0, 30.0)},
        ],
    }
    text = report.render({"neighbours": document})
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| NADE gradient | 4 | 8 (2.0×) | 10 (2.5×) | 0.50 / 1.00 / 0.50 |",
        "| torch: nn.Linear | 3 | 9 (3.0×) | 30 (10.0×) | – |",
    ]


def test_report_of_image_models():
    def outcome(contender: str, milliseconds: float, share: float, spread: float = 1.01) -> dict:
        low_high = {"p20_ms": milliseconds, "p80_ms": spread * milliseconds}
        return {"contender": contender, "median_ms": milliseconds, "share_of_peak": share, **low_high}

    document = {
        "environment": full_documents()["nade"]["environment"],
        "threads": 2,
        "records": [
            {
                "job": "Diagonal BiLSTM: sample, B=1",
                "peak_gflops": 200.0,
                "outcomes": [
                    outcome("pyar", 4.0, 0.5),
                    outcome("JAX", 10.0, 0.2),
                    outcome("loop over pixels", 900, 0.1),
                ],
            },
            {
                "job": "Diagonal BiLSTM: loss",
                "peak_gflops": 210.0,
                "outcomes": [outcome("pyar", 150.0, 0.46), outcome("plain PyTorch", 1500.0, 0.05, 2.0)],
            },
        ],
    }
    text = report.render({"images": document})
    assert "multiply-add peak 210 GFLOP/s" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "| job | pyar | JAX | loop over pixels | plain PyTorch |",
        "| Diagonal BiLSTM: sample, B=1 | **4** (50 %) | 10 (2.5×) | 900 (225.0×) | – |",
        "| Diagonal BiLSTM: loss | **150** (46 %) | – | – | 1500‡ (10.0×) |",
    ]


REPORT = "python -m benchmarks report --write docs/benchmarks.md --summary README.md --plots docs/benchmarks"


@pytest.mark.parametrize("task", rnade.TASKS)
@pytest.mark.parametrize("name", list(rnade.CONTENDERS))
def test_contenders_of_rnade_are_right(name: str, task: str) -> None:
    prepare, package = rnade.CONTENDERS[name]
    if package is not None:
        pytest.importorskip(package)
    inputs = rnade.Inputs(5, 12, 9)
    call, expected = prepare(inputs, task, 1), inputs.expected(task)
    if call is None:
        assert (name, task) in {("PyTorch vectorised", "sample"), ("numba", "gradient")}
        return
    for _ in range(2):
        result = rnade.arrays_of(call())
        assert rnade.is_right(task, result, expected)
    for i, value in enumerate(result):
        for wrong in (value + 0.01 * np.abs(value).max(), np.full_like(value, np.nan), value[:-1]):
            assert not rnade.is_right(task, [*result[:i], wrong, *result[i + 1 :]], expected)


def test_report_of_rnade() -> None:
    case = {"task": "sample", "D": 11, "H": 50, "B": 100}
    records = [
        {**case, "contender": "pyar", "median_ms": 2.0, "fraction_of_floor": 0.5},
        {**case, "contender": "numba", "median_ms": 9.0, "fraction_of_floor": 0.11},
    ]
    machine = {"threads": 2, "multiply_add_peak_gflops": 200.0}
    environment = {"processor": "a processor", "versions": {}, "level": "avx2", "commit": "abc", "date": "today"}
    document = {"machine": machine, "environment": environment, "components": 10, "records": records}
    text = "\n".join(report.render_rnade(document))
    assert "| sample, B=100, D=11, H=50 | **2** (50 %) | 9 (4.5×) |" in text


def test_pages_have_the_tables_and_plots_of_the_stored_results():
    root = COMMITTED.parent.parent
    documents = report.read_results(COMMITTED)
    full, short = root / "docs" / "benchmarks.md", root / "README.md"
    assert f"\n{REPORT}\n" in full.read_text()
    assert report.insert(full.read_text(), report.render(documents)) == full.read_text(), f"other results: {REPORT}"
    assert summary.write_summary(COMMITTED, short, None) == short.read_text(), f"README.md has other results: {REPORT}"
    pictures = [full.parent / name for name in PICTURES.findall(full.read_text())]
    pictures += [root / name for name in PICTURES.findall(short.read_text()) if "benchmarks" in name]
    assert len(pictures) > 1
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.text["Results"] == series.digest(documents), f"{picture} shows other results: {REPORT}"


def test_summary_ranks_the_peers():
    documents = full_documents()
    record = next(r for r in series.table_records(documents) if r["task"] == "sample" and r["B"] == 100)
    for outcome in record["outcomes"]:
        outcome["median_ms"] = {"pyar": 2.0, "JAX lax.scan": 7.0}.get(outcome["contender"], 9.0)
    ours, peers = summary.ranking(record)
    assert ours == 2.0
    assert peers[0] == ("JAX lax.scan", 7.0)
    assert [time for _, time in peers] == sorted(time for _, time in peers)


def test_guard_fails_on_more_instructions_only(capsys):
    stored = {"a": 1000, "b": 1000, "gone": 5}
    assert guard.compare(stored, {"a": 1010, "b": 700, "new": 3}) == 0
    printed = capsys.readouterr().out
    assert "no stored count" in printed
    assert "no longer measured" in printed
    assert "fewer" in printed
    assert guard.compare(stored, {"a": 1000, "b": 1100}) == 1
    assert "+10.0 %  MORE" in capsys.readouterr().out


def test_guard_measures_the_cases_it_has_stored():
    assert set(json.loads(guard.STORED.read_text())) == {case.describe() for case in guard.cases()}


class ScriptedRunner(Runner):
    """A runner whose contenders' readings are given, one list an attempt."""

    def __init__(self, attempts: list[dict[str, list[float]]]) -> None:
        self.attempts = iter(attempts)
        self.taken = 0

    def time(self, running, outcomes):
        self.taken += 1
        for name, seconds in next(self.attempts).items():
            outcomes[name].seconds = seconds


def test_readings_that_spread_are_taken_again_until_they_settle() -> None:
    steady, disturbed = [1.0, 1.01, 1.02, 1.03, 1.04], [1.0, 1.1, 2.0, 7.0, 9.0]
    contenders = [argparse.Namespace(name=name) for name in ("a", "b")]
    for attempts, settled, taken in [
        ([{"a": steady, "b": steady}], True, 1),
        ([{"a": disturbed, "b": steady}, {"a": steady, "b": disturbed}], True, 2),
        ([{"a": disturbed, "b": steady}] * 3, False, 3),
    ]:
        runner = ScriptedRunner(attempts)
        outcomes = {contender.name: Outcome(contender.name, "ok") for contender in contenders}
        runner.time_until_settled(contenders, outcomes)
        assert runner.taken == taken
        assert outcomes["b"].settled
        assert outcomes["b"].seconds == steady
        assert outcomes["a"].settled == settled
        assert outcomes["a"].to_json().get("settled", True) == settled


def test_points_that_break_a_trend_are_measured_again(capsys) -> None:
    """A point twelve times slower than its neighbours is replaced by a new one, and marked where that never settles."""
    batches = (1, 10, 100, 1000)
    cases = [Case("nade", "log_prob", 2, B, D=12, H=16) for B in batches]

    def points(odd: float) -> list[dict]:
        return [{**record(case, pyar=odd if case.B == 100 else 1.0), "axis": "B"} for case in cases]

    assert sweep.outliers(points(1.1)) == {}
    assert sweep.outliers(points(12.0)) == {2: {"pyar"}}
    chosen = [("B", case, []) for case in cases]
    for readings, expected, settled in [((1.0,), 1.0, True), ((12.5,), 12.5, True), ((20.0, 5.0, 20.0), 20.0, False)]:
        records, later = points(12.0), iter(readings)
        runner = argparse.Namespace(
            run=lambda case, modules, axis, later=later: {**record(case, pyar=next(later)), "axis": axis}
        )
        sweep.measure_outliers_again(runner, chosen, records)
        outcome = records[2]["outcomes"][0]
        assert outcome["median_ms"] == expected
        assert outcome.get("settled", True) == settled
        printing.print_record(cases[2], records[2])
        assert ("UNSETTLED" in capsys.readouterr().out) != settled
        assert bool(report.unsettled(records)) != settled


def test_made_is_a_distribution_and_its_sampler_draws_from_it() -> None:
    made = Made(D=6, H=17)
    x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)))
    log_prob = made.log_prob(x)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)
    drawn = made.sample(torch.rand(6, 20_000, generator=torch.Generator().manual_seed(0)))
    index = (drawn @ 2 ** torch.arange(5, -1, -1.0)).long()
    frequency = torch.bincount(index, minlength=64) / len(drawn)
    torch.testing.assert_close(frequency, log_prob.exp().detach(), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "case",
    [
        images.ImageCase("pixel-cnn", "sample", 5, 30, layers=3),
        images.ImageCase("row-lstm", "sample", 3, 30, layers=2),
        images.ImageCase("diagonal-bilstm", "sample", 3, 30, layers=2),
        images.ImageCase("row-lstm", "gradient", 3, 4, layers=2),
        images.ImageCase("diagonal-bilstm", "gradient", 3, 4, layers=2),
    ],
    ids=lambda case: f"{case.model}-{case.task}",
)
def test_image_models_and_their_peers_agree(case: images.ImageCase, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    monkeypatch.setattr(images, "SHAPE", (6, 5))
    if case.task == "sample":
        functions, _ = images.samplers(case)
        images.check_samples(functions, case.B)
        wrong = functions | {"wrong": lambda: 1 - functions["pyar"]()}
        with pytest.raises(SystemExit, match="wrong draws 30 of 30 images otherwise"):
            images.check_samples(wrong, case.B)
    else:
        functions = images.gradients(case)
        images.check_gradients(functions)
        loss, found = functions["pyar"]()
        wrong = functions | {"wrong": lambda: (loss, found | {"above.bias": 1.01 * found["above.bias"]})}
        with pytest.raises(SystemExit, match=r"the gradient of above\.bias is off by 0\.01 "):
            images.check_gradients(wrong)
