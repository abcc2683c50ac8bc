"""pyar.files: a file is there whole or not at all, with the permissions of any new file."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from pyar.files import atomic_write, write_text


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail():
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_file_is_forced_to_disk_before_it_takes_its_name_in_one_step(tmp_path, monkeypatch):
    path, calls = tmp_path / "x", []
    path.write_bytes(b"old")
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    with atomic_write(path) as file:
        file.write(b"new")
        inode = os.fstat(file.fileno()).st_ino
        assert path.read_bytes() == b"old"
    assert path.stat().st_ino == inode
    assert calls == ["fsync", "replace", "fsync"]  # the content, the name, the folder's entry


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, atomic_write(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_told_by_the_name_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "missing" / "x"):
        pass
    assert caught.value.filename == str(tmp_path / "missing" / "x")


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path):
    path = tmp_path / ("x" * 255)
    write_text(path, "ü")
    assert path.read_bytes() == "ü".encode()
