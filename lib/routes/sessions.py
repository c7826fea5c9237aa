"""The session routes: clients open, query and end sessions (docs/protocol.md, "Sessions").

Owns their bodies and answers. Sessions and their expiry are in lib/request/sessions.py; a session's entry in
the ledger is in lib/request/session_life.py. An author's route with the same path takes precedence.
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from lib.backend import Backend
from lib.errors import Invalid, SessionGone
from lib.request.exchange import note_verified
from lib.request.incoming import free_body_memory
from lib.request.sessions import Session


def session_routes(backend: Backend) -> list[web.RouteDef]:
    """The session routes of the public port."""
    return [
        web.post("/session/create", partial(_create, backend)),
        web.post("/session/get", partial(_get, backend)),
        web.post("/session/health", partial(_health, backend)),
        end_route(backend),
    ]


def end_route(backend: Backend) -> web.RouteDef:
    """The route that ends a session, which is on the loopback port too, for model servers on the instance."""
    return web.post("/session/end", partial(_end, backend))


async def _create(backend: Backend, request: web.Request) -> web.Response:
    try:
        session = await _opened(backend, request)
    finally:
        free_body_memory(request)
    answer = {"session_id": session.id, "expiration": session.expiration}
    return web.json_response(answer, status=201)


async def _opened(backend: Backend, request: web.Request) -> Session:
    """A new session, as `request` asks for it. Raises what `SessionLife.open` raises, and 401 or 422."""
    running = backend.running
    admission = await running.authenticator.admit(request)
    note_verified(request)
    if admission.session_id is not None:  # a repeated signature, valid inside a session, must not open one
        raise Invalid({"session_id": "must not be given: a session can't be opened inside another"})
    return await running.session_life.open(
        admission.raw_auth,
        admission.auth.request_idx,
        partial(running.lanes.count_session, admission.auth.cost),
        partial(running.payloads.read_json, request, admission),
        backend.check_state,
    )


async def _get(backend: Backend, request: web.Request) -> web.Response:
    return web.json_response((await _live(backend, request)).to_json())


async def _health(backend: Backend, request: web.Request) -> web.Response:
    return web.json_response({"ok": await backend.running.authenticator.session_in(request) is not None})


async def _end(backend: Backend, request: web.Request) -> web.Response:
    session = await _live(backend, request)
    backend.running.sessions.end(session)
    return web.json_response({"ended": True, "removed_session": session.id})


async def _live(backend: Backend, request: web.Request) -> Session:
    """The session that the body names. Raises `SessionGone` (410) if there is none."""
    session = await backend.running.authenticator.session_in(request)
    if session is None:
        raise SessionGone()
    return session
