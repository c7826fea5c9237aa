"""Injected faults, as seen by a worker or a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from Crypto.PublicKey import RSA

from lib.local.engine import LocalEngine
from lib.local.faults import Fault, FaultKind, Faults
from lib.local.serving import serve_engine
from lib.wire import DeleteRequests, FinishedRequest
from tests.fakes.reports import READY
from tests.keys import new_key
from tests.manual_clock import ManualClock

REPORT = replace(READY, new_load=5.0).to_json()
FINISHED = FinishedRequest(1, True, "Success", 1.0, 2.0, 3.0)
COMPLETIONS = json.loads(DeleteRequests(7, "", (FINISHED,)).encoded())
ROUTE = {"endpoint": "local", "api_key": "k", "cost": 1.0}

# The path of each kind and the message sent to it; None for a GET.
KINDS: dict[FaultKind, tuple[str, dict[str, Any] | None]] = {
    "reports": ("/worker_status/", REPORT),
    "completions": ("/delete_requests/", COMPLETIONS),
    "pubkey": ("/pubkey/", None),
    "route": ("/route/", ROUTE),
}
DISCONNECTED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


class FaultyEngine:
    """An engine on a socket, and its manual clock."""

    def __init__(self, engine: LocalEngine, clock: ManualClock, url: str) -> None:
        self.engine = engine
        self.clock = clock
        self.url = url

    async def ask(self, kind: FaultKind, prefix: str = "") -> int:
        """Send one request of `kind` on a new connection; return the answer's status.

        The client retries a GET once by itself if the connection was closed.
        """
        path, message = KINDS[kind]
        async with aiohttp.ClientSession() as http:
            if message is None:
                async with http.get(self.url + prefix + path) as response:
                    return response.status
            async with http.post(self.url + prefix + path, json=message) as response:
                return response.status

    async def faults(self, message: object) -> tuple[int, Any]:
        """Status and body of the answer to `POST /local/faults`."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.url + "/local/faults", json=message) as response,
        ):
            return response.status, await response.json()

    def processed(self, kind: FaultKind) -> int:
        """The number of requests of `kind` that had an effect; 0 for the key, which has none."""
        engine = self.engine
        effects: dict[FaultKind, int] = {
            "reports": engine.worker(7).totals.reports,
            "completions": len(engine.finished),
            "route": len(engine.open_requests),
            "pubkey": 0,
        }
        return effects[kind]


@pytest.fixture(scope="module")
def key() -> RSA.RsaKey:
    return new_key(2048)


@pytest.fixture
async def served(key: RSA.RsaKey) -> AsyncGenerator[FaultyEngine, None]:
    clock = ManualClock()
    engine = LocalEngine(clock=clock, key=key)
    async with serve_engine(engine) as url:
        yield FaultyEngine(engine, clock, url)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("fault", "status"), [(Fault(refuse=True), 503), (Fault(status=418), 418)])
async def test_refused_until_cleared(
    served: FaultyEngine, kind: FaultKind, fault: Fault, status: int
) -> None:
    setattr(served.engine.faults, kind, fault)
    assert [await served.ask(kind) for _ in range(2)] == [status, status]
    assert served.processed(kind) == 0
    served.engine.faults.clear()
    assert await served.ask(kind) == 200
    assert served.engine.requests_seen == {kind: 3}


@pytest.mark.parametrize("kind", list(KINDS))
async def test_times_counts_down_and_clears(served: FaultyEngine, kind: FaultKind) -> None:
    setattr(served.engine.faults, kind, Fault(status=500, times=2))
    assert [await served.ask(kind) for _ in range(3)] == [500, 500, 200]
    assert served.engine.faults == Faults()


@pytest.mark.parametrize("kind", list(KINDS))
async def test_drop_is_not_processed(served: FaultyEngine, kind: FaultKind) -> None:
    setattr(served.engine.faults, kind, Fault(drop=True))
    with pytest.raises(DISCONNECTED):
        await served.ask(kind)
    assert served.processed(kind) == 0
    served.engine.faults.clear()
    assert await served.ask(kind) == 200


@pytest.mark.parametrize("kind", ["reports", "completions", "route"])
async def test_lose_is_processed_but_not_answered(served: FaultyEngine, kind: FaultKind) -> None:
    setattr(served.engine.faults, kind, Fault(lose=True, times=1))
    with pytest.raises(DISCONNECTED):
        await served.ask(kind)
    assert served.processed(kind) == 1
    assert await served.ask(kind) == 200
    assert served.processed(kind) == 2


