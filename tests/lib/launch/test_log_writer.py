"""The process that writes the log: its size, and consoles and disks that take nothing."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from lib.launch import log_writer
from lib.launch.log_writer import CHUNK_BYTES, copy


def written(data: bytes, console: int, path: Path, limit_bytes: int = 1 << 20) -> None:
    """Copy `data` from a pipe, which has room for it, to its end."""
    source, end = os.pipe()
    os.write(end, data)
    os.close(end)
    copy(source, console, path, limit_bytes)
    os.close(source)


def test_all_is_written_to_the_console_and_the_file(tmp_path: Path) -> None:
    reader, console = os.pipe()
    written(b"one\n", console, tmp_path / "log")
    written(b"two\xff", console, tmp_path / "log")
    os.close(console)
    assert os.read(reader, 100) == b"one\ntwo\xff"
    os.close(reader)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\xff"


def test_the_log_is_rotated_before_it_is_too_large(tmp_path: Path) -> None:
    console = os.open(os.devnull, os.O_WRONLY)
    for part in (b"a" * 6, b"b" * 6, b"c" * 4):
        written(part, console, tmp_path / "log", limit_bytes=10)
    os.close(console)
    assert (tmp_path / "log").read_bytes() == b"b" * 6 + b"c" * 4
    assert (tmp_path / "log.old").read_bytes() == b"a" * 6


def test_a_console_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    reader, console = os.pipe()
    os.close(reader)
    written(b"x" * (CHUNK_BYTES // 2), console, tmp_path / "log")
    os.close(console)
    assert (tmp_path / "log").stat().st_size == CHUNK_BYTES // 2


def test_a_full_disk_does_not_stop_the_console(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    reader, console = os.pipe()
    written(b"one\n", console, tmp_path / "log")
    os.close(console)
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)


def test_a_log_that_cannot_be_opened_after_a_rotation_is_opened_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console has every line meanwhile."""
    log, data = tmp_path / "log", [letter * CHUNK_BYTES for letter in (b"a", b"b", b"c")]
    (tmp_path / "source").write_bytes(b"".join(data))
    attempts = iter([True, False, True])

    def opened(path: Path) -> io.FileIO:
        if not next(attempts):
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return io.FileIO(path, "a")

    monkeypatch.setattr(log_writer, "_opened", opened)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "console").open("wb") as console:
        copy(source.fileno(), console.fileno(), log, limit_bytes=CHUNK_BYTES)
    assert (tmp_path / "console").read_bytes() == b"".join(data)
    assert (log.read_bytes(), (tmp_path / "log.old").read_bytes()) == (data[2], data[0])
