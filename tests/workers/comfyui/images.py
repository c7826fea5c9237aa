"""Small PNG images, made without a library. Each text gives another image."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(text: str, width: int = 64, height: int = 48) -> bytes:
    """An image in a colour derived from `text`, with `text` in a tEXt chunk like ComfyUI's prompt."""
    colour = struct.pack(">I", zlib.crc32(text.encode()))[1:]
    rows = (b"\0" + colour * width) * height
    return (
        _SIGNATURE
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"tEXt", b"prompt\0" + text.encode("ascii", "backslashreplace"))
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
