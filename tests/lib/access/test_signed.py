"""The checks of a signed request before it is admitted."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Coroutine, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, make_mocked_request
from Crypto.PublicKey import RSA

from lib.access.arriving import Arrivals
from lib.access.body import BodyReader
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.refusals import Refusals
from lib.access.signatures import BadSignature, Signatures
from lib.access.signed import SignedRequests
from lib.access.spool import SpoolRoom
from lib.access.turns import AT_ONCE
from lib.errors import Invalid, Unauthorized, Unavailable
from lib.local.signer import Signer
from lib.request.sessions import Sessions, SessionTerms
from lib.runtime.clock import SystemClock
from tests.event_loop import until
from tests.fakes.incoming_request import Client, IncomingRequest
from tests.guard import GUARD_S
from tests.keys import new_key
from tests.system import engine_key

AUTH = {"signature": "", "cost": 1, "endpoint": "e", "reqnum": 1, "url": "http://worker"}
KEY, NEXT_KEY, OTHER_KEY = engine_key(), new_key(), new_key()
LARGE = {"x": "x" * PARSED_WHOLE_BYTES}


class CountingSessions(Sessions):
    """Counts the calls of `remembers`."""

    asked = 0

    def remembers(self, raw_auth: Any) -> bool:
        self.asked += 1
        return super().remembers(raw_auth)


class CountingSignatures(Signatures):
    """Counts the calls of `check`."""

    checked = 0

    def check(self, raw: Mapping[str, Any], reqnum: int, *, once: bool = True) -> None:
        self.checked += 1
        super().check(raw, reqnum, once=once)


class Access:
    """An authenticator that verifies with `KEY`. Once `rotated` is set, fetching the key gives that one."""

    def __init__(self, key: RSA.RsaKey | None = KEY) -> None:
        self.signatures = CountingSignatures("auto", "http://worker")
        self.sessions = Sessions(None, SystemClock())
        self.rotated: RSA.RsaKey | None = None
        self.fetched = 0
        self.refusals = Refusals(SystemClock())
        self.authenticator = SignedRequests(
            arrivals(), self.signatures, self.sessions, self._refetch, self.refusals
        )
        self.admit, self.session_in = self.authenticator.admit, self.authenticator.session_in
        if key is not None:
            self.authenticator.use_key(Signer(key).public_key)

    async def _refetch(self) -> None:
        self.fetched += 1
        if self.rotated is not None:
            self.authenticator.use_key(Signer(self.rotated).public_key)


def arrivals() -> Arrivals:
    return Arrivals(BodyReader(2 * PARSED_WHOLE_BYTES, GUARD_S), SpoolRoom(2**30))


async def no_key() -> None: ...


def signed(key: RSA.RsaKey = KEY, **values: Any) -> dict[str, Any]:
    raw = {**AUTH, **values}
    return {**raw, "signature": Signer(key).sign(raw, "full")}


def in_header(auth: dict[str, Any]) -> web.Request:
    token = base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()
    return make_mocked_request("POST", "/", {"X-Vast-Auth": token})


def with_body(value: Any) -> web.Request:
    return IncomingRequest().arrive(json.dumps(value).encode())


def in_envelope(auth: dict[str, Any]) -> web.Request:
    return with_body({"auth_data": auth, "payload": {"n": 1}})


def in_large_envelope(auth: dict[str, Any]) -> web.Request:
    return with_body({"auth_data": auth, "payload": LARGE})


def in_compressed_envelope(auth: dict[str, Any]) -> web.Request:
    """Its body is not taken as it has arrived."""
    return IncomingRequest("identity").arrive(json.dumps({"auth_data": auth, "payload": {"n": 1}}).encode())


each_way = pytest.mark.parametrize(
    "sent", [in_header, in_envelope, in_large_envelope, in_compressed_envelope]
)


@each_way
async def test_a_signed_request_is_admitted_once(sent: Any) -> None:
    access = Access()
    admission = await access.admit(sent(signed(reqnum=5)))
    assert (admission.auth.reqnum, admission.session_id, admission.session) == (5, None, None)
    assert (admission.payload is None) == (sent is in_header)
    with pytest.raises(Unauthorized, match="replay"):
        await access.admit(sent(signed(reqnum=5)))
    # A replay is no reason to fetch the key.
    assert (access.signatures.checked, access.fetched) == (2, 0)


@each_way
async def test_an_invalid_signature_is_refused_once_the_key_was_fetched_again(sent: Any) -> None:
    access = Access()
    with pytest.raises(BadSignature):
        await access.admit(sent(signed(NEXT_KEY)))
    assert (access.signatures.checked, access.fetched) == (1, 1)
    access.rotated = OTHER_KEY
    with pytest.raises(BadSignature):
        await access.admit(sent(signed(NEXT_KEY)))
    assert (access.signatures.checked, access.fetched) == (3, 2)
    assert access.refusals.total == 2


@each_way
async def test_what_no_key_signs_is_refused_at_once(sent: Any) -> None:
    access = Access()
    with pytest.raises(BadSignature):
        await access.admit(sent({**AUTH, "signature": "x"}))
    assert (access.signatures.checked, access.fetched, access.refusals.total) == (1, 0, 0)


async def test_a_client_whose_large_request_is_refused_stays_a_stranger() -> None:
    incoming = IncomingRequest()
    request = incoming.arrive(json.dumps({"auth_data": signed(NEXT_KEY), "payload": LARGE}).encode())
    with pytest.raises(BadSignature):
        await Access().admit(request)
    assert not incoming.client.is_known


@each_way
async def test_a_request_that_is_signed_with_the_next_key_is_admitted(sent: Any) -> None:
    access = Access()
    access.rotated = NEXT_KEY
    assert (await access.admit(sent(signed(NEXT_KEY)))).auth.cost == 1
    assert (access.signatures.checked, access.fetched) == (2, 1)
    with pytest.raises(Unauthorized, match="replay"):
        await access.admit(sent(signed(NEXT_KEY)))


@each_way
async def test_without_a_key_no_request_is_admitted(sent: Any) -> None:
    access = Access(key=None)
    with pytest.raises(Unavailable) as refused:
        await access.admit(sent(signed()))
    assert (refused.value.state, refused.value.retry_after_s) == ("no public key", 5.0)
    assert access.fetched == 0


async def test_a_text_without_a_key_is_an_error() -> None:
    access = Access(key=None)
    assert access.authenticator.needs_key is True
    with pytest.raises(ValueError, match="PEM"):
        access.authenticator.use_key("no key")


@each_way
async def test_unsecured_no_signature_is_checked(sent: Any) -> None:
    clock = SystemClock()
    authenticator = SignedRequests(arrivals(), None, Sessions(None, clock), no_key, Refusals(clock))
    assert authenticator.needs_key is False
    authenticator.use_key("no key")
    for _ in range(2):
        assert (await authenticator.admit(sent(AUTH))).auth.reqnum == 1


async def test_a_client_is_known_as_soon_as_its_signature_is_verified() -> None:
    access = Access()
    body = json.dumps({"auth_data": signed(), "payload": LARGE}).encode()
    incoming = IncomingRequest(length=len(body))
    request = incoming.arrive(body[: len(body) // 2], whole=False)
    admitting = asyncio.ensure_future(access.admit(request))
    await until(lambda: incoming.client.is_known)
    assert not admitting.done()
    incoming.arrive(body[len(body) // 2 :])
    assert (await admitting).payload == LARGE


def is_done_at_once(work: Coroutine[Any, Any, object]) -> bool:
    """Whether `work` ends without waiting for anything. It is broken off otherwise."""
    try:
        work.send(None)
    except StopIteration:
        return True
    work.close()
    return False


async def test_strangers_wait_for_their_turn_and_clients_that_are_known_do_not() -> None:
    access = Access()
    body = json.dumps({"auth_data": signed(), "payload": {}}).encode()
    stranger, known = IncomingRequest(), IncomingRequest(client=Client(is_known=True))
    for _ in range(AT_ONCE):
        await access.authenticator.arrivals.turns.wait()
    assert not is_done_at_once(access.admit(stranger.arrive(body)))
    assert is_done_at_once(access.admit(known.arrive(body)))


# Sessions


def inside(auth: dict[str, Any], session_id: str, payload: dict[str, Any] | None = None) -> web.Request:
    return with_body({"auth_data": auth, "session_id": session_id, "payload": payload or {}})


both_sizes = pytest.mark.parametrize("payload", [{"n": 1}, LARGE], ids=["small", "large"])


@both_sizes
async def test_inside_a_session_no_signature_is_checked(payload: dict[str, Any]) -> None:
    access = Access()
    session = access.sessions.create(auth := signed(), SessionTerms())
    for _ in range(2):
        admission = await access.admit(inside(auth, session.id, payload))
        assert (admission.session, admission.session_id) == (session, session.id)
        assert admission.payload == payload
    assert access.signatures.checked == 0
    access.sessions.end(session)
    # Its clients may be late more than once.
    for _ in range(2):
        admission = await access.admit(inside(auth, session.id, payload))
        assert (admission.session, admission.session_id) == (None, session.id)


@both_sizes
async def test_the_auth_data_of_an_ended_session_must_be_signed(payload: dict[str, Any]) -> None:
    access = Access()
    session = access.sessions.create(auth := signed(NEXT_KEY), SessionTerms())
    access.sessions.end(session)
    for access.rotated in (None, OTHER_KEY):
        with pytest.raises(BadSignature):
            await access.admit(inside(auth, session.id, payload))
    access.rotated = NEXT_KEY
    admission = await access.admit(inside(auth, session.id, payload))
    assert (admission.session, admission.session_id) == (None, session.id)


@both_sizes
async def test_another_s_session_is_refused(payload: dict[str, Any]) -> None:
    access = Access()
    session = access.sessions.create(signed(), SessionTerms())
    with pytest.raises(Unauthorized, match="other auth_data"):
        await access.admit(inside(signed(reqnum=2), session.id, payload))
    access.sessions.end(session)


@both_sizes
async def test_a_request_in_an_unknown_session_must_be_signed(payload: dict[str, Any]) -> None:
    access = Access()
    with pytest.raises(BadSignature):
        await access.admit(inside(signed(NEXT_KEY), "unknown", payload))
    admission = await access.admit(inside(signed(), "unknown", payload))
    assert (admission.session, admission.session_id) == (None, "unknown")


async def test_a_session_is_found_by_its_id_and_auth_data() -> None:
    access = Access()
    session = access.sessions.create(AUTH, SessionTerms())
    named = {"session_id": session.id, "session_auth": AUTH}
    assert await access.session_in(with_body(named)) is session
    with pytest.raises(Unauthorized):
        await access.session_in(with_body({**named, "session_auth": {}}))
    assert await access.session_in(with_body({**named, "session_id": "unknown"})) is None
    access.sessions.end(session)
    assert await access.session_in(with_body(named)) is None


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        ({}, {"session_id": "missing parameter", "session_auth": "missing parameter"}),
        ({"session_id": 1, "session_auth": {}}, {"session_id": "must be a string"}),
        ({"session_id": "a", "session_auth": "b"}, {"session_auth": "must be an object"}),
    ],
)
async def test_what_names_no_session_is_invalid(body: dict[str, Any], problems: dict[str, str]) -> None:
    with pytest.raises(Invalid) as refused:
        await Access().session_in(with_body(body))
    assert refused.value.fields == problems


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
