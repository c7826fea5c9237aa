"""The process that has the worker's port."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lib.launch.port import holder_of


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_process_that_listens_is_named(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as listening:
        listening.bind((address, 0))
        port = listening.getsockname()[1]
        assert holder_of(port) is None  # bound only
        listening.listen()
        assert (holder_of(port) or "").startswith(f"process {os.getpid()} (")


def test_a_process_of_another_user_has_no_name(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:0BB9 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000     0        0 41 1\n"
        "   1: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 42 1\n"
    )
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "fd").mkdir()
    (tmp_path / "12" / "fd" / "3").symlink_to("socket:[41]")
    (tmp_path / "13").mkdir()
    assert holder_of(3000, tmp_path) == "a process of another user"
    assert holder_of(3001, tmp_path) is None
