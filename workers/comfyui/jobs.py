"""A prompt's way through ComfyUI: submitted, followed to its end, or stopped when nobody waits for it.

Owns what the worker knows of one prompt, and the rule that no other prompt is ever touched. The WebSocket
makes it quick; what became of the prompt is always read from its history, so that nothing depends on events
that were lost.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import anyio

from lib.errors import ModelTimedOut, ModelUnreachable, WorkerError, async_result_or_error
from workers.comfyui.api import IMAGE, ComfyApi, Event, PromptRefused, Queued

log = logging.getLogger(__name__)

# Without news, the queue and the history are looked at after so long, in seconds: at first, then ever less
# often, at most where events come, at most where none do.
FIRST_LOOK_S = 0.25
MAX_LOOK_S = 5.0
MAX_BLIND_LOOK_S = 1.0
# An event says that the prompt ends, or that the queue moves: ComfyUI has written it down in a moment.
SOON_S = 0.02
# After its end, a prompt's last events are there within so long, seconds.
LAST_EVENTS_S = 2.0
# Stopping a prompt for a client that has left may take so long, seconds.
CANCEL_LIMIT_S = 10.0
# A prompt whose submission was cut short may turn up in the queue for so long.
TURN_UP_S = 2.0
TURN_UP_POLL_S = 0.1

# This node sends its images over the WebSocket and leaves no trace of them in the history.
SENDING_NODE = "SaveImageWebsocket"
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class Waiting:
    """In the queue, behind `position` others of `size` prompts in all."""

    position: int
    size: int


@dataclass(frozen=True)
class Working:
    """At work on a node: `step` of `steps`, 0 of 0 where it has none."""

    node_id: str
    node_type: str
    step: int = 0
    steps: int = 0


@dataclass(frozen=True)
class SentImage:
    """An image that a node sent instead of saving it."""

    node_id: str
    mimetype: str
    content: bytes


Progress = Waiting | Working


class Job:
    """One prompt. `node_errors` says what is wrong with outputs that ComfyUI left out.

    Once it is over, `entry` is its history, and `images` are those that are in no history.
    """

    def __init__(self, api: ComfyApi, graph: dict[str, Any]) -> None:
        self.api = api
        self.graph = graph
        self.node_errors: dict[str, Any] = {}
        self.entry: dict[str, Any] = {}
        self.images: list[SentImage] = []
        self._id = str(uuid.uuid4())
        self._client_id = uuid.uuid4().hex
        self._events = api.events(self._client_id)
        self._began_s = _now_s()
        self._submitted = False
        self._over = False
        self._told: Progress | None = None
        self._saw_all = True
        self._ended = False

    @classmethod
    @asynccontextmanager
    async def submitted(cls, api: ComfyApi, graph: dict[str, Any]) -> AsyncGenerator[Job, None]:
        """A job for `graph`, in ComfyUI's queue. Leaving the block before it is over stops it there.

        Raises `PromptRefused`, `ModelUnreachable` (502), `ModelTimedOut` (504).
        """
        job = cls(api, graph)
        async with job._events:
            job._saw_all = job._events.connected
            try:
                await job._submit()
                yield job
            finally:
                if not job._over:
                    await job._stop()

    async def follow(self) -> AsyncGenerator[Progress | None, None]:
        """What happens to the prompt, until it is over and `entry` is its history; None: nothing new.

        Raises `ModelUnreachable` (502) where it is gone, as after a restart of ComfyUI, and `ModelTimedOut`.
        """
        looks = _Looks()
        while True:
            connected = self._events.connected
            event = await self._events.next(max(0.0, min(looks.at_s, self._deadline_s) - _now_s()))
            if _now_s() >= self._deadline_s:
                raise ModelTimedOut("the model server took too long")
            progress = None if event is None else self._read(event)
            if progress is not None:
                looks.put_off()
            elif event is not None:
                looks.hasten(_worth_a_look_in_s(event, self._id, isinstance(self._told, Working)))
            elif connected and not self._events.connected:
                self._saw_all = False
                looks.hasten(FIRST_LOOK_S)
            if _now_s() >= looks.at_s:
                seen = await self._look()
                if self._over:
                    await self._take_images()
                    return
                # A look tells less than events do, but for the queue.
                progress = progress if isinstance(self._told, Working) else seen
                if not self._events.connected:
                    await self._events.connect()
                looks.done(self._events.connected)
                yield None
            if progress is not None and progress != self._told:
                self._told = progress
                yield progress

    async def finished(self) -> dict[str, Any]:
        """The prompt's history, once it is over. Raises what `follow` raises."""
        async for _ in self.follow():
            pass
        return self.entry

    @property
    def _deadline_s(self) -> float:
        limit_s = self.api.limit_s
        return float("inf") if limit_s is None else self._began_s + limit_s

    async def _submit(self) -> None:
        try:
            self._id, self.node_errors = await self.api.submit(self.graph, self._id, self._client_id)
            self._submitted = True
        except PromptRefused:
            self._over = True
            raise

    async def _look(self) -> Progress | None:
        """Where the prompt is. Sets `entry` when it is over; raises `ModelUnreachable` when it is nowhere."""
        if await self._has_ended():
            return None
        queue = await self.api.queue()
        if any(map(self._is_ours, queue.running)):
            return Working("", "")
        ours = next(filter(self._is_ours, queue.pending), None)
        if ours is not None:
            before = sum(other.number < ours.number for other in queue.pending)
            return Waiting(before + len(queue.running), len(queue.pending) + len(queue.running))
        if await self._has_ended():  # between the first look and the second
            return None
        self._over = True
        raise ModelUnreachable("the prompt is gone from ComfyUI's queue and history: was it restarted?")

    def _read(self, event: Event) -> Working | None:
        """The progress that `event` tells. An image is kept, unless it is a preview of another node's."""
        if event.type == IMAGE and isinstance(self._told, Working) and self._told.node_type == SENDING_NODE:
            self.images.append(SentImage(self._told.node_id, event.data["mimetype"], event.image))
        self._ended = self._ended or _is_end(event, self._id)
        return _progress(event, self._id, self.graph)

    async def _take_images(self) -> None:
        """Read the images that are still on their way, where the graph sends any.

        Raises `ModelUnreachable` (502) where some may never come.
        """
        if not any(node.get("class_type") == SENDING_NODE for node in self.graph.values()):
            return
        while self._saw_all and not self._ended:
            event = await self._events.next(LAST_EVENTS_S)
            self._saw_all = event is not None
            self._told = (self._read(event) if event else None) or self._told
        if not self._saw_all:
            raise ModelUnreachable(f"the WebSocket dropped, and with it images of {SENDING_NODE}")

    async def _has_ended(self) -> bool:
        entry = await self.api.history(self._id)
        if entry is not None:
            self.entry, self._over = entry, True
        return self._over

    def _is_ours(self, queued: Queued) -> bool:
        return queued.prompt_id == self._id or queued.client_id == self._client_id

    async def _stop(self) -> None:
        """Stop the prompt, to the end of that: a client's leaving may end its request more than once."""
        stopping = asyncio.ensure_future(self._stop_in_time())
        with anyio.CancelScope(shield=True):
            try:
                await asyncio.wait({stopping})
            except asyncio.CancelledError:
                await asyncio.wait({stopping})
                raise

    async def _stop_in_time(self) -> None:
        with anyio.move_on_after(CANCEL_LIMIT_S) as scope:
            failure = await async_result_or_error(self._take_back())
            if failure is not None:
                level = logging.WARNING if isinstance(failure, WorkerError) else logging.ERROR
                log.log(level, "prompt %s could not be stopped: %s", self._id, failure)
        if scope.cancelled_caught:
            log.warning("prompt %s could not be stopped within %g s", self._id, CANCEL_LIMIT_S)

    async def _take_back(self) -> None:
        """Delete our prompt from the queue, or interrupt it where it runs; never another's."""
        turns_up_until_s = _now_s() + (0.0 if self._submitted else TURN_UP_S)
        while True:
            queue = await self.api.queue()
            waits = next(filter(self._is_ours, queue.pending), None)
            if waits is not None:
                await self.api.delete(waits.prompt_id)
                queue = await self.api.queue()  # it may have begun meanwhile
            runs = next(filter(self._is_ours, queue.running), None)
            if runs is not None:
                await self.api.interrupt(runs.prompt_id)
            if waits or runs or _now_s() >= turns_up_until_s:
                return
            await anyio.sleep(TURN_UP_POLL_S)


