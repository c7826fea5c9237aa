"""The log of the last boot: which one it is, and that no line of this boot is lost."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.launch import boot
from lib.launch.boot import BOOT_MARGIN_S, Boot, find_model_log, rotate, this_boot

BOOT = Boot("this boot", 1_000_000.0)
LOADED = "model is ready\n"


class ModelLog:
    """A model server's log, with what was said about it."""

    def __init__(self, folder: Path, text: str, written_at: float) -> None:
        self.path = folder / "model.log"
        self.old = folder / "model.log.old"
        self.marker = folder / "workspace" / "marker"
        self.said: list[str] = []
        self.write(text, written_at)

    def write(self, text: str, at: float) -> None:
        with self.path.open("a") as file:
            file.write(text)
        os.utime(self.path, (at, at))

    def rotate(self, this: Boot | None = BOOT) -> str:
        """Rotate it, and return what it has then."""
        rotate(self.path, self.marker, this, self.said.append)
        return self.path.read_text()


def test_the_log_of_the_last_boot_is_moved_aside(tmp_path: Path) -> None:
    log = ModelLog(tmp_path, LOADED, BOOT.at - 3600)
    with log.path.open("a") as server:  # it has opened the log, and not written to it yet
        assert log.rotate() == ""
        server.write("a line of this boot\n")
    assert log.path.read_text() == "a line of this boot\n"
    assert log.old.read_text() == LOADED
    assert log.said == []


@pytest.mark.parametrize("after_s", [0.0, 0.5, 3600.0, -BOOT_MARGIN_S / 2])
def test_a_log_that_was_written_in_this_boot_stays(tmp_path: Path, after_s: float) -> None:
    log = ModelLog(tmp_path, LOADED, BOOT.at + after_s)
    assert log.rotate() == LOADED
    assert not log.old.exists()
    assert log.said == [f"{log.path} was written in this boot: it stays as it is"]
    # Neither does a later start in this boot touch it.
    os.utime(log.path, (0, 0))
    assert log.rotate() == LOADED


def test_a_log_is_rotated_once_per_boot(tmp_path: Path) -> None:
    log = ModelLog(tmp_path, LOADED, BOOT.at - 3600)
    assert log.rotate() == ""
    log.write("one", BOOT.at - 1800)
    assert log.rotate() == "one"
    assert log.rotate(Boot("another boot", BOOT.at)) == ""
    assert log.old.read_text() == "one"


def test_the_copy_is_limited_to_the_end_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "OLD_MODEL_LOG_BYTES", 9)
    log = ModelLog(tmp_path, LOADED, BOOT.at - 3600)
    assert (log.rotate(), log.old.read_text()) == ("", "is ready\n")


def test_without_a_known_boot_nothing_is_moved(tmp_path: Path) -> None:
    log = ModelLog(tmp_path, LOADED, 0.0)
    assert log.rotate(None) == LOADED


def test_a_copy_that_fails_is_told_and_the_log_is_emptied(tmp_path: Path) -> None:
    log = ModelLog(tmp_path, LOADED, BOOT.at - 3600)
    log.old.mkdir()
    assert log.rotate() == ""
    assert log.said == [f"{log.old} could not be written completely: check the free space of its disk"]


def test_a_line_that_is_written_during_the_copy_is_not_lost(tmp_path: Path) -> None:
    log = ModelLog(tmp_path, LOADED, BOOT.at - 3600)

    def write_meanwhile(_: str) -> None:
        log.said.clear()
        log.write("a line of this boot\n", BOOT.at + 1)

    log.old.mkdir()  # so that something is said between the copy and the end
    rotate(log.path, log.marker, BOOT, write_meanwhile)
    assert log.path.read_text() == LOADED + "a line of this boot\n" * 2


def test_another_start_waits_until_the_log_is_moved_aside(tmp_path: Path) -> None:
    log = ModelLog(tmp_path, LOADED, BOOT.at - 3600)
    log.old.mkdir()  # so that something is said between the copy and the end
    is_locked: list[bool] = []

    def try_to_lock(_: str) -> None:
        with log.marker.open() as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_locked.append(True)
            else:
                is_locked.append(False)

    rotate(log.path, log.marker, BOOT, try_to_lock)
    assert is_locked == [True]
    with log.marker.open() as marker:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("count", [2, 5])
def test_starts_at_the_same_time_keep_the_log_of_the_last_boot(tmp_path: Path, count: int) -> None:
    """All of them wait for the same lock."""
    log = ModelLog(tmp_path, LOADED, BOOT.at - 3600)
    log.marker.parent.mkdir()
    starts = [threading.Thread(target=log.rotate) for _ in range(count)]
    with log.marker.open("w") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        for start in starts:
            start.start()
    for start in starts:
        start.join()
    assert (log.path.read_text(), log.old.read_text(), log.said) == ("", LOADED, [])


