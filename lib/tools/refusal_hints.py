"""Hints for a command line whose requests the worker refused: another route, or a file.

Owns the hints below the answer of `pyworker request` and the summary of `pyworker load-test`. The worker's
routes are those that a local engine describes (docs/local-engine.md).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import aiohttp

from lib.client import CLOUD_ENGINES, Target
from lib.errors import result_or_error
from lib.uploads import TAKES_A_FILE

_LIMIT = aiohttp.ClientTimeout(total=5.0)
_METHODS = ("get", "put", "post", "delete", "patch")
_FILE_HINT = (
    "send a file with --file FIELD=@PATH, as a field of a form, or with --file @PATH, as the whole body"
)


async def routes_hint(target: Target, how: str) -> str:
    """Name the routes of the workers of `target`, where they can be asked; `how` says how to choose one."""
    routes = await _routes(target)
    return f"the worker's routes are {', '.join(routes)}: {how}" if routes else how


def file_hint(body: str) -> str | None:
    """The hint to send a file, if `body` is the 422 of a route that takes a file only; None for any other."""
    answer: Any = result_or_error(lambda: json.loads(body)["payload"]["body"])
    return _FILE_HINT if isinstance(answer, str) and answer.endswith(TAKES_A_FILE) else None


async def _routes(target: Target) -> list[str]:
    """The methods and paths of the endpoint's routes; none of an engine that doesn't describe them."""
    if target.engine_url in CLOUD_ENGINES:
        return []
    url = target.engine_url.rstrip("/")
    address = url if "/e/" in url else f"{url}/e/{quote(target.endpoint, safe='')}"
    try:
        async with (
            aiohttp.ClientSession(timeout=_LIMIT, raise_for_status=True) as http,
            http.get(f"{address}/openapi.json") as answer,
        ):
            document: Any = await answer.json()
        return [
            f"{method.upper()} {path}"
            for path, operations in document["paths"].items()
            for method in operations
            if method in _METHODS
        ]
    except (
        aiohttp.ClientError,
        OSError,
        asyncio.TimeoutError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):
        return []