class _Looks:
    """When the queue and the history are looked at next, `at_s`: at once, then as news come or fail."""

    def __init__(self) -> None:
        self.at_s = _now_s()
        self._pause_s = FIRST_LOOK_S
        self._heard = False

    def put_off(self) -> None:
        """The prompt's events come: they tell more."""
        self._heard = True
        self._pause_s = MAX_LOOK_S
        self.at_s = _now_s() + self._pause_s

    def hasten(self, in_s: float | None) -> None:
        """It is worth a look in so many seconds; None: it isn't."""
        if in_s is not None:
            self._pause_s = max(in_s, SOON_S)
            self.at_s = min(self.at_s, _now_s() + in_s)

    def done(self, connected: bool) -> None:
        """A look found nothing."""
        longest_s = MAX_LOOK_S if self._heard and connected else MAX_BLIND_LOOK_S
        self._pause_s = min(2 * self._pause_s, longest_s)
        self.at_s = _now_s() + self._pause_s


def _now_s() -> float:
    return anyio.current_time()


def _worth_a_look_in_s(event: Event, prompt_id: str, works: bool) -> float | None:
    """In how many seconds `event` makes a look worth while; None: it doesn't."""
    if _is_end(event, prompt_id):
        return SOON_S if event.type in _ENDS else 0.0  # the very last: all is written down
    return SOON_S if event.type == "status" and not works else None  # the queue has moved


def _is_end(event: Event, prompt_id: str) -> bool:
    if event.data.get("prompt_id") != prompt_id:
        return False
    return event.type in _ENDS or (event.type == "executing" and event.data.get("node") is None)


def _progress(event: Event, prompt_id: str, graph: dict[str, Any]) -> Working | None:
    """What `event` says about the work on our prompt."""
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
    # A node inside of another's expansion has an id that no graph of the client's has.
    node: dict[str, Any] = graph.get(node_id) or {}
    steps = int(maximum) if isinstance(maximum, (int, float)) else 0
    step = int(value) if isinstance(value, (int, float)) else 0
    return Working(node_id, str(node.get("class_type", "")), *((step, steps) if steps > 1 else (0, 0)))
