"""Sessions over real sockets: what clients get, and what the engine is told (authoring.md §3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.rig import Rig, inner_rig


async def create(rig: Rig, cost: float = 50.0, **terms: Any) -> tuple[int, Any, dict[str, Any]]:
    """Status, body, and the `auth_data` that the session was asked for with."""
    auth = rig.auth(cost)
    async with rig.http.post(
        rig.url + "/session/create", json={"auth_data": auth, "payload": terms}
    ) as answer:
        return answer.status, await answer.json(), auth


async def call(rig: Rig, path: str, session_id: str, auth: Any) -> tuple[int, Any]:
    body = {"session_id": session_id, "session_auth": auth}
    async with rig.http.post(rig.url + path, json=body) as answer:
        return answer.status, await answer.json()


async def test_a_session_is_one_request_to_the_engine(tmp_path: Path) -> None:
    async with inner_rig(tmp_path) as rig:
        status, session, auth = await create(rig)
        assert status == 201
        for _ in range(3):
            envelope = {"auth_data": auth, "payload": {"workload": 7.0}, "session_id": session["session_id"]}
            async with rig.http.post(rig.url + "/echo", json=envelope) as answer:
                assert answer.status == 200
        await rig.engine.wait_for(lambda: rig.last_report.cur_load == 50.0)
        assert (await call(rig, "/session/end", session["session_id"], auth))[0] == 200
        await rig.told(served=50.0)
        assert (rig.totals.new_load, rig.totals.cur_perf) == (50.0, 50.0)
        assert rig.last_report.num_requests_received == 1
        await rig.engine.wait_for(lambda: rig.engine.finished)
        assert [f.request.status for f in rig.engine.finished] == ["Success"]
        assert (await call(rig, "/session/get", session["session_id"], auth))[0] == 410
