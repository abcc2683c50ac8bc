"""The command line on machines that are not ours: streams, homes, clusters' variables, disks, names; a line each."""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import pyar
from pyar.checkpoint import save_model
from pyar.cli import main
from pyar.cli.parser import make_parser
from pyar.data import DataError, download, load_dataset
from pyar.training.log import RunLog
from pyar.training.parallel import LaunchError, environment_rank

TRAIN = ["train", "nade", "--epochs", "1", "--hidden-size", "4", "--no-progress", "--samples", "4"]
ROOT = str(Path(pyar.__file__).parents[1])


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, restore_threads):
    for name in ("PYAR_DATA", "PYAR_DEBUG", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def model(tmp_path) -> Path:
    """A file with an untrained model of six binary dimensions."""
    torch.manual_seed(0)
    save_model(pyar.NADE(6, hidden_size=3), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(capsys, *arguments: str | os.PathLike[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command in this process."""
    capsys.readouterr()
    code = main([*map(os.fspath, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def call(*arguments: str | os.PathLike[str], env: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """`python -m pyar …` in a process of its own, with its output as bytes."""
    environment = {**os.environ, "PYTHONPATH": ROOT, **(env or {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-m", "pyar", *arguments], env=environment, **options)


def is_one_line(err: str | bytes) -> bool:
    text = err.decode(errors="replace") if isinstance(err, bytes) else err
    return text.startswith("pyar: ") and text.count("\n") == 1


# --- Streams ---


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in ("train", "evaluate", "sample", "complete", "info"))]
)
def test_help_on_an_ascii_stream(arguments):
    process = call(*arguments, env={"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.isascii()
    assert b"\\" not in out  # signs stand for signs, not their numbers
    if arguments == ["train", "--help"]:
        assert b"integers 0 ... K-1" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252:strict"])
def test_results_on_a_stream_that_lacks_their_signs(tmp_path, encoding):
    process = call(*TRAIN, "--out", tmp_path / "run", env={"PYTHONIOENCODING": encoding})
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert b"digits test: NLL" in out
    assert b" nats = " in out
    assert (b" +/- " in out) == (encoding == "ascii")
    assert b"8x8" in err if encoding == "ascii" else b"8\xd78" in err


def test_the_streams_are_given_back(capsys):
    before = sys.stdout.errors, sys.stderr.errors
    main(["info"])
    assert (sys.stdout.errors, sys.stderr.errors) == before


def test_output_to_a_full_disk_is_told(tmp_path):
    with open("/dev/full", "w") as full:
        for arguments in (["info"], ["info", "--json"], ["train", "--help"]):
            process = call(*arguments, stdout=full, env={"PYTHONUNBUFFERED": ""})
            _, err = process.communicate()
            assert process.returncode == 1
            assert err == b"pyar: standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["info"], ["train", "--help"]])
def test_a_reader_that_has_gone_is_no_error_to_tell(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    process = call(*arguments, stdout=writing, env={"PYTHONUNBUFFERED": ""})
    os.close(writing)
    _, err = process.communicate()
    assert (process.returncode, err) == (1, b"")


def test_closed_streams(tmp_path):
    command = f"{sys.executable} -m pyar info nowhere >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env={**os.environ, "PYTHONPATH": ROOT}).returncode == 1


# --- Home directories ---


@pytest.fixture
def homeless(monkeypatch):
    """A user of whom the system knows nothing, as in a container that is run with any uid."""

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "USER", "LOGNAME", "USERNAME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert os.path.expanduser("~") == "~"


def test_nothing_needs_a_home_directory_but_downloads(tmp_path, homeless, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *TRAIN)[0] == 0
    for name in ("evaluate", "sample", "complete"):
        assert run(capsys, name, "runs/nade-digits", "--no-progress")[0] == 0
    code, _, err = run(capsys, *TRAIN, "--data", "mnist")
    assert code == 1
    assert is_one_line(err)
    assert "no home directory" in err
    assert "--cache-dir" in err
    assert not (tmp_path / "~").exists()


def test_a_cache_folder_below_no_home_is_refused(monkeypatch):
    """Older releases of platformdirs give a path that begins with "~"."""
    monkeypatch.setattr("pooch.os_cache", lambda name: Path("~/.cache") / name)
    with pytest.raises(DataError, match="no home directory"):
        download.default_cache_dir()


def test_every_path_option_knows_the_home_directory(tmp_path, monkeypatch, capsys):
    """The shell leaves "~" as it is in --out=~/x and in quotes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {"--data", "--data-dir", "--cache-dir", "--out", "--resume", "--given", "--examples"}
    commands = next(action for action in make_parser()._actions if action.dest == "command").choices
    found = set()
    for name, parser in commands.items():
        for action in parser._actions:
            if action.dest == "run" or options & set(action.option_strings):
                assert action.type("~/x") == f"{tmp_path}/x", f"{name} {action.dest}"
                found |= {action.dest}
    assert found == {"run", *(option[2:].replace("-", "_") for option in options)}
    with pytest.raises(SystemExit):
        main(["train", "nade", "--out="])
    assert "expected a path, but it is empty" in capsys.readouterr().err


def test_home_in_pyar_data_and_in_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    np.savez(
        tmp_path / "data/binarized_mnist.npz", **{s: np.eye(12, dtype=np.uint8) for s in ("train", "valid", "test")}
    )
    monkeypatch.setenv("PYAR_DATA", "~/data")
    assert load_dataset("binarized-mnist").dim == 12
    assert run(capsys, *TRAIN, "--data", "binarized-mnist", "--out=~/run")[0] == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["data_dir"] == str(tmp_path / "data")
    monkeypatch.delenv("PYAR_DATA")
    assert run(capsys, "evaluate", "~/run", "--no-progress")[0] == 0
    monkeypatch.setenv("PYAR_DATA", "~/none")
    code, _, err = run(capsys, *TRAIN)
    assert code == 1
    assert "PYAR_DATA names ~/none" in err


def test_a_path_below_no_home_directory_is_refused(homeless, capsys):
    with pytest.raises(SystemExit):
        main(["train", "nade", "--out", "~/run"])
    assert "no home directory for ~/run" in capsys.readouterr().err


# --- torchrun's environment, whole or not ---


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"WORLD_SIZE": ""}, (0, 1)),
        ({"WORLD_SIZE": "", "RANK": ""}, (0, 1)),
        ({"WORLD_SIZE": "4"}, (0, 1)),
        ({"WORLD_SIZE": "4", "RANK": ""}, (0, 1)),
        ({"RANK": "3"}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
    ],
)
def test_one_variable_of_torchruns_is_no_group(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment_rank() == expected


@pytest.mark.parametrize("rank", ["4", "-1", "first", "1.5"])
def test_a_rank_that_is_none_is_refused(monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(LaunchError, match="RANK"):
        environment_rank()


def test_a_world_without_a_rank_is_one_process(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = run(capsys, "sample", model, "-n", "10", "--out", tmp_path / "x.npy", "--no-progress", "--json")
    assert code == 0
    assert json.loads(out)["num_samples"] == 10
    assert len(np.load(tmp_path / "x.npy")) == 10
    assert "RANK is not" in err
    assert run(capsys, *TRAIN, "--out", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("environment", [{"RANK": "x"}, {"RANK": "2"}, {"RANK": "0"}])  # the last lacks MASTER_ADDR
def test_an_environment_without_sense_is_told_in_a_line(tmp_path, capsys, monkeypatch, environment):
    for name, value in {"WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(capsys, *TRAIN, "--out", tmp_path / "run")
    assert code == 1
    assert is_one_line(err)
    assert not (tmp_path / "run").exists()


# --- Disks and memory ---


def limit_files(size: int):
    """For a child: no file may grow beyond `size` bytes, much as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.png"])
def test_a_disk_that_is_full_is_told_with_the_files_name(model, tmp_path, name):
    out = tmp_path / name
    process = call("sample", model, "-n", "20000", "--out", out, "--no-progress", preexec_fn=limit_files(200))
    _, err = process.communicate()
    assert process.returncode == 1
    assert is_one_line(err), err
    assert str(out).encode() in err
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors"}


@pytest.mark.parametrize(("limit", "file"), [(100, "config.json"), (8000, "model.safetensors")])
def test_a_disk_that_fills_while_training_is_told(tmp_path, limit, file):
    process = call(*TRAIN, "--out", tmp_path / "run", preexec_fn=limit_files(limit))
    _, err = process.communicate()
    assert process.returncode == 1
    last = err.decode().splitlines()[-1]
    assert last == f"pyar: {tmp_path}/run/{file}: File too large"
    assert b"Traceback" not in err


def test_a_log_on_a_full_disk_is_told_with_its_name():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        RunLog(Path("/dev/full"), is_main=True).write("start")


def test_arrays_of_numpy_that_did_not_fit(tmp_path):
    """numpy.save says how many values it wrote and no reason."""
    program = (
        "import numpy, sys; from pyar.files import atomic_write\n"
        "try:\n    with atomic_write(sys.argv[1]) as file:\n        numpy.save(file, numpy.zeros(100000))\n"
        "except OSError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.npy"],
        capture_output=True,
        text=True,
        preexec_fn=limit_files(5000),
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.stdout.startswith(f"{tmp_path}/x.npy could not be written whole, is the disk full?"), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["sample"], ["complete"], ["evaluate", "--out", "x.npy"]])
def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(model, capsys, monkeypatch, command):
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    name, *options = command
    code, out, err = run(capsys, name, model, *options)
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert "may not be written to" in err
    assert [path.name for path in Path().iterdir()] == ["model.safetensors"]


def test_a_run_in_a_read_only_folder(tmp_path, capsys, monkeypatch):
    def refuse(path, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    code, out, err = run(capsys, *TRAIN, "--out", tmp_path / "run")
    assert (code, out) == (1, "")
    assert err == f"pyar: {tmp_path}/run: Read-only file system\n"


def test_an_output_that_is_a_folder(model, capsys, tmp_path):
    (tmp_path / "x.npy").mkdir()
    code, _, err = run(capsys, "sample", model, "--out", tmp_path / "x.npy")
    assert code == 1
    assert is_one_line(err)
    assert "is a folder" in err


def test_memory_that_is_not_there(tmp_path, capsys):
    code, _, err = run(capsys, "train", "nade", "--hidden-size", "100000000000", "--out", tmp_path / "run")
    assert code == 1
    assert is_one_line(err)
    assert "not enough memory" in err


# --- Ctrl-C ---


@pytest.mark.parametrize("when", ["while torch is imported", "while sampling"])
def test_ctrl_c_ends_with_a_line(model, tmp_path, when):
    command = ["sample", model, "-n", "100000000", "--out", tmp_path / "x.npz", "--no-progress"]
    process = call(*command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    libraries, working = Path(f"/proc/{process.pid}/maps"), False
    while not working and process.poll() is None:
        time.sleep(0.005)
        files = list(tmp_path.glob(".*.tmp"))
        working = "libtorch" in libraries.read_text() if when == "while torch is imported" else bool(files)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert err == b"pyar: interrupted\n"
    assert process.returncode in (130, -signal.SIGINT)  # Python's way out if the signal came within an exec()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


# --- Names that are not UTF-8 ---


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"r\xff")
    folder, data = tmp_path / name, tmp_path / f"{name}.npy"
    np.save(data, np.arange(180).reshape(60, 3) % 2)
    process = call(*TRAIN, "--data", data, "--out", folder, "--threads", "1")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert os.fsencode(folder) + b"/samples.png" in out  # the bytes of the name, ready to be pasted
    assert (folder / "learning_curve.png").is_file()
    for command in (
        ["evaluate", folder],
        ["evaluate", folder, "--data", data],
        ["sample", folder, "--out", folder / "x.npz"],
        ["complete", folder, "--examples", data, "--out", folder / "c.png"],
        ["info", folder],
        ["train", "--resume", folder, "--epochs", "2"],
    ):
        process = call(*command, *(["--no-progress"] if command[0] != "info" else []))
        out, err = process.communicate()
        assert process.returncode == 0, err
    process = call("evaluate", folder / "nothing", env={"PYTHONIOENCODING": "ascii"})
    _, err = process.communicate()
    assert err == b"pyar: there is no checkpoint " + os.fsencode(folder) + b"/nothing\n"
