"""The ends of a launch without a worker, as exceptions."""

from __future__ import annotations

import signal


class CannotStart(Exception):
    """The worker can't be started. `status` is the exit status, the text of the exception the message.

    `is_reported`: the engine is told; `has_lines`: with the last lines of the log.
    """

    def __init__(
        self, status: int, message: str, *, is_reported: bool = True, has_lines: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.is_reported = is_reported
        self.has_lines = has_lines


class LaunchStopped(Exception):
    """The launcher has received the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
