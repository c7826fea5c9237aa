"""A client of the serverless engine: it asks the engine for a worker, and calls that worker.

Owns both requests of a call (docs/protocol.md, "Route" and "Request"), the command-line arguments that name
the engine, the endpoint and the key, and how example clients report failures. It does not own the payload,
nor how an answer is read: that is the caller's. The load test is in lib/tools/load_test.py.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import aiohttp

from lib.runtime.clock import Clock, SystemClock, sleep
from lib.runtime.urls import is_http_url
from lib.wire import RouteRequest

__all__ = [
    "CLOUD_ENGINE",
    "INSTANCES",
    "LOCAL_ENGINE",
    "LOCAL_NAME",
    "CallFailed",
    "EngineError",
    "NoWorker",
    "RouteAnswer",
    "RouteClient",
    "Target",
    "add_target_arguments",
    "auth_headers",
    "describe_workers",
    "print_waiting",
    "raise_unless_ok",
    "run_client",
    "target_from_args",
]

CLOUD_ENGINE = "https://run.vast.ai"
LOCAL_ENGINE = "http://127.0.0.1:8081"
# The engines by the names of their instances, as `-i` takes them.
INSTANCES: Mapping[str, str] = {
    "prod": CLOUD_ENGINE,
    "alpha": "https://run-alpha.vast.ai",
    "candidate": "https://run-candidate.vast.ai",
    "local": LOCAL_ENGINE,
}

CLOUD_ENGINES = frozenset(INSTANCES.values()) - {LOCAL_ENGINE}

# The endpoint that the local engine starts with. It serves as the key too: the local engine accepts any.
LOCAL_NAME = "local"

# Workers' certificates are signed by an authority that is in no system's store. The cloud's authority is
# fetched from CLOUD_CA_URL, a local engine's from this path of the engine.
CA_PATH = "/static/jvastai_root.cer"
CLOUD_CA_URL = f"https://console.vast.ai{CA_PATH}"

# The engine answers immediately, whether it has a ready worker or not.
_ENGINE_TIMEOUT = aiohttp.ClientTimeout(total=30.0)
# Generating an answer may take any time, so only connecting is limited.
_WORKER_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30.0)
# How much of an error's body goes into the message, in characters.
_MAX_EXCERPT = 300


class EngineError(Exception):
    """The engine refused the request, or its answer is malformed.

    `status` is the HTTP status of its answer: 200 for an answer that is malformed.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"engine: {message}")
        self.status = status


class CallFailed(Exception):
    """The worker answered with an error, or would do so; the text says which."""


class NoWorker(Exception):
    """No worker was ready within the time limit.

    `workers` is the engine's last report of their states: an object of state to number, or None.
    """

    def __init__(self, workers: Any) -> None:
        super().__init__(f"no worker is ready: {describe_workers(workers)}")
        self.workers = workers


@dataclass(frozen=True)
class Target:
    """The engine's base URL, the endpoint's name, and the API key to send with each request."""

    engine_url: str
    endpoint: str
    api_key: str


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `-k`, `-e`, `-l`, `-i` and `--engine` to `parser`; `target_from_args` reads them.

    The arguments that it parses also have `server_url`, the engine's base URL, and `instance`, a key of
    `INSTANCES`.
    """
    parser.add_argument("-k", dest="api_key", metavar="KEY", help="your API key; not needed with -l")
    parser.add_argument(
        "-e",
        dest="endpoint_group_name",
        metavar="NAME",
        help="the endpoint's name (with -l, by default: local)",
    )
    parser.add_argument(
        "-l",
        dest="instance",
        nargs=0,
        default="prod",
        const="local",
        action=_ChooseInstance,
        help=f"ask the local engine at {LOCAL_ENGINE}",
    )
    parser.add_argument(
        "-i",
        dest="instance",
        default="prod",
        choices=tuple(INSTANCES),
        action=_ChooseInstance,
        help="ask the engine of this instance; local is the same as -l",
    )
    parser.add_argument(
        "--engine", metavar="URL", action=_ChooseEngine, help="ask the local engine at another address"
    )
    parser.set_defaults(server_url=CLOUD_ENGINE)


class _ChooseInstance(argparse.Action):
    """Sets `instance`, and `server_url` to its engine, unless `--engine` is given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        if not namespace.engine:
            namespace.instance = self.const or values
            namespace.server_url = INSTANCES[namespace.instance]


