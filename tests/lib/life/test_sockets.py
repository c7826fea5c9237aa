"""TCP keep-alive with the socket options of different systems."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lib.life.sockets import TCP_KEEP_ALIVE_S, keep_alive, limit_silence

COMMON = {"SOL_SOCKET": "socket", "SO_KEEPALIVE": "keepalive", "IPPROTO_TCP": "tcp"}
ON = ("socket", "keepalive", 1)


class Connection:
    """Notes the options that are set on it."""

    def __init__(self) -> None:
        self.options: list[tuple[Any, ...]] = []

    def setsockopt(self, *option: Any) -> None:
        self.options.append(option)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("TCP_KEEPIDLE", "TCP_KEEPINTVL"), ("TCP_KEEPIDLE", "TCP_KEEPINTVL")),
        (("TCP_KEEPALIVE", "TCP_KEEPINTVL"), ("TCP_KEEPALIVE", "TCP_KEEPINTVL")),
        (("TCP_KEEPALIVE",), ("TCP_KEEPALIVE",)),
        ((), ()),
    ],
    ids=["Linux", "macOS", "without an interval", "without any"],
)
def test_the_options_that_the_system_has_are_set(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    connection = Connection()
    keep_alive(cast("socket.socket", connection), SimpleNamespace(**COMMON, **{n: n for n in names}))
    assert connection.options == [ON, *(("tcp", name, TCP_KEEP_ALIVE_S) for name in expected)]


@pytest.mark.parametrize(("limit_s", "limit_ms"), [(60.0, 60_000), (1e9, 2**31 - 1)])
def test_any_limit_of_silence_can_be_set(limit_s: float, limit_ms: int) -> None:
    connection = Connection()
    names = SimpleNamespace(**COMMON, TCP_USER_TIMEOUT="TCP_USER_TIMEOUT")
    limit_silence(cast("socket.socket", connection), limit_s, names)
    assert connection.options == [("tcp", "TCP_USER_TIMEOUT", limit_ms)]
    with socket.socket() as real:
        limit_silence(real, limit_s)
