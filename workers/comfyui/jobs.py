"""Jobs: one prompt in ComfyUI, from its submission to its end.

Owns the state of a prompt, and its removal from ComfyUI when its client disconnects. No other prompt is ever
removed. Events of the WebSocket only make this faster: the result is always read from the history, so that
lost events change nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import anyio

from lib.errors import ModelTimedOut, ModelUnreachable
from workers.comfyui.api import IMAGE, ComfyApi, Event, PromptRefused, Queued, Submission
from workers.comfyui.cleanup import clean_up

# Seconds between two polls of the queue and the history without an event: the first interval, which doubles,
# and the longest one with and without a working WebSocket.
FIRST_POLL_S = 0.25
MAX_POLL_S = 5.0
MAX_POLL_WITHOUT_EVENTS_S = 1.0
# Seconds until ComfyUI has written to its history or queue what an event announces.
SOON_S = 0.02
# Seconds to wait for each of a prompt's last events after its end.
LAST_EVENTS_S = 2.0
# Seconds during which a prompt whose submission was cancelled may still appear in the queue.
LATE_SUBMISSION_S = 2.0
LATE_SUBMISSION_POLL_S = 0.1

# This node sends its images over the WebSocket. They are not in the history.
SENDING_NODE = "SaveImageWebsocket"
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class Waiting:
    """In the queue of `size` prompts, after `position` others."""

    position: int
    size: int


@dataclass(frozen=True)
class Working:
    """Executing a node, at `step` of `steps`; both are 0 for a node without steps."""

    node_id: str
    node_type: str
    step: int = 0
    steps: int = 0


@dataclass(frozen=True)
class SentImage:
    """An image that a node sent over the WebSocket instead of saving it."""

    node_id: str
    mimetype: str
    content: bytes


Progress = Waiting | Working


class Job:
    """One prompt. `node_errors` are the errors of invalid outputs, which ComfyUI doesn't generate.

    When the job is finished, `entry` is its history, and `images` are the sent images, which are not in it.
    """

    def __init__(self, api: ComfyApi, submission: Submission) -> None:
        self.api = api
        self.graph = submission.graph
        self.node_errors: dict[str, Any] = {}
        self.entry: dict[str, Any] = {}
        self.images: list[SentImage] = []
        self._extra_data = submission.extra_data
        self._id = str(uuid.uuid4())
        self._client_id = uuid.uuid4().hex
        self._events = api.events(self._client_id)
        self._began_s = _now_s()
        self._submitted = False
        self._is_finished = False
        self._last_progress: Progress | None = None
        self._has_all_events = True
        self._saw_end = False

    @classmethod
    @asynccontextmanager
    async def submitted(cls, api: ComfyApi, submission: Submission) -> AsyncGenerator[Job, None]:
        """Queue `submission`. Leaving the block before the job is finished removes it from ComfyUI.

        One with `extra_data`, which may be keys, is removed from the history too. Raises
        `PromptRefused`, `ModelUnreachable` (502), `ModelTimedOut` (504).
        """
        job = cls(api, submission)
        async with job._events:
            job._has_all_events = job._events.connected
            try:
                await job._submit()
                yield job
            finally:
                await job._leave_nothing()

    async def run_again(self, graph: dict[str, Any]) -> None:
        """Submit `graph` in place of that of this job, which is finished. Raises as `submitted` does."""
        await self._leave_nothing()
        self.graph, self.entry, self.images = graph, {}, []
        self._id = str(uuid.uuid4())
        self._submitted = self._is_finished = self._saw_end = False
        self._last_progress = None
        await self._submit()

    async def follow(self) -> AsyncGenerator[Progress | None, None]:
        """Yield the job's progress until it is finished; None after each poll of ComfyUI.

        Raises `ModelUnreachable` (502) if ComfyUI has lost the prompt, as by a restart, and `ModelTimedOut`
        (504).
        """
        polls = _PollTimer()
        while True:
            connected = self._events.connected
            event = await self._events.next(max(0.0, min(polls.at_s, self._deadline_s) - _now_s()))
            if _now_s() >= self._deadline_s:
                raise ModelTimedOut("the model server took too long")
            progress = None if event is None else self._read(event)
            if progress is not None:
                polls.put_off()
            elif event is not None:
                polls.hasten(_poll_delay_s(event, self._id, isinstance(self._last_progress, Working)))
            elif connected and not self._events.connected:
                self._has_all_events = False
                polls.hasten(FIRST_POLL_S)
            if _now_s() >= polls.at_s:
                seen = await self._poll()
                if self._is_finished:
                    async for progress in self._unread_progress():
                        yield progress
                    await self._take_images()
                    return
                # Events tell more than a poll, except about the queue.
                progress = progress if isinstance(self._last_progress, Working) else seen
                if not self._events.connected:
                    await self._events.connect()
                polls.done(self._events.connected)
                yield None
            if progress is not None and progress != self._last_progress:
                self._last_progress = progress
                yield progress

    async def finished(self) -> dict[str, Any]:
        """Wait for the job's end and return its history. Raises the errors of `follow`."""
        async for _ in self.follow():
            pass
        return self.entry

    @property
    def _deadline_s(self) -> float:
        limit_s = self.api.limit_s
        return float("inf") if limit_s is None else self._began_s + limit_s

    async def _submit(self) -> None:
        try:
            self._id, self.node_errors = await self.api.submit(
                Submission(self.graph, self._extra_data), self._id, self._client_id
            )
            self._submitted = True
        except PromptRefused:
            self._is_finished = True
            raise

    async def _poll(self) -> Progress | None:
        """Find the prompt in ComfyUI. Sets `entry` if finished; raises `ModelUnreachable` if it is gone."""
        if await self._check_history():
            return None
        queue = await self.api.queue()
        if any(map(self._is_ours, queue.running)):
            return Working("", "")
        ours = next(filter(self._is_ours, queue.pending), None)
        if ours is not None:
            before = sum(other.number < ours.number for other in queue.pending)
            return Waiting(before + len(queue.running), len(queue.pending) + len(queue.running))
        if await self._check_history():  # between the two calls
            return None
        self._is_finished = True
        raise ModelUnreachable("ComfyUI has neither the prompt nor its history: was it restarted?")

    def _read(self, event: Event) -> Working | None:
        """The progress in `event`. Keeps an image of the sending node; images of other nodes are previews."""
        if (
            event.type == IMAGE
            and isinstance(self._last_progress, Working)
            and self._last_progress.node_type == SENDING_NODE
        ):
            self.images.append(SentImage(self._last_progress.node_id, event.data["mimetype"], event.image))
        self._saw_end = self._saw_end or _is_end(event, self._id)
        return _progress(event, self._id, self.graph)

    async def _unread_progress(self) -> AsyncGenerator[Progress, None]:
        """Yield the progress in events that arrived before a poll found the job finished."""
        while (event := await self._events.next(0.0)) is not None:
            progress = self._read(event)
            if progress is not None and progress != self._last_progress:
                self._last_progress = progress
                yield progress

    async def _take_images(self) -> None:
        """Wait for the last sent images, if the graph sends any.

        Raises `ModelUnreachable` (502) if some may be lost.
        """
        if not any(node.get("class_type") == SENDING_NODE for node in self.graph.values()):
            return
        while self._has_all_events and not self._saw_end:
            event = await self._events.next(LAST_EVENTS_S)
            self._has_all_events = event is not None
            self._last_progress = (self._read(event) if event else None) or self._last_progress
        if not self._has_all_events:
            raise ModelUnreachable(f"the WebSocket dropped: images of {SENDING_NODE} may be lost")

    async def _check_history(self) -> bool:
        entry = await self.api.history(self._id)
        if entry is not None:
            self.entry, self._is_finished = entry, True
        return self._is_finished

    def _is_ours(self, queued: Queued) -> bool:
        return queued.prompt_id == self._id or queued.client_id == self._client_id

    async def _leave_nothing(self) -> None:
        """Remove the prompt, unless it is finished, and its extra data."""
        what = f"prompt {self._id}"
        if not self._is_finished:
            await clean_up(self._delete_or_interrupt(), what)
        if self._extra_data and self._submitted:
            await clean_up(self._forget(), f"the history of {what}")

    async def _forget(self) -> None:
        while True:  # an interrupted prompt comes into the history when it has stopped
            queue = await self.api.queue()
            if not any(map(self._is_ours, queue.running)):
                break
            await anyio.sleep(LATE_SUBMISSION_POLL_S)
        await self.api.forget(self._id)

    async def _delete_or_interrupt(self) -> None:
        """Delete our prompt from the queue, or interrupt it if it runs; never another's."""
        until_s = _now_s() + (0.0 if self._submitted else LATE_SUBMISSION_S)
        while True:
            queue = await self.api.queue()
            waits = next(filter(self._is_ours, queue.pending), None)
            if waits is not None:
                await self.api.delete(waits.prompt_id)
                queue = await self.api.queue()  # it may have started meanwhile
            runs = next(filter(self._is_ours, queue.running), None)
            if runs is not None:
                await self.api.interrupt(runs.prompt_id)
            if waits or runs or _now_s() >= until_s:
                return
            await anyio.sleep(LATE_SUBMISSION_POLL_S)


