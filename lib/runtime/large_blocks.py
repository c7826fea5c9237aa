"""The memory of large blocks, which the C library otherwise keeps for later ones.

Owns one setting of glibc's allocator. Other C libraries have none, and are left as they are.
"""

from __future__ import annotations

import ctypes

# From <malloc.h>.
_M_MMAP_THRESHOLD = -3
LARGE_BLOCK_BYTES = 128 * 1024


def map_large_blocks() -> None:
    """Have blocks of `LARGE_BLOCK_BYTES` and more in pages of their own: only those in use take memory.

    glibc begins so, but raises the limit up to 32 MiB once such a block was freed. A TLS connection on uvloop
    has a buffer of 256 KiB, of which it uses a few pages: 27 KiB in all, and 49 KiB after the limit was
    raised.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
    except (OSError, AttributeError):  # no glibc
        return
