"""The memory of a freed large block goes back to the system at once, also after larger ones were freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from lib.runtime.large_blocks import LARGE_BLOCK_BYTES, map_large_blocks
if sys.argv[1] == "mapped":
    map_large_blocks()
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
free(malloc(8 * 2**20))  # glibc raises its limit to this
class Blocks(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Blocks
before = mallinfo().hblks
kept = malloc(LARGE_BLOCK_BYTES)
print(mallinfo().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such limit")
@pytest.mark.parametrize(("mode", "mapped"), [("mapped", "1"), ("as it is", "0")])
def test_a_large_block_has_pages_of_its_own(mode: str, mapped: str) -> None:
    command = [sys.executable, "-c", SCRIPT, mode]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == mapped
