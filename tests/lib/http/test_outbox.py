"""Writes of one turn are made together, each once and in their order."""

from __future__ import annotations

import pytest

from lib.http.outbox import Outbox
from tests.event_loop import run_event_loop_turns


class NotingWriter:
    """Notes its flushes; `error` is raised in each."""

    def __init__(self, name: str, flushed: list[str], error: Exception | None = None) -> None:
        self._name = name
        self._flushed = flushed
        self._error = error

    def flush(self) -> None:
        self._flushed.append(self._name)
        if self._error is not None:
            raise self._error


async def test_what_comes_together_is_written_at_the_end_of_the_turn() -> None:
    outbox, flushed = Outbox(["a", "b", "c"], ["c"]), list[str]()
    for turn in (["a", "b"], ["c"]):
        flushed.clear()
        for name in turn:
            outbox.add(NotingWriter(name, flushed))
        assert flushed == []
        await run_event_loop_turns()
        assert flushed == turn


async def test_the_only_busy_connection_writes_at_once() -> None:
    connections, idle, flushed = ["a", "b", "c"], ["b", "c"], list[str]()
    outbox = Outbox(connections, idle)
    outbox.add(NotingWriter("a", flushed))
    assert flushed == ["a"]
    idle.remove("b")
    outbox.add(NotingWriter("b", flushed))
    assert flushed == ["a"]
    await run_event_loop_turns()
    assert flushed == ["a", "b"]


async def test_a_write_that_fails_is_logged_and_the_others_are_made(caplog: pytest.LogCaptureFixture) -> None:
    outbox, flushed = Outbox(["failing", "last"], []), list[str]()
    outbox.add(NotingWriter("failing", flushed, OSError("gone")))
    outbox.add(NotingWriter("last", flushed))
    await run_event_loop_turns()
    assert flushed == ["failing", "last"]
    assert "a write failed" in caplog.text


async def test_before_is_called_before_each_write() -> None:
    connections, idle, notes = ["a", "b"], ["b"], list[str]()
    outbox = Outbox(connections, idle)
    outbox.before = lambda: notes.append("before")
    outbox.add(NotingWriter("a", notes))
    assert notes == ["before", "a"]
    idle.clear()
    notes.clear()
    outbox.add(NotingWriter("a", notes))
    outbox.add(NotingWriter("b", notes))
    await run_event_loop_turns()
    assert notes == ["before", "a", "b"]
