"""Whether the model server's own address takes connections (docs/operating.md, "States").

Owns the facts that calls report, and which calls are let through while it takes none. When failures become an
error, and when it is over, is decided in reach_watch.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from contextlib import contextmanager

import aiohttp
from yarl import URL

from lib.errors import ModelDown

_REFUSED = f"[Errno {errno.ECONNREFUSED}]"


class Reach:
    """The model server's own address at `url`, as calls find it. Calls to other addresses don't count.

    `is_suspect`: a connection has failed and none has succeeded since. `is_down`: that has become an error.
    Both are set by the watch that `on_failure`, with the reason in words, and `on_success` call.
    """

    __slots__ = (
        "_is_tried",
        "_may_try",
        "address",
        "host",
        "is_down",
        "is_suspect",
        "on_failure",
        "on_success",
        "port",
    )

    def __init__(self, url: str = "") -> None:
        self.move_to(url)
        self.is_suspect = self.is_down = False
        self.on_failure: Callable[[str], None] = _ignore
        self.on_success: Callable[[], None] = _nothing
        self._may_try = self._is_tried = False

    def move_to(self, url: str) -> None:
        """Take calls to `url` for the model server's from now on."""
        parsed = URL(url)
        self.host, self.port = parsed.host, parsed.port
        self.address = parsed.host_port_subcomponent or ""

    def allow_attempt(self) -> None:
        """Let the next call through that is made while `is_down`, once no other is being tried."""
        self._may_try = True

    def is_own(self, host: str | None, port: int | None) -> bool:
        """Whether `host` and `port` are the model server's own."""
        return host == self.host and port == self.port and host is not None

    def note_failure(self, host: str | None, port: int | None, error: BaseException | None) -> None:
        """Note that a connection to `host` and `port` ended with `error`, None: closed without an answer."""
        if self.is_own(host, port) and (reason := reason_of(error)):
            self.on_failure(reason)

    def note_success(self, host: str | None, port: int | None) -> None:
        """Note that an answer has come from `host` and `port`; to be called while `is_suspect`."""
        if self.is_own(host, port):
            self.on_success()

    @contextmanager
    def attempt(self, host: str | None, port: int | None) -> Generator[None, None, None]:
        """Try a call inside the block, while `is_down`.

        Raises `ModelDown` (503) if another is being tried, or has been since the last `allow_attempt`.
        """
        if not self.is_own(host, port):
            yield
            return
        if self._is_tried or not self._may_try:
            raise ModelDown(self.address)
        self._is_tried, self._may_try = True, False
        try:
            yield
        finally:
            self._is_tried = False


def reason_of(error: BaseException | None) -> str:
    """The words for a connection that was refused, reset or closed; "" for an error of another kind.

    A timeout is of another kind: a server that is too busy to accept connections in time is not dead.
    """
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if error is None or isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closes connections without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "it breaks answers off"
    if isinstance(error, ConnectionRefusedError) or _is_refused(error):
        return "it refuses connections"
    if isinstance(error, ConnectionError) or (
        isinstance(error, aiohttp.ClientOSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)
    ):
        return "it resets connections"
    return ""


def _is_refused(error: BaseException) -> bool:
    """Whether `error` is of a name with several addresses, each of which has refused the connection."""
    return isinstance(error, OSError) and error.errno in (None, errno.ECONNREFUSED) and _REFUSED in str(error)


def _ignore(reason: str) -> None:
    return None


def _nothing() -> None:
    return None
