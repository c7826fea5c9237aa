"""The sockets on which a worker listens: the public port, and the port for /metrics and /status.

Owns opening and closing them, their options, and the message about a port that is taken. The routes behind
them are in lib/routes; lib/server.py puts them together.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psutil
from aiohttp import web
from aiohttp.typedefs import Middleware
from aiohttp.web_app import Application  # not web.Application, which an author may have replaced

from lib.errors import SettingsError, refusals_as_json
from lib.front.front import Front
from lib.front.tls_gate import TlsPort
from lib.http.shares import Shares
from lib.life.own_aiohttp import warn_of_replaced_classes
from lib.request.answer_counts import AnswerCounts
from lib.request.exchange import on_response_prepare
from lib.request.incoming import Serve
from lib.runtime.addresses import Proxies
from lib.runtime.clock import SystemClock
from lib.runtime.file_limit import max_connections
from lib.runtime.hosts import HostGuard
from lib.runtime.settings import LOOPBACK_HOSTS, Settings

log = logging.getLogger(__name__)

BACKLOG = 4096
# Proxies and address translators drop a connection that was silent for a minute.
TCP_KEEP_ALIVE_S = 30
# The most that TCP_USER_TIMEOUT takes: 24 days.
MAX_USER_TIMEOUT_MS = 2**31 - 1
# The option for the seconds of silence before the first probe: on Linux, and on macOS.
_TCP_IDLE_OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPALIVE")


class PortTaken(Exception):
    """Another process listens on `port`, one of the worker's; the environment variable `variable` sets it."""

    def __init__(self, port: int, variable: str) -> None:
        super().__init__(
            f"port {port} is taken by {_holder(port)}: stop that process, or set {variable} to another port"
        )


class Sockets:
    """The servers of both ports."""

    def __init__(self, *fronts: Front) -> None:
        self._fronts = fronts
        self._servers: list[asyncio.Server] = []
        self._tls_ports: list[TlsPort] = []

    async def listen(self, front: Front, options: Mapping[str, Any]) -> None:
        """Serve `front` on the socket that `options`, those of `loop.create_server`, describe."""
        await front.open()
        options = dict(options)
        context = options.pop("ssl", None)
        make_protocol: Callable[[], asyncio.BaseProtocol] = front
        if context is not None:
            make_protocol = tls_port = TlsPort(front, context, SystemClock())
            self._tls_ports.append(tls_port)
        server = await asyncio.get_running_loop().create_server(make_protocol, **options)
        self._servers.append(server)
        for listening_socket in server.sockets:
            # On a duplicate, since uvloop's own objects accept no options. Accepted sockets inherit them.
            with socket.socket(fileno=os.dup(listening_socket.fileno())) as duplicate:
                keep_alive(duplicate)
                limit_silence(duplicate, front.stall_limit_s)

    def abort(self) -> None:
        """Abort every connection, and with it the request on it."""
        for front in self._fronts:
            front.abort()

    async def close(self) -> None:
        """Stop listening; open connections have `CLOSE_LIMIT_S` for their last bytes."""
        with anyio.CancelScope(shield=True):
            for server in self._servers:
                server.close()
            for port in self._tls_ports:
                port.close()
            for front in self._fronts:
                await front.close()


@asynccontextmanager
async def listening(
    public: Sequence[web.AbstractRouteDef],
    loopback: Sequence[web.AbstractRouteDef],
    direct: Mapping[str, Serve],
    settings: Settings,
    public_url: str,
    strangers: Shares,
    answers: AnswerCounts,
    site_kwargs: dict[str, Any],
) -> AsyncGenerator[Sockets, None]:
    """Serve both ports inside the block: the routes `public` on one, `loopback` on the other.

    `direct` has the functions that serve POST requests of the public port, by their path; aiohttp's server
    carries all others. `strangers` is the budget of the public port's memory, and `answers` counts its
    answers. `site_kwargs` are the arguments of `aiohttp.web.TCPSite` for the public port. Raises `PortTaken`,
    in no exception group, and `SettingsError`.
    """
    clock, limit_s = SystemClock(), settings.client_stall_timeout_s
    guard = HostGuard(settings.worker_http_host, settings.worker_http_names, private_names=True)
    proxies = Proxies(settings.trusted_proxies)
    public_front = Front(
        *(_app(public, settings), direct, clock, limit_s),
        max_connections=max_connections(),
        shares=strangers,
        proxies=proxies,
        answers=answers,
    )
    fronts = (public_front, Front(_app(loopback, settings, guard.middleware), {}, clock, limit_s))
    options = _socket_options(settings, site_kwargs)
    _warn_of_addresses(settings)
    warn_of_replaced_classes()
    sockets = Sockets(*fronts)
    try:
        await _listen(sockets, fronts[0], options, "WORKER_HOST", "WORKER_PORT")
        loopback_options = {"host": settings.worker_http_host, "port": settings.worker_http_port}
        await _listen(sockets, fronts[1], loopback_options, "WORKER_HTTP_HOST", "WORKER_HTTP_PORT")
        log.info("listening on port %d, public URL %s", settings.worker_port, public_url)
        yield sockets
    finally:
        await sockets.close()


