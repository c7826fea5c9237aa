"""Log lines as text and as JSON, and the levels of libraries."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, TextIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.runtime.logs import JsonFormatter, LineFormat, LineWriter, TextFormatter, configure_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo the global changes of `configure_logging`."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    names = ("asyncio", "aiohttp", "urllib3", "hypothesis")
    levels = {name: logging.getLogger(name).level for name in names}
    root.handlers[:] = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def logged() -> None:
    """Return once all is written that was logged."""
    logging.getLogger().handlers[0].flush()


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    logging.getLogger("lib.x").info("state is %s", "ready")
    logging.getLogger("lib.x").debug("not this")
    logged()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(" INFO    lib.x: state is ready\n")
    assert captured.err.count("\n") == 1


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    logging.getLogger("lib.x").warning("two\nlines, a %s and \ud800", '"quote"')
    try:
        raise ValueError("bug")
    except ValueError:
        logging.getLogger("lib.x").exception("request 7: unexpected error")
    logged()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [sorted(line) for line in lines] == [
        ["level", "logger", "message", "time"],
        ["level", "logger", "message", "time", "traceback"],
    ]
    assert lines[0]["message"] == 'two\nlines, a "quote" and \ud800'
    assert (lines[0]["level"], lines[0]["logger"]) == ("WARNING", "lib.x")
    assert lines[1]["traceback"].endswith("ValueError: bug")


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_libraries_are_quiet(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level, "text")
    for name in ("aiohttp.client", "asyncio", "urllib3.connectionpool"):
        logging.getLogger(name).debug("payload")
        logging.getLogger(name).info("payload")
        logging.getLogger(name).warning("warning")
    logged()
    err = capsys.readouterr().err
    assert "payload" not in err
    assert err.count("warning") == (0 if level == "ERROR" else 3)


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    configure_logging("INFO", "text")
    logging.getLogger("lib.x").info("once")
    logged()
    assert capsys.readouterr().err.count("once") == 1


def test_the_formatter_keeps_time_in_unix_seconds() -> None:
    record = logging.LogRecord("lib.x", logging.INFO, "", 0, "message", None, None)
    assert json.loads(JsonFormatter().format(record))["time"] == pytest.approx(record.created, abs=0.001)


def test_the_arguments_of_a_line_format_are_fields(capsys: pytest.CaptureFixture[str]) -> None:
    line = LineFormat("request %s: %s%.0s%.0s", "request_id", "message", "seconds", "status")
    for form in ("text", "json"):
        configure_logging("INFO", form)
        logging.getLogger("lib.x").info(line, "a-1", "it failed\n", 0.12345678, None)
        logged()
    text, json_line = capsys.readouterr().err.splitlines()
    assert text.endswith(r" INFO    lib.x: request a-1: it failed\n")
    assert json.loads(json_line) == {
        "time": json.loads(json_line)["time"],
        "level": "INFO",
        "logger": "lib.x",
        "message": "it failed\n",
        "request_id": "a-1",
        "seconds": 0.123457,
    }


# No text of others can look like a line of the log

OTHER_CONTROLS = "\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff"
CONTROLS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + OTHER_CONTROLS
FORGED = "x\n2026-01-31 12:00:00,123 INFO    lib.access: FORGED"


def record_of(text: str, error: Exception | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, None)
    return logging.LogRecord("lib.x", logging.INFO, "", 0, "a %s b", (text,), exc_info)


@given(st.text() | st.text(alphabet=CONTROLS))
@pytest.mark.parametrize("formatter", [TextFormatter("at %(message)s"), JsonFormatter()])
def test_a_message_is_one_line_without_control_characters(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(record_of(text))
    assert not set(line) & set(CONTROLS)
    assert len(line.splitlines()) == 1
    line.encode()


@given(st.text() | st.text(alphabet=CONTROLS + "INFO "))
@pytest.mark.parametrize("formatter", [TextFormatter("at %(message)s"), JsonFormatter()])
def test_no_text_of_an_exception_begins_a_line(formatter: logging.Formatter, text: str) -> None:
    first, *further = formatter.format(record_of("", ValueError(text))).split("\n")
    assert all(line.startswith("  ") for line in further)
    assert not set("".join([first, *further])) & set(CONTROLS)


def test_text_that_can_be_shown_stays_as_it_is() -> None:
    shown = "loading \u2192 ready: caf\u00e9 \u6f22\u5b57 \N{ROCKET} C:\\new"
    assert TextFormatter("%(message)s").format(record_of(shown)) == f"a {shown} b"
    assert TextFormatter("%(message)s").format(record_of("\n\r\t\x1b[31m\x9b\u202e")) == (
        r"a \n\r\t\x1b[31m\u009b\u202e b"
    )


def test_a_traceback_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("lib.x").exception("request 7: unexpected error")
    logged()
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.endswith(" ERROR   lib.x: request 7: unexpected error")
    assert lines[0] == "  Traceback (most recent call last):"
    assert lines[-2:] == ["  ValueError: x", "  " + FORGED.split("\n")[1]]


def test_what_cannot_be_formatted_is_told_without_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    logging.getLogger("author").info("%d tokens", "secret")
    logged()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "author has logged what can't be formatted (TypeError), in " in err
    assert "secret" not in err


# Nobody who logs waits for who reads the log


def writer(stream: TextIO | None, **options: Any) -> LineWriter:
    handler = LineWriter(stream, **options)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def log_to(handler: LineWriter, *messages: str) -> None:
    for message in messages:
        handler.handle(logging.LogRecord("lib.x", logging.INFO, "", 0, message, None, None))


def read_until(file: int, end: bytes) -> bytes:
    """The text that comes out of a pipe, until that ends with `end`."""
    text = b""
    while not text.endswith(end):
        text += os.read(file, 65536)
    return text


def fill(file: int) -> int:
    """Write to a pipe until it is full; return the number of bytes."""
    os.set_blocking(file, False)
    count = 0
    try:
        while True:
            count += os.write(file, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(file, True)
    return count


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_drops_are_told_later() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        count = fill(writing)
        handler = writer(stream, max_held_bytes=10_000)
        log_to(handler, *(f"{n:0999}" for n in range(1000)))
        assert handler.dropped == 990
        end = b"990 log lines dropped: standard error did not take them in time\n"
        lines = read_until(reading, end)[count:].splitlines()
        assert [int(line) for line in lines[:-1]] == list(range(10))
        log_to(handler, "afterwards")
        assert read_until(reading, b"\n") == b"afterwards\n"
        assert handler.dropped == 990
        handler.close()
    os.close(reading)


def closed_pipe() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def closed_file() -> TextIO:
    with Path(os.devnull).open("w") as stream:
        return stream


def full_disk() -> TextIO:
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


@pytest.mark.parametrize("make", [closed_pipe, closed_file, full_disk, lambda: None])
def test_a_stream_that_takes_nothing_costs_lines_only(
    make: Callable[[], TextIO | None], capfd: pytest.CaptureFixture[str]
) -> None:
    handler = writer(stream := make())
    log_to(handler, "one", "two")
    handler.flush()
    log_to(handler, "three")
    handler.flush()
    assert handler.dropped == 3
    handler.close()
    if stream is not None:
        stream.close()
    assert capfd.readouterr() == ("", "")


def test_a_pipe_that_is_not_blocking_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "w") as stream:
        handler = writer(stream)
        log_to(handler, *(f"{n:0999}" for n in range(1000)))
        assert [int(line) for line in read_until(reading, b"999\n").splitlines()] == list(range(1000))
        handler.close()
    os.close(reading)


class Faulty(StringIO):
    """Has no file, and can't be written to until `works`."""

    works = False

    def write(self, text: str) -> int:
        if not self.works:
            raise OSError(errno.ENOSPC, "no space")
        return super().write(text)


