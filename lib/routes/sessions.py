"""The session routes: what clients call to open, look at and end a session (protocol.md §4).

Owns their bodies and answers. What a session is and how it expires is in lib/request/sessions.py, what it
counts as in lib/backend.py. Routes of the author's own win over these.
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from lib.backend import Backend
from lib.errors import Invalid, SessionGone
from lib.request.sessions import Session


def session_routes(backend: Backend) -> list[web.RouteDef]:
    """For the public port."""
    return [
        web.post("/session/create", partial(_create, backend)),
        web.post("/session/get", partial(_get, backend)),
        web.post("/session/health", partial(_health, backend)),
        end_route(backend),
    ]


def end_route(backend: Backend) -> web.RouteDef:
    """For model servers on the instance too, on the loopback port."""
    return web.post("/session/end", partial(_end, backend))


async def _create(backend: Backend, request: web.Request) -> web.Response:
    running = backend.running
    admission = await running.authenticator.admit(request)
    if admission.session_id is not None:  # which would let a signature in again
        raise Invalid({"session_id": "must not be given: a session is opened outside any other"})
    session = await running.session_life.open(
        admission.raw_auth,
        admission.auth.request_idx,
        admission.auth.cost,
        partial(running.payloads.read_json, request, admission),
        backend.check_state,
    )
    answer = {"session_id": session.id, "expiration": session.expiration}
    return web.json_response(answer, status=201)


async def _get(backend: Backend, request: web.Request) -> web.Response:
    return web.json_response((await _live(backend, request)).to_json())


async def _health(backend: Backend, request: web.Request) -> web.Response:
    return web.json_response({"ok": await backend.running.authenticator.session_in(request) is not None})


async def _end(backend: Backend, request: web.Request) -> web.Response:
    session = await _live(backend, request)
    backend.running.sessions.end(session)
    return web.json_response({"ended": True, "removed_session": session.id})


async def _live(backend: Backend, request: web.Request) -> Session:
    """The session that the body names. Raises `SessionGone` (410) when there is none."""
    session = await backend.running.authenticator.session_in(request)
    if session is None:
        raise SessionGone()
    return session
