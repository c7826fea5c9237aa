"""The state of one request: its steps, facts, verdict and reply, on a connection without a socket."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from lib.errors import AnswerCut, ClientGone, Draining, ModelUnreachable, WorkerError
from lib.metrics import Ledger, Outcome
from lib.request.exchange import AnsweredTwice, Exchange, Phase, Steps, on_response_prepare
from lib.request.lanes import Lanes
from lib.request.verdict import Reply, Verdict
from tests.event_loop import run_event_loop_turns
from tests.fakes.incoming_request import Client
from tests.fakes.plain_handler import PlainHandler
from tests.fakes.response_writer import RecordingWriter
from tests.manual_clock import ManualClock

INTERVAL_S = 5.0


class ClientConnection(asyncio.Transport):
    """The client's connection: open until it is closed or aborted."""

    is_aborted = is_closed = False

    def __init__(self) -> None:
        super().__init__()
        self.client = Client()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.client

    def is_closing(self) -> bool:
        return self.is_closed or self.is_aborted

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True


class ReadingHandler(PlainHandler):
    """Author code reads the model server's answers."""

    async def generate_client_response(
        self, client_request: web.Request, model_response: Any
    ) -> web.StreamResponse:
        raise NotImplementedError


class FailingDisconnectHandler(PlainHandler):
    async def on_client_disconnect(self, payload: Any) -> None:
        raise LookupError(f"a bug with {payload}")


@dataclass
class ClientRequest:
    """A client's connection, and what the worker notes of its request."""

    handler: PlainHandler = field(default_factory=PlainHandler)
    phase: Phase = field(default_factory=Phase)

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger(self.clock)
        self.connection = ClientConnection()
        self.writer = RecordingWriter(self.connection.close)
        self.steps: list[str] = []

    def send(
        self, path: str = "/x", headers: dict[str, str] | None = None, method: str = "POST", steps: Any = None
    ) -> Exchange:
        """Send a request; return its exchange."""
        app = web.Application()
        app.on_response_prepare.append(on_response_prepare)
        app.freeze()
        request = make_mocked_request(
            method, path, headers, app=app, writer=self.writer, transport=self.connection
        )
        lane = Lanes(self.clock, lambda: 1.0).add(self.handler)
        return Exchange(request, lane, self.clock, steps or self._recorded(), lambda: self.phase)

    def admitted(self, **options: Any) -> Exchange:
        """Send a request that is admitted, with a workload of 3."""
        exchange = self.send(**options)
        exchange.admit("auth", self.ledger.open(), None)
        exchange.receive({"x": 1}, "payload", 3.0)
        return exchange

    def started(self, **options: Any) -> Exchange:
        """Send a request that is accepted and has its slot."""
        exchange = self.admitted(**options)
        exchange.accept()
        exchange.start()
        return exchange

    async def with_newline(self, **options: Any) -> Exchange:
        """Send a request whose heartbeat has sent a newline."""
        exchange = self.started(**options)
        assert exchange.heartbeat is not None
        during = asyncio.create_task(exchange.heartbeat.during(asyncio.Event().wait()))
        await self.clock.wait_for_timers()
        self.clock.advance(INTERVAL_S)
        await run_event_loop_turns()
        during.cancel()
        await asyncio.gather(during, return_exceptions=True)
        assert self.writer.written == [b"HTTP/1.1 200 OK", b"\n"]
        return exchange

    def _recorded(self) -> Steps:
        names = ("admitted", "accepted", "started", "first_byte", "ended")
        return Steps(**{name: (self._recorder(name),) for name in names})

    def _recorder(self, name: str) -> Callable[[Exchange], None]:
        return lambda exchange: self.steps.append(name)


def answer_of(response: object) -> tuple[int, Any]:
    assert isinstance(response, web.Response)
    return response.status, json.loads(response.text or "null")


# Steps


