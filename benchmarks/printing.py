"""A case's record as lines for a person, while the cases are measured."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import Case
from benchmarks.runner import TIMED


def print_record(case: Case, record: dict[str, Any]) -> None:
    floor = f"floor {record['floor_ms']:.3g} ms"
    print(f"\n{case.describe()} ({100 * record['share_of_zeros']:.0f} % zeros), {floor}", flush=True)
    ours = next((o.get("median_ms") for o in record["outcomes"] if o["contender"] == "pyar"), None)
    for outcome in record["outcomes"]:
        print("  " + describe_outcome(outcome, ours), flush=True)


def describe_outcome(outcome: dict[str, Any], ours: float | None) -> str:
    name = f"{outcome['contender']:<24}"
    if outcome["status"] == "wrong":
        return f"{name}WRONG: {outcome['error_over_tolerance']:.2g} times the tolerance off the float64 reference"
    if outcome["status"] not in TIMED:
        return f"{name}{outcome['status']}: {outcome['reason']}"
    spread = f"{outcome['p20_ms']:.3g}–{outcome['p80_ms']:.3g}"
    line = f"{name}{outcome['median_ms']:>9.4g} ms  ({spread}, {outcome['repetitions']}×)"
    line = f"{line:<62}{100 * outcome['fraction_of_floor']:5.1f} % of floor"
    if ours is not None and outcome["contender"] != "pyar":
        line += f"  {outcome['median_ms'] / ours:6.2f}× pyar's time"
    verdict = "checked" if outcome["status"] == "ok" else "IMPRECISE"
    line += f"  {verdict} ({outcome['error_over_tolerance']:.2g} of tolerance)"
    if not outcome.get("settled", True):
        line += "  UNSETTLED"
    return line + (f"  {outcome['note']}" if outcome.get("note") else "")
