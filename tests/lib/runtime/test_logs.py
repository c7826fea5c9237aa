"""Log lines as text and as JSON, and the levels of libraries."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from lib.runtime.logs import JsonFormatter, configure_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo the global changes of `configure_logging`."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    names = ("asyncio", "aiohttp", "urllib3", "hypothesis")
    levels = {name: logging.getLogger(name).level for name in names}
    root.handlers[:] = []
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    logging.getLogger("lib.x").info("state is %s", "ready")
    logging.getLogger("lib.x").debug("not this")
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
    err = capsys.readouterr().err
    assert "payload" not in err
    assert err.count("warning") == (0 if level == "ERROR" else 3)


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    configure_logging("INFO", "text")
    logging.getLogger("lib.x").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_the_formatter_keeps_time_in_unix_seconds() -> None:
    record = logging.LogRecord("lib.x", logging.INFO, "", 0, "message", None, None)
    assert json.loads(JsonFormatter().format(record))["time"] == pytest.approx(record.created, abs=0.001)