async def test_the_steps_of_a_request_and_the_facts_after_each() -> None:
    client = ClientRequest()
    exchange = client.send()
    assert (exchange.outcome, exchange.workload) == (None, 0.0)
    client.clock.advance(1.0)
    exchange.admit("auth", client.ledger.open(), None)
    assert exchange.request["auth_data"] == "auth"
    exchange.receive({"x": 1}, "payload", 3.0)
    assert (exchange.request["payload"], exchange.payload, exchange.workload) == ({"x": 1}, "payload", 3.0)
    assert client.ledger.accepted_load == 0.0
    exchange.accept()
    assert client.ledger.accepted_load == 3.0
    client.clock.advance(2.0)
    assert (exchange.queue_s, exchange.first_byte_s) == (3.0, None)
    exchange.start()
    client.clock.advance(4.0)
    response = web.Response(text="done", status=201)
    assert not exchange.answer_out
    assert await exchange.write(response) is response
    assert exchange.answer_out
    assert client.writer.written == [b"HTTP/1.1 201 Created", b"done", b"end"]
    client.clock.advance(8.0)
    assert exchange.conclude(None) == Verdict(Outcome.SERVED, Reply.NONE, 201)
    exchange.end()
    client.clock.advance(16.0)
    assert (exchange.queue_s, exchange.first_byte_s, exchange.total_s) == (3.0, 7.0, 15.0)
    assert (exchange.status, exchange.outcome, client.ledger.served_load) == (201, Outcome.SERVED, 3.0)
    assert client.steps == ["admitted", "accepted", "started", "first_byte", "ended"]


def test_an_admitted_client_is_no_stranger() -> None:
    client = ClientRequest()
    client.send()
    assert not client.connection.client.is_known
    client.admitted()
    assert client.connection.client.is_known


async def test_the_first_byte_of_a_streamed_answer_is_that_of_its_body() -> None:
    client = ClientRequest()
    exchange = client.started()
    exchange.stream()
    await web.StreamResponse().prepare(exchange.request)
    assert "first_byte" not in client.steps
    client.clock.advance(2.0)
    exchange.note_chunk()
    client.clock.advance(4.0)
    exchange.note_chunk()
    assert exchange.first_byte_s == 2.0
    assert client.steps.count("first_byte") == 1


def test_accepting_or_starting_twice_counts_once() -> None:
    client = ClientRequest()
    exchange = client.started()
    client.clock.advance(1.0)
    exchange.accept()
    exchange.start()
    assert (client.ledger.accepted_load, client.ledger.received) == (3.0, 1)
    assert exchange.queue_s == 0.0
    assert client.steps == ["admitted", "accepted", "started"]


def test_accepting_after_the_end_is_an_error_and_adds_no_load() -> None:
    client = ClientRequest()
    exchange = client.admitted()
    exchange.conclude(Draining())
    with pytest.raises(RuntimeError, match="the request has ended: a middleware must await its handler"):
        exchange.accept()
    assert client.ledger.accepted_load == 0.0
    assert client.ledger.unfinished == 0


def test_a_request_that_never_got_a_slot_queued_until_its_end() -> None:
    client = ClientRequest()
    exchange = client.admitted()
    client.clock.advance(2.0)
    exchange.end()
    client.clock.advance(4.0)
    assert (exchange.queue_s, exchange.total_s) == (2.0, 2.0)


def test_an_observer_that_fails_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Exchange] = []

    def failing(exchange: Exchange) -> None:
        raise LookupError("an observer's bug")

    client = ClientRequest()
    exchange = client.send(steps=Steps(ended=(failing, calls.append)))
    exchange.end()
    assert calls == [exchange]
    assert f"request {exchange.id}: an observer failed" in caplog.text
    assert "an observer's bug" in caplog.text


async def test_an_error_of_on_client_disconnect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    await ClientRequest(FailingDisconnectHandler()).admitted().notify_client_left()
    assert "on_client_disconnect failed" in caplog.text
    assert "LookupError: a bug with payload" in caplog.text