class Replacement:
    """An author's stand-in for standard error, with no more than the methods used by `print`."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        """Do nothing."""


def test_a_stream_that_cannot_be_written_to_loses_lines_and_nothing_else() -> None:
    stream = Faulty()
    handler = writer(stream)
    log_to(handler, "one")
    handler.flush()
    stream.works = True
    log_to(handler, "two")
    handler.flush()
    handler.close()
    assert stream.getvalue().startswith("two\n")
    assert "1 log lines dropped" in stream.getvalue()


def test_what_has_no_fileno_is_written_to() -> None:
    stream = Replacement()
    handler = writer(cast("TextIO", stream))
    log_to(handler, "one")
    handler.flush()
    handler.close()
    assert stream.text == "one\n"


def test_a_stream_without_a_file_is_written_to() -> None:
    handler = writer(stream := StringIO())
    log_to(handler, "one")
    handler.flush()
    handler.close()
    assert stream.getvalue() == "one\n"


FORKING = """
import logging, os
from lib.runtime.logs import configure_logging
configure_logging("INFO", "text")
logging.info("before")
logging.getLogger().handlers[0].flush()
child = os.fork()
if child == 0:
    logging.info("in the child")
    logging.getLogger().handlers[0].flush()
    os._exit(0)
os.waitpid(child, 0)
logging.info("after")
"""
STUCK = """
import logging, sys
from lib.runtime.logs import configure_logging
configure_logging("INFO", "text")
for number in range(10_000):
    logging.info("x" * 100)
sys.stdout.write("all is logged")
"""


def run(program: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], text=True, **options)


def test_a_forked_process_logs_too_and_the_last_lines_are_written_at_the_end() -> None:
    with run(FORKING, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate()
    messages = [re.sub(".*root: ", "", line) for line in errors.splitlines()]
    assert messages == ["before", "in the child", "after"]


def test_a_process_ends_although_nobody_reads_its_log() -> None:
    reading, writing = os.pipe()
    with run(STUCK, stdout=subprocess.PIPE, stderr=writing) as process:
        os.close(writing)
        assert process.communicate() == ("all is logged", None)
    assert process.returncode == 0
    os.close(reading)


def test_a_secret_is_in_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    secret = 'a"b\\c'
    for form in ("text", "json"):
        configure_logging("INFO", form, secret)
        logging.getLogger("lib.x").info("key %s, %r", secret, {"key": secret.encode()})
        try:
            raise ValueError(f"Bearer {secret}")
        except ValueError:
            logging.getLogger("lib.x").exception("failed")
        logged()
    written = capsys.readouterr().err
    assert written.count("key ***, ") == 2
    assert written.count("Bearer ***") == 2
    assert secret not in written