class _ChooseEngine(argparse.Action):
    """Sets `engine` and `server_url`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        namespace.engine = namespace.server_url = values
        namespace.instance = "local"


def target_from_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Target:
    """Return the target that `args` name, which `parser` has parsed.

    Where they are not enough, or `--engine` is not an http(s) URL, print an error and exit with status 2.
    """
    if args.engine and not is_http_url(args.engine):
        parser.error(
            f"argument --engine: {args.engine!r} is not an http(s) URL: give one like {LOCAL_ENGINE}"
        )
    if args.instance != "local" and not (args.api_key and args.endpoint_group_name):
        parser.error("-k KEY and -e NAME are needed, or -l for the local engine")
    return Target(
        engine_url=args.server_url,
        endpoint=args.endpoint_group_name or LOCAL_NAME,
        api_key=args.api_key or LOCAL_NAME,
    )


@dataclass(frozen=True)
class RouteAnswer:
    """The worker that the engine chose for one request, and the signature that authorizes the call.

    `url` is the worker's base URL, `request_idx` the engine's number of the request. `auth_data` is the
    engine's whole answer. It is sent unchanged, since the signature covers its values (docs/protocol.md,
    "Signature").
    """

    url: str
    request_idx: int
    auth_data: Mapping[str, Any]


class RouteClient:
    """Asks the engine for workers, and calls them, over the HTTP session `http`.

    While no worker is ready, it asks the engine again every `poll_s` seconds.
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
        """Wait until a worker is ready for a request of `cost` workload units, and return it.

        The wait takes at most `limit_s` seconds. `request_idx` is that of an earlier answer, to try the same
        request again without adding load; 0 is a new request. `on_wait` is called each time that no worker is
        ready, with the engine's report of their states, as `describe_workers` takes it.

        Raises `NoWorker` after `limit_s` seconds, `EngineError` if the engine refuses or its answer is
        malformed, and `aiohttp.ClientError` or `asyncio.TimeoutError` if it can't be reached.
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
        self,
        worker: RouteAnswer,
        path: str,
        payload: Mapping[str, Any],
        *,
        session_id: str | None = None,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Send `payload` to the worker's route `path`; give its response, whose body is still to be read.

        The response may have any status: see `raise_unless_ok`. `session_id` names a session
        (docs/protocol.md, "Sessions"), `headers` are sent besides. Connecting takes at most 30 seconds; the
        answer may take any time. Raises `aiohttp.ClientError` if the worker can't be reached, or if its
        certificate is not signed by the engine's authority.
        """
        envelope: dict[str, Any] = {"auth_data": worker.auth_data, "payload": payload}
        if session_id is not None:
            envelope["session_id"] = session_id
        async with self._sent(method, worker, path, json=envelope, headers=headers) as response:
            yield response

    @asynccontextmanager
    async def call_raw(
        self,
        worker: RouteAnswer,
        path: str,
        *,
        method: str = "POST",
        data: Any = None,
        params: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Like `call`, but with header authentication: the body `data` is sent as it is.

        `data` is whatever aiohttp sends as a body: bytes, an open file, an `aiohttp.FormData`; None is no
        body. `params` are added to the query.
        """
        signed = {**(headers or {}), **auth_headers(worker)}
        async with self._sent(method, worker, path, data=data, params=params, headers=signed) as response:
            yield response

    @asynccontextmanager
    async def _sent(
        self, method: str, worker: RouteAnswer, path: str, **options: Any
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        async with self._http.request(
            method,
            worker.url.rstrip("/") + path,
            timeout=_WORKER_TIMEOUT,
            ssl=await self._trust(worker.url),
            allow_redirects=False,  # a redirect would hand the signature to another server
            **options,
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
        # An engine may leave it out while no worker is ready: then the request keeps its number.
        fields.setdefault("request_idx", request_idx)
        if type(fields["request_idx"]) is not int:
            raise EngineError(200, "its answer has a request_idx that is not an integer")
        if "url" in fields and not (isinstance(fields["url"], str) and is_http_url(fields["url"])):
            raise EngineError(200, "its answer has a url that is not an http(s) URL")
        return fields

    async def _trust(self, worker_url: str) -> ssl.SSLContext | bool:
        """Return what the worker's certificate is checked against; the authority is fetched only once."""
        if not worker_url.startswith("https:"):
            return True
        async with self._tls_lock:
            if self._tls is None:
                cloud = self._engine_url in CLOUD_ENGINES
                ca_url = CLOUD_CA_URL if cloud else self._engine_url + CA_PATH
                async with self._http.get(ca_url, timeout=_ENGINE_TIMEOUT, raise_for_status=True) as response:
                    certificate = await response.read()
                self._tls = await asyncio.to_thread(_tls_context, certificate)
        return self._tls


def auth_headers(worker: RouteAnswer) -> dict[str, str]:
    """The headers that authenticate one request to `worker` (docs/protocol.md, "Header authentication").

    A request with them has the payload itself as its body, of any content type.
    """
    auth_data = json.dumps(worker.auth_data).encode()
    return {"X-Vast-Auth": base64.urlsafe_b64encode(auth_data).decode()}


async def raise_unless_ok(response: aiohttp.ClientResponse) -> None:
    """Raise `CallFailed`, with the status and the body, unless the status is 200."""
    if response.status != 200:
        raise CallFailed(f"worker: HTTP {response.status} {await response.text(errors='replace')}")


def print_waiting(workers: Any) -> None:
    """Print to standard error that no worker is ready yet; for `on_wait` of `RouteClient.route`."""
    print(f"no worker is ready yet: {describe_workers(workers)}", file=sys.stderr)


def describe_workers(workers: Any) -> str:
    """Describe the states of an endpoint's workers, for instance `2 loading, 1 stopped`.

    `workers` is the `status` of an engine's answer without a worker (docs/protocol.md, "Route"): an object of
    state to number. Anything else is shown as it is.
    """
    if workers is None:
        return "the engine has not reported their states"
    if not isinstance(workers, dict):
        return str(workers)
    counts = cast("dict[str, object]", workers)
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return shown or "none has joined this endpoint (is its name right?)"


def run_client(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the example client `main`.

    If a call fails, print one line to standard error and exit with status 1. Any other exception is raised.
    """
    try:
        asyncio.run(main())
    except (CallFailed, NoWorker, EngineError, aiohttp.ClientError, asyncio.TimeoutError) as e:
        sys.exit(str(e) or type(e).__name__)


def _tls_context(ca_certificate: bytes) -> ssl.SSLContext:
    """Return a context that trusts the system's authorities and this one, in PEM or DER."""
    context = ssl.create_default_context()
    pem = b"-----BEGIN" in ca_certificate
    context.load_verify_locations(cadata=ca_certificate.decode("ascii") if pem else ca_certificate)
    # Python 3.13 requires extensions that the authority's certificate lacks: it is older than that.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
