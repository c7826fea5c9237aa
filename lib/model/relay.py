"""Passing the model server's answer on to the client (docs/protocol.md, "Passing the answer on").

Owns the status, the headers and the body of an answer that is passed on. Raises `ClientGone` when the client
left, and `AnswerCut` when the model server's answer broke off. How a request then ends is decided in
lib/request/verdict.py. The local engine passes a worker's answer on in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict, CIMultiDictProxy

from lib.errors import ClientGone, ModelUnreachable
from lib.model.answer import ModelAnswer
from lib.model.connection import answer_cut, model_failure
from lib.model.inflate import Inflater
from lib.request.exchange import Exchange

# RFC 9110, section 7.6.1: these headers concern one connection, not the message.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# An answer of a known length up to this is returned whole; a longer one is streamed.
WHOLE_BYTES = 256 * 1024
# Errors after a heartbeat's newlines are read whole, to become JSON. Longer ones are cut.
ERROR_TEXT_BYTES = 64 * 1024
NO_BODY = frozenset({204, 304})


async def pass_on(
    request: web.Request,
    answer: ModelAnswer,
    *,
    on_chunk: Callable[[bytes], None] | None = None,
) -> web.StreamResponse:
    """Return the client's answer, with the model server's status, end-to-end headers and body.

    A streamed answer is written and flushed chunk by chunk before this returns; a short one that is not
    streamed is returned unwritten. `on_chunk` is called with each chunk of a streamed body, for handlers that
    judge an answer by its content. Raises `ClientGone`, `AnswerCut`, `ModelTimedOut` (504), and
    `ModelUnreachable` (502) for a content coding that the client doesn't accept and the worker can't undo.
    """
    decodes = _needs_decoding(request, answer)
    headers = end_to_end_headers(answer.headers)
    if decodes:
        headers.popall("Content-Encoding")
        headers.popall("Content-Length", None)
    chunks = _decoded(answer) if decodes else _chunks(answer)
    if _is_late_error(request, answer):
        return await _whole(answer, headers, chunks, ERROR_TEXT_BYTES)
    if _is_returned_whole(request, answer, decodes):
        return await _whole(answer, headers, chunks, WHOLE_BYTES)
    return await _streamed(request, answer, headers, chunks, on_chunk)


def _is_late_error(request: web.Request, answer: ModelAnswer) -> bool:
    """Whether the answer is an error after a heartbeat's newlines, which goes into a body of status 200."""
    exchange = Exchange.of(request)
    return exchange is not None and exchange.heartbeat_out and answer.status >= 400


def _is_returned_whole(request: web.Request, answer: ModelAnswer, decodes: bool) -> bool:
    """Whether to read the answer to its end before writing: a short one."""
    if decodes or request.method == "HEAD" or is_streamed(answer):
        return False
    length = answer.content_length
    return length is not None and length <= WHOLE_BYTES


async def _whole(
    answer: ModelAnswer, headers: CIMultiDict[str], chunks: AsyncIterator[bytes], limit_bytes: int
) -> web.Response:
    """The answer with its whole body; of a longer one than `limit_bytes`, the rest is not read."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit_bytes:
            break
    del body[limit_bytes:]
    headers.popall("Content-Length", None)  # aiohttp sets it by the body
    return web.Response(status=answer.status, reason=answer.reason, headers=headers, body=bytes(body))


async def _streamed(
    request: web.Request,
    answer: ModelAnswer,
    headers: CIMultiDict[str],
    chunks: AsyncIterator[bytes],
    on_chunk: Callable[[bytes], None] | None,
) -> web.StreamResponse:
    """Write the answer as it arrives. Raises `ClientGone`, and what `chunks` raises."""
    exchange = Exchange.of(request)
    has_body = request.method != "HEAD"  # its answer has a Content-Length all the same
    if exchange is not None and has_body:
        exchange.stream()
    try:
        response = await _begin(request, answer, headers, exchange)
        heartbeat, write = exchange.heartbeat if exchange is not None else None, response.write
        if heartbeat is not None:
            heartbeat.pass_items(response, answer.content_type)
            write = partial(heartbeat.write, response)
        if has_body:
            async for chunk in chunks:
                if exchange is not None:
                    exchange.note_chunk()
                if on_chunk is not None:
                    on_chunk(chunk)
                if chunk:
                    await write(chunk)
            if exchange is not None:
                exchange.note_chunk()  # the end is the first byte of an empty body
        if heartbeat is not None:
            await heartbeat.end_items()
        await response.write_eof()
    except ConnectionError as e:
        raise ClientGone from e
    return response


async def _begin(
    request: web.Request, answer: ModelAnswer, headers: CIMultiDict[str], exchange: Exchange | None
) -> web.StreamResponse:
    """Write the status line and the headers, unless the heartbeat already has."""
    heartbeat = exchange.heartbeat if exchange is not None else None
    response = await heartbeat.answer(answer.content_type) if heartbeat is not None else None
    if response is not None:
        return response
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    if request.version < HttpVersion11 and "Content-Length" not in headers:
        response.force_close()  # in HTTP/1.0, closing the connection ends a body of unknown length
    await response.prepare(request)
    return response


def is_streamed(answer: ModelAnswer) -> bool:
    """Whether the model server streams this answer (docs/protocol.md, "Passing the answer on")."""
    is_chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    return is_chunked or is_stream_type(answer.content_type)


def is_stream_type(media_type: str) -> bool:
    """Whether answers of this media type are streamed, whatever their framing."""
    return "stream" in media_type or media_type in ("application/x-ndjson", "application/jsonl")


def end_to_end_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return `headers` without the hop-by-hop ones and those that `Connection` names."""
    dropped = HOP_BY_HOP
    if "Connection" in headers:
        named = ",".join(headers.getall("Connection")).lower().split(",")
        dropped = dropped | {name.strip() for name in named}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)


