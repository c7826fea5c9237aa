"""Logging of the process: level, format and writing of the log lines (docs/operating.md, "Logs").

Owns the configuration, which only entry points call. Modules log to loggers of their own names. Lines are
written by a thread, since a pipe that nobody reads would otherwise stop all that logs.
"""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import re
import select
import sys
import threading
from collections.abc import Sequence
from typing import Any, TextIO

from aiohttp.http_exceptions import HttpProcessingError

from lib.runtime.excerpt import without_secret
from lib.runtime.settings import LogFormat

# Libraries that log much at DEBUG, with payloads and addresses in their lines.
_QUIET = ("asyncio", "aiohttp", "urllib3", "hypothesis")
_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

# Bytes of lines that may wait to be written.
MAX_HELD_BYTES = 4 * 1024 * 1024
# Bytes of lines that are written with one system call, unless a line is longer.
WRITE_BYTES = 64 * 1024
# Seconds that the process waits at its end until its last lines are written.
FLUSH_LIMIT_S = 2.0

# What could end a line, move a terminal's cursor or change the order of the text: C0, DEL and C1, the line
# separators, the marks for the direction of text, and what can't be encoded.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
# A line, an event that a flush waits for, or None as the last item.
_Item = bytes | threading.Event | None
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def configure_logging(level: str, form: LogFormat, secret: str = "") -> None:
    """Log to standard error in the format `form`: libraries from WARNING, everything else from `level`.

    Lines have *** in place of `secret`. A call that logs never waits for whoever reads standard error.
    """
    handler = LineWriter(sys.stderr, secret=secret)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("aiohttp.server").addFilter(_is_worth_logging)


def dropped_lines() -> int:
    """The number of log lines of this process that were not written."""
    return sum(h.dropped for h in logging.getLogger().handlers if isinstance(h, LineWriter))


def escaped(text: str) -> str:
    """Return `text` with escapes in place of control characters, line ends and marks of text direction."""
    return text if text.isprintable() else _CONTROLS.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    return _NAMED.get(char) or (f"\\x{ord(char):02x}" if char < "\x80" else f"\\u{ord(char):04x}")


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Whether to log the record: False for malformed HTTP, which aiohttp logs with the bytes received."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class TextFormatter(logging.Formatter):
    """Formats a record as one line, and its traceback, if it has one, as further lines behind two spaces.

    A record's line begins with its date, so that no text of an exception can look like one.
    """

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        parts = [escaped(self.formatMessage(record))]
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        first, *further = parts
        return "\n".join([first, *("  " + escaped(line) for part in further for line in part.split("\n"))])


class LineFormat(str):
    """The format of a log line whose arguments are fields of their own in JSON, by `names`.

    A logger's methods take it in place of a text. `%.0s` leaves an argument out of the text. The field
    `message`, if there is one, is the message of the JSON line.
    """

    names: tuple[str, ...]

    def __new__(cls, text: str, *names: str) -> LineFormat:
        line = super().__new__(cls, text)
        line.names = names
        return line


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: `time` (Unix seconds), `level`, `logger`, `message`.

    A record with an exception has its `traceback` too, and one of a `LineFormat` its fields. Characters
    outside ASCII are escaped, and DEL, which JSON leaves as it is.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        template: object = record.msg
        if isinstance(template, LineFormat) and isinstance(record.args, tuple):
            fields = zip(template.names, map(_rounded, record.args), strict=True)
            line |= {name: value for name, value in fields if value is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line).replace("\x7f", "\\u007f")


def _rounded(value: object) -> object:
    """A number without the digits that no clock measures."""
    return round(value, 6) if isinstance(value, float) else value