@pytest.mark.parametrize("path", ["folder", "none", "empty"])
def test_what_is_no_log_is_left_alone(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    said: list[str] = []
    rotate(tmp_path / path, tmp_path / "marker", BOOT, said.append)
    assert said == []


def test_a_marker_that_cannot_be_written_leaves_the_log_alone(tmp_path: Path) -> None:
    log = ModelLog(tmp_path, LOADED, BOOT.at - 3600)
    log.marker.parent.write_text("a file")
    assert log.rotate() == LOADED


# When the instance has booted


def fake_proc(folder: Path, age_s: float, name: str = "(tini) x) S") -> Path:
    """Make a /proc whose first process has run for `age_s` seconds."""
    ticks = (time.clock_gettime(time.CLOCK_BOOTTIME) - age_s) * os.sysconf("SC_CLK_TCK")
    fields = ["0"] * 18 + [f"{ticks:.0f}", "0"]
    files = {"1/stat": f"1 ({name}) S {' '.join(fields)}", "sys/kernel/random/boot_id": "host\n"}
    for path, text in files.items():
        (folder / "proc" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "proc" / path).write_text(text)
    return folder / "proc"


@pytest.mark.parametrize("name", ["init", "a) b (c", ""])
def test_the_boot_is_the_start_of_the_first_process(tmp_path: Path, name: str) -> None:
    found = this_boot(fake_proc(tmp_path, 5.0, name), tmp_path / "none")
    assert found is not None
    assert found.at == pytest.approx(time.time() - 5.0, abs=1.0)
    again = this_boot(fake_proc(tmp_path, 2.0, name), tmp_path / "none")
    assert again is not None
    assert again.id != found.id


def test_a_clock_that_was_set_forward_makes_no_log_of_this_boot_old(tmp_path: Path) -> None:
    """The model server wrote its log at a time that was wrong by an hour."""
    then = time.time() - 3600
    device = tmp_path / "fd"
    device.symlink_to("/proc/self/fd")
    os.utime(device, (then - 5.0, then - 5.0), follow_symlinks=False)
    found = this_boot(fake_proc(tmp_path, 5.0), device)
    assert found is not None
    log = ModelLog(tmp_path, LOADED, then)
    assert log.rotate(found) == LOADED


@given(age_s=st.floats(0, 1e6), off_s=st.floats(-1e6, 1e6), written_s=st.floats(0, 1))
def test_whatever_the_clock_was_a_log_of_this_boot_is_not_older(
    tmp_path_factory: pytest.TempPathFactory, age_s: float, off_s: float, written_s: float
) -> None:
    """Its clock was off by `off_s`, and was set right after the log had been written."""
    folder = tmp_path_factory.mktemp("boot")
    booted_at = time.time() - age_s + off_s
    device = folder / "fd"
    device.symlink_to("/proc/self/fd")
    os.utime(device, (booted_at, booted_at), follow_symlinks=False)
    found = this_boot(fake_proc(folder, age_s), device)
    assert found is not None
    assert booted_at + written_s * age_s >= found.at - BOOT_MARGIN_S


@pytest.mark.parametrize("stat", ["", "1 (init) S 0", "1 (init) S " + "x " * 30])
def test_an_unreadable_proc_is_no_boot(tmp_path: Path, stat: str) -> None:
    proc = fake_proc(tmp_path, 5.0)
    (proc / "1" / "stat").write_text(stat)
    assert this_boot(proc, tmp_path) is None
    assert this_boot(tmp_path / "none", tmp_path) is None


def test_this_machine_has_booted() -> None:
    found = this_boot()
    assert found is not None
    assert found.at < time.time()


# Which log


def test_the_log_is_the_variables_or_the_ready_made_workers(tmp_path: Path) -> None:
    (tmp_path / "workers" / "own").mkdir(parents=True)
    (tmp_path / "workers" / "own" / "server.py").write_text('x = 1\nMODEL_LOG = "/tmp/own.log"\n')
    assert find_model_log("/tmp/x.log", tmp_path, "own") == Path("/tmp/x.log")
    assert find_model_log("logs/x.log", tmp_path, "own") == tmp_path / "logs" / "x.log"
    assert find_model_log("/tmp/x.log", None, "own") == Path("/tmp/x.log")
    assert find_model_log("", tmp_path, "own") == Path("/tmp/own.log")
    assert find_model_log("", tmp_path, "other") is None
    assert find_model_log("", tmp_path, "") is None
    assert find_model_log("", None, "own") is None
