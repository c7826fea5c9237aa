"""Mutated requests to every route of the local engine: each is answered, and never by a failure of its own.

tests/lib/local/test_fuzz_engine.py sends a few. By hand, many:

    python -m tests.endurance.fuzz_engine 50000

It fails for an answer of 500, an error in the log, an answer that is not HTTP, and a connection that stays
open.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections.abc import Sequence
from typing import Any

import anyio
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from lib.local.api import EngineApi
from lib.local.engine import LocalEngine
from lib.local.messages import RouteQuery
from lib.local.serving import serve_engine
from tests.endurance.fuzz_front import Findings, exchanged, mutation
from tests.fakes.raw_client import request_bytes
from tests.fakes.reports import READY
from tests.system import engine_key

CONNECTIONS = 24
# A new key takes a second of CPU time, and no answer depends on the request.
LEFT_OUT = {"/local/rotate_key"}
# The fields that routes read, with valid values.
FIELDS: dict[str, Any] = {
    "id": 1,
    "endpoint": "local",
    "endpoint_id": 1,
    "endpoint_name": "local",
    "workergroup_id": 1,
    "autogroup_id": 1,
    "api_key": "any",
    "cost": 5.0,
    "request_idx": 1,
    "tail": 10,
    "user_id": 1,
    "worker_id": 4711,
    "mtoken": "m",
    "reports": {"delay_s": 0.0, "times": 1},
    "route": None,
    "model": "m",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 5,
    "stream": True,
    "requests": [
        {
            "request_idx": 1,
            "success": True,
            "status": "Success",
            "entered_queue_at": 1.0,
            "work_started_at": 1.0,
            "work_completed_at": 2.0,
        }
    ],
}
# Values in place of valid ones, as JSON.
ODD = [
    *("null", "true", "false", "0", "-1", "1", str(2**63), "9" * 400, "0.5", "1e308", "-0.0", "NaN", "1e999"),
    *(
        '""',
        f'"{"x" * 10_000}"',
        '"\\u0000"',
        '"\\ud800"',
        '"local"',
        "[]",
        "{}",
        "[[],[]]",
        '{"id": 1}',
        "[{}]",
    ),
]


def route_paths() -> list[tuple[str, str]]:
    """Method and path, with its parameters, of each route of the engine."""
    found: list[tuple[str, str]] = []
    for route in EngineApi(LocalEngine(key=engine_key())).app().router.routes():
        resource = route.resource
        if resource is not None and not isinstance(resource, web.StaticResource):
            path = resource.canonical.replace("{endpoint}", "local").replace("{id}", "1")
            method = "POST" if route.method == "*" else route.method
            if path not in LEFT_OUT and route.method != "HEAD":
                found.append((method, path))
    return found


def odd_body(source: random.Random, fields: dict[str, Any]) -> bytes:
    """The JSON of `fields` with some odd values, and without some fields."""
    members = {name: json.dumps(value) for name, value in fields.items()}
    for _ in range(source.randint(0, 4)):
        members[source.choice(list(fields))] = source.choice(ODD)
    for _ in range(source.randint(0, 2)):
        members.pop(source.choice(list(fields)), None)
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in members.items()) + "}").encode()


def engine_requests(source: random.Random, host: str, routes: Sequence[tuple[str, str]]) -> list[bytes]:
    """A few requests with odd bodies, to any of `routes`."""
    requests: list[bytes] = []
    fields = {**FIELDS, **READY.to_json()}
    headers = {"Host": host, "Authorization": "Bearer any", "Content-Type": "application/json"}
    for _ in range(3):
        method, path = source.choice(routes)
        query = source.choice(("", "", "?instance_id=1", "?instance_id=x", "?since=nan", "?since=1e999"))
        request = request_bytes(path + query, odd_body(source, fields), headers)
        requests.append(request.replace(b"POST", method.encode(), 1))
    return requests


class ErrorLog(logging.Handler):
    """Keeps the messages of errors, except those of aiohttp about what is not HTTP."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError):
            self.messages.append(self.format(record))


async def fuzz_engine(count: int, seed: int) -> tuple[Findings, list[str]]:
    """Send `count` streams to an engine, several at once; return the findings, and the errors in the log."""
    source, findings, errors, left = random.Random(seed), Findings(), ErrorLog(), count
    engine, routes = LocalEngine(key=engine_key()), route_paths()
    engine.take_report("local", READY)
    engine.route(RouteQuery("local", 5.0, 0))
    logging.getLogger().addHandler(errors)
    try:
        async with serve_engine(engine) as url:
            host = url.removeprefix("http://")

            async def send_some() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    engine.faults.clear()
                    parts = mutation(source, engine_requests(source, host, routes))
                    await exchanged(int(host.rsplit(":", 1)[1]), parts, findings)

            async with anyio.create_task_group() as tasks:
                for _ in range(CONNECTIONS):
                    tasks.start_soon(send_some)
    finally:
        logging.getLogger().removeHandler(errors)
    return findings, errors.messages


async def _main(count: int, seed: int) -> int:
    findings, errors = await fuzz_engine(count, seed)
    print(f"seed {seed}: {findings.done} streams; answers: {dict(sorted(findings.statuses.items()))}")
    for name, streams in (("not HTTP", findings.malformed), ("hung", findings.hung)):
        print(f"{name}: {len(streams)}", *streams[:5], sep="\n    ")
    print(f"errors in the log: {len(errors)}", *errors[:5], sep="\n")
    return 1 if errors or findings.statuses[500] or findings.malformed or findings.hung else 0


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    sys.exit(asyncio.run(_main(int(sys.argv[1]), seed)))
