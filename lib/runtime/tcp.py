"""The state of a TCP connection, as the operating system knows it.

Owns the questions that HTTP clients ask before and after they write a request on a reused connection. What
follows from the answers is decided in lib/model. They take file descriptors, since uvloop's socket objects
accept no options.
"""

from __future__ import annotations

import select
import socket
import struct

# Linux's `struct tcp_info` (linux/tcp.h) has `tcpi_bytes_acked`, a u64, here (since Linux 4.1).
_BYTES_ACKED = struct.Struct("=Q")
_BYTES_ACKED_OFFSET = 120
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)  # other systems have other contents, or none
_TCP_INFO_BYTES = _BYTES_ACKED_OFFSET + _BYTES_ACKED.size


def unread_input(fd: int) -> bool:
    """Whether the socket `fd` has something to read: bytes, the end of the connection, or its error.

    Asks the operating system without waiting, so it sees what the event loop has not read yet. True also for
    a descriptor that is closed, and for -1.
    """
    return fd < 0 or bool(input_poll(fd).poll(0))


def input_poll(fd: int) -> select.poll:
    """A poll object whose `poll(0)` is empty unless the socket `fd` has something to read, for many looks."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll


def bytes_acked(fd: int) -> int | None:
    """The number of bytes that the other side of the TCP connection `fd` has acknowledged since its start.

    The other side's operating system acknowledges bytes with whatever it sends next, or after up to 0.2 s.
    The number stays readable after the connection's end, until the descriptor is closed. None where it can't
    be known: on systems other than Linux, for a socket that is not TCP, for a closed descriptor and for -1.
    """
    if _TCP_INFO is None:
        return None
    try:
        # The family is not used; giving one saves finding it.
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    except (OSError, ValueError):
        return None
    try:
        info = borrowed.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    finally:
        borrowed.detach()
    return _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_OFFSET)[0] if len(info) == _TCP_INFO_BYTES else None


def closed_untaken(before: int | None, after: int | None, error: BaseException | None) -> bool:
    """Whether the other side closed a connection without having taken a byte of what was written last.

    `before` and `after` are what `bytes_acked` returned before the write and at the connection's end, which
    came with `error`, None for an orderly end. False where it can't be known. A reset is such a case: it
    acknowledges nothing, even if the other side has read all. After an orderly end, a reset is a
    `BrokenPipeError`: the end, which acknowledges what was taken, came before it.
    """
    told = error is None or isinstance(error, BrokenPipeError)
    return told and before is not None and before == after
