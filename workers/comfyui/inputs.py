"""The input files of a request: found in it, uploaded to ComfyUI, and named in its graph.

Owns where a request may have files, and their names in ComfyUI. ComfyUI has no call that deletes an uploaded
file: it is replaced by an empty one after the request.
"""

from __future__ import annotations

import json
import mimetypes
import tempfile
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from anyio.to_thread import run_sync as in_thread

from lib.data_types import JsonDataException
from lib.errors import Invalid
from lib.fetch import FetchLimits, fetched
from lib.files import BadFile, EncodedFile, read_encoded, safe_basename
from lib.forms import FormPart, form_parts, leading_fields
from lib.uploads import Upload
from workers.comfyui.api import ComfyApi
from workers.comfyui.cleanup import clean_up

# The folder in ComfyUI's folder of input files. Each request has its own folder in it.
FOLDER = "pyworker"
# The payload's fields in a form come before its files, so that they can be checked at once.
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
MAX_FILES = 100

# The fields of loader nodes that name an uploaded file, and may contain the file itself instead.
LOADERS: Mapping[str, str] = {
    "LoadImage": "image",
    "LoadImageMask": "image",
    "LoadVideo": "file",
    "LoadAudio": "audio",
    "LoadLatent": "latent",
    "VHS_LoadVideo": "video",
    "VHS_LoadVideoFFmpeg": "video",
    "VHS_LoadAudioUpload": "audio",
}

Graph = dict[str, Any]
# Base64, a URL, or a field of the request's form.
Source = EncodedFile | str | FormPart
NOT_USED = "no node of the workflow has this name as an input"


@dataclass(frozen=True)
class InputFile:
    """A file, and the `name` by which the graph refers to it. `path` leads to the file in the payload."""

    name: str
    source: Source
    path: tuple[str, ...]


@dataclass(frozen=True)
class GraphWithFiles:
    """A workflow, and the input files that its nodes name."""

    graph: Graph
    files: list[InputFile]


@dataclass(frozen=True)
class Places:
    """The paths in a payload to the workflow and to the named input files, for error messages."""

    graph: tuple[str, ...]
    inputs: tuple[str, ...]


def extract_files(graph: Graph, named: Any, places: Places) -> GraphWithFiles:
    """Find the files in `named`, `{name: file}`, and in the loader nodes of `graph`, and check them.

    A file is a `data:` URI, a URL, or `{"data": base64, "filename": a name}`. The graph that is returned has
    a name in place of every file. Raises `JsonDataException`, which names all wrong files.
    """
    problems: dict[str, Any] = {}
    inline = list(_inline_files(graph, places, problems))
    names = {file.path[-3:]: file.name for file in inline}
    graph = _with_inputs(graph, lambda node_id, field, value: names.get((node_id, "inputs", field), value))
    files = [*inline, *_named_files(named, places, problems)]
    for file in files:
        if not _names(graph, file.name):
            _put(problems, file.path, NOT_USED)
    if len(files) > MAX_FILES:
        _put(problems, places.inputs, f"a request has at most {MAX_FILES} files")
    if problems:
        raise JsonDataException(problems)
    return GraphWithFiles(graph, files)


def payload_in_form(upload: Upload) -> dict[str, Any]:
    """The payload in the fields of a form, as JSON or as texts. Raises `JsonDataException`."""
    try:
        fields = leading_fields(upload, MAX_PAYLOAD_BYTES)
    except BadFile as e:
        raise JsonDataException({"body": str(e)}) from e
    return {name: _json_or_text(content) for name, content in fields.items()}


