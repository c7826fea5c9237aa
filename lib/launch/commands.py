"""Processes that the launcher starts, one at a time, and the signals that it passes on to them.

Owns starting, waiting, retrying and stopping. It does not know what the commands do.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from lib.launch.errors import LaunchStopped
from lib.launch.log import LaunchLog

# The pauses between the attempts of what needs the network.
RETRY_PAUSES_S = (1.0, 2.0)
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A shell's exit status of a command that could not be executed.
NOT_EXECUTED = 127


class Commands:
    """Starts processes with the environment `environ`, which may be changed between them.

    Each has a session of its own: at Ctrl-C the terminal signals the launcher only, which passes the signal
    on once. After a signal, no further process is started: `LaunchStopped` is raised. With `says_waiting`,
    the log says that the current step is waited for.
    """

    def __init__(self, log: LaunchLog, environ: dict[str, str], *, says_waiting: bool = True) -> None:
        self.environ = environ
        self.inherited: tuple[int, ...] = ()  # descriptors that each process gets
        self._log = log
        self._says_waiting = says_waiting
        self._signals: list[int] = []
        self._passed_on = 0  # how many of the signals the process has got
        self._child: subprocess.Popen[bytes] | None = None
        self._is_group = True
        self._woken, self._wake = os.pipe()

    @property
    def is_stopped(self) -> bool:
        """Whether a signal was received."""
        return bool(self._signals)

    def handle_signals(self) -> None:
        """Receive the signals that end the launcher; those ignored so far, as after `nohup`, stay ignored."""
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda received, _: self.receive(received))

    def receive(self, number: int) -> None:
        """Pass the signal `number` on to the running process, and end all waits."""
        self._signals.append(number)
        os.write(self._wake, b"!")
        self._pass_on()

    def leave_if_stopped(self) -> None:
        """Raise `LaunchStopped` if a signal was received."""
        if self._signals:
            raise LaunchStopped(self._signals[-1])

    def pause(self, seconds: float) -> None:
        """Wait; raise `LaunchStopped` at a signal."""
        select.select([self._woken], [], [], max(0.0, seconds))
        self.leave_if_stopped()

    def run(
        self,
        *command: str | Path,
        stdout: int | IO[bytes] | None = None,
        stderr: int | None = None,
        cwd: Path | None = None,
        umask: int = -1,
    ) -> bool:
        """Run a command of a step, by default with the launcher's output; return whether it has succeeded."""
        child = self._start(command, stdout, stderr, cwd, umask)
        status = NOT_EXECUTED if child is None else self._wait(child)
        self.leave_if_stopped()
        return status == 0

    def output(self, *command: str | Path, cwd: Path | None = None) -> str | None:
        """Return the standard output of a short command, or None if it fails; its errors are not shown."""
        child = self._start(command, subprocess.PIPE, subprocess.DEVNULL, cwd, -1)
        if child is None:
            return None
        text, _ = child.communicate()
        self._child = None
        self.leave_if_stopped()
        return text.decode(errors="replace") if child.returncode == 0 else None

    def run_worker(self, *command: str | Path, cwd: Path) -> int:
        """Run the worker, which alone gets the signals, not its processes; return its exit status.

        It is 128 plus the signal's number if a signal has ended it, as in a shell.
        """
        child = self._start(command, None, None, cwd, -1, is_group=False)
        if child is None:
            return NOT_EXECUTED
        status = child.wait()
        self._child = None
        return 128 - status if status < 0 else status

    def attempt(self, step: Callable[[], bool], pauses_s: Sequence[float] = RETRY_PAUSES_S) -> bool:
        """Call `step` until it returns true, by default up to three times; return whether it has."""
        for pause_s in pauses_s:
            if step():
                return True
            self.pause(pause_s)
        return step()

    def _start(
        self,
        command: Sequence[str | Path],
        stdout: int | IO[bytes] | None,
        stderr: int | None,
        cwd: Path | None,
        umask: int,
        is_group: bool = True,
    ) -> subprocess.Popen[bytes] | None:
        """Start the command; return None, and say why, if that is impossible."""
        self.leave_if_stopped()
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=self.environ,
                umask=umask,
                pass_fds=self.inherited,
                start_new_session=True,
            )
        except OSError as e:
            self._log.say(f"{command[0]} can't be executed: {e.strerror}")
            return None
        self._is_group = is_group
        self._child = child
        self._pass_on()  # a signal that came meanwhile
        return child

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        while True:
            try:
                status = child.wait(self._log.wait_s() if self._says_waiting else None)
            except subprocess.TimeoutExpired:
                self._log.say_waiting()
            else:
                self._child = None
                return status

    def _pass_on(self) -> None:
        child = self._child
        while child is not None and self._passed_on < len(self._signals):
            number = self._signals[self._passed_on]
            self._passed_on += 1
            with suppress(ProcessLookupError):
                (os.killpg if self._is_group else os.kill)(child.pid, number)
