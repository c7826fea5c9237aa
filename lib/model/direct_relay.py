"""Passing the model server's answer on, byte by byte as it comes (docs/protocol.md, "Passing the answer on").

Owns the head of the client's answer, and its framing: the model server's own where it may stay. The answers
that author code reads are passed on by relay.py, with the same result.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache

from lib.errors import ClientGone
from lib.fields.json_values import json_text
from lib.http.heads import ResponseHead, date_field
from lib.model.answer import AnswerScanner
from lib.model.connection import ModelServer
from lib.model.direct import DirectCalls, Outgoing, target_of
from lib.model.inflate import InflatingSource
from lib.model.messages import filled_endpoint, with_raw_query
from lib.model.relay import HOP_BY_HOP, NO_BODY, WHOLE_BYTES, is_stream_type, must_undo
from lib.request.exchange import Exchange, Relayed
from lib.request.incoming import ClientConnection

_JSON_FIELD = b"Content-Type: application/json\r\n"
_DROPPED = frozenset(name.encode() for name in HOP_BY_HOP)
_LAST_CHUNK = b"0\r\n\r\n"


async def relay(exchange: Exchange, server: ModelServer, calls: DirectCalls) -> Relayed:
    """Ask the model for `exchange`, whose handler passes answers on, and pass the answer on to its end.

    Raises `Invalid` (422) for a parameter of the endpoint, `ModelUnreachable` (502), `ModelTimedOut` (504),
    `AnswerCut`, `ClientGone`, and what the handler's code raises.
    """
    handler, client = exchange.lane.handler, exchange.client
    message = handler.generate_payload_json(exchange.payload)
    endpoint = handler.endpoint_for(exchange.payload)
    if endpoint is not None and "{" in endpoint:
        endpoint, message = filled_endpoint(endpoint, message)
    if query := exchange.forwarded_query():
        endpoint = with_raw_query(endpoint, query)
    verbatim = exchange.verbatim
    body = verbatim.text if verbatim is not None and verbatim.says(message) else json_text(message).encode()
    outgoing = Outgoing(exchange.forwarded_fields() + _JSON_FIELD, body, handler.idempotent)
    exchange.verbatim = verbatim = body = message = (
        None  # only `outgoing` holds them, until the answer begins
    )
    target = target_of(server.url, endpoint, server.api_key)
    answer = DirectRelay(exchange, client, handler.scan_answer())
    try:
        await calls.post(target, outgoing, answer)
        await answer.end()
    except BaseException as e:
        client.follow(None)
        server.failures.note_error(ClientGone() if isinstance(e, ConnectionError) else e)
        if isinstance(e, ConnectionError):
            raise ClientGone from e
        raise
    if answer.status >= 500 or server.failures.count:
        server.failures.note_status(answer.status)
    return Relayed(answer.status)


class DirectRelay:
    """The answer to one request on its way to `client`; `status` is 0 before its head has come."""

    __slots__ = (
        "_client",
        "_exchange",
        "_held_bytes",
        "_inflating",
        "_is_reframed",
        "_is_streamed",
        "_notes_chunks",
        "_pending",
        "_scanner",
        "status",
    )

    def __init__(self, exchange: Exchange, client: ClientConnection, scanner: AnswerScanner | None) -> None:
        self.status = 0
        self._exchange = exchange
        self._client = client
        self._scanner = scanner
        self._is_streamed = self._is_reframed = self._notes_chunks = False
        # The head, and the beginning of a short body of which `_held_bytes` are to come. If it breaks off,
        # no part of it was sent.
        self._pending = b""
        self._held_bytes = 0
        self._inflating: InflatingSource | None = None

    # From the model server (`lib.model.direct.Receiver`)

    def answer(self, head: ResponseHead, source: asyncio.Transport) -> None:
        """Take the head. Raises `ModelUnreachable` (502) for a coding that can't be undone for the client."""
        values, length, is_chunked = head.values, head.length, head.chunked
        dropped = _DROPPED
        coding = values.get(b"content-encoding")
        if coding and head.status not in NO_BODY and self._must_inflate(coding.decode("latin-1")):
            dropped = dropped | {b"content-encoding"}
            if length != 0:
                dropped = dropped | {b"content-length"}
                length, is_chunked = None, False
                text = coding.decode("latin-1")
                self._inflating = InflatingSource(text, self._client, source, self._write_inflated)
        self._is_streamed = head.chunked or _is_stream(values.get(b"content-type", b""))
        if self._is_streamed or length is None or length > WHOLE_BYTES:
            self._notes_chunks = True
            self._exchange.stream()
        else:
            self._held_bytes = length
        self._is_reframed = length is None and not is_chunked
        self.status = head.status
        self._pending = _client_head(head, dropped, length is None, self._client.keep_alive)
        self._client.follow(source if self._inflating is None else self._inflating)
        self._exchange.note_relayed_head(head.status)

    def body(self, raw: bytes, pieces: list[bytes]) -> None:
        """Pass on a part of the body."""
        if self._notes_chunks and pieces:
            self._exchange.note_chunk()
        if self._inflating is not None:
            self._inflating.add(pieces)
            return
        if self._scanner is not None and self._is_streamed:
            for piece in pieces:
                self._scanner.add(piece)
        if self._held_bytes:
            self._pending += raw
            self._held_bytes -= len(raw)
            self.flush()
        elif self._is_reframed:
            self._write_reframed(raw)
        else:
            head, self._pending = self._pending, b""
            self._client.write(head + raw if head else raw)

    def flush(self) -> None:
        """Write what is held: the head, and with it a short body, but only as a whole."""
        if self._pending and not self._held_bytes:
            head, self._pending = self._pending, b""
            self._client.write(head)

    def ended(self) -> None:
        """Follow the source no longer."""
        if self._inflating is not None:
            self._inflating.detach()
        else:
            self._client.follow(None)

    # For the story

    async def end(self) -> None:
        """Write the end of the answer, and return once the client has nearly all of it.

        Raises `ConnectionError` if the client left, and `AnswerCut` for a compressed body that broke off.
        """
        if self._inflating is not None:
            await self._inflating.end()
            self._client.follow(None)
        if self._notes_chunks:
            self._exchange.note_chunk()  # the end is the first byte of an empty body
        if self._is_reframed:
            self._client.write(_LAST_CHUNK)
        if self._client.is_write_paused:
            await self._client.drained()
        if self._scanner is not None:
            outcome = self._scanner.outcome(self.status)
            if outcome is not None:
                self._exchange.incoming["outcome"] = outcome

    def _write_inflated(self, data: bytes) -> None:
        if self._scanner is not None and self._is_streamed:
            self._scanner.add(data)
        self._write_reframed(data)

    def _write_reframed(self, data: bytes) -> None:
        if data:
            head, self._pending = self._pending, b""
            self._client.write(b"%s%x\r\n%s\r\n" % (head, len(data), data))

    def _must_inflate(self, coding: str) -> bool:
        accepted = ",".join(self._exchange.incoming.headers.getall("Accept-Encoding", []))
        return must_undo(coding, accepted)