def _json_or_text(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")


@asynccontextmanager
async def uploaded(
    api: ComfyApi, request: GraphWithFiles, limits: FetchLimits, form: Upload | None = None
) -> AsyncGenerator[Graph, None]:
    """Upload the files of `request` and of `form` to ComfyUI; yield the graph with their names there.

    They are emptied when the block ends. Raises `Invalid` (422), `ModelUnreachable` (502) and
    `ModelTimedOut` (504).
    """
    files = [*request.files, *(await _files_in_form(form, request.graph) if form else [])]
    if not files:
        yield request.graph
        return
    folder = f"{FOLDER}/{uuid.uuid4().hex}"
    uploads: list[str] = []
    names: dict[str, str] = {}
    try:
        left_bytes = limits.max_bytes
        for number, file in enumerate(files):
            try:
                async with _opened(file.source, limits, left_bytes) as (filename, content, kind):
                    left_bytes -= _size(content)
                    if left_bytes < 0:
                        raise BadFile(f"the request's files have more than {limits.max_bytes} bytes")
                    uploads.append(_upload_name(number, filename, file.name, kind))
                    names[file.name] = await api.upload(folder, uploads[-1], content, kind)
            except BadFile as e:
                problems: dict[str, Any] = {}
                _put(problems, file.path, str(e))
                raise Invalid({"payload": problems}) from e
        yield _renamed(request.graph, names)
    finally:
        if uploads:
            await clean_up(_empty(api, folder, uploads), f"input files of a request ({folder})")


async def _empty(api: ComfyApi, folder: str, names: list[str]) -> None:
    for name in names:
        await api.upload(folder, name, b"", "application/octet-stream")


async def _files_in_form(form: Upload, graph: Graph) -> list[InputFile]:
    """The files in a form. Raises `Invalid` (422)."""
    try:
        parts = await in_thread(form_parts, form)
    except BadFile as e:
        raise Invalid({"body": str(e)}) from e
    first = next((number for number, part in enumerate(parts) if part.filename), len(parts))
    parts = parts[first:]
    problems = {part.name: NOT_USED for part in parts if not _names(graph, part.name)}
    problems |= {part.name: "must be before the files" for part in parts if not part.filename}
    if problems:
        raise Invalid({"payload": problems})
    return [InputFile(part.name, part, (part.name,)) for part in parts]


@asynccontextmanager
async def _opened(
    source: Source, limits: FetchLimits, left_bytes: int
) -> AsyncGenerator[tuple[str, bytes | Path, str], None]:
    """Name, content and type of a file, the name and the type "" if unknown. Raises `BadFile`."""
    if isinstance(source, str):
        async with fetched(source, replace(limits, max_bytes=max(left_bytes, 0))) as file:
            yield file.filename, file.path, file.content_type
    elif isinstance(source, EncodedFile):
        yield await in_thread(source.decoded)
    else:
        with tempfile.NamedTemporaryFile(prefix="pyworker-input-") as copy:
            await in_thread(_copy, source, copy)
            yield source.filename, Path(copy.name), source.content_type


def _copy(part: FormPart, target: IO[bytes]) -> None:
    part.copy_to(target)
    target.flush()


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _upload_name(number: int, filename: str, name: str, kind: str) -> str:
    """The file's name in ComfyUI. The number makes equal names distinct."""
    base = safe_basename(filename or name)
    if not Path(base).suffix:
        base += Path(name).suffix or mimetypes.guess_extension(kind) or ""
    return f"{number}_{base}"


def _inline_files(graph: Graph, places: Places, problems: dict[str, Any]) -> Iterator[InputFile]:
    for node_id, node in graph.items():
        field = LOADERS.get(str(node.get("class_type")))
        value = node.get("inputs", {}).get(field) if field else None
        if field is None or not _is_file(value):
            continue
        path = (*places.graph, node_id, "inputs", field)
        if (source := _source(value, path, problems)) is not None:
            yield InputFile(uuid.uuid4().hex, source, path)


def _named_files(named: Any, places: Places, problems: dict[str, Any]) -> Iterator[InputFile]:
    if not isinstance(named, dict):
        if named is not None:
            _put(problems, places.inputs, "must be an object: {name of a file: the file}")
        return
    for name, value in cast("dict[str, Any]", named).items():
        path = (*places.inputs, name)
        if safe_basename(name) != name or not Path(name).suffix:
            _put(problems, path, "must be the name of a file, with an extension and without a folder")
        elif (source := _source(value, path, problems)) is not None:
            yield InputFile(name, source, path)


def _is_file(value: Any) -> bool:
    """Whether a loader's field contains a file itself, not a name."""
    if isinstance(value, str):
        return value[:8].lower().startswith(("data:", "http://", "https://"))
    return isinstance(value, dict)


def _source(value: Any, path: tuple[str, ...], problems: dict[str, Any]) -> Source | None:
    if isinstance(value, str) and value[:8].lower().startswith(("http://", "https://")):
        return value
    try:
        return read_encoded(value)
    except BadFile as e:
        _put(problems, path, str(e))
        return None


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """`graph` with ComfyUI's names of the files that it names, as `NAME` or `NAME [input]`."""

    def renamed(_node_id: str, _field: str, value: Any) -> Any:
        name = _name_in(value)
        return value if name is None else names.get(name, value)

    return _with_inputs(graph, renamed)


def _names(graph: Graph, name: str) -> bool:
    return any(
        _name_in(value) == name for node in graph.values() for value in node.get("inputs", {}).values()
    )


def _name_in(value: Any) -> str | None:
    return value.removesuffix(" [input]") if isinstance(value, str) else None


def _with_inputs(graph: Graph, change: Callable[[str, str, Any], Any]) -> Graph:
    return {
        node_id: (
            {**node, "inputs": {k: change(node_id, k, v) for k, v in node["inputs"].items()}}
            if "inputs" in node
            else node
        )
        for node_id, node in graph.items()
    }


def _put(problems: dict[str, Any], path: tuple[str, ...], problem: str) -> None:
    """Add `problem` at `path` in `problems`, which is nested like the payload."""
    for name in path[:-1]:
        problems = problems.setdefault(name, {})
    problems[path[-1]] = problem
