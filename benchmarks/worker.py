"""The process of one contender: prepares its work, does it, times it, on the cores it was given."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import importlib
import os
import tempfile
import time
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.cases import Case, Inputs
from benchmarks.limits import set_variables
from benchmarks.peers import NotApplicable


def serve(connection: Connection, module_name: str, cores: Iterable[int]) -> None:
    """Answers (command, …) with (status, …) until the command is stop."""
    cores = list(cores)
    os.sched_setaffinity(0, cores)
    set_variables(len(cores))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        connection.send(("missing", str(error)))
        return
    connection.send(("ready",))
    work = None
    while True:
        command, *arguments = connection.recv()
        if command == "stop":
            return
        try:
            if command == "prepare":
                work = None  # frees the last case's arrays first
                case, folder, seed = arguments
                start = time.perf_counter()
                work = module.prepare(case, load_inputs(Path(folder), seed), len(cores))
                prepared = time.perf_counter()
                raw = work.call()
                finished = time.perf_counter()
                facts = {"prepare_seconds": prepared - start, "first_call_seconds": finished - prepared}
                connection.send(("result", work.to_numpy(raw), facts, work.note))
                raw = None
            elif command == "time":
                (calls,) = arguments
                # What came before has taken the caches and let the clock fall; short work is to be timed warm.
                for _ in range(calls // 2):
                    work.call()
                start = time.perf_counter()
                for _ in range(calls):
                    work.call()
                connection.send(("seconds", (time.perf_counter() - start) / calls))
            elif command == "memory":
                case, folder, small_folder, seed = arguments
                connection.send(("bytes", extra_memory(module, case, folder, small_folder, seed, len(cores))))
        except NotApplicable as reason:
            connection.send(("not applicable", str(reason)))
        except Exception as error:
            # Reported in the table under the contender's name; the trace tells the developer where.
            traceback.print_exc()
            connection.send(("failed", f"{type(error).__name__}: {error}"))


def extra_memory(module, case: Case, folder: str, small_folder: str, seed: int, threads: int) -> int:
    """Bytes by which one call raises this process's peak over what it holds with everything loaded and prepared."""
    small = dataclasses.replace(case, B=1)
    module.prepare(small, load_inputs(Path(small_folder), seed), threads).call()
    work = module.prepare(case, load_inputs(Path(folder), seed), threads)
    # A peer that tries its forms while it prepares has freed what they used, but the C library may still hold it.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc_pid_clear_refs(5)
    before = memory_status("VmRSS")
    work.call()
    return memory_status("VmHWM") - before


def memory_status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def save_inputs(inputs: Inputs) -> tempfile.TemporaryDirectory:
    """The arrays as files, which every process reads for itself."""
    folder = tempfile.TemporaryDirectory(prefix="pyar-benchmarks-")
    for name, value in {"x": inputs.x, "uniforms": inputs.uniforms, **inputs.parameters}.items():
        np.save(Path(folder.name, f"{name}.npy"), value)
    Path(folder.name, "order.txt").write_text("\n".join(inputs.parameters))
    return folder


def load_inputs(folder: Path, seed: int) -> Inputs:
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    names = (folder / "order.txt").read_text().split("\n")
    return Inputs(arrays["x"], arrays["uniforms"], seed, {name: arrays[name] for name in names})
