"""A fake ComfyUI 0.3.64, as a process: `python -m tests.workers.comfyui.fake_comfyui --log FILE`.

It answers as in recorded exchanges: `/prompt`, `/queue`, `/history`, `/interrupt`, `/view`, `/ws` and their
errors. It executes one prompt at a time and caches equal nodes. A test controls it by paths below `/test/`:
it releases nodes of the class `Hold`, loses events, drops connections, restarts the server or ends its
process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from tests.workers.comfyui.fake_nodes import (
    LOADERS,
    OUTPUT_NODES,
    error_of,
    in_order,
    invalid,
    key,
    loaded_name,
    validate,
)
from tests.workers.comfyui.images import png

MAX_UPLOAD_BYTES = 300_000
READY_LINE = "To see the GUI go to: http://127.0.0.1:"


class PromptInterrupted(Exception):
    """The prompt was interrupted while a node ran."""


class NodeFailed(Exception):
    """A node raised."""


class QueuedPrompt:
    def __init__(self, number: int, prompt_id: str, graph: dict[str, Any], extra: dict[str, Any]) -> None:
        self.number = number
        self.id = prompt_id
        self.graph = graph
        self.extra = extra
        self.outputs = [name for name, node in graph.items() if node["class_type"] in OUTPUT_NODES]
        self.interrupted = asyncio.Event()
        self.messages: list[list[Any]] = []

    @property
    def item(self) -> list[Any]:
        return [self.number, self.id, self.graph, self.extra, self.outputs]


class FakeComfyUI:
    """The server's state. `changed` is notified whenever a condition of a waiting test may have changed."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.files = itertools.count(1)
        self.pending: list[QueuedPrompt] = []
        self.running: QueuedPrompt | None = None
        self.history: dict[str, Any] = {}
        self.cache: dict[str, dict[str, Any]] = {}
        self.contents: dict[tuple[str, str, str], bytes | int] = {}
        self.inputs: dict[str, bytes] = {}
        self.loaded: list[dict[str, str]] = []
        self.extra_data: list[dict[str, Any]] = []
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.connections: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.ran: list[str] = []
        self.interrupts: list[str] = []
        self.released = asyncio.Event()
        self.mute = False
        self.loses_files = False
        self.slow = False
        self.posted: list[str] = []
        self.no_sockets = False
        self.more_work = asyncio.Event()
        self.changed = asyncio.Condition()

    # ComfyUI's own routes

    async def prompt(self, request: web.Request) -> web.Response:
        message: Any = await request.json()  # a body that is not JSON is a 500, as in ComfyUI
        if "prompt" not in message:
            return invalid("no_prompt", "No prompt provided", "No prompt provided")
        graph: dict[str, Any] = message["prompt"]
        refused, node_errors = validate(graph, self.inputs)
        if refused is not None:
            return refused
        self.posted.append(message.get("prompt_id", ""))
        await self.notify()
        if self.slow:
            await self.released.wait()
        extra = dict(message.get("extra_data", {}))
        if extra:
            self.extra_data.append(dict(extra))
        if "client_id" in message:
            extra["client_id"] = message["client_id"]
        prompt = QueuedPrompt(next(self.numbers), message.get("prompt_id") or str(uuid.uuid4()), graph, extra)
        self.pending.append(prompt)
        await self._send_status()
        self.more_work.set()
        await self.notify()
        return web.json_response(
            {"prompt_id": prompt.id, "number": prompt.number, "node_errors": node_errors}
        )

    async def exec_info(self, _request: web.Request) -> web.Response:
        return web.json_response({"exec_info": {"queue_remaining": self.remaining}})

    async def queue(self, _request: web.Request) -> web.Response:
        running = [self.running.item] if self.running else []
        return web.json_response(
            {"queue_running": running, "queue_pending": [prompt.item for prompt in self.pending]}
        )

    async def change_queue(self, request: web.Request) -> web.Response:
        message = await request.json()
        self.pending = [prompt for prompt in self.pending if prompt.id not in message.get("delete", [])]
        await self._send_status()
        await self.notify()
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        """Interrupt the running prompt. Like older versions, ignores the id in the body."""
        self.interrupts.append(self.running.id if self.running else "")
        if self.running is not None:
            self.running.interrupted.set()
        await self.notify()
        return web.Response()

    async def one_history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        return web.json_response({prompt_id: self.history[prompt_id]} if prompt_id in self.history else {})

    async def change_history(self, request: web.Request) -> web.Response:
        for prompt_id in (await request.json()).get("delete", []):
            self.history.pop(prompt_id, None)
        await self.notify()
        return web.Response()

    async def view(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        name = query.get("filename", "")
        content = self.contents.get((query.get("type", "output"), query.get("subfolder", ""), name))
        if content is None:
            return web.Response(status=404)
        headers = {
            "Content-Type": {"mp4": "video/mp4", "flac": "audio/x-flac", "glb": "model/gltf-binary"}.get(
                name[-4:].strip("."), "image/png"
            ),
            "Content-Disposition": f'filename="{name}"',
            "Accept-Ranges": "bytes",
        }
        if request.headers.get("Range") == "bytes=0-7" and isinstance(content, bytes):
            part = {"Content-Range": f"bytes 0-7/{len(content)}"}
            return web.Response(status=206, body=content[:8], headers={**headers, **part})
        if isinstance(content, bytes):
            return web.Response(body=content, headers=headers)
        response = web.StreamResponse(headers={**headers, "Content-Length": str(content)})
        await response.prepare(request)
        for _ in range(content // 2**20):
            await response.write(bytes(2**20))
        return response

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        content = image.file.read()
        if len(content) > MAX_UPLOAD_BYTES:
            return web.Response(status=413)
        folder, name = str(form.get("subfolder", "")), image.filename
        path = f"{folder}/{name}" if folder else name
        assert path not in self.inputs or form["overwrite"] == "true"
        self.inputs[path] = content
        await self.notify()
        return web.json_response({"name": name, "subfolder": folder, "type": form.get("type", "input")})

    async def system_stats(self, _request: web.Request) -> web.Response:
        return web.json_response({"system": {"os": "posix", "comfyui_version": "0.3.64"}, "devices": []})

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        if self.no_sockets:
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.query.get("clientId") or uuid.uuid4().hex
        self.sockets[sid] = socket
        self.connections.append(sid)
        try:
            if not self.mute:
                await socket.send_json({"type": "status", "data": {**self._status, "sid": sid}})
                await socket.send_bytes((99).to_bytes(4, "big"))  # a frame of an unknown kind
            await self.notify()
            async for _ in socket:
                pass
        finally:
            if self.sockets.get(sid) is socket:
                del self.sockets[sid]
        return socket

    # For tests

    async def state(self, _request: web.Request) -> web.Response:
        return web.json_response(self.seen)

    async def until(self, request: web.Request) -> web.Response:
        """Answer when the state's list `what` has at least `count` items or, with `most`, at most `count`."""
        what, count = request.match_info["what"], int(request.query.get("count", "1"))
        most = "most" in request.query
        async with self.changed:
            await self.changed.wait_for(
                lambda: len(self.seen[what]) <= count if most else len(self.seen[what]) >= count
            )
        return web.json_response(self.seen)

    async def steer(self, request: web.Request) -> web.Response:
        """Do the actions named in the body."""
        for name, value in (await request.json()).items():
            if name == "release":
                self.released.set() if value else self.released.clear()
            elif name in ("mute", "no_sockets", "slow"):
                setattr(self, name, value)
            elif name == "delete_files":
                self.contents.clear()
            elif name == "lose_files":  # they are deleted as soon as they are written
                self.loses_files = value
            elif name == "drop":
                for socket in list(self.sockets.values()):
                    assert socket._writer is not None  # pyright: ignore[reportPrivateUsage] - to cut it
                    cast(Any, socket)._writer.transport.abort()
            elif name == "forget":  # as a restart does
                self.pending.clear()
                self.history.clear()
                self.running = None
            elif name == "die":
                os._exit(1)
        await self.notify()
        return web.Response()

    @property
    def seen(self) -> dict[str, Any]:
        return {
            "pending": [prompt.id for prompt in self.pending],
            "running": [self.running.id] if self.running else [],
            "connections": self.connections,
            "posted": self.posted,
            "requests": self.requests,
            "ran": self.ran,
            "interrupts": self.interrupts,
            "history": list(self.history),
            "loaded": self.loaded,
            "extra_data": self.extra_data,
            "inputs": [{"path": path, "size": len(content)} for path, content in self.inputs.items()],
            "kept": [path for path, content in self.inputs.items() if content],
        }

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    # Executing prompts

    async def work(self) -> None:
        while True:
            while not self.pending:
                self.more_work.clear()
                await self.more_work.wait()
            prompt = self.running = self.pending.pop(0)
            await self.notify()
            await self._send_status()
            entry = await self._run(prompt)
            if self.running is not prompt:  # lost by a restart meanwhile
                continue
            self.running = None
            self.history[prompt.id] = entry
            await self._send_status()
            await self._send_event(prompt, "executing", {"node": None, "prompt_id": prompt.id})
            await self.notify()

    async def _run(self, prompt: QueuedPrompt) -> dict[str, Any]:
        self.ran.append(prompt.id)
        outputs: dict[str, Any] = {}
        executed: list[str] = []
        order = in_order(prompt.graph, prompt.outputs)
        keys = {name: key(prompt.graph, name) for name in order}
        cached = [name for name in order if keys[name] in self.cache]
        failed = False
        await self._note(prompt, "execution_start", {})
        await self._note(prompt, "execution_cached", {"nodes": cached})
        for name in order:
            node = prompt.graph[name]
            try:
                if name not in cached:
                    await self._send_running(prompt, name)
                    self.cache[keys[name]] = await self._execute(prompt, name, node)
                output = self.cache[keys[name]]
            except (PromptInterrupted, NodeFailed) as e:
                failed = True
                what = {"node_id": name, "node_type": node["class_type"], "executed": executed}
                if isinstance(e, PromptInterrupted):
                    await self._note(prompt, "execution_interrupted", what)
                else:
                    await self._note(prompt, "execution_error", {**what, **error_of(node)})
                break
            executed.append(name)
            if output:
                outputs[name] = output
                data = {"node": name, "display_node": name, "output": output, "prompt_id": prompt.id}
                await self._send_event(prompt, "executed", data)
        if not failed:
            await self._note(prompt, "execution_success", {})
        status = {
            "status_str": "error" if failed else "success",
            "completed": not failed,
            "messages": prompt.messages,
        }
        return {"prompt": prompt.item, "outputs": {} if failed else outputs, "status": status, "meta": {}}

    async def _execute(self, prompt: QueuedPrompt, name: str, node: dict[str, Any]) -> dict[str, Any]:
        """The node's output. Raises `PromptInterrupted` and `NodeFailed`."""
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "Hold":
            await self._hold(prompt)
        if kind in LOADERS:
            content = self.inputs[loaded_name(node)].decode("latin-1")
            self.loaded.append({"node": name, "path": loaded_name(node), "content": content[:100]})
        if kind == "RegexReplace":
            raise NodeFailed
        if kind in ("KSampler", "SamplerCustomAdvanced"):
            for step in range(1, 4):
                data = {"value": step, "max": 3, "prompt_id": prompt.id, "node": name}
                await self._send_event(prompt, "progress", data)
                await self._send_image(prompt, b"preview")
        if kind == "PreviewAny":
            return {"text": [str(inputs["source"])]}
        if kind == "ShowValues":
            return {"value": inputs["values"]}
        if kind == "SaveGLB":
            return {"3d": [self._write("mesh", "glb", b"glTF", folder="3d")]}
        if kind == "Preview3D":
            file = self._write("shown", "glb", b"glTF shown", folder="3d")
            return {"result": [f"{file['subfolder']}/{file['filename']}", {"fov": 35}, None]}
        if kind == "SaveLarge":
            return {"images": [self._write("large", "png", inputs["size_mib"] * 2**20)]}
        text = json.dumps(prompt.graph)
        if kind == "VHS_VideoCombine":
            return {"gifs": [self._write("video", "mp4", text.encode(), folder="clips")]}
        if kind == "SaveImageWebsocket":
            for number in range(3):
                data = {"value": number, "max": 3, "prompt_id": prompt.id, "node": name}
                await self._send_event(prompt, "progress", data)
                await self._send_image(prompt, png(f"{text}{number}"))
        if kind == "SaveAudio":
            return {"audio": [self._write("sound", "flac", text.encode())]}
        if kind in ("SaveImage", "PreviewImage"):
            where = "output" if kind == "SaveImage" else "temp"
            prefix = inputs.get("filename_prefix", "ComfyUI_temp")
            number = inputs.get("count", 1)
            files = [self._write(prefix, "png", png(f"{text}{i}"), where) for i in range(number)]
            return {"images": files, "animated": [False]} if kind == "SaveImage" else {"images": files}
        return {}

    async def _hold(self, prompt: QueuedPrompt) -> None:
        waits = [asyncio.ensure_future(e.wait()) for e in (self.released, prompt.interrupted)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if prompt.interrupted.is_set():
            raise PromptInterrupted

    def _write(
        self, prefix: str, suffix: str, content: bytes | int, where: str = "output", folder: str = ""
    ) -> dict[str, str]:
        name = f"{prefix}_{next(self.files):05}_.{suffix}"
        if not self.loses_files:
            self.contents[where, folder, name] = content
        return {"filename": name, "subfolder": folder, "type": where}

    @property
    def remaining(self) -> int:
        return len(self.pending) + (self.running is not None)

    @property
    def _status(self) -> dict[str, Any]:
        return {"status": {"exec_info": {"queue_remaining": self.remaining}}}

    async def _send_status(self) -> None:
        for sid in [] if self.mute else list(self.sockets):
            await self._send(sid, {"type": "status", "data": self._status})

    async def _send_running(self, prompt: QueuedPrompt, name: str) -> None:
        state = {"value": 0.0, "max": 1.0, "state": "running", "node_id": name, "prompt_id": prompt.id}
        await self._send_event(prompt, "progress_state", {"prompt_id": prompt.id, "nodes": {name: state}})
        await self._send_event(
            prompt, "executing", {"node": name, "display_node": name, "prompt_id": prompt.id}
        )

    async def _note(self, prompt: QueuedPrompt, kind: str, data: dict[str, Any]) -> None:
        data = {"prompt_id": prompt.id, **data, "timestamp": int(time.time() * 1000)}
        prompt.messages.append([kind, data])
        await self._send_event(prompt, kind, data)

    async def _send_event(self, prompt: QueuedPrompt, kind: str, data: dict[str, Any]) -> None:
        if not self.mute:
            await self._send(prompt.extra.get("client_id", ""), {"type": kind, "data": data})

    async def _send_image(self, prompt: QueuedPrompt, image: bytes) -> None:
        socket = self.sockets.get(prompt.extra.get("client_id", ""))
        if socket is not None and not self.mute:
            await socket.send_bytes((1).to_bytes(4, "big") + (2).to_bytes(4, "big") + image)

    async def _send(self, sid: str, message: dict[str, Any]) -> None:
        socket = self.sockets.get(sid)
        if socket is not None and not socket.closed:
            try:
                await socket.send_json(message)
            except ConnectionError:
                self.sockets.pop(sid, None)


@web.middleware
async def _note_and_guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Record the request. Like ComfyUI on loopback, answer 403 to an `Origin` other than the `Host`."""
    if not request.path.startswith("/test/"):
        request.app[FAKE].requests.append(
            {"method": request.method, "path": request.path_qs, "headers": dict(request.headers)}
        )
        await request.app[FAKE].notify()
        origin = request.headers.get("Origin")
        if origin is not None and origin.rpartition("/")[2] != request.host:
            return web.Response(status=403)
    return await handler(request)


FAKE = web.AppKey("fake", FakeComfyUI)


def app() -> web.Application:
    fake = FakeComfyUI()
    app = web.Application(client_max_size=100 * 2**20, middlewares=[_note_and_guard])
    app[FAKE] = fake
    app.add_routes(
        [
            web.post("/prompt", fake.prompt),
            web.get("/prompt", fake.exec_info),
            web.get("/queue", fake.queue),
            web.post("/queue", fake.change_queue),
            web.post("/interrupt", fake.interrupt),
            web.get("/history/{prompt_id}", fake.one_history),
            web.post("/history", fake.change_history),
            web.get("/view", fake.view),
            web.post("/upload/image", fake.upload),
            web.get("/system_stats", fake.system_stats),
            web.get("/ws", fake.websocket),
            web.get("/test/state", fake.state),
            web.get("/test/until/{what}", fake.until),
            web.post("/test/steer", fake.steer),
        ]
    )

    async def working(_app: web.Application) -> AsyncIterator[None]:
        task = asyncio.ensure_future(fake.work())
        yield
        task.cancel()

    app.cleanup_ctx.append(working)
    return app


async def serve(application: web.Application, ready_line: str, log: Path, notices_leaving: bool) -> None:
    """Serve on a free port, which is written to the log after `ready_line`."""
    runner = web.AppRunner(application, handler_cancellation=notices_leaving, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    with log.open("a") as file:
        file.write(f"Starting server\n{ready_line}{port}\n")
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)  # until the test closes it
    await runner.cleanup()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    return parser


if __name__ == "__main__":
    asyncio.run(serve(app(), READY_LINE, arguments().parse_args().log, notices_leaving=False))
