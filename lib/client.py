"""A client of the serverless engine: asks it for a worker, and calls that worker (protocol.md §1, §2).

Owns the two requests of every call, the arguments that say which engine is asked as whom, and what every
example client does about failures. What is sent and what becomes of the answer is the caller's.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp

from lib.runtime.clock import Clock, SystemClock, sleep
from lib.wire import RouteRequest

__all__ = [
    "CallFailed",
    "EngineError",
    "NoWorker",
    "RouteAnswer",
    "RouteClient",
    "Target",
    "add_target_arguments",
    "check",
    "run_client",
    "target_of",
    "tell_waiting",
]

CLOUD_ENGINE = "https://run.vast.ai"
LOCAL_ENGINE = "http://127.0.0.1:8081"

# The local engine takes any key, and starts with this endpoint (launch.md).
LOCAL_NAME = "local"

# Instances' certificates are signed by an authority that no system knows. It is fetched from here for the
# cloud's workers, and from the engine itself for others.
CA_PATH = "/static/jvastai_root.cer"
CLOUD_CA_URL = f"https://console.vast.ai{CA_PATH}"

# The engine answers at once, whether it has a worker or not.
_ENGINE_TIMEOUT = aiohttp.ClientTimeout(total=30.0)
# A generated answer may take any time; only connecting may not.
_WORKER_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30.0)
# Enough of a refusal's text to understand it, in characters.
_MAX_EXCERPT = 300


class EngineError(Exception):
    """The engine refused, or its answer makes no sense. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"engine: {message}")
        self.status = status


class CallFailed(Exception):
    """The worker answered with an error."""


class NoWorker(Exception):
    """No worker was ready in time. `workers` is how many are in which state, as the engine tells it."""

    def __init__(self, workers: Any) -> None:
        super().__init__(f"no worker is ready: {told_of(workers)}")
        self.workers = workers


