"""The local engine: a stand-in for the serverless engine, for development and tests on one machine.

Owns the engine's state and what it does with each message, and its listening. It is no scheduler for
production. Paths, bodies and statuses are in api.py, workers in fleet.py, signatures in signer.py,
certificates in authority.py.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import sys
import uuid
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from aiohttp import web
from Crypto.PublicKey import RSA

from lib.clock import Clock, SystemClock
from lib.errors import Unauthorized
from lib.local.api import Api
from lib.local.authority import Authority, IssuedCertificate
from lib.local.faults import FaultKind, Faults
from lib.local.fleet import Fleet, WorkerRecord
from lib.local.messages import RouteQuery, wrong_endpoint_name
from lib.local.open_requests import OpenRequests
from lib.local.signer import Scheme, Signer
from lib.wire import DeleteRequests, FinishedRequest, WorkerStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_PORT = 8081
DEFAULT_ENDPOINT = "local"
DEFAULT_REPORT_LIMIT = 1000
MAX_FINISHED = 100_000
# A request that is still being read when the engine stops has this long, in seconds.
SHUTDOWN_LIMIT_S = 1.0
# Guards a test that waits for what never comes, in seconds of real time.
WAIT_LIMIT_S = 10.0


class CannotListen(Exception):
    """The address is taken or can't be had; one line that names the flag to change."""

    exit_status = 2


@dataclass(frozen=True)
class ReceivedFinish:
    """A finished request that a worker told of; `received_at` in Unix seconds."""

    worker_id: int
    mtoken: str
    request: FinishedRequest
    received_at: float


class LocalEngine:
    """The state of one engine and what it does; `app` gives it to clients and workers over HTTP.

    Its methods are called on the event loop that serves it. Raises `ValueError` for an empty `api_key` or
    an endpoint's name that no path could carry.

    Args:
        scheme: the form of the signatures that `/route/` gives (protocol.md §2).
        api_key: the only key that is let in; None lets in any but the empty one.
        endpoint: the name of the endpoint that workers join whose report address has no `/e/NAME`.
        clock: for delays and for telling when a worker has been silent for too long.
        key: the RSA key to sign with; None has one made, off the event loop, when the app starts.
        report_limit: how many reports of each worker are kept; totals count them all.
        first_reqnum: where the `reqnum` of each worker starts.
    """

    def __init__(
        self,
        scheme: Scheme = "full",
        api_key: str | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        clock: Clock | None = None,
        key: RSA.RsaKey | None = None,
        report_limit: int = DEFAULT_REPORT_LIMIT,
        first_reqnum: int = 1,
    ) -> None:
        if what := wrong_endpoint_name(endpoint):
            raise ValueError(f"endpoint {what}")
        if api_key == "":
            raise ValueError("api_key must not be empty: leave it out to let in any key")
        self.scheme: Scheme = scheme
        self.endpoint = endpoint
        self.clock: Clock = clock or SystemClock()
        self.signer = Signer(key)
        self.authority = Authority(self.clock)
        self.certificates: list[IssuedCertificate] = []
        self.faults = Faults()
        self.fleet = Fleet(self.clock, endpoint, report_limit)
        self.open_requests = OpenRequests()
        self.requests_seen: Counter[FaultKind] = Counter()
        self._api_key = api_key
        self._finished: deque[ReceivedFinish] = deque(maxlen=MAX_FINISHED)
        self._first_reqnum = first_reqnum
        self._reqnums: Counter[str] = Counter()
        self._arrived = asyncio.Event()

    def app(self) -> web.Application:
        """A new web application on this engine; it has a key before it answers."""
        return Api(self).app()

    # What it knows

    @property
    def public_key(self) -> str:
        """PEM text, as `/pubkey/` gives it."""
        return self.signer.public_key

    @property
    def finished(self) -> list[ReceivedFinish]:
        """Every entry of `/delete_requests/` as it came, the oldest first; at most the latest 100,000."""
        return list(self._finished)

    @property
    def workers(self) -> dict[int, WorkerRecord]:
        """Every worker that ever reported, by id."""
        return self.fleet.workers

    def worker(self, worker_id: int) -> WorkerRecord:
        """A worker's reports and totals; of one that never reported, none and zeros."""
        return self.fleet.worker(worker_id)

    async def wait_for(self, predicate: Callable[[], T], limit_s: float = WAIT_LIMIT_S) -> T:
        """What `predicate` gives as soon as that is true; it is asked again after each message.

        Raises `TimeoutError` after `limit_s` seconds of real time, a guard rather than a pace.
        """
        with anyio.fail_after(limit_s):
            while not (value := predicate()):
                await self._arrived.wait()
        return value

    # What it does

    def authenticate(self, api_key: str) -> None:
        """Raises `Unauthorized` for an empty key, and for another than the one that was asked for."""
        if not api_key:
            raise Unauthorized("no API key: send api_key, or Authorization: Bearer")
        if self._api_key is not None and not hmac.compare_digest(_bytes(api_key), _bytes(self._api_key)):
            raise Unauthorized("wrong API key")

    def count(self, kind: FaultKind) -> None:
        """A request of this kind has arrived, whatever becomes of it; `requests_seen` counts them."""
        self.requests_seen[kind] += 1
        self.wake()

    def wake(self) -> None:
        """Something has changed: whoever is in `wait_for` looks again."""
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def take_report(self, endpoint: str, message: WorkerStatus) -> None:
        """A report of a worker, which joins `endpoint` with it."""
        before = self.worker(message.id).state
        worker = self.fleet.take_report(endpoint, message)
        if worker.state != before:
            log.info("worker %d of %s: %s", worker.id, endpoint, worker.state)
        self.wake()

    def take_finished(self, message: DeleteRequests) -> None:
        """Requests that a worker has finished: each is kept, and no longer open."""
        now = self.clock.wall()
        for request in message.requests:
            self._finished.append(ReceivedFinish(message.worker_id, message.mtoken, request, now))
            self._unroute(request.request_idx)
            self.open_requests.close(request.request_idx)
        self.wake()

    def route(self, query: RouteQuery) -> dict[str, Any]:
        """The answer of `/route/` (protocol.md §1): signed for a worker, or without `url` if none is ready.

        A retry of an open `request_idx` moves its cost from the worker that it was routed to before. An
        endpoint that no worker has joined yet is one without a ready worker.
        """
        request_idx = self.open_requests.open(query.request_idx)
        self._unroute(request_idx)
        worker = self.fleet.pick(query.endpoint)
        if worker is None or worker.last is None:
            states = self.fleet.states(query.endpoint)
            answer: dict[str, Any] = {
                "endpoint": query.endpoint,
                "status": states,
                "request_idx": request_idx,
            }
        else:
            worker.pending[request_idx] = query.cost
            worker.routed += 1
            self.open_requests.route(request_idx, worker.id)
            answer = self._signed(worker.last.url, query.cost, query.endpoint, request_idx)
        self.wake()
        return answer

    def sign(
        self,
        *,
        url: str,
        cost: float = 1.0,
        reqnum: int | None = None,
        endpoint: str | None = None,
        scheme: Scheme | None = None,
        request_idx: int = 0,
    ) -> dict[str, Any]:
        """`auth_data` for the worker at `url`, as `/route/` would answer, whatever it reports.

        Left out, `reqnum` is the next for this URL, `endpoint` and `scheme` are the engine's own, and
        `request_idx` is a new one. No worker's load changes.
        """
        request_idx = self.open_requests.open(request_idx)
        return self._signed(url, cost, endpoint or self.endpoint, request_idx, reqnum, scheme)

    def certify(self, instance_id: int, request_pem: bytes) -> str:
        """A PEM certificate for an instance's request; `certificates` keeps each. Raises `BadMessage`."""
        pem = self.authority.sign(request_pem)
        self.certificates.append(IssuedCertificate(instance_id, pem))
        log.info("a certificate was signed for instance %d", instance_id)
        self.wake()
        return pem

    async def rotate_key(self, key: RSA.RsaKey | None = None) -> None:
        """Sign with `key`, or with a fresh one, and give that at `/pubkey/`."""
        await self.signer.rotate(key)
        log.info("the key was rotated")
        self.wake()

    def _signed(
        self,
        url: str,
        cost: float,
        endpoint: str,
        request_idx: int,
        reqnum: int | None = None,
        scheme: Scheme | None = None,
    ) -> dict[str, Any]:
        signed = {
            "cost": cost,
            "endpoint": endpoint,
            "reqnum": self._next_reqnum(url) if reqnum is None else reqnum,
            "url": url,
        }
        return {
            **signed,
            "signature": self.signer.sign(signed, scheme or self.scheme),
            "request_idx": request_idx,
            "__request_id": uuid.uuid4().hex,
        }

    def _next_reqnum(self, url: str) -> int:
        """A worker checks them against those it has seen, and its URL is what outlives its restarts."""
        self._reqnums[url] += 1
        return self._first_reqnum + self._reqnums[url] - 1

    def _unroute(self, request_idx: int) -> None:
        worker_id = self.open_requests.worker_id(request_idx)
        if worker_id is not None:
            self.worker(worker_id).pending.pop(request_idx, None)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # JSON can carry halves of characters


