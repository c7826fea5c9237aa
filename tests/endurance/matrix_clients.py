"""The clients of the fault matrix: each does one thing, and returns what it saw.

What a client saw is one word for each of its requests: the status of a whole answer; `200 cut` for an answer
whose connection closed too early; `cut` for none at all; `left` if the client itself went.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.endurance.holdings import status_of, until_status
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.keys import new_key
from tests.system import System

FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}
PART = b'--xyz\r\nContent-Disposition: form-data; name="a"; filename="a.wav"\r\n\r\n%s\r\n--xyz--\r\n'
# Uploads are this long, so that their workload (a thousandth of it) is `WORKLOAD`.
WORKLOAD = 3.0
UPLOAD = PART % (b"x" * (3000 - len(PART) + 2))
# More than MAX_JSON_BYTES and MAX_REQUEST_BYTES of the matrix's workers.
TOO_LARGE = b" " * 300_000


@dataclass
class ClientSide:
    """The clients of one case. `path` is the worker's route; `indices` has each signed `request_idx`."""

    system: System
    path: str
    workload: float = WORKLOAD
    indices: list[int] = field(default_factory=list[int])
    # Set by a client that has read the beginning of a stream.
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._received_before = len(self.system.model.requests)

    def auth(self, **signed: Any) -> dict[str, Any]:
        auth = self.system.auth(self.workload, **signed)
        self.indices.append(auth["request_idx"])
        return auth

    def envelope(self, auth: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """An envelope with `auth` or new `auth_data`."""
        payload = {"workload": self.workload}
        return {"auth_data": self.auth() if auth is None else auth, "payload": payload, **more}

    def header(self) -> dict[str, str]:
        """The headers of an upload, newly signed."""
        token = base64.urlsafe_b64encode(json.dumps(self.auth()).encode()).decode()
        return {"X-Vast-Auth": token, **FORM}

    @asynccontextmanager
    async def asking(self, path: str | None = None, body: Any = None) -> AsyncGenerator[RawClient, None]:
        """A client that has sent its request, of a new envelope if no other `body` is given."""
        async with connected(self.system.url) as client:
            await client.post(path or self.path, self.envelope() if body is None else body)
            yield client

    @asynccontextmanager
    async def second(self) -> AsyncGenerator[RawClient, None]:
        """The same, once the model server has received the request of another client."""
        await self.received()
        async with self.asking() as client:
            yield client

    async def ask(self, path: str | None = None, body: Any = None) -> str:
        """Send a request and read what comes."""
        async with self.asking(path, body) as client:
            return await read(client)

    async def ask_json(self, path: str, body: Any) -> tuple[str, Any]:
        """Send a request; return what was seen, and the JSON of a whole answer."""
        async with self.asking(path, body) as client:
            head, answer = await client.answer()
            return str(head.status), json.loads(answer)

    async def received(self) -> None:
        """Return once the model server has received a request of these clients."""
        model = self.system.model
        await model.until(lambda: len(model.requests) > self._received_before)

    async def cancelled(self) -> None:
        """Return once the model server works on nothing any more."""
        await self.system.model.until(lambda: not self.system.model.working)

    async def waiting(self, count: int) -> None:
        """Return once `count` requests wait for a slot."""
        await until_status(self.system, lambda status: status["queue"]["waiting"] == count)


ClientBehaviour = Callable[[ClientSide], Awaitable[str]]


async def read(client: RawClient) -> str:
    """Read an answer; return what was seen."""
    try:
        head = await client.head()
    except (ConnectionError, asyncio.IncompleteReadError):
        return "cut"
    try:
        if "content-length" in head.headers:
            await client.exactly(int(head.headers["content-length"]))
        elif head.headers.get("transfer-encoding") == "chunked":
            while await client.chunk():
                pass
    except (ConnectionError, asyncio.IncompleteReadError):
        return f"{head.status} cut"
    return str(head.status)


# One request


async def waits(side: ClientSide) -> str:
    return await side.ask()


async def asks_again(side: ClientSide) -> str:
    """A second request follows, on another connection, whose answer must be its own."""
    first = await side.ask()
    status, answer = await side.ask_json("/echo", side.envelope())
    return f"{first}, {status}" if "body" in answer else f"{first}, another's answer"


async def asks_twice_at_once(side: ClientSide) -> str:
    """Two requests with different signatures and one `reqnum`."""
    first = side.auth()
    second = side.auth(reqnum=first["reqnum"], endpoint="another")
    seen = await asyncio.gather(*(side.ask(body=side.envelope(auth)) for auth in (first, second)))
    return ", ".join(seen)


async def finds_no_model(side: ClientSide) -> str:
    """The model server takes no connections until the client has its answer."""
    return await _without_model(side, waits)


async def uploads_to_no_model(side: ClientSide) -> str:
    """The same with an upload."""
    return await _without_model(side, uploads)


async def _without_model(side: ClientSide, behaviour: ClientBehaviour) -> str:
    await side.system.model.stop()
    try:
        return await behaviour(side)
    finally:
        await side.system.model.start()


async def leaves(side: ClientSide) -> str:
    """The client resets the connection while the model server works."""
    async with side.asking() as client:
        await side.received()
        client.leave()
        await side.cancelled()
    return "left"


async def leaves_what_is_finished(side: ClientSide) -> str:
    """The client resets the connection; the model server goes on."""
    async with side.asking() as client:
        await side.received()
        client.leave()
    return "left"


async def leaves_before_the_answer_is_known(side: ClientSide) -> str:
    """The client resets the connection right after its request, which may be authenticated by then."""
    async with side.asking() as client:
        client.leave()
    return "left"


async def reads_the_stream(side: ClientSide) -> str:
    """The client reads one token, says so, and reads on."""
    async with side.asking() as client:
        side.system.model.step()
        await client.head()
        await client.chunk()
        side.begun.set()
        try:
            while await client.chunk():
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            return "200 cut"
        return "200"


async def leaves_in_the_stream(side: ClientSide) -> str:
    async with side.asking() as client:
        side.system.model.step()
        await client.head()
        await client.chunk()
        client.leave()
        await side.cancelled()
    return "left"


async def leaves_after_the_last_byte(side: ClientSide) -> str:
    async with side.asking() as client:
        seen = await read(client)
        client.leave()
    return seen


async def half_closes(side: ClientSide) -> str:
    async with side.asking() as client:
        await side.received()
        client.half_close()
        return await read(client)


async def reads_nothing(side: ClientSide) -> str:
    """The client reads only once the worker has given it up."""
    before = (await status_of(side.system))["requests"]["received"]

    def is_over(status: Any) -> bool:
        return status["requests"]["received"] > before and status["requests"]["in_flight"] == 0

    async with connected(side.system.url, limit=1024) as client:
        await client.post(side.path, side.envelope())
        await until_status(side.system, is_over)
        seen = await client.rest()
        return "200 cut" if seen.startswith(b"HTTP/1.1 200 ") else "cut"


async def reads_slowly(side: ClientSide) -> str:
    """The client takes an answer of a megabyte in small parts."""
    async with connected(side.system.url, limit=4096) as client:
        await client.post(side.path, side.envelope())
        return await read(client)


# The queue


async def waits_in_the_queue(side: ClientSide) -> str:
    async with side.asking("/single/held") as first, side.second() as second:
        await side.waiting(1)
        side.system.model.release()
        return f"{await read(first)}, {await read(second)}"


async def leaves_the_queue(side: ClientSide) -> str:
    async with side.asking("/single/held") as first, side.second() as second:
        await side.waiting(1)
        second.leave()
        await side.waiting(0)
        side.system.model.release()
        return f"{await read(first)}, left"


async def waits_too_long(side: ClientSide) -> str:
    async with side.asking("/brief/held") as first, side.second() as second:
        seen = await read(second)
        side.system.model.release()
        return f"{await read(first)}, {seen}"


# Bodies


async def sends_half_a_body(side: ClientSide) -> str:
    async with connected(side.system.url) as client:
        await client.send(request_bytes(side.path, b"x" * 1000)[:-500])
        return await read(client)


async def leaves_in_its_body(side: ClientSide) -> str:
    async with connected(side.system.url) as client:
        await client.send(request_bytes(side.path, b"x" * 1000)[:-500])
        client.leave()
    return "left"


async def sends_too_much(side: ClientSide) -> str:
    return await side.ask(body=TOO_LARGE)


async def uploads(side: ClientSide) -> str:
    return await _upload(side, UPLOAD)


async def uploads_too_much(side: ClientSide) -> str:
    return await _upload(side, TOO_LARGE)


async def _upload(side: ClientSide, body: bytes) -> str:
    async with connected(side.system.url) as client:
        await client.post(side.path, body, side.header())
        return await read(client)


async def uploads_half(side: ClientSide) -> str:
    async with connected(side.system.url) as client:
        await client.send(request_bytes(side.path, UPLOAD, side.header())[:-500])
        return await read(client)


async def leaves_in_its_upload(side: ClientSide) -> str:
    async with connected(side.system.url) as client:
        before = (await status_of(side.system))["requests"]["received"]
        await client.send(request_bytes(side.path, UPLOAD, side.header())[:-500])
        await until_status(side.system, lambda status: status["requests"]["received"] > before)
        client.leave()
    return "left"


async def uploads_and_leaves(side: ClientSide) -> str:
    async with connected(side.system.url) as client:
        await client.post(side.path, UPLOAD, side.header())
        await side.received()
        client.leave()
        await side.cancelled()
    return "left"


# Signatures, envelopes and HTTP


async def replays(side: ClientSide) -> str:
    envelope = side.envelope()
    return f"{await side.ask(body=envelope)}, {await side.ask(body=envelope)}"


async def asks_after_a_rotation(side: ClientSide) -> str:
    """The engine signs with a new key; what the old one has signed is refused then."""
    old = side.envelope()
    await side.system.engine.rotate_key(new_key())
    return f"{await side.ask()}, {await side.ask(body=old)}"


async def forges(side: ClientSide) -> str:
    """The signature is of another cost."""
    return await side.ask(body=side.envelope({**side.auth(), "cost": 1e300}))


async def signs_for_another_worker(side: ClientSide) -> str:
    return await side.ask(body=side.envelope(side.auth(url="http://127.0.0.1:1")))


async def sends_nan(side: ClientSide) -> str:
    return await side.ask(body=side.envelope({**side.auth(), "cost": float("nan")}))


async def sends_no_json(side: ClientSide) -> str:
    return await side.ask(body=b"\xff{not JSON")


async def sends_a_wrong_payload(side: ClientSide) -> str:
    return await side.ask(body={"auth_data": side.auth(), "payload": {"workload": "much"}})


async def raises(side: ClientSide) -> str:
    """The author's code raises."""
    return await side.ask(
        body={"auth_data": side.auth(), "payload": {"workload": WORKLOAD, "data": {"raise": "response"}}}
    )


async def _sends(side: ClientSide, data: bytes) -> str:
    """Send these bytes; return what was seen until the worker closes."""
    async with connected(side.system.url) as client:
        await client.send(data)
        seen = [await read(client)]
        with suppress(ConnectionError):
            while (more := await read(client)) != "cut":
                seen.append(more)
        return ", ".join(seen)


async def sends_garbage(side: ClientSide) -> str:
    return await _sends(side, b"\x16\x03\x01 no HTTP\r\n\r\n")


async def sends_garbage_behind_a_request(side: ClientSide) -> str:
    body = json.dumps(side.envelope()).encode()
    return await _sends(side, request_bytes(side.path, body) + b"\x01\r\n\r\n")


async def sends_a_large_head(side: ClientSide) -> str:
    return await _sends(side, request_bytes(side.path, b"{}", {"X-Large": "x" * 40_000}))


async def sends_an_invalid_chunk(side: ClientSide) -> str:
    chunked = {"Transfer-Encoding": "chunked"}
    return await _sends(side, request_bytes(side.path, b"5\r\n{aaaa\r\nwrong\r\n", chunked))


async def sends_an_unknown_coding(side: ClientSide) -> str:
    coded = {"Transfer-Encoding": "gzip, chunked"}
    return await _sends(side, request_bytes(side.path, b"0\r\n\r\n", coded))


async def expects_too_much(side: ClientSide) -> str:
    return await _sends(side, request_bytes(side.path, b"{}", {"Expect": "a miracle"}))


async def uses_another_method(side: ClientSide) -> str:
    return await _sends(side, b"BREW %s HTTP/1.1\r\nHost: w\r\n\r\n" % side.path.encode())


async def asks_for_no_route(side: ClientSide) -> str:
    return await side.ask("/nowhere")


# Sessions


async def _create(side: ClientSide, auth: Mapping[str, Any], **terms: Any) -> tuple[str, str]:
    """Open a session; return what was seen, and its id."""
    status, answer = await side.ask_json("/session/create", {"auth_data": auth, "payload": terms})
    return status, answer["session_id"]


async def _end(side: ClientSide, auth: Mapping[str, Any], session_id: str) -> str:
    body = {"session_id": session_id, "session_auth": auth}
    return (await side.ask_json("/session/end", body))[0]


async def works_in_a_session(side: ClientSide) -> str:
    auth = side.auth()
    created, session_id = await _create(side, auth, lifetime=3600.0)
    asked = await side.ask(body=side.envelope(auth, session_id=session_id))
    return f"{created}, {asked}, {await _end(side, auth, session_id)}"


async def leaves_in_a_session(side: ClientSide) -> str:
    auth = side.auth()
    created, session_id = await _create(side, auth, lifetime=3600.0)
    async with side.asking(body=side.envelope(auth, session_id=session_id)) as client:
        await side.received()
        client.leave()
        await side.cancelled()
    return f"{created}, left, {await _end(side, auth, session_id)}"


async def ends_the_session_meanwhile(side: ClientSide) -> str:
    """A session is ended while one of its requests is at the model server."""
    auth = side.auth()
    created, session_id = await _create(side, auth, lifetime=3600.0)
    async with side.asking(body=side.envelope(auth, session_id=session_id)) as client:
        await side.received()
        ended = await _end(side, auth, session_id)
        side.system.model.release()
        return f"{created}, {ended}, {await read(client)}"


async def lets_the_session_expire(side: ClientSide) -> str:
    auth = side.auth()
    created, session_id = await _create(side, auth, lifetime=0.05)
    await until_status(side.system, lambda status: status["requests"]["in_flight"] == 0)
    return f"{created}, {await side.ask(body=side.envelope(auth, session_id=session_id))}"


async def asks_in_no_session(side: ClientSide) -> str:
    return await side.ask(body=side.envelope(session_id="none"))