# The request


@pytest.mark.parametrize("own", ["abc-1", "a.b:c+d/e=f@g_h", "x" * 128])
def test_the_id_is_that_of_the_client(own: str) -> None:
    assert ClientRequest().send(headers={"X-Request-Id": own}).id == own


@pytest.mark.parametrize("own", [None, "", "two words", "a\tb", "<x>", "x" * 129])
def test_an_unsafe_or_missing_id_is_replaced(own: str | None) -> None:
    ids = {ClientRequest().send(headers={} if own is None else {"X-Request-Id": own}).id for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9]+", request_id) for request_id in ids)


def test_the_api_key_is_removed_from_the_query() -> None:
    exchange = ClientRequest().send("/x?a=1&api_key=secret&b=2")
    assert str(exchange.request.rel_url) == "/x?a=1&b=2"
    assert Exchange.of(exchange.request) is exchange


def test_a_request_without_an_api_key_is_not_replaced() -> None:
    assert str(ClientRequest().send("/x?a=%20b&api_keys=1").request.rel_url) == "/x?a=%20b&api_keys=1"


HEADERS = {"Accept": "a/b", "X-Request-Id": "r", "Accept-Encoding": "gzip", "Cookie": "c", "X-Other": "o"}
PLAIN = {"Accept": "a/b", "X-Request-Id": "r"}


@pytest.mark.parametrize(
    ("handler", "headers", "forwarded"),
    [
        (PlainHandler(), HEADERS, {**PLAIN, "Accept-Encoding": "gzip"}),
        (PlainHandler(), {}, {}),
        (PlainHandler(), {"accept": "a/b"}, {"Accept": "a/b"}),
        (PlainHandler(keepalive_s=5.0), HEADERS, PLAIN),
        (ReadingHandler(), HEADERS, PLAIN),
    ],
)
def test_the_forwarded_header_fields(
    handler: PlainHandler, headers: dict[str, str], forwarded: dict[str, str]
) -> None:
    assert ClientRequest(handler).send(headers=headers).forwarded_headers() == forwarded


@pytest.mark.parametrize(
    ("interval_s", "method", "expected"),
    [(None, "POST", False), (5.0, "POST", True), (5.0, "GET", True), (5.0, "HEAD", False)],
)
def test_which_requests_have_a_heartbeat(interval_s: float | None, method: str, expected: bool) -> None:
    exchange = ClientRequest(PlainHandler(keepalive_s=interval_s)).send(method=method)
    assert (exchange.heartbeat is not None) is expected


async def test_nothing_refers_to_an_exchange_after_its_end() -> None:
    client = ClientRequest()
    exchange = client.started()
    received, gone = exchange.request, weakref.ref(exchange)
    exchange.request = received.clone()  # by a middleware
    requests = (received, exchange.request)
    assert [Exchange.of(request) for request in requests] == [exchange, exchange]
    await exchange.write(web.Response())
    exchange.conclude(None)
    exchange.end()
    gc.disable()
    try:
        del exchange
        assert gone() is None
    finally:
        gc.enable()
    assert [Exchange.of(request) for request in requests] == [None, None]


# Writing


async def test_a_second_answer_is_refused() -> None:
    client = ClientRequest()
    exchange = client.started()
    await exchange.write(web.Response(text="first"))
    with pytest.raises(AnsweredTwice, match="an answer to this request has already begun"):
        await exchange.write(web.Response(text="second"))
    assert b"second" not in client.writer.written
    exchange.end()
    with pytest.raises(ConnectionResetError, match="an answer to this request has already begun"):
        await web.Response(text="third").prepare(exchange.request)  # by a task that the handler left behind


