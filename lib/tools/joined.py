"""The check that a worker has joined an endpoint of a local engine, before a command sends it requests.

Without it, a command would wait for a worker that never comes. In the cloud, an endpoint without workers is
normal: the engine starts one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

import aiohttp

from lib.client import CLOUD_ENGINES, Target, describe_workers

_LIMIT = aiohttp.ClientTimeout(total=5.0)


class NobodyJoined(Exception):
    """No worker has joined the endpoint; the text lists the endpoints, and says how a worker joins."""


async def check_joined(http: aiohttp.ClientSession, target: Target) -> None:
    """Raise `NobodyJoined` if `target` is an endpoint of a local engine that no worker has joined.

    Passed over are an endpoint for which the engine starts workers itself (`--autoscale`), and an engine that
    can't be asked: the request itself shows what is wrong.
    """
    if target.engine_url in CLOUD_ENGINES:
        return
    try:
        endpoints = await _endpoints(http, target)
        if endpoints.get(target.endpoint) or await _is_autoscaled(http, target):
            return
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError, LookupError, TypeError):
        return
    url = target.engine_url.rstrip("/")
    others = [f"{name} ({_states(states)})" for name, states in endpoints.items() if name != target.endpoint]
    address = url if "/e/" in url else f"{url}/e/{quote(target.endpoint, safe='')}"
    raise NobodyJoined(
        f"no worker has joined the endpoint {target.endpoint!r} of the engine at {url}.\n"
        + (f"It has other endpoints: {', '.join(others)}. Name one with -e.\n" if others else "")
        + f"A worker joins if it is started with REPORT_ADDR={address}. --timeout SECONDS waits for one."
    )


async def _endpoints(http: aiohttp.ClientSession, target: Target) -> Mapping[str, Counter[str]]:
    """The number of workers in each state, by the endpoint's name."""
    url, key = target.engine_url.rstrip("/"), target.api_key
    headers = {"Authorization": f"Bearer {key}"}
    options: Mapping[str, Any] = {"timeout": _LIMIT, "raise_for_status": True}
    found: dict[str, Counter[str]] = {}
    async with http.get(f"{url}/api/v0/endptjobs/", headers=headers, **options) as answer:
        listed: Any = await answer.json()
    for endpoint in cast("list[dict[str, Any]]", listed["results"]):
        query = {"id": endpoint["id"], "api_key": key}
        async with http.post(f"{url}/get_endpoint_workers/", json=query, **options) as answer:
            workers: Any = await answer.json()
        states = (str(worker["status"]) for worker in cast("list[dict[str, Any]]", workers))
        found[str(endpoint["endpoint_name"])] = Counter(states)
    return found


async def _is_autoscaled(http: aiohttp.ClientSession, target: Target) -> bool:
    """Whether the engine starts workers for the endpoint."""
    url = f"{target.engine_url.rstrip('/')}/local/plan"
    async with http.get(url, timeout=_LIMIT, raise_for_status=True) as answer:
        listed: Any = await answer.json()
    return any(each["endpoint"] == target.endpoint and each["autoscale"] for each in listed["plans"])


def _states(states: Counter[str]) -> str:
    return describe_workers(dict(states)) if states else "no worker"