class _PollTimer:
    """The time of the next poll of queue and history, `at_s`. The first is immediate."""

    def __init__(self) -> None:
        self.at_s = _now_s()
        self._pause_s = FIRST_POLL_S
        self._heard = False

    def put_off(self) -> None:
        """An event of the prompt arrived, so that a poll is not needed soon."""
        self._heard = True
        self._pause_s = MAX_POLL_S
        self.at_s = _now_s() + self._pause_s

    def hasten(self, in_s: float | None) -> None:
        """Poll in `in_s` seconds at the latest; None: no change."""
        if in_s is not None:
            self._pause_s = max(in_s, SOON_S)
            self.at_s = min(self.at_s, _now_s() + in_s)

    def done(self, connected: bool) -> None:
        """A poll found nothing new: double the interval."""
        longest_s = MAX_POLL_S if self._heard and connected else MAX_POLL_WITHOUT_EVENTS_S
        self._pause_s = min(2 * self._pause_s, longest_s)
        self.at_s = _now_s() + self._pause_s


def _now_s() -> float:
    return anyio.current_time()


def _poll_delay_s(event: Event, prompt_id: str, works: bool) -> float | None:
    """Seconds until `event` makes a poll useful; None: it doesn't."""
    if _is_end(event, prompt_id):
        return SOON_S if event.type in _ENDS else 0.0  # the last event: the history is complete
    return SOON_S if event.type == "status" and not works else None  # the queue has changed


