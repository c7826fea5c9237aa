"""The form of a request beside its payload: its method, further headers, files.

Owns the command-line arguments for it, and the choice between an envelope and header authentication
(docs/protocol.md, "Request"). Finding and calling a worker is in lib/client.py.
"""

from __future__ import annotations

import argparse
import mimetypes
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import aiohttp

from lib.client import RouteAnswer, RouteClient
from lib.local.tried_requests import METHODS, WITHOUT_BODY
from lib.model.messages import text_fields, text_form

_UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class FilePart:
    """A file to send. `field` is its name in a form; "" makes the file the whole body."""

    field: str
    path: Path

    @property
    def content_type(self) -> str:
        """The media type by the file's name."""
        return mimetypes.guess_type(self.path.name)[0] or _UNKNOWN_TYPE


@dataclass(frozen=True)
class RequestStyle:
    """The form of a request. By default it is a POST with an envelope."""

    method: str = "POST"
    headers: Mapping[str, str] | None = None
    files: Sequence[FilePart] = ()

    @asynccontextmanager
    async def call(
        self, client: RouteClient, worker: RouteAnswer, path: str, payload: Mapping[str, Any]
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Send `payload` in this form; give the response, as `RouteClient.call` does.

        With files it becomes fields of the same form or, with a file as the whole body, parameters of the
        URL; these it is also for methods without a body. Raises `OSError` for a file that can't be read.
        """
        if not self.files and self.method not in WITHOUT_BODY:
            call = client.call(worker, path, payload, method=self.method, headers=self.headers)
            async with call as response:
                yield response
            return
        with ExitStack() as opened:
            files = [(part, opened.enter_context(_open(part.path))) for part in self.files]
            in_form = bool(files) and bool(files[0][0].field)
            async with client.call_raw(
                worker,
                path,
                method=self.method,
                data=_form(payload, files) if in_form else files[0][1] if files else None,
                params=() if in_form else tuple(text_fields(payload)),
                headers=self._raw_headers(in_form),
            ) as response:
                yield response

    def _raw_headers(self, in_form: bool) -> Mapping[str, str]:
        """The further headers; a file that is the whole body has the media type of its name by default."""
        own = self.headers or {}
        if in_form or not self.files or any(name.lower() == "content-type" for name in own):
            return own
        return {"Content-Type": self.files[0].content_type, **own}


PLAIN = RequestStyle()


def add_style_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--method`, `--header` and `--file` to `parser`; `style_from_args` reads them."""
    parser.add_argument("--method", choices=METHODS, default="POST", help="the route's method (default POST)")
    parser.add_argument(
        "--header",
        dest="headers",
        action="append",
        type=_header,
        default=[],
        metavar="NAME:VALUE",
        help="a further header; may be given several times",
    )
    parser.add_argument(
        "--file",
        dest="files",
        action="append",
        type=_file_part,
        default=[],
        metavar="FIELD=@PATH",
        help="upload a file as this field of a form, to which the payload's fields are added; may be given "
        "several times. @PATH alone makes the file the whole body",
    )


def style_from_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> RequestStyle:
    """Return the style that `args` describe; for arguments that exclude each other, exit with status 2."""
    files = cast("list[FilePart]", args.files)
    if files and args.method in WITHOUT_BODY:
        parser.error(f"argument --file: not allowed with --method {args.method}, which has no body")
    if len(files) > 1 and not all(part.field for part in files):
        parser.error("argument --file: @PATH is the whole body, so no other file can be sent: FIELD=@PATH")
    return RequestStyle(args.method, dict(cast("list[tuple[str, str]]", args.headers)), tuple(files))


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (colon and name.strip() and f"{name}{value}".isprintable()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a header: give one like 'X-Request-Id: 17'")
    return name.strip(), value.strip()


def _file_part(text: str) -> FilePart:
    field, at, name = text.partition("@")
    if not (at and name and (not field or (field.endswith("=") and field != "="))):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file: give one like file=@picture.png")
    path = Path(name)
    try:
        _open(path).close()
    except OSError as e:
        raise argparse.ArgumentTypeError(f"{name} can't be read: {e.strerror}") from e
    return FilePart(field.removesuffix("="), path)


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _form(payload: Mapping[str, Any], files: Sequence[tuple[FilePart, BinaryIO]]) -> aiohttp.FormData:
    form = text_form(payload)
    for part, opened in files:
        form.add_field(part.field, opened, filename=part.path.name, content_type=part.content_type)
    return form
