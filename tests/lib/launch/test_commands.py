"""The launcher's processes: results, retries, signals, and what is said while they run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lib.launch.commands import NOT_EXECUTED, PASSED_ON, Commands
from lib.launch.errors import LaunchStopped
from lib.launch.log import LaunchLog
from tests.guard import GUARD_S

pytestmark = pytest.mark.process

# Says that it runs, and waits for a signal.
WAITS = "import os, signal, sys; open(sys.argv[1], 'w').write(str(os.getpid())); signal.pause()"


class ManualTime:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def commands() -> Commands:
    return Commands(LaunchLog(), dict(os.environ))


def when_it_runs(fifo: Path, call: Callable[[], object]) -> threading.Thread:
    """Call `call` in a thread once a process has opened the FIFO, which is made here, and written to it."""
    os.mkfifo(fifo)

    def wait() -> None:
        fifo.read_text()
        call()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_command_succeeds_fails_or_cannot_be_executed(
    commands: Commands, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert commands.run(sys.executable, "-c", "")
    assert not commands.run(sys.executable, "-c", "raise SystemExit(3)")
    assert not commands.run(tmp_path / "none")
    assert commands.run_worker(tmp_path / "none", cwd=tmp_path) == NOT_EXECUTED
    assert commands.output(tmp_path / "none") is None
    assert capfd.readouterr().err.count(f"{tmp_path}/none can't be executed: No such file or directory") == 3


def test_an_output_is_that_of_a_command_that_succeeds(commands: Commands, tmp_path: Path) -> None:
    assert (
        commands.output(sys.executable, "-c", "import os; print(os.getcwd())", cwd=tmp_path)
        == f"{tmp_path}\n"
    )
    assert commands.output(sys.executable, "-c", "print(1); raise SystemExit(1)") is None


def test_a_step_is_tried_until_it_succeeds(commands: Commands) -> None:
    results = [False, False, True, True]
    assert commands.attempt(lambda: results.pop(0), (0.0, 0.0))
    assert results == [True]
    results = [False, False, False, True]
    assert not commands.attempt(lambda: results.pop(0), (0.0, 0.0))


def test_a_signal_ends_the_processes_of_a_step_and_the_launch(commands: Commands, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    child = [sys.executable, "-c", WAITS, str(fifo)]
    parent = f"import subprocess; subprocess.run({child!r})"
    thread = when_it_runs(fifo, lambda: commands.receive(signal.SIGTERM))
    with pytest.raises(LaunchStopped, match="stopped by SIGTERM"):
        commands.run(sys.executable, "-c", parent)
    thread.join(GUARD_S)
    assert commands.is_stopped
    for call in (commands.leave_if_stopped, lambda: commands.pause(GUARD_S), lambda: commands.run("true")):
        with pytest.raises(LaunchStopped):
            call()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_reaches_the_worker_and_is_its_end(
    commands: Commands, tmp_path: Path, number: signal.Signals
) -> None:
    thread = when_it_runs(tmp_path / "fifo", lambda: commands.receive(number))
    code = f"import signal; signal.signal(signal.{number.name}, signal.SIG_DFL); {WAITS}"
    assert commands.run_worker(sys.executable, "-c", code, tmp_path / "fifo", cwd=tmp_path) == 128 + number
    thread.join(GUARD_S)


def test_signals_that_are_ignored_stay_ignored(commands: Commands) -> None:
    """As after `nohup`."""
    before = {number: signal.getsignal(number) for number in PASSED_ON}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        commands.handle_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not commands.is_stopped
        os.kill(os.getpid(), signal.SIGTERM)
        assert commands.is_stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_workers_exit_status_is_kept(commands: Commands, tmp_path: Path) -> None:
    assert commands.run_worker(sys.executable, "-c", "raise SystemExit(7)", cwd=tmp_path) == 7


def test_a_wait_is_said_every_30_s_at_first(capfd: pytest.CaptureFixture[str]) -> None:
    time = ManualTime()
    log = LaunchLog(time)
    log.begin("fetching x")
    said_at: list[int] = []
    for second in range(1, 601):
        time.now_s = second
        is_due = log.wait_s() == 0
        log.say_waiting()
        line = capfd.readouterr().err
        assert is_due is ("still" in line)
        if is_due:
            said_at.append(second)
            assert line.endswith(f" start_server.sh: still fetching x, for {second} s so far\n")
    assert said_at[:5] == [30, 60, 90, 120, 150]
    assert said_at[-1] - said_at[-2] > 90
    log.begin("installing")
    assert log.wait_s() == 30


def test_a_step_that_runs_long_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    time = ManualTime()
    log = LaunchLog(time)
    commands = Commands(log, dict(os.environ))
    log.begin("waiting for a file")
    time.now_s = 31.0  # the process is not awaited before this line is due
    thread = when_it_runs(tmp_path / "fifo", lambda: commands.receive(signal.SIGTERM))
    with pytest.raises(LaunchStopped):
        commands.run(sys.executable, "-c", WAITS, tmp_path / "fifo")
    thread.join(GUARD_S)
    assert "still waiting for a file, for 31 s so far" in capfd.readouterr().err