@dataclass(frozen=True)
class Target:
    """Which engine is asked, for a worker of which endpoint, and with whose key."""

    engine_url: str
    endpoint: str
    api_key: str


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` `-k`, `-e`, `-l` and `--engine`, which `target_of` reads."""
    parser.add_argument("-k", dest="api_key", metavar="KEY", help="your API key; not needed with -l")
    parser.add_argument(
        "-e", dest="endpoint_group_name", metavar="NAME", help="name of the endpoint; with -l: local"
    )
    parser.add_argument("-l", dest="local", action="store_true", help=f"ask the local engine, {LOCAL_ENGINE}")
    parser.add_argument("--engine", metavar="URL", help="ask the local engine at this address")


def target_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Target:
    """What the arguments say. Where they are not enough, `parser` says so and exits with status 2."""
    if args.engine and not _is_url(args.engine):
        parser.error(f"argument --engine: {args.engine!r} is not an http(s) URL")
    local_url = args.engine or (LOCAL_ENGINE if args.local else None)
    if not local_url and not (args.api_key and args.endpoint_group_name):
        parser.error("-k KEY and -e NAME are needed, or -l for the local engine")
    return Target(
        engine_url=local_url or CLOUD_ENGINE,
        endpoint=args.endpoint_group_name or LOCAL_NAME,
        api_key=args.api_key or LOCAL_NAME,
    )


@dataclass(frozen=True)
class RouteAnswer:
    """A worker and the right to call it.

    `auth_data` is the engine's whole answer, to be sent as it is: its signature is over these very values.
    """

    url: str
    request_idx: int
    auth_data: Mapping[str, Any]


class RouteClient:
    """Asks the engine for workers, and calls them.

    `poll_s` is the pause before the engine is asked again, while no worker is ready.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        target: Target,
        *,
        poll_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self._http = http
        self._target = target
        self._engine_url = target.engine_url.rstrip("/")
        self._poll_s = poll_s
        self._clock = clock or SystemClock()
        self._tls: ssl.SSLContext | None = None
        self._tls_lock = asyncio.Lock()

    async def route(
        self,
        cost: float,
        *,
        request_idx: int = 0,
        limit_s: float = 600.0,
        on_wait: Callable[[Any], object] | None = None,
    ) -> RouteAnswer:
        """A worker for a request of `cost` workload units, once one is ready.

        `request_idx` is that of an earlier answer, to try the same request again. `on_wait` is called with
        the states of the workers each time that none is ready. Raises `NoWorker` after `limit_s` seconds,
        `EngineError`, and what aiohttp raises where the engine can't be reached.
        """
        deadline = self._clock.monotonic() + limit_s
        while True:
            answer = await self._ask(cost, request_idx)
            request_idx = answer["request_idx"]
            if "url" in answer:
                return RouteAnswer(answer["url"], request_idx, answer)
            states = answer.get("status")
            if self._clock.monotonic() + self._poll_s > deadline:
                raise NoWorker(states)
            if on_wait:
                on_wait(states)
            await sleep(self._clock, self._poll_s)

    @asynccontextmanager
    async def call(
        self, worker: RouteAnswer, path: str, payload: Mapping[str, Any], *, session_id: str | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """The worker's response to `payload` on `path`, its status whatever it is, its body still to be read.

        There is no time limit but on connecting. Raises what aiohttp raises.
        """
        envelope: dict[str, Any] = {"auth_data": worker.auth_data, "payload": payload}
        if session_id is not None:
            envelope["session_id"] = session_id
        async with self._http.post(
            worker.url.rstrip("/") + path,
            json=envelope,
            timeout=_WORKER_TIMEOUT,
            ssl=await self._trust(worker.url),
            allow_redirects=False,  # the envelope is for this worker alone
        ) as response:
            yield response

    async def _ask(self, cost: float, request_idx: int) -> dict[str, Any]:
        request = RouteRequest(self._target.endpoint, self._target.api_key, cost, request_idx)
        async with self._http.post(
            f"{self._engine_url}/route/", json=request.to_json(), timeout=_ENGINE_TIMEOUT
        ) as response:
            if response.status != 200:
                text = await response.text(errors="replace")
                raise EngineError(response.status, f"HTTP {response.status} {text[:_MAX_EXCERPT]}".rstrip())
            try:
                answer: Any = await response.json(content_type=None)
            except ValueError as e:
                raise EngineError(200, "its answer is not JSON") from e
        if not isinstance(answer, dict):
            raise EngineError(200, "its answer is not an object")
        fields = cast("dict[str, Any]", answer)
        # An engine may leave it out while none is ready: then the request stays the one it was.
        fields.setdefault("request_idx", request_idx)
        if type(fields["request_idx"]) is not int:
            raise EngineError(200, "its answer has a request_idx that is not an integer")
        if "url" in fields and not _is_url(fields["url"]):
            raise EngineError(200, "its answer has a url that is not an http(s) URL")
        return fields

    async def _trust(self, worker_url: str) -> ssl.SSLContext | bool:
        """What the worker's certificate is checked against; fetched once, when the first one needs it."""
        if not worker_url.startswith("https:"):
            return True
        async with self._tls_lock:
            if self._tls is None:
                cloud = self._engine_url == CLOUD_ENGINE
                ca_url = CLOUD_CA_URL if cloud else self._engine_url + CA_PATH
                async with self._http.get(ca_url, timeout=_ENGINE_TIMEOUT, raise_for_status=True) as response:
                    certificate = await response.read()
                self._tls = await asyncio.to_thread(_tls_context, certificate)
        return self._tls


async def check(response: aiohttp.ClientResponse) -> None:
    """Raises `CallFailed`, with what the worker said, for any status but 200."""
    if response.status != 200:
        raise CallFailed(f"worker: HTTP {response.status} {await response.text(errors='replace')}")


def tell_waiting(workers: Any) -> None:
    """For `RouteClient.route`'s `on_wait`: a line on standard error."""
    print(f"no worker is ready yet: {told_of(workers)}", file=sys.stderr)


def told_of(workers: Any) -> str:
    """What the engine tells of an endpoint's workers, in words where there are none: a name may be wrong."""
    if isinstance(workers, dict) and not any(cast("dict[str, Any]", workers).values()):
        return "none has joined this endpoint"
    return str(cast("object", workers))


def run_client(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an example client to its end. What fails is told in one line, with exit status 1."""
    try:
        asyncio.run(main())
    except (CallFailed, NoWorker, EngineError, aiohttp.ClientError) as e:
        sys.exit(str(e))


def _tls_context(ca_certificate: bytes) -> ssl.SSLContext:
    """The system's authorities and this one, PEM or DER."""
    context = ssl.create_default_context()
    pem = b"-----BEGIN" in ca_certificate
    context.load_verify_locations(cadata=ca_certificate.decode("ascii") if pem else ca_certificate)
    # Python 3.13 demands extensions of an authority's certificate that older ones were made without.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and urlsplit(value).scheme in ("http", "https")
