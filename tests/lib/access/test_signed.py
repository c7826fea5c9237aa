"""The checks of a signed request before it is admitted."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.access.arriving import Arrivals
from lib.access.body import BodyReader
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.refusals import Refusals
from lib.access.signed import SignedRequests
from lib.access.spool import SpoolRoom
from lib.request.sessions import Sessions, SessionTerms
from lib.runtime.clock import SystemClock

AUTH = {"signature": "", "cost": 1, "endpoint": "e", "reqnum": 1, "url": "http://worker"}


class CountingSessions(Sessions):
    """Counts the calls of `remembers`."""

    asked = 0

    def remembers(self, raw_auth: Any) -> bool:
        self.asked += 1
        return super().remembers(raw_auth)


async def no_key() -> None: ...


@pytest.mark.parametrize(("padding", "asked"), [(0, 0), (PARSED_WHOLE_BYTES, 1)])
async def test_only_an_envelope_that_is_not_parsed_yet_is_looked_up(padding: int, asked: int) -> None:
    sessions = CountingSessions(None, SystemClock())
    session = sessions.create(AUTH, SessionTerms())
    bodies = BodyReader(2 * PARSED_WHOLE_BYTES, 10.0)
    authenticator = SignedRequests(
        Arrivals(bodies, SpoolRoom(2**30)), None, sessions, no_key, Refusals(SystemClock())
    )

    async def admit(request: web.Request) -> web.Response:
        admission = await authenticator.admit(request)
        assert admission.session is session
        assert admission.payload_text == json.dumps(message["payload"]).encode()
        return web.Response()

    app = web.Application()
    app.router.add_post("/", admit)
    message = {"auth_data": AUTH, "session_id": session.id, "payload": {"x": "x" * padding}}
    body = io.BytesIO(json.dumps(message).encode())
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as http,
        http.post(server.make_url("/"), data=body) as answer,
    ):
        assert answer.status == 200
    assert sessions.asked == asked
    sessions.end(session)