@lru_cache(maxsize=64)
def _is_stream(content_type: bytes) -> bool:
    """Whether answers with this `Content-Type` are streamed, whatever their framing."""
    return is_stream_type(content_type.partition(b";")[0].strip().lower().decode("latin-1"))


def _client_head(head: ResponseHead, dropped: frozenset[bytes], is_chunked: bool, keep_alive: bool) -> bytes:
    """The head of the client's answer: the lines of `head` but those `dropped`, and the body's framing."""
    connection = head.values.get(b"connection")
    if connection is not None:
        named = {name.strip() for name in connection.lower().split(b",")}
        dropped = dropped | (named - {b"content-length"})  # without it, the body has no end
    if head.chunked or head.status == 204:
        dropped = dropped | {b"content-length"}
    fields = head.fields
    if not dropped.isdisjoint(head.values):
        lines = fields[:-2].split(b"\r\n")
        kept = [line for line in lines if line.partition(b":")[0].lower() not in dropped]
        fields = b"".join([b"%s\r\n" % line for line in kept])
    parts = [b"HTTP/1.1 %d %s\r\n" % (head.status, head.reason), fields]
    if b"date" not in head.values:
        parts.append(date_field())
    if is_chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if not keep_alive:
        parts.append(b"Connection: close\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)
