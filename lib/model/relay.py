"""The model server's answer, passed on to the client as it comes (protocol.md §2).

Owns the streaming and the headers of a passed-on answer. Raises `ClientGone` when the client left and
`AnswerCut` when the model server's answer broke off; what follows from those is in backend.py. The local
engine passes a worker's answer on in the same way.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict, CIMultiDictProxy

from lib.errors import AnswerCut, ClientGone, ModelTimedOut, ModelUnreachable, describe_error
from lib.model.answer import ModelAnswer
from lib.request.exchange import Exchange

# RFC 9110 §7.6.1: these concern one connection, not the message.
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
# An answer of known length up to this is written in one go; a longer one as it comes.
WHOLE_BYTES = 256 * 1024
_ZLIB_AUTO = 47  # wbits that take gzip and zlib headers alike
_NO_BODY = frozenset({204, 304})


async def pass_on(
    request: web.Request,
    answer: ModelAnswer,
    *,
    on_chunk: Callable[[bytes], None] | None = None,
) -> web.StreamResponse:
    """The client's answer, with the model server's status, end-to-end headers and body.

    A streamed answer is written and flushed chunk by chunk before this returns; a short whole one is
    returned unwritten. `on_chunk` is shown a streamed body, piece by piece, for a handler that judges
    answers by what is in them. Raises `ClientGone`, `AnswerCut`, `ModelTimedOut`, and `ModelUnreachable`
    for a coding that nobody can undo.
    """
    headers = end_to_end_headers(answer.headers)
    decoding = _needs_decoding(request, answer)
    if decoding:
        headers.popall("Content-Encoding")
        headers.popall("Content-Length", None)
    length = answer.content_length
    chunks = _decoded(answer) if decoding else _chunks(answer)
    exchange = Exchange.of(request)
    heartbeat = exchange.heartbeat if exchange is not None else None
    is_late = exchange is not None and exchange.heartbeat_out
    has_body = request.method != "HEAD"  # a length may be told without one
    if (is_late and answer.status >= 400) or (
        has_body and not decoding and not is_streamed(answer) and length is not None and length <= WHOLE_BYTES
    ):
        body = b"".join([chunk async for chunk in chunks])
        headers.popall("Content-Length", None)  # aiohttp counts the body itself
        return web.Response(status=answer.status, reason=answer.reason, headers=headers, body=body)
    if exchange is not None and has_body:
        exchange.stream()
    try:
        response = await heartbeat.answer(answer.content_type) if heartbeat is not None else None
        if response is None:
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
            if request.version < HttpVersion11 and "Content-Length" not in headers:
                response.force_close()  # the connection's end is the answer's, whatever the client asked for
            await response.prepare(request)
        if has_body:
            async for chunk in chunks:
                if exchange is not None:
                    exchange.chunk_out()
                if on_chunk is not None:
                    on_chunk(chunk)
                await _write(response, chunk)
        await response.write_eof()
    except ConnectionError as e:
        raise ClientGone from e
    return response


def is_streamed(answer: ModelAnswer) -> bool:
    """Whether the model server streams this answer (protocol.md §2, "Passing the answer on")."""
    kind = answer.content_type
    return (
        "stream" in kind
        or kind in ("application/x-ndjson", "application/jsonl")
        or "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    )


def end_to_end_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """`headers` without the hop-by-hop ones and those that `Connection` names."""
    dropped = HOP_BY_HOP
    if "Connection" in headers:
        named = ",".join(headers.getall("Connection")).lower().split(",")
        dropped = dropped | {name.strip() for name in named}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)


async def drain(answer: ModelAnswer) -> None:
    """Read `answer` to its end and throw it away. Raises `AnswerCut` when it broke off."""
    async for _ in _chunks(answer):
        pass


async def _write(response: web.StreamResponse, chunk: bytes) -> None:
    if chunk:
        await response.write(chunk)


async def _chunks(answer: ModelAnswer) -> AsyncIterator[bytes]:
    content = answer.content
    try:
        while chunk := await content.readany():
            yield chunk
    except (TimeoutError, asyncio.TimeoutError) as e:
        raise ModelTimedOut("the model server took too long") from e
    except (aiohttp.ClientError, ConnectionError) as e:
        raise AnswerCut(f"the model server's answer broke off: {e or type(e).__name__}") from e


async def _decoded(answer: ModelAnswer) -> AsyncIterator[bytes]:
    decoder = zlib.decompressobj(_ZLIB_AUTO)
    try:
        async for chunk in _chunks(answer):
            while chunk:
                yield decoder.decompress(chunk, WHOLE_BYTES)
                chunk = decoder.unconsumed_tail
        yield decoder.flush()
    except zlib.error as e:
        raise AnswerCut(f"the model server's answer is not {answer.headers['Content-Encoding']}: {e}") from e


def _needs_decoding(request: web.Request, answer: ModelAnswer) -> bool:
    """Whether the answer is compressed in a way that the client did not ask for, or that follows newlines."""
    coding = answer.headers.get("Content-Encoding", "identity").strip().lower().removeprefix("x-")
    if coding in ("", "identity") or answer.status in _NO_BODY or request.method == "HEAD":
        return False
    accepted = accepts_coding(",".join(request.headers.getall("Accept-Encoding", [])), coding)
    exchange = Exchange.of(request)
    if accepted and (exchange is None or exchange.heartbeat is None):
        return False
    if coding not in ("gzip", "deflate"):
        raise ModelUnreachable(
            f"the model server's answer is {coding}-encoded, which the client doesn't accept"
            if not accepted
            else f"the model server's answer is {coding}-encoded, and keepalive_s takes none that is"
        )
    return True


def accepts_coding(accept_encoding: str, coding: str) -> bool:
    """Whether an `Accept-Encoding` field (RFC 9110 §12.5.3) admits `coding`; an absent one admits none.

    `x-gzip` is another name for `gzip`.
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
    """The error of a request whose handler failed to read the model server's answer to its end.

    `answer_out`: a part of the answer has reached the client. Gives `ModelTimedOut` (504), `ModelUnreachable`
    (502) or `AnswerCut`.
    """
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)) and not answer_out:
        return ModelTimedOut("the model server took too long")
    if not isinstance(error, aiohttp.ClientPayloadError) and not answer_out:
        return ModelUnreachable(f"the model server could not be reached: {describe_error(error)}")
    return AnswerCut(f"the model server's answer broke off: {describe_error(error)}")
