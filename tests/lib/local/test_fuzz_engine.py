"""Mutated requests to every route of the local engine (tests/endurance/fuzz_engine.py): some of them."""

from __future__ import annotations

from tests.endurance.fuzz_engine import fuzz_engine, route_paths


def test_the_routes_are_found() -> None:
    assert {("POST", "/route/"), ("POST", "/e/local/worker_status/"), ("GET", "/")} <= set(route_paths())


async def test_mutated_requests_get_answers_and_no_failure() -> None:
    findings, errors = await fuzz_engine(400, seed=1)
    assert (errors, findings.statuses[500], findings.malformed, findings.hung) == ([], 0, [], [])
    assert min(findings.statuses[status] for status in (200, 400)) > 0