async def test_writing_to_a_lost_connection_ends_the_request() -> None:
    client = ClientRequest()
    exchange = client.started()
    client.writer.lost = True
    with pytest.raises(ClientGone):
        await exchange.write(web.Response(text="done"))


@pytest.mark.parametrize("is_noticed", [False, True])
async def test_a_job_that_finishes_without_its_client_is_served(is_noticed: bool) -> None:
    client = ClientRequest(PlainHandler(on_disconnect="finish"))
    exchange = client.started()
    client.writer.lost, client.connection.is_closed = True, is_noticed
    response = web.Response(text="done")
    assert await exchange.write(response) is response
    assert (client.writer.written == []) is is_noticed
    assert exchange.conclude(None) == Verdict(Outcome.SERVED, Reply.NONE, 200)


async def test_an_answer_after_a_newline_is_written_into_the_heartbeats() -> None:
    client = ClientRequest(PlainHandler(keepalive_s=INTERVAL_S))
    exchange = await client.with_newline()
    assert (exchange.heartbeat_out, exchange.answer_out) == (True, False)
    assert "first_byte" not in client.steps
    client.clock.advance(1.0)
    response = web.json_response({"x": 1})
    written = await exchange.write(response)
    assert written is not response
    assert client.writer.written[2:] == [b'{"x": 1}', b"end"]
    assert (exchange.answer_out, exchange.first_byte_s) == (True, INTERVAL_S + 1.0)
    assert exchange.conclude(None).outcome is Outcome.SERVED
    assert exchange.status == 200


# The verdict


def test_the_verdict_is_decided_once(caplog: pytest.LogCaptureFixture) -> None:
    client = ClientRequest()
    exchange = client.started()
    verdict = exchange.conclude(ModelUnreachable("refused"))
    assert verdict == Verdict(Outcome.ERRORED, Reply.ERROR, 502)
    caplog.clear()
    assert exchange.conclude(None) is verdict
    assert exchange.conclude(asyncio.CancelledError()) is verdict
    assert not caplog.records
    assert exchange.conclude(LookupError("a later bug")) is verdict
    (record,) = caplog.records
    assert record.getMessage() == f"request {exchange.id}: an error after its answer"
    assert "a later bug" in caplog.text
    assert dict(client.ledger.outcomes) == {Outcome.ERRORED: 1}


@pytest.mark.parametrize("requested", ["served", "errored"])
@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("on_received", [False, True])
async def test_the_requested_outcome_is_read_from_either_request(
    requested: str, is_replaced: bool, on_received: bool
) -> None:
    client = ClientRequest()
    exchange = client.started()
    received = exchange.request
    if is_replaced:  # by a middleware
        exchange.request = received.clone()
    (received if on_received else exchange.request)["outcome"] = requested
    status = 200 if requested == "errored" else 503
    await exchange.write(web.Response(status=status))
    assert exchange.conclude(None).outcome.name.lower() == requested


@pytest.mark.parametrize("requested", ["lost", 1, None, ["served"]])
async def test_an_unknown_requested_outcome_is_ignored(requested: Any) -> None:
    exchange = ClientRequest().started()
    exchange.request["outcome"] = requested
    await exchange.write(web.Response())
    assert exchange.conclude(None).outcome is Outcome.SERVED


def test_a_request_that_was_not_admitted_is_not_counted() -> None:
    client = ClientRequest()
    exchange = client.send()
    exchange.conclude(Draining())
    assert (exchange.outcome, exchange.status) == (None, 503)
    assert not client.ledger.outcomes


def test_the_phase_decides_whether_a_cancellation_is_the_workers() -> None:
    verdicts = [
        ClientRequest(phase=phase).started().conclude(asyncio.CancelledError())
        for phase in (Phase(), Phase(draining=True), Phase(draining=True, cut=True))
    ]
    assert [(verdict.outcome, verdict.reply) for verdict in verdicts] == [
        (Outcome.ERRORED, Reply.ERROR),  # the handler's own code was cancelled
        (Outcome.CANCELLED, Reply.NONE),
        (Outcome.ERRORED, Reply.NONE),
    ]


