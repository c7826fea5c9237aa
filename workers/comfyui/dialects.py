"""The choice of the model server and its dialect, by `COMFYUI_DIALECT` or by detection.

Without `COMFYUI_DIALECT`, all addresses are probed until one answers as its dialect does. The dialects
themselves are in native.py, wrapper.py and runsync.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import anyio

from lib.backend import Backend, ModelCaller
from lib.errors import ModelUnreachable
from workers.comfyui.data_types import GenerateInput
from workers.comfyui.images import ImageFormat
from workers.comfyui.native import Native
from workers.comfyui.results import JobResults
from workers.comfyui.runsync import Runsync
from workers.comfyui.settings import DEFAULTS, ComfySettings, DialectName
from workers.comfyui.wrapper import Wrapper

log = logging.getLogger(__name__)

POLL_S = 1.0  # between two probes
PROBE_LIMIT_S = 5.0
# Probes don't reuse connections, since another server may listen at the address by then.
_UNPOOLED = {"Connection": "close"}
# For each dialect a path that only its servers have, and their status to a GET of it.
_PROBES: Mapping[DialectName, tuple[str, int]] = {
    DialectName.WRAPPER: ("/generate/sync", 405),
    DialectName.NATIVE: ("/system_stats", 200),
    DialectName.RUNSYNC: ("/runsync", 405),
}


class Dialect(Protocol):
    """The calls of one kind of model server. Their results are answers for the client."""

    def check(self, payload: GenerateInput) -> None: ...

    def generate(self, model: ModelCaller, payload: GenerateInput) -> AbstractAsyncContextManager[Any]: ...

    def stream(self, model: ModelCaller, payload: GenerateInput) -> AbstractAsyncContextManager[Any]: ...

    def start(self, model: ModelCaller, payload: GenerateInput) -> AbstractAsyncContextManager[Any]: ...

    def result(self, model: ModelCaller, job_id: str) -> AbstractAsyncContextManager[Any]: ...

    def cancel(self, model: ModelCaller, job_id: str) -> AbstractAsyncContextManager[Any]: ...

    def queue_info(self, model: ModelCaller) -> AbstractAsyncContextManager[Any]: ...

    def images(
        self, model: ModelCaller, graph: dict[str, Any], image_format: ImageFormat | None = None
    ) -> AbstractAsyncContextManager[Any]: ...


@dataclass
class Choice:
    """The model server and its dialect: set by `COMFYUI_DIALECT`, or else unknown until `detect` finds it."""

    settings: ComfySettings
    results: JobResults = field(init=False, default_factory=JobResults)
    _found: tuple[DialectName, str] | None = field(init=False)

    def __post_init__(self) -> None:
        known = self.settings.dialect is not None
        self._found = self.settings.candidates[0] if known else None

    @property
    def known(self) -> bool:
        """Whether the dialect is set or detected."""
        return self._found is not None

    @property
    def name(self) -> str:
        """The dialect's name, or "unknown"."""
        return self._found[0].value if self._found else "unknown"

    @property
    def dialect(self) -> Dialect:
        """The calls of the model server. Raises `ModelUnreachable` (502) while it is unknown."""
        name, url = self._located()
        if name is DialectName.WRAPPER:
            return Wrapper(url, self.settings.comfyui_url, self.settings.concurrency > 1)
        return (
            Runsync(url)
            if name is DialectName.RUNSYNC
            else Native(url, self.settings.bucket, self.settings.input_limits, self.results)
        )

    @property
    def comfyui_url(self) -> str:
        """The URL of ComfyUI: the model server, or what is behind it. Raises `ModelUnreachable` (502)."""
        name, url = self._located()
        return url if name is DialectName.NATIVE else self.settings.comfyui_url

    @asynccontextmanager
    async def detect(self, backend: Backend) -> AsyncGenerator[None, None]:
        """A lifecycle that waits for a healthy model server, and then watches its health."""
        addresses = ", ".join(f"{url} ({name.value})" for name, url in self.settings.candidates)
        log.info("COMFYUI_DIALECT is not set: probing %s", addresses)
        self._found = found = await _detect(backend, self.settings.candidates)
        log.info("found a model server of the dialect %s at %s", found[0].value, found[1])
        backend.session.set_server_url(found[1])
        health = self.settings.model.health or DEFAULTS[found[0]].health
        if health is None:
            yield
            return
        url = health if "://" in health else found[1] + health
        await _until_healthy(backend, url)
        async with anyio.create_task_group() as group:
            group.start_soon(backend.watch_health, url, name="health check")
            yield
            group.cancel_scope.cancel()

    def _located(self) -> tuple[DialectName, str]:
        if self._found is None:
            raise ModelUnreachable("no model server has answered yet")
        return self._found


async def _detect(
    backend: Backend, candidates: tuple[tuple[DialectName, str], ...]
) -> tuple[DialectName, str]:
    """Probe `candidates` until one answers as its dialect does; if several do, return the first of these."""
    while True:
        answers = await asyncio.gather(
            *(_answers(backend, url + _PROBES[name][0], _PROBES[name][1]) for name, url in candidates)
        )
        for candidate, answered in zip(candidates, answers, strict=True):
            if answered:
                return candidate
        await anyio.sleep(POLL_S)


async def _until_healthy(backend: Backend, url: str) -> None:
    """Return once the health check at `url` answers 200."""
    while True:
        if await _answers(backend, url, 200):
            return
        await anyio.sleep(POLL_S)


async def _answers(backend: Backend, url: str, status: int) -> bool:
    try:
        with anyio.fail_after(PROBE_LIMIT_S):
            async with backend.session.get(url, headers=_UNPOOLED) as answer:
                return answer.status == status
    except (aiohttp.ClientError, OSError, TimeoutError, asyncio.TimeoutError):
        return False
