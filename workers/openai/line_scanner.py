"""Lines of a streamed answer, looked through for a failure; for the workers openai, tgi, ollama and comfyui.

Owns the splitting into lines. What a failure looks like, each worker knows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar


class LineScanner(ABC):
    """Looks for a line that says that the generation has failed.

    Only lines with `mark` are looked at, and only `max_line_bytes` of a line are kept.
    """

    mark: ClassVar[bytes]
    max_line_bytes: ClassVar[int]

    def __init__(self) -> None:
        self._failed = False
        self._line = bytearray()  # the last line, while its end is missing

    @abstractmethod
    def is_failure(self, line: bytes) -> bool:
        """Whether `line`, which has the mark, says that the generation has failed."""

    def add(self, chunk: bytes) -> None:
        """Read the next part of a streamed answer; it may end anywhere in a line."""
        # Servers send each event in a chunk of its own: nearly all consist of whole lines without an error.
        # `find` takes half the time of `in`.
        if chunk.find(self.mark) >= 0 or self._line or not chunk.endswith(b"\n"):
            self._read(chunk)

    def has_failed(self) -> bool:
        """Whether a line of the answer, which has ended, says that the generation has failed."""
        self._read_line()
        return self._failed

    def outcome(self, status: int) -> str | None:
        """Return "errored" if a successful answer has a failure in its stream; None otherwise."""
        return "errored" if self.has_failed() and status < 400 else None

    def _read(self, chunk: bytes) -> None:
        beginning, *more = chunk.split(b"\n")
        self._keep(beginning)
        for line in more:
            self._read_line()
            self._keep(line)

    def _keep(self, part: bytes) -> None:
        self._line += part[: self.max_line_bytes - len(self._line)]

    def _read_line(self) -> None:
        if self.mark in self._line:
            self._failed = self._failed or self.is_failure(bytes(self._line))
        self._line.clear()