@pytest.mark.parametrize(
    ("error", "level", "text"),
    [
        (LookupError("bug"), logging.ERROR, "unexpected error"),
        (asyncio.CancelledError(), logging.ERROR, "the handler's own code was cancelled"),
        (AnswerCut("the model server broke off"), logging.WARNING, "the model server broke off"),
        (ModelUnreachable("refused"), logging.WARNING, "502: refused"),
        (Draining(), None, ""),
        (ClientGone(), None, ""),
    ],
)
def test_which_errors_are_logged(
    caplog: pytest.LogCaptureFixture, error: BaseException, level: int | None, text: str
) -> None:
    exchange = ClientRequest().started()
    exchange.conclude(error)
    expected = [] if level is None else [(level, f"request {exchange.id}: {text}")]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == expected


def test_an_error_after_the_client_left_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    client = ClientRequest()
    exchange = client.started()
    client.connection.is_closed = True
    assert exchange.conclude(LookupError("bug")).outcome is Outcome.CANCELLED
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "raised LookupError after its client had left" in caplog.text


# Replies


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (ModelUnreachable("refused"), 502, {"error": "refused"}),
        (Draining(), 503, {"error": "the worker is stopping", "state": "draining"}),
        (WorkerError("mine"), 500, {"error": "mine"}),
        (LookupError("secret"), 500, {"error": "internal error", "request": "r"}),
    ],
)
async def test_an_error_is_answered_with_its_status(error: Exception, status: int, body: Any) -> None:
    client = ClientRequest()
    exchange = client.started(headers={"X-Request-Id": "r"})
    verdict = exchange.conclude(error)
    assert verdict.reply is Reply.ERROR
    assert answer_of(await exchange.reply(verdict, error)) == (status, body)
    assert not client.connection.is_aborted


async def test_a_cut_answer_aborts_the_connection() -> None:
    client = ClientRequest()
    exchange = client.started()
    error = AnswerCut("broken off")
    verdict = exchange.conclude(error)
    assert verdict.reply is Reply.ABORT
    await exchange.reply(verdict, error)
    assert client.connection.is_aborted
    assert exchange.status == 502


async def test_a_cancellation_from_outside_has_no_reply() -> None:
    client = ClientRequest(phase=Phase(draining=True))
    exchange = client.started()
    error = asyncio.CancelledError()
    verdict = exchange.conclude(error)
    assert verdict.reply is Reply.NONE
    with pytest.raises(asyncio.CancelledError) as raised:
        await exchange.reply(verdict, error)
    assert raised.value is error
    assert not client.connection.is_aborted


async def test_an_error_after_the_whole_answer_leaves_the_connection_open() -> None:
    client = ClientRequest()
    exchange = client.started()
    response = await exchange.write(web.Response())
    exchange.conclude(None)
    error = LookupError("a later bug")
    verdict = exchange.conclude(error)
    assert verdict.reply is Reply.NONE
    assert await exchange.reply(verdict, error) is response
    assert not client.connection.is_aborted
    assert exchange.status == 200


@pytest.mark.parametrize("is_lost", [False, True])
async def test_an_error_after_a_newline_is_in_the_body(is_lost: bool) -> None:
    client = ClientRequest(PlainHandler(keepalive_s=INTERVAL_S))
    exchange = await client.with_newline()
    error = ModelUnreachable("refused")
    verdict = exchange.conclude(error)
    assert verdict == Verdict(Outcome.ERRORED, Reply.ERROR_IN_BODY, 200)
    client.writer.lost = is_lost
    await exchange.reply(verdict, error)
    assert client.writer.written[2:] == ([] if is_lost else [b'{"error": "refused"}', b"end"])
    assert client.connection.is_aborted is is_lost
    assert exchange.status == 200
