"""Jobs with prepared events and answers of ComfyUI, whose order is fixed."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, cast

from tests.workers.comfyui.graphs import image
from workers.comfyui.api import ComfyApi, Event, Submission
from workers.comfyui.jobs import Job, Working


class PreparedEvents:
    """A WebSocket that has received `events` already."""

    connected = True

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = list(events)

    async def __aenter__(self) -> PreparedEvents:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pass

    async def next(self, limit_s: float) -> Event | None:
        return self._events.pop(0) if self._events else None


class FinishedPrompt:
    """A ComfyUI in which the prompt is finished as soon as it is submitted."""

    limit_s = None

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events

    def events(self, client_id: str) -> PreparedEvents:
        return PreparedEvents(self._events)

    async def submit(self, graph: Any, prompt_id: str, client_id: str) -> tuple[str, dict[str, Any]]:
        return "prompt", {}

    async def history(self, prompt_id: str) -> dict[str, Any]:
        return {"outputs": {}}


def event(kind: str, **data: Any) -> Event:
    return Event(kind, {"prompt_id": "prompt", **data})


async def test_progress_that_arrived_before_the_end_was_seen_is_reported() -> None:
    """A busy machine may poll the history before it has read the events that preceded the end."""
    events = [
        Event("status", {}),
        event("executing", node="5"),
        *(event("progress", node="3", value=step, max=3) for step in (1, 2, 3)),
        event("executing", node=None),
    ]
    api = cast(ComfyApi, FinishedPrompt(events))
    async with Job.submitted(api, Submission(image())) as job:
        progress = [p async for p in job.follow()]

    assert progress == [
        Working("5", "EmptyLatentImage"),
        *(Working("3", "KSampler", step, 3) for step in (1, 2, 3)),
    ]