@asynccontextmanager
async def serve_engine(
    engine: LocalEngine, host: str = "127.0.0.1", port: int = 0
) -> AsyncGenerator[str, None]:
    """Serve `engine` and give its base URL; port 0 takes a free one. Raises `CannotListen`."""
    runner = web.AppRunner(engine.app(), access_log=None, shutdown_timeout=SHUTDOWN_LIMIT_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as e:
            raise CannotListen(_why_not(host, port, e)) from e
        yield _base_url(runner)
    finally:
        await runner.cleanup()


def _why_not(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: choose another with --port"
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot listen on {host}, port {port} ({why}): choose another with --port or --host"


def _base_url(runner: web.AppRunner) -> str:
    """The first address listened on; one that means every interface is given as this machine's own."""
    address: tuple[str, int] = runner.addresses[0][:2]
    host, port = address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run_engine(
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    scheme: Scheme = "full",
    api_key: str | None = None,
    endpoint: str = DEFAULT_ENDPOINT,
    tell: Callable[[str], object] | None = None,
) -> None:
    """Serve a local engine until cancelled, having told in one line where and what it is.

    The line goes to `tell`, by default to standard output. Raises `CannotListen`, whose text is what to
    print and whose `exit_status` is what to exit with.
    """
    # A worker remembers the highest reqnum it took: an engine that is started anew must not begin below.
    engine = LocalEngine(scheme, api_key, endpoint, first_reqnum=int(SystemClock().wall() * 1000))
    async with serve_engine(engine, host, port) as url:
        (tell or _print)(
            f"local engine on {url} (endpoint {endpoint}, scheme {scheme}): "
            "a stand-in for development, not a production scheduler"
        )
        await anyio.sleep_forever()


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
