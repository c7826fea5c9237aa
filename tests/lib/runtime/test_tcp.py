from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from lib.runtime.tcp import bytes_acked, closed_untaken, unread_input

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts acknowledged bytes")


@contextmanager
def tcp_pair() -> Generator[tuple[socket.socket, socket.socket], None, None]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


def reset(end: socket.socket) -> None:
    """Close `end` with a RST."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def test_an_idle_connection_has_no_unread_input() -> None:
    with tcp_pair() as (near, _):
        assert not unread_input(near.fileno())


def test_bytes_an_end_and_a_reset_are_unread_input() -> None:
    with tcp_pair() as (near, far):
        far.sendall(b"x")
        assert unread_input(near.fileno())
        near.recv(1)
        assert not unread_input(near.fileno())
        far.shutdown(socket.SHUT_WR)
        assert unread_input(near.fileno())
    with tcp_pair() as (near, far):
        reset(far)
        assert unread_input(near.fileno())


def test_a_closed_descriptor_has_unread_input_and_no_count() -> None:
    with tcp_pair() as (near, _):
        fd = os.dup(near.fileno())
        os.close(fd)
        assert unread_input(fd)
        assert bytes_acked(fd) is None
    assert unread_input(-1)
    assert bytes_acked(-1) is None


@linux_only
def test_acknowledged_bytes_are_counted() -> None:
    with tcp_pair() as (near, far):
        before = bytes_acked(near.fileno())
        assert before is not None
        near.sendall(b"12345")
        assert far.recv(5) == b"12345"
        far.sendall(b"x")  # carries the acknowledgement
        assert near.recv(1) == b"x"
        assert bytes_acked(near.fileno()) == before + 5


@linux_only
def test_bytes_for_a_closed_end_are_not_counted() -> None:
    with tcp_pair() as (near, far):
        before = bytes_acked(near.fileno())
        far.close()
        with pytest.raises(BrokenPipeError):  # once the reset has arrived
            near.sendall(bytes(2**24))
        assert bytes_acked(near.fileno()) == before


@linux_only
def test_bytes_that_a_process_left_unread_are_counted() -> None:
    with tcp_pair() as (near, far):
        before = bytes_acked(near.fileno())
        assert before is not None
        near.sendall(b"12345")
        assert far.recv(5, socket.MSG_PEEK) == b"12345"
        far.close()  # with unread bytes: a reset
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        assert bytes_acked(near.fileno()) == before + 5


def test_other_sockets_have_no_count() -> None:
    near, far = socket.socketpair()
    with near, far:
        assert bytes_acked(near.fileno()) is None
        assert near.fileno() >= 0  # and stay open


@linux_only
def test_a_reset_acknowledges_nothing() -> None:
    with tcp_pair() as (near, far):
        for _ in range(30):  # both sides talk in turn: acknowledgements wait for the next bytes
            near.sendall(b"x")
            far.recv(1)
            far.sendall(b"x")
            near.recv(1)
        before = bytes_acked(near.fileno())
        near.sendall(b"12345")
        assert far.recv(5) == b"12345"
        reset(far)
        with pytest.raises(ConnectionResetError) as caught:
            near.recv(1)
        assert not closed_untaken(before, bytes_acked(near.fileno()), caught.value)


@pytest.mark.parametrize(
    ("before", "after", "error", "untaken"),
    [
        (5, 5, None, True),
        (5, 5, BrokenPipeError(), True),
        (5, 6, None, False),
        (5, 6, BrokenPipeError(), False),
        (5, 5, ConnectionResetError(), False),
        (5, 5, TimeoutError(), False),
        (None, None, None, False),
        (5, None, None, False),
    ],
)
def test_a_connection_was_closed_untaken_if_its_end_acknowledged_nothing(
    before: int | None, after: int | None, error: BaseException | None, untaken: bool
) -> None:
    assert closed_untaken(before, after, error) is untaken