async def drain(answer: ModelAnswer) -> None:
    """Read `answer` to its end and discard it. Raises `AnswerCut` when it broke off."""
    async for _ in _chunks(answer):
        pass


def body_read_before(answer: ModelAnswer) -> bytes | None:
    """The body of an answer that author code has read before, as aiohttp keeps it; None if it has not."""
    return cast(Any, answer)._body if isinstance(answer, aiohttp.ClientResponse) else None


async def _chunks(answer: ModelAnswer) -> AsyncIterator[bytes]:
    content, body = answer.content, body_read_before(answer)
    if body is not None:
        yield body
        return
    try:
        while chunk := await content.readany():
            yield chunk
    except (aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.TimeoutError) as e:
        raise model_failure(e, answer_begun=True) from e


async def _decoded(answer: ModelAnswer) -> AsyncIterator[bytes]:
    """The decompressed body. Raises `AnswerCut` if the compressed data is not whole."""
    inflater = Inflater(answer.headers["Content-Encoding"])
    async for chunk in _chunks(answer):
        while chunk:
            plain, chunk = inflater.step(chunk)
            yield plain
    yield inflater.end()


def _needs_decoding(request: web.Request, answer: ModelAnswer) -> bool:
    """Whether the body must be decompressed: the client doesn't accept its coding, or gets a heartbeat.

    Raises `ModelUnreachable` (502) for a coding that can't be undone here.
    """
    if answer.status in NO_BODY or request.method == "HEAD":
        return False
    exchange = Exchange.of(request)
    passes_on = exchange is None or exchange.heartbeat is None
    accepted = ",".join(request.headers.getall("Accept-Encoding", []))
    return must_undo(answer.headers.get("Content-Encoding", ""), accepted, passes_on)


def must_undo(coding: str, accept_encoding: str, passes_on: bool = True) -> bool:
    """Whether the `coding` of an answer must be undone for a client with `accept_encoding`.

    It must be even for a client that accepts it, unless the answer `passes_on` unchanged. Raises
    `ModelUnreachable` (502) for a coding that can't be undone here.
    """
    coding = coding.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return False
    accepted = accepts_coding(accept_encoding, coding)
    if accepted and passes_on:
        return False
    if coding not in ("gzip", "deflate"):
        obstacle = "a handler with keepalive_s can't pass on" if accepted else "the client doesn't accept"
        raise ModelUnreachable(f"the model server's answer is {coding}-encoded, which {obstacle}")
    return True


def accepts_coding(accept_encoding: str, coding: str) -> bool:
    """Whether an `Accept-Encoding` header (RFC 9110, section 12.5.3) accepts `coding`.

    An empty one accepts none. `x-gzip` is another name for `gzip`.
    """
    quality: dict[str, float] = {}
    for item in accept_encoding.lower().split(","):
        name, _, weight = item.partition(";")
        key, _, value = weight.partition("=")
        try:
            q = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            q = 0.0
        quality[name.strip().removeprefix("x-")] = q
    return quality.get(coding, quality.get("*", 0.0)) > 0


def broken_answer(error: BaseException, answer_out: bool) -> Exception:
    """The error of a request whose handler could not read the model server's answer to its end.

    Returns `AnswerCut` if `answer_out`: a part of the answer has been sent to the client. Otherwise returns
    `ModelTimedOut` (504), `ModelUnreachable` (502) or `AnswerCut`, as `model_failure` does.
    """
    if answer_out:
        return answer_cut(error)
    return model_failure(error, answer_begun=isinstance(error, aiohttp.ClientPayloadError))
