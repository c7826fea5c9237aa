"""The unmodified OpenAI client, through the OpenAI gateway of the local engine, to worker processes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from lib.local.engine import LocalEngine
from lib.local.serving import serve_engine
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import CONTAINER_ID, PortLease, WorkerProcess, engine_key, worker_process
from tests.workers.worker_system import WorkerSystem, worker_system

HELLO: Any = [{"role": "user", "content": "Where to?"}]
OTHER_ID = CONTAINER_ID + 1


def openai_client(engine_url: str, api_key: str = "sk-1") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{engine_url}/openai/local/v1", api_key=api_key, max_retries=0, timeout=GUARD_S
    )


@asynccontextmanager
async def with_worker_and_client(
    tmp_path: Path,
) -> AsyncGenerator[tuple[WorkerSystem, openai.AsyncOpenAI], None]:
    """A ready worker, and a client of the gateway."""
    async with worker_system(tmp_path, "openai") as worker, openai_client(worker.system.engine_url) as client:
        yield worker, client


@asynccontextmanager
async def another_worker(worker: WorkerSystem, tmp_path: Path) -> AsyncGenerator[WorkerProcess, None]:
    """A second worker in front of the same model server, ready at the beginning of the block."""
    public, loopback = PortLease(), PortLease()
    variables = {
        "CONTAINER_ID": str(OTHER_ID),
        "WORKER_PORT": str(public.port),
        "WORKER_HTTP_PORT": str(loopback.port),
        f"VAST_TCP_PORT_{public.port}": str(public.port),
        "MODEL_SERVER_URL": worker.model_url,
        "MODEL_LOG": str(tmp_path / "model.log"),
    }
    engine = worker.system.engine
    try:
        async with worker_process(
            worker.system, tmp_path, Setup(), variables, "other.log", "workers.openai.server"
        ) as other:
            await engine.wait_for(lambda: engine.worker(OTHER_ID).state == "ready", GUARD_S)
            yield other
    finally:
        public.close()
        loopback.close()


async def wait_until_none_open(engine: LocalEngine) -> None:
    await engine.wait_for(lambda: len(engine.open_requests) == 0, GUARD_S)


async def test_completions_streams_uploads_and_the_list_of_models(tmp_path: Path) -> None:
    async with with_worker_and_client(tmp_path) as (worker, client):
        said = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
        assert said.choices[0].message.content == "user: Where to?"
        stream = await client.completions.create(model="tiny", prompt="a", max_tokens=7, stream=True)
        assert [part.choices[0].text async for part in stream] == [" word"] * 7
        sound = bytes(range(256)) * 10_000
        heard: Any = await client.audio.transcriptions.create(model="tiny", file=("a b.wav", sound))
        (file,) = [part for part in heard.parts if part["name"] == "file"]
        assert (file["filename"], file["sha256"]) == ("a b.wav", hashlib.sha256(sound).hexdigest())
        assert [model.id async for model in client.models.list()] == ["tiny"]
        vectors = await client.embeddings.create(model="tiny", input="x", encoding_format="float")
        assert vectors.data[0].embedding == [0.5, -1.0]

        received = await worker.received()
        assert [request["path"] for request in received] == [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/audio/transcriptions",
            "/v1/models",
            "/v1/embeddings",
        ]
        assert not any({"authorization", "x-vast-auth"} & set(request["headers"]) for request in received)
        engine = worker.system.engine
        await engine.wait_for(lambda: len(engine.finished) == len(received), GUARD_S)
        assert {finish.request.status for finish in engine.finished} == {"Success"}
        await wait_until_none_open(engine)


async def test_errors_raise_the_clients_own_errors(tmp_path: Path) -> None:
    async with with_worker_and_client(tmp_path) as (worker, client):
        with pytest.raises(openai.InternalServerError, match="CUDA out of memory"):
            await client.completions.create(model="tiny", prompt="fail")
        with pytest.raises(openai.NotFoundError, match="`huge` does not exist"):
            await client.completions.create(model="huge", prompt="a")
        wrong: Any = "no list"
        with pytest.raises(openai.BadRequestError, match="Invalid request"):  # the model server's
            await client.chat.completions.create(model="tiny", messages=wrong)
        with pytest.raises(openai.NotFoundError, match="/v1/batches: not found"):
            await client.batches.list()
        elsewhere = client.with_options(base_url=f"{worker.system.engine_url}/openai/elsewhere/v1")
        with pytest.raises(openai.NotFoundError, match="no worker has joined the endpoint 'elsewhere'"):
            await elsewhere.models.list()
        await wait_until_none_open(worker.system.engine)


async def test_a_client_that_closes_its_stream_ends_the_models_work(tmp_path: Path) -> None:
    async with with_worker_and_client(tmp_path) as (worker, client):
        stream = await client.completions.create(model="tiny", prompt="hang", stream=True)
        assert (await anext(aiter(stream))).choices[0].text == " word"
        await stream.close()
        await worker.client_left()
        await wait_until_none_open(worker.system.engine)


async def test_a_missing_key_or_worker_is_an_error() -> None:
    engine = LocalEngine(api_key="sk-1", key=engine_key())
    async with serve_engine(engine) as url, openai_client(url) as client:
        with pytest.raises(openai.AuthenticationError, match="wrong API key") as refused:
            await client.with_options(api_key="sk-2").models.list()
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.InternalServerError, match="no worker of 'local' is ready") as unready:
            await client.chat.completions.create(model="tiny", messages=HELLO)
        assert (unready.value.status_code, unready.value.code) == (503, "no_worker_ready")
        assert int(unready.value.response.headers["Retry-After"]) >= 1
        await wait_until_none_open(engine)


async def test_two_workers_share_requests_until_one_is_left(tmp_path: Path) -> None:
    async with (
        with_worker_and_client(tmp_path) as (worker, client),
        another_worker(worker, tmp_path) as other,
    ):
        engine = worker.system.engine
        both = [engine.worker(CONTAINER_ID), engine.worker(OTHER_ID)]

        async def say(number: int) -> str | None:
            said = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": str(number)}], max_tokens=10
            )
            return said.choices[0].message.content

        answers = await asyncio.gather(*(say(number) for number in range(40)))
        assert answers == [f"user: {number}" for number in range(40)]
        assert min(worker.routed for worker in both) >= 10
        await engine.wait_for(lambda: sum(w.totals.cur_perf for w in both) == 400.0, GUARD_S)

        hanging = [await client.completions.create(model="tiny", prompt="hang", stream=True) for _ in both]
        for stream in hanging:
            assert (await anext(aiter(stream))).choices[0].text == " word"
        await engine.wait_for(lambda: all(w.last and w.last.num_requests_working for w in both), GUARD_S)
        other.process.kill()
        ends = [asyncio.ensure_future(anext(aiter(stream))) for stream in hanging]
        cut, going = await asyncio.wait(ends, timeout=GUARD_S, return_when=asyncio.FIRST_COMPLETED)
        assert (len(cut), len(going)) == (1, 1)
        assert not isinstance(cut.pop().exception(), (StopAsyncIteration, type(None)))
        assert engine.worker(OTHER_ID).state == "ready"  # the engine has not noticed it yet
        assert await asyncio.gather(*(say(number) for number in range(10))) == answers[:10]
        going.pop().cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        for stream in hanging:
            await stream.close()
        await wait_until_none_open(engine)