def _socket_options(settings: Settings, site_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `loop.create_server` for the public port."""
    given = {"ssl" if name == "ssl_context" else name: value for name, value in site_kwargs.items()}
    given.pop("shutdown_timeout", None)
    options: dict[str, Any] = {"host": None, "port": settings.worker_port, "backlog": BACKLOG, **given}
    if settings.worker_host is not None:
        if "host" in given and given["host"] != settings.worker_host:
            log.warning("WORKER_HOST=%s replaces the host %s", settings.worker_host, given["host"])
        options["host"] = settings.worker_host
    return options


def _app(routes: Sequence[web.AbstractRouteDef], settings: Settings, *guards: Middleware) -> web.Application:
    middlewares = [refusals_as_json, *guards]
    app = Application(client_max_size=settings.max_json_bytes, middlewares=middlewares)
    app.on_response_prepare.append(on_response_prepare)
    app.add_routes(routes)
    return app


def _warn_of_addresses(settings: Settings) -> None:
    """Warn of each port that other machines may reach although it checks no signatures."""
    if settings.engine == "none" and settings.worker_host not in LOOPBACK_HOSTS:
        log.warning(
            "ENGINE=none and WORKER_HOST=%s: whoever reaches port %d there may use the worker",
            *(settings.worker_host, settings.worker_port),
        )
    if settings.worker_http_host not in LOOPBACK_HOSTS:
        log.warning(
            "WORKER_HTTP_HOST=%s: whoever reaches port %d there may read /status and /metrics",
            *(settings.worker_http_host, settings.worker_http_port),
        )


async def _listen(
    sockets: Sockets, front: Front, options: dict[str, Any], host_variable: str, port_variable: str
) -> None:
    """Listen on `options["port"]`; the variables are those that set the address and the port.

    Raises `PortTaken`, and `SettingsError` for an address that can't be bound.
    """
    try:
        await sockets.listen(front, options)
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            address = f"{options.get('host') or 'all addresses'}, port {options['port']}"
            raise SettingsError([f"{host_variable}: cannot listen on {address}: {e.strerror or e}"]) from e
        raise PortTaken(options["port"], port_variable) from e


def keep_alive(connection: socket.socket, constants: Any = socket) -> None:
    """Have TCP probe `connection` after each `TCP_KEEP_ALIVE_S` of silence.

    `constants` has the socket options of this system; those that it lacks are left out.
    """
    connection.setsockopt(constants.SOL_SOCKET, constants.SO_KEEPALIVE, 1)
    idle = next((name for name in _TCP_IDLE_OPTIONS if hasattr(constants, name)), None)
    for name in (idle, "TCP_KEEPINTVL"):
        if name is not None and hasattr(constants, name):
            connection.setsockopt(constants.IPPROTO_TCP, getattr(constants, name), TCP_KEEP_ALIVE_S)


def limit_silence(connection: socket.socket, limit_s: float, constants: Any = socket) -> None:
    """Have TCP drop `connection` once bytes have waited for `limit_s` seconds and none was taken (RFC 5482).

    Without it, a client that vanishes without a word holds its connection for a quarter of an hour.
    """
    if hasattr(constants, "TCP_USER_TIMEOUT"):
        limit_ms = min(int(limit_s * 1000), MAX_USER_TIMEOUT_MS)
        connection.setsockopt(constants.IPPROTO_TCP, constants.TCP_USER_TIMEOUT, limit_ms)


def _holder(port: int) -> str:
    """The process that listens on `port`, as far as this process may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                process = psutil.Process(connection.pid)
                return f"process {connection.pid} ({' '.join(process.cmdline()) or process.name()})"
    except psutil.Error:  # no permission to look, or the process has ended meanwhile
        pass
    return "another process"