class LineWriter(logging.Handler):
    """Formats each record, and has a thread write it to `stream`, or nowhere if that is None.

    If more than `max_held_bytes` wait to be written, further lines are dropped until none waits. Lines have
    *** in place of `secret`.
    """

    def __init__(self, stream: TextIO | None, max_held_bytes: int = MAX_HELD_BYTES, secret: str = "") -> None:
        super().__init__()
        self._secrets = {secret, json.dumps(secret)[1:-1]}  # as it is, and as it is written in JSON
        self._stream = stream
        self._max_held_bytes = max_held_bytes
        self._is_full = False
        self._thread: threading.Thread | None = None
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        # Each number is changed by one side only, so that neither waits for the other.
        self._put_bytes = self._refused = 0  # by those who log, who hold the handler's lock
        self._done_bytes = self._lost = self._told = 0  # by the thread

    @property
    def dropped(self) -> int:
        """The number of lines that were dropped, or that `stream` did not take, as on a full disk."""
        return self._refused + self._lost

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._encoded(record)
        except Exception as e:  # noqa: BLE001 - an argument's `__str__` may raise anything
            line = self._encoded(_unformatted(record, e))
        if not self._is_alive and not self._start():
            self._refused += 1
            return
        held_bytes = self._put_bytes - self._done_bytes
        self._is_full = held_bytes > 0 if self._is_full else held_bytes + len(line) > self._max_held_bytes
        if self._is_full:
            self._refused += 1
        else:
            self._put_bytes += len(line)
            self._items.put(line)

    def flush(self) -> None:
        """Wait until all lines are written, for at most `FLUSH_LIMIT_S` seconds."""
        if self._is_alive:
            written = threading.Event()
            self._items.put(written)
            written.wait(FLUSH_LIMIT_S)

    def close(self) -> None:
        """Have the thread end once it has written all lines; don't wait for it."""
        self._items.put(None)
        super().close()

    @property
    def _is_alive(self) -> bool:
        """Whether the thread runs: not before the first line, and not in a process that was forked."""
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> bool:
        """Start the thread, with nothing to write: the lines of a forked process are the other's."""
        self._items = queue.SimpleQueue()
        self._put_bytes = self._done_bytes = 0
        self._thread = threading.Thread(target=self._write_items, name="log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._thread = None
        return self._thread is not None

    def _encoded(self, record: logging.LogRecord) -> bytes:
        line = self.format(record)
        for secret in self._secrets:
            line = without_secret(line, secret)
        return (line + "\n").encode(errors="backslashreplace")

    def _write_items(self) -> None:
        """Write the items of the queue until it has None; set each event once all before it is written."""
        items, lines, size = self._items, list[bytes](), 0
        while True:
            item = items.get()
            if isinstance(item, bytes):
                lines.append(item)
                size += len(item)
                if size < WRITE_BYTES and not items.empty():
                    continue
            if lines:
                self._write_lines(lines, is_last=items.empty())
                self._done_bytes += size
                lines, size = [], 0
            if isinstance(item, threading.Event):
                item.set()
            elif item is None:
                return

    def _write_lines(self, lines: Sequence[bytes], is_last: bool) -> None:
        """Write `lines`; if none waits behind them, tell how many were dropped since this was last told."""
        if not _write(self._stream, b"".join(lines)):
            self._lost += len(lines)
        elif is_last and (count := self.dropped - self._told):
            self._told += count
            text = f"{count} log lines dropped: standard error did not take them in time"
            _write(self._stream, self._encoded(_record(text)))


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, "", 0, message, None, None)


def _unformatted(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """A record in place of one that can't be formatted; what it was given may be secret."""
    where = f"{record.pathname}:{record.lineno}"
    return _record(f"{record.name} has logged what can't be formatted ({type(error).__name__}), in {where}")


def _write(stream: TextIO | None, data: bytes) -> bool:
    """Write `data` to the file of `stream`; return whether all of it was taken.

    The stream itself is used only if it has no file: a thread that is stuck in a stream would end the
    interpreter with an error.
    """
    if stream is None:
        return False
    try:
        try:
            file = stream.fileno()
        except (AttributeError, io.UnsupportedOperation):  # it is in memory, a notebook's or an author's
            stream.write(data.decode())
            stream.flush()
        else:
            _write_to_file(file, data)
    except (OSError, ValueError):  # nobody reads it, a full disk, or it is closed
        return False
    return True


def _write_to_file(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(file, rest) :]
        except BlockingIOError:  # whoever shares the file has made it non-blocking
            poll = select.poll()
            poll.register(file, select.POLLOUT)
            poll.poll()
