"""The answer to `/generate/stream` in the native dialect: server-sent events.

Owns the events and their times. The result in the last event is in generate_request.py.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import anyio
from aiohttp import web

from lib.errors import WorkerError
from workers.comfyui import reruns
from workers.comfyui.generate_request import GenerateRequest
from workers.comfyui.jobs import Job, Progress, Waiting
from workers.comfyui.spool import SpooledAnswer

SSE_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
# Proxies close connections without data for a minute. A comment is sent after this many seconds without an
# event.
SILENCE_S = 15.0


@dataclass
class ProgressStream:
    """The answer to `/generate/stream`: server-sent events, of which `final_result` is the last."""

    request: GenerateRequest
    job: Job
    _last_s: float = field(init=False, default_factory=anyio.current_time)

    async def send(self, client_request: web.Request) -> web.StreamResponse:
        """Send the whole answer. A failure is in `final_result`; one with status 5xx counts as errored."""
        response = web.StreamResponse(headers=SSE_HEADERS)
        await response.prepare(client_request)
        await self._write(response, self._event("queued", "Request queued"))
        async with SpooledAnswer() as spool:
            try:
                async with aclosing(reruns.follow(self.job)) as news:
                    async for progress in news:
                        await self._send_progress(response, progress)
                await self._put_final(spool)
            except WorkerError as e:
                if e.status >= 500:
                    client_request["outcome"] = "errored"
                result = {"status": "final_result", "result": self.request.failure(e)}
                await response.write(
                    _sse({"request_id": self.request.id, **result, "elapsed_time": self._elapsed_s})
                )
            else:
                async for chunk in spool.chunks():
                    await response.write(chunk)
        await response.write_eof()
        return response

    async def _put_final(self, spool: SpooledAnswer) -> None:
        head = json.dumps({"request_id": self.request.id, "status": "final_result"})
        await spool.put(f'data: {head[:-1]}, "result": '.encode())
        await self.request.put_result(spool, self.job)
        await spool.put(f', "elapsed_time": {self._elapsed_s}}}\n\n'.encode())

    async def _send_progress(self, response: web.StreamResponse, progress: Progress | None) -> None:
        if progress is not None:
            await self._write(response, self._progress(progress))
        elif anyio.current_time() - self._last_s >= SILENCE_S:
            await self._write(response, b": still working\n\n")

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        self._last_s = anyio.current_time()
        await response.write(data)

    def _progress(self, progress: Progress) -> bytes:
        if isinstance(progress, Waiting):
            place = {
                "current_queue": "generation",
                "position": progress.position,
                "queue_size": progress.size,
            }
            return self._event("queued", f"{progress.position} prompts before this one", queue_position=place)
        if not progress.node_id:
            return self._event("processing", "Execution started")
        node = {"id": progress.node_id, "type": progress.node_type}
        if not progress.steps:
            return self._event("processing", f"Processing node: {progress.node_id}", node=node)
        return self._event(
            "processing",
            f"Processing node: {progress.node_id}, step {progress.step} of {progress.steps}",
            node=node,
            step=progress.step,
            steps=progress.steps,
        )

    def _event(self, status: str, message: str, **more: Any) -> bytes:
        return _sse(
            {
                "request_id": self.request.id,
                "status": status,
                "message": message,
                "timestamp": datetime.now(timezone.utc).replace(tzinfo=None).isoformat(),
                "elapsed_time": self._elapsed_s,
                **more,
            }
        )

    @property
    def _elapsed_s(self) -> float:
        return round(self.request.timings.elapsed_s, 3)


def _sse(message: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"
