"""The thread that watches the GPUs, and the task that owns it (docs/operating.md, "GPU health").

Owns when NVML is asked. The thread is not of the pool, and the process does not wait for it at its end: a
call may hang for ever in the driver of a broken GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import anyio

from lib.errors import result_or_error
from lib.gpu.health import GpuHealth
from lib.gpu.nvml import Nvml, NvmlUnavailable, import_nvml, open_nvml
from lib.runtime.clock import Clock, wait_for

log = logging.getLogger(__name__)

POLL_S = 5.0
# How long one wait for an event lasts. Only between two of them does the thread see that it should end. The
# events are waited for all the time: of several, NVML gives only the last one's XID.
EVENT_WAIT_S = 0.2
# How long the worker's stop waits for the thread.
END_LIMIT_S = 1.0


class GpuWatch:
    """Passes readings and events to `health`. `load` returns NVIDIA's library, in the thread."""

    def __init__(self, health: GpuHealth, clock: Clock, load: Callable[[], Any] = import_nvml) -> None:
        self._health = health
        self._clock = clock
        self._load = load

    async def follow(self) -> None:
        """Watch until cancelled; return at once if NVML, a driver or a GPU is missing."""
        loop, ended, stop = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def post(call: Callable[..., object], *args: Any) -> None:
            # A thread that was left behind may come back when the loop is closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call, *args)

        def run() -> None:
            failure = result_or_error(lambda: self._watch(post, stop))
            if isinstance(failure, Exception):
                log.error("GPU health has ended: it failed", exc_info=failure)
            post(ended.set)

        threading.Thread(target=run, name="GPU health", daemon=True).start()
        try:
            while not await wait_for(self._clock, ended, POLL_S):
                self._health.note_time()
        finally:
            stop.set()
            with anyio.move_on_after(END_LIMIT_S, shield=True):
                await ended.wait()

    def _watch(self, post: Callable[..., None], stop: threading.Event) -> None:
        try:
            nvml = open_nvml(self._load)
        except NvmlUnavailable as e:
            level = logging.DEBUG if e.is_absent else logging.WARNING
            log.log(level, "GPU health is off, NVML can't be used: %s", e)
            return
        try:
            self._read_and_wait(nvml, post, stop)
        finally:
            nvml.close()

    def _read_and_wait(self, nvml: Nvml, post: Callable[..., None], stop: threading.Event) -> None:
        while not stop.is_set():
            readings = nvml.read()
            next_s = self._clock.monotonic() + POLL_S
            post(self._health.note_readings, readings)
            while not stop.is_set() and self._clock.monotonic() < next_s:
                xid = nvml.next_xid(EVENT_WAIT_S, stop)
                if xid is not None:
                    post(self._health.note_xid, xid)