async def test_a_lost_refusal_is_not_answered_either(served: FaultyEngine) -> None:
    served.engine.faults.reports = Fault(lose=True, times=1)
    async with aiohttp.ClientSession() as http:
        with pytest.raises(DISCONNECTED):
            await http.post(served.url + "/worker_status/", json={})


@pytest.mark.parametrize("kind", list(KINDS))
async def test_a_delay_follows_the_clock(served: FaultyEngine, kind: FaultKind) -> None:
    setattr(served.engine.faults, kind, Fault(delay_s=5.0, times=1))
    asking = asyncio.ensure_future(served.ask(kind))
    await served.clock.wait_for_timers()
    served.clock.advance(4.9)
    assert (await served.faults({}))[0] == 200  # other requests are not delayed
    assert not asking.done()
    assert served.processed(kind) == 0
    served.clock.advance(0.2)
    assert await asking == 200


async def test_a_delay_combines_with_another_fault(served: FaultyEngine) -> None:
    served.engine.faults.reports = Fault(delay_s=5.0, status=502)
    asking = asyncio.ensure_future(served.ask("reports"))
    await served.clock.wait_for_timers()
    served.clock.advance(5.0)
    assert await asking == 502


async def test_an_engine_that_stops_does_not_wait_for_delays(key: RSA.RsaKey) -> None:
    clock = ManualClock()
    engine = LocalEngine(clock=clock, key=key)
    engine.faults.reports = Fault(delay_s=3600.0)
    async with serve_engine(engine) as url:
        asking = asyncio.ensure_future(FaultyEngine(engine, clock, url).ask("reports"))
        await clock.wait_for_timers()
    with pytest.raises(DISCONNECTED):
        await asking
    assert engine.worker(7).totals.reports == 0


async def test_faults_apply_under_an_endpoints_path_too(served: FaultyEngine) -> None:
    served.engine.faults.reports = Fault(refuse=True)
    assert await served.ask("reports", "/e/chat") == 503
    assert await served.ask("pubkey", "/e/chat") == 200


async def test_a_fault_may_be_changed_in_place(served: FaultyEngine) -> None:
    served.engine.faults.reports.refuse = True
    assert await served.ask("reports") == 503
    served.engine.faults.reports.refuse = False
    assert await served.ask("reports") == 200


async def test_concurrent_requests_share_the_count(served: FaultyEngine) -> None:
    served.engine.faults.reports = Fault(refuse=True, times=2)
    statuses = await asyncio.gather(*(served.ask("reports") for _ in range(5)))
    assert sorted(statuses) == [200, 200, 200, 503, 503]


# Over HTTP


async def test_faults_are_set_and_shown_over_http(served: FaultyEngine) -> None:
    status, shown = await served.faults({"reports": {"lose": True, "times": 2}, "route": {"status": 500}})
    assert status == 200
    inactive = {
        "drop": False,
        "refuse": False,
        "status": None,
        "lose": False,
        "delay_s": 0.0,
        "times": None,
    }
    assert shown == {
        "reports": {**inactive, "lose": True, "times": 2},
        "completions": inactive,
        "pubkey": inactive,
        "route": {**inactive, "status": 500},
    }
    with pytest.raises(DISCONNECTED):
        await served.ask("reports")
    assert await served.ask("route") == 500
    status, shown = await served.faults({"route": None})
    assert shown["route"] == inactive
    assert shown["reports"] == {**inactive, "lose": True, "times": 1}
    async with aiohttp.ClientSession() as http, http.get(served.url + "/local/faults") as response:
        assert await response.json() == shown


@pytest.mark.parametrize(
    ("message", "message_part"),
    [
        ({"report": {}}, "report is unknown; use reports, completions, pubkey, route"),
        ({"reports": []}, "reports must be an object"),
        ({"reports": {"loose": True}}, "reports.loose is unknown"),
        ({"reports": {"lose": 1}}, "reports.lose must be true or false"),
        ({"reports": {"status": 200}}, "reports.status must be 400 or more"),
        ({"reports": {"status": 600}}, "reports.status must be 400 to 599"),
        ({"reports": {"delay_s": -1}}, "reports.delay_s must be 0 or more"),
        ({"reports": {"times": 0}}, "reports.times must be 1 or more"),
        ({"reports": {"lose": True, "drop": True}}, "set only one of drop, refuse, status and lose"),
    ],
)
async def test_a_bad_fault_is_refused_and_changes_nothing(
    served: FaultyEngine, message: dict[str, object], message_part: str
) -> None:
    status, answer = await served.faults({"pubkey": {"refuse": True}, **message})
    assert status == 400
    assert message_part in answer["error"]
    assert served.engine.faults == Faults()
