"""Fakes of the two APIs before ComfyUI: `python -m tests.workers.comfyui.fake_apis --log FILE KIND`.

KIND is `wrapper` (the ComfyUI API wrapper, with ComfyUI's `/view` on the same port) or `runsync` (the older
API, which writes its images beside the log). A workflow with a node `Hold` runs until its client disconnects;
one with a node `Fail` fails as in the wrapper.
"""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.workers.comfyui.fake_comfyui import arguments, serve
from tests.workers.comfyui.images import png

READY_LINES = {"wrapper": "BACKENDS_READY port ", "runsync": "To see the GUI go to: http://127.0.0.1:"}
NAME = "accept_00001_.png"
STATE = ("asked", "working", "cancelled", "cancels", "polls")


class FakeApi:
    """The base of both: records requests, and which of them run or were cancelled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Any] = []
        self.working: list[int] = []
        self.cancelled: list[int] = []
        self.cancels: list[str] = []
        self.polls: list[str] = []
        self.running: list[Any] = []
        self.files: dict[str, bytes] = {}
        self.changed = asyncio.Condition()

    async def until(self, request: web.Request) -> web.Response:
        what, count = request.match_info["what"], int(request.query["count"])
        async with self.changed:
            await self.changed.wait_for(lambda: len(getattr(self, what)) >= count)
        return self._state()

    async def state(self, _request: web.Request) -> web.Response:
        return self._state()

    def _state(self) -> web.Response:
        return web.json_response({name: getattr(self, name) for name in STATE})

    async def steer(self, request: web.Request) -> web.Response:
        self.running = (await request.json()).get("running", self.running)
        return web.Response()

    async def read(self, request: web.Request) -> dict[str, Any]:
        message: dict[str, Any] = await request.json()
        self.asked.append({"message": message, "headers": dict(request.headers)})
        return message

    async def work(self, graph: dict[str, Any]) -> bytes:
        """The image. With a node `Hold`, waits until the client disconnects."""
        kinds = {node["class_type"] for node in graph.values()}
        if "Hold" in kinds:
            self.working.append(len(self.asked))
            await self._notify()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.append(len(self.asked))
                await self._notify()
        return png(json.dumps(graph))

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


class FakeWrapperApi(FakeApi):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.jobs: dict[str, str] = {}

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "healthy", "backends_healthy": "1/1", "backends": []})

    async def sync(self, request: web.Request) -> web.Response:
        given = (await self.read(request)).get("input")
        if given is None:
            wrong: dict[str, Any] = {
                "type": "missing",
                "loc": ["body", "input"],
                "msg": "Field required",
                "input": {},
            }
            return web.json_response({"detail": [wrong]}, status=422)
        if "modifier" in given:
            message = f"Preprocessing failed: Unknown modifier: {given['modifier']}"
            return web.json_response(self._failed(given, message), status=500)
        graph = given.get("workflow_json", {})
        if any(node["class_type"] == "Fail" for node in graph.values()):
            return web.json_response(self._failed(given, "Generation failed: Execution error"), status=500)
        return web.json_response(await self._result(given, graph))

    async def start(self, request: web.Request) -> web.Response:
        given = (await self.read(request))["input"]
        if "modifier" in given:
            return web.json_response({"detail": []}, status=422)
        kinds = {node["class_type"] for node in given["workflow_json"].values()}
        status = "generating" if "Hold" in kinds else "failed" if "Fail" in kinds else "completed"
        self.jobs[given["request_id"]] = status
        return web.json_response({"id": given["request_id"], "status": "pending"}, status=202)

    async def queue_info(self, _request: web.Request) -> web.Response:
        return web.json_response({"generation_queue_size": 7})

    async def cancel(self, request: web.Request) -> web.Response:
        self.cancels.append(request.match_info["id"])
        await self._notify()
        return web.json_response({"message": "Successfully cancelled", "status": "cancelled"})

    async def result(self, request: web.Request) -> web.Response:
        request_id = request.match_info["id"]
        self.polls.append(request_id)
        await self._notify()
        if request_id not in self.jobs:
            failed = self._failed({"request_id": request_id}, "Request ID not found")
            return web.json_response(failed, status=404)
        status = "cancelled" if request_id in self.cancels else self.jobs[request_id]
        return web.json_response({"id": request_id, "status": status, "output": []})

    async def queue(self, _request: web.Request) -> web.Response:
        return web.json_response({"queue_running": self.running, "queue_pending": []})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        given = (await self.read(request))["input"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        request_id = given.get("request_id", "generated")
        queued = {"request_id": request_id, "status": "queued", "message": "Request queued"}
        await response.write(b"data: " + json.dumps(queued).encode() + b"\n\n")
        self.jobs[request_id] = "generating"
        if any(node["class_type"] == "Fail" for node in given["workflow_json"].values()):
            result = self._failed(given, "Generation failed: Execution error")
        else:
            result = await self._result(given, given["workflow_json"])
        final = {"request_id": request_id, "status": "final_result", "result": result, "elapsed_time": 2.0}
        await response.write(b"data: " + json.dumps(final).encode() + b"\n\n")
        return response

    async def view(self, request: web.Request) -> web.Response:
        content = self.files.get(request.query.get("filename", ""))
        if content is None:
            return web.Response(status=404)
        return web.Response(body=content, headers={"Content-Type": "image/png"})

    async def _result(self, given: dict[str, Any], graph: dict[str, Any]) -> dict[str, Any]:
        content = self.files[NAME] = await self.work(graph)
        request_id = given.get("request_id", "generated")
        output: dict[str, Any] = {
            "filename": NAME,
            "local_path": f"/workspace/ComfyUI/output/{request_id}/{NAME}",
            "type": "output",
            "subfolder": "",
            "node_id": "4",
            "output_type": "images",
        }
        if any(node["class_type"] == "WithData" for node in graph.values()):
            output |= {"data": base64.b64encode(content).decode(), "mimetype": "image/png"}
        return {
            "id": request_id,
            "message": "Processing complete.",
            "status": "completed",
            "comfyui_response": {},
            "output": [output],
            "timings": {"queued_at_ms": 1, "preprocess_ms": 0, "total_ms": 1},
        }

    def _failed(self, given: dict[str, Any], message: str) -> dict[str, Any]:
        head = {"id": given.get("request_id", "generated"), "message": message, "status": "failed"}
        return {**head, "comfyui_response": {}, "output": [], "timings": {"total_ms": 1}}


class FakeRunsyncApi(FakeApi):
    async def runsync(self, request: web.Request) -> web.Response:
        graph = (await self.read(request))["input"]["workflow_json"]
        path = self.folder / NAME
        path.write_bytes(await self.work(graph))
        kinds = {node["class_type"] for node in graph.values()}
        images = [] if "NoImage" in kinds else [{"local_path": str(path)}]
        return web.json_response({"id": "1", "output": {"images": images}})


def app(kind: str, folder: Path) -> web.Application:
    application = web.Application()
    api: FakeApi
    if kind == "wrapper":
        wrapper = api = FakeWrapperApi(folder)
        application.add_routes(
            [
                web.get("/health", wrapper.health),
                web.post("/generate/sync", wrapper.sync),
                web.post("/generate/stream", wrapper.stream),
                web.get("/view", wrapper.view),
                web.post("/cancel/{id}", wrapper.cancel),
                web.get("/result/{id}", wrapper.result),
                web.get("/queue", wrapper.queue),
                web.post("/generate", wrapper.start),
                web.get("/queue-info", wrapper.queue_info),
            ]
        )
    else:
        runsync = api = FakeRunsyncApi(folder)
        application.add_routes([web.post("/runsync", runsync.runsync)])
    application.add_routes(
        [
            web.get("/test/until/{what}", api.until),
            web.get("/test/state", api.state),
            web.post("/test/steer", api.steer),
        ]
    )
    return application


if __name__ == "__main__":
    parser = arguments()
    parser.add_argument("kind", choices=READY_LINES)
    args = parser.parse_args()
    application = app(args.kind, args.log.parent)
    asyncio.run(serve(application, READY_LINES[args.kind], args.log, notices_leaving=True))
