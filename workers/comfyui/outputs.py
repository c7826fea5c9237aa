"""The outputs of a prompt: the files and values in its history, and their forms in answers.

Owns the list of outputs, the result in the wrapper's format, and the data URIs of `/prompt`. Callers say
how a file is opened.
"""

from __future__ import annotations

import json
import mimetypes
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from workers.comfyui.api import ComfyApi, File
from workers.comfyui.images import ImageFormat, Opened, in_format
from workers.comfyui.jobs import Job, SentImage
from workers.comfyui.spool import SpooledAnswer, on_disk
from workers.comfyui.storage import Bucket

# Types of files: saved (the default), previews, sent over the WebSocket.
SAVED = "output"
PREVIEWED = "temp"
SENT = "websocket"

# Outputs that only tell ComfyUI's own page how to show the others.
_FLAGS = ("animated",)
# Nodes that show a 3D model give the path of its file, in ComfyUI's folder of outputs.
_SHOWN_FILE = "result"
_MODELS_3D = (".glb", ".gltf", ".obj", ".fbx", ".stl", ".ply", ".splat", ".ksplat", ".spz", ".usdz")

NO_IMAGES = "the workflow made no images"


@dataclass(frozen=True)
class OutputFile:
    """A file that node `node_id` made, listed under `output_type` (images, gifs, audio, …).

    `sent` is the image itself if the node sent it. Then ComfyUI has no such file.
    """

    file: File
    node_id: str
    output_type: str
    sent: SentImage | None = None

    def to_json(self) -> dict[str, Any]:
        """The file's description in the wrapper's format."""
        return {
            "filename": self.file.filename,
            "type": self.file.type,
            "subfolder": self.file.subfolder,
            "node_id": self.node_id,
            "output_type": self.output_type,
        }


@dataclass(frozen=True)
class OutputValue:
    """A text, a number or other JSON that node `node_id` made, listed under `output_type` (text, …)."""

    value: Any
    node_id: str
    output_type: str

    def to_json(self) -> dict[str, Any]:
        """The entry for answers, which has a `text` or another `value`."""
        name = "text" if isinstance(self.value, str) else "value"
        return {"node_id": self.node_id, "output_type": self.output_type, name: self.value}


def outputs_of(job: Job) -> list[OutputFile | OutputValue]:
    """The files and values in the history of a finished job, in its order, and then the sent images."""
    outputs = [
        _output(item, node_id, kind)
        for node_id, node in cast("dict[str, dict[str, Any]]", job.entry.get("outputs") or {}).items()
        for kind, items in node.items()
        if kind not in _FLAGS
        for item in (cast("list[Any]", items) if isinstance(items, list) else [items])
        if item is not None
    ]
    for number, image in enumerate(job.images, 1):
        suffix = mimetypes.guess_extension(image.mimetype) or ".png"
        file = File(f"{image.node_id}_{number:05}{suffix}", "", SENT)
        outputs.append(OutputFile(file, image.node_id, "images", image))
    return outputs


def files_of(job: Job) -> list[OutputFile]:
    """The files among the outputs of a finished job."""
    return [output for output in outputs_of(job) if isinstance(output, OutputFile)]


def best_of(outputs: Sequence[OutputFile]) -> Sequence[OutputFile]:
    """The outputs that were saved or sent or, if there are none, the previews."""
    return [output for output in outputs if output.file.type != PREVIEWED] or outputs


View = Callable[[OutputFile], Opened]
Opener = Callable[[], Opened]


@asynccontextmanager
async def opened(api: ComfyApi, output: OutputFile) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
    """Content type and content of `output`. Raises `ModelUnreachable` (502), `ModelTimedOut` (504)."""
    if output.sent is None:
        async with api.view(output.file) as file:
            yield file
    else:
        yield output.sent.mimetype, _once(output.sent.content)


@dataclass
class JobTimings:
    """The times of one request. The answer has Unix times; durations come from a monotonic clock."""

    queued_at_s: float = field(default_factory=time.time)
    began_s: float = field(default_factory=time.monotonic)
    generated_s: float | None = None

    def generated(self) -> None:
        """Note that the prompt is finished and that its files are fetched from now on."""
        self.generated_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self.began_s

    def to_json(self) -> dict[str, int]:
        """The times in milliseconds in the wrapper's format. Generation is absent if the prompt failed."""
        now_s = time.monotonic()
        times = {"queued_at_ms": _ms(self.queued_at_s), "preprocess_ms": 0}
        if self.generated_s is not None:
            times["generation_ms"] = _ms(self.generated_s - self.began_s)
            times["postprocess_ms"] = _ms(now_s - self.generated_s)
        times["completed_at_ms"] = _ms(self.queued_at_s + now_s - self.began_s)
        times["total_ms"] = _ms(now_s - self.began_s)
        return times


