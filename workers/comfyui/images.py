"""The conversion of images in answers to a smaller format, on request.

Owns the use of Pillow, an optional dependency (`pip install 'pyworker[images]'`), which is imported for the
first conversion. What is not a single image, or can't be converted, stays as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync as in_thread

FORMATS = ("webp", "jpeg")
DEFAULT_QUALITY = 90
NOT_INSTALLED = "needs Pillow on the worker: pip install 'pyworker[images]'"
# Larger files, which are rarely images, are not read into memory.
MAX_BYTES = 64 * 1024 * 1024

# A file's content type, and its content in chunks.
Opened = AbstractAsyncContextManager[tuple[str, AsyncIterator[bytes]]]


@dataclass(frozen=True)
class ImageFormat:
    """A format for images, one of `FORMATS`, and its quality, 1 to 100."""

    name: str
    quality: int = DEFAULT_QUALITY

    @property
    def mimetype(self) -> str:
        return f"image/{self.name}"

    def converted(self, content: bytes) -> bytes | None:
        """`content` in this format; None for what is not a single image. Takes time: call it in a thread."""
        pillow: Any = importlib.import_module("PIL.Image")
        target = io.BytesIO()
        try:
            with pillow.open(io.BytesIO(content)) as image:
                if getattr(image, "n_frames", 1) > 1:
                    return None
                profile = image.info.get("icc_profile")
                image = _without_alpha(pillow, image) if self.name == "jpeg" else image
                image.save(target, self.name, quality=self.quality, icc_profile=profile)
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError):
            return None
        return target.getvalue()


def format_problems(given: Mapping[str, Any]) -> dict[str, str]:
    """The problems of `output_format` and `output_quality` in a request; {} if `format_in` works."""
    problems: dict[str, str] = {}
    name, quality = given.get("output_format"), given.get("output_quality")
    if name is not None and name not in FORMATS:
        problems["output_format"] = f"must be one of {', '.join(FORMATS)}"
    elif name is not None and importlib.util.find_spec("PIL") is None:
        problems["output_format"] = NOT_INSTALLED
    if quality is not None and (type(quality) is not int or not 1 <= quality <= 100):
        problems["output_quality"] = "must be an integer from 1 to 100"
    elif quality is not None and name is None:
        problems["output_quality"] = "needs an output_format"
    return problems


def format_in(given: Mapping[str, Any]) -> ImageFormat | None:
    """The format in a request for which `format_problems` returned {}; None: images stay as they are."""
    name, quality = given.get("output_format"), given.get("output_quality")
    return None if name is None else ImageFormat(name, DEFAULT_QUALITY if quality is None else quality)


@asynccontextmanager
async def in_format(
    opened: Opened, wanted: ImageFormat | None
) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
    """Content type and content of a file, converted if it is an image. Raises the errors of `opened`."""
    async with opened as (mimetype, chunks):
        if wanted is None or not mimetype.startswith("image/") or mimetype == wanted.mimetype:
            yield mimetype, chunks
            return
        content = bytearray()
        async for chunk in chunks:
            content += chunk
            if len(content) > MAX_BYTES:
                break
        is_whole = len(content) <= MAX_BYTES
        converted = await in_thread(wanted.converted, bytes(content)) if is_whole else None
        if converted is not None:
            yield wanted.mimetype, _chain(converted)
        else:
            yield mimetype, _chain(bytes(content), chunks)


async def _chain(first: bytes, rest: AsyncIterator[bytes] | None = None) -> AsyncIterator[bytes]:
    yield first
    if rest is not None:
        async for chunk in rest:
            yield chunk


def _without_alpha(pillow: Any, image: Any) -> Any:
    """`image` in RGB or grey, on white where it was transparent: JPEG has no transparency."""
    if image.mode in ("RGB", "L", "CMYK"):
        return image
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    white = pillow.new("RGBA", layers.size, "white")
    white.alpha_composite(layers)
    return white.convert("RGB")