def _is_end(event: Event, prompt_id: str) -> bool:
    if event.data.get("prompt_id") != prompt_id:
        return False
    return event.type in _ENDS or (event.type == "executing" and event.data.get("node") is None)


def _progress(event: Event, prompt_id: str, graph: dict[str, Any]) -> Working | None:
    """The progress of our prompt in `event`, if any."""
    data = event.data
    if data.get("prompt_id") != prompt_id:
        return None
    if event.type == "execution_start":
        return Working("", "")
    if event.type == "executing" and isinstance(data.get("node"), str):
        return _working(graph, data["node"], 0, 0)
    if event.type == "progress":
        return _working(graph, data.get("node"), data.get("value"), data.get("max"))
    if event.type == "progress_state" and isinstance(data.get("nodes"), dict):
        for node_id, node in cast("dict[str, dict[str, Any]]", data["nodes"]).items():
            if node.get("state") == "running":
                return _working(graph, node_id, node.get("value"), node.get("max"))
    return None


def _working(graph: dict[str, Any], node_id: Any, value: Any, maximum: Any) -> Working | None:
    if not isinstance(node_id, str):
        return None
    # A node that another node has expanded to has an id that is not in the client's graph.
    node: dict[str, Any] = graph.get(node_id) or {}
    steps = int(maximum) if isinstance(maximum, (int, float)) else 0
    step = int(value) if isinstance(value, (int, float)) else 0
    return Working(node_id, str(node.get("class_type", "")), *((step, steps) if steps > 1 else (0, 0)))