@dataclass(frozen=True)
class ResultWriter:
    """Writes a result in the wrapper's format, with outputs in base64 or uploaded to `bucket`.

    Images are converted to `image_format`, if it is given.
    """

    request_id: str
    view: View
    bucket: Bucket | None
    image_format: ImageFormat | None = None

    async def write(
        self,
        spool: SpooledAnswer,
        outputs: Sequence[OutputFile | OutputValue],
        timings: JobTimings,
        extra: dict[str, Any],
    ) -> None:
        """Write the result to `spool`. Raises `UploadFailed` and the errors of `view`."""
        head: dict[str, Any] = {
            "id": self.request_id,
            "message": "Processing complete.",
            "status": "completed",
            "comfyui_response": {},
            **extra,
        }
        await spool.put(_open(head) + b',"output":[')
        for number, output in enumerate(outputs):
            await spool.put(b"," if number else b"")
            if isinstance(output, OutputValue):
                await spool.put(_dumps(output.to_json()))
            elif self.bucket is None:
                await self._put_data(spool, output)
            else:
                url, mimetype = await self._upload(output, self.bucket, number)
                await spool.put(_dumps({**output.to_json(), "url": url, "mimetype": mimetype}))
        await spool.put(b'],"timings":' + _dumps(timings.to_json()) + b"}")

    async def _put_data(self, spool: SpooledAnswer, output: OutputFile) -> None:
        async with in_format(self.view(output), self.image_format) as (mimetype, chunks):
            await spool.put(_open(output.to_json()) + b',"data":"')
            await spool.put_base64(chunks)
        await spool.put(b'","mimetype":' + _dumps(mimetype) + b"}")

    async def _upload(self, output: OutputFile, bucket: Bucket, number: int) -> tuple[str, str]:
        """Upload a file; return a link to it and its content type. `number` makes equal names distinct."""
        name = output.file.filename
        async with (
            in_format(self.view(output), self.image_format) as (mimetype, chunks),
            on_disk(chunks) as file,
        ):
            if self.image_format is not None and mimetype == self.image_format.mimetype:
                name = Path(name).with_suffix(f".{self.image_format.name}").name
            key = f"{self.request_id}/{number}/{name}"
            return await bucket.upload(file, key, mimetype), mimetype


async def as_images(files: Sequence[Opener], image_format: ImageFormat | None = None) -> web.Response:
    """The answer `{"images": [data URIs]}` with those of `files` that are images; 422 if there are none.

    They are converted to `image_format`, if it is given. Raises the errors of opening and reading them.
    """
    found = 0
    async with SpooledAnswer() as spool:
        await spool.put(b'{"images":[')
        for opener in files:
            async with in_format(opener(), image_format) as (mimetype, chunks):
                if mimetype.startswith("image/"):
                    head = f'"data:{mimetype};base64,'
                    await spool.put((", " if found else "").encode() + head.encode())
                    await spool.put_base64(chunks)
                    await spool.put(b'"')
                    found += 1
        await spool.put(b"]}")
        return await spool.response() if found else web.json_response({"error": NO_IMAGES}, status=422)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _output(item: Any, node_id: str, kind: str) -> OutputFile | OutputValue:
    file = _shown_file(item) if kind == _SHOWN_FILE else _file(item)
    if file is not None:
        return OutputFile(file, node_id, kind)
    try:
        json.dumps(item, allow_nan=False)
    except ValueError:
        item = str(item)  # JSON has no NaN
    return OutputValue(item, node_id, kind)


def _shown_file(item: Any) -> File | None:
    """The 3D model at the relative path `item`."""
    if not isinstance(item, str) or not item.lower().endswith(_MODELS_3D):
        return None
    folder, _, name = item.replace("\\", "/").rpartition("/")
    if item.startswith("/") or ".." in folder.split("/"):
        return None
    return File(name, folder, SAVED)


def _file(item: Any) -> File | None:
    fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
    if not isinstance(fields.get("filename"), str):
        return None
    return File(fields["filename"], fields.get("subfolder", ""), fields.get("type", SAVED))


def _open(value: dict[str, Any]) -> bytes:
    """`value` as JSON without the closing brace, so that more members can follow."""
    return _dumps(value)[:-1]


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
