"""The embeddings worker as a process, through the local engine, in front of a fake model server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.system import GUARD_S
from tests.workers.embeddings.fake_server import MODEL, VECTOR
from tests.workers.worker_system import WorkerSystem, worker_system
from workers.embeddings.data_types import BENCHMARK_TEXTS

TEI_LINE = "2026-01-01T00:00:00Z  INFO text_embeddings_router::http::server: server.rs:1881: Ready"
INFINITY_LINE = "INFO:     Application startup complete."


def embeddings(
    tmp_path: Path,
    *options: str,
    line: str = TEI_LINE,
    measured: bool = True,
    env: Mapping[str, str] | None = None,
) -> AbstractAsyncContextManager[WorkerSystem]:
    return worker_system(
        tmp_path, "embeddings", env=env, options=["--line", line, *options], measured=measured
    )


async def check(here: WorkerSystem, path: str, request: dict[str, Any], answer: Any) -> None:
    """Send `request` bare and as `{"input": …}`; both reach the server as they are."""
    for payload in (request, {"input": request}):
        status, found = await here.call(path, payload)
        assert (status, found) == (200, answer) or (status, list(found)) == (200, answer)
        assert (await here.received())[-1]["path"] == path
        assert await here.last_message() == request


async def test_the_routes_of_tei(tmp_path: Path) -> None:
    async with embeddings(tmp_path) as here:
        await check(here, "/embed", {"inputs": "x" * 64, "normalize": False}, [VECTOR])
        await check(here, "/embed_all", {"inputs": ["a", "b"], "truncate": True}, [VECTOR, VECTOR])
        await check(here, "/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, [VECTOR])
        await check(here, "/v1/embeddings", {"input": ["a"], "model": MODEL}, ["object", "data", "model"])
        await check(here, "/tokenize", {"inputs": "a"}, [VECTOR])
        assert await here.call("/info", {}) == (200, {"model_id": MODEL})
        status, answer = await here.call("/classify", {"input": ["a"]})
        assert (status, answer) == (404, {"detail": "Not Found"})
        status, answer = await here.call("/embed", {"inputs": "fail"})
        assert (status, answer["error"]) == (424, "CUDA error")
        assert await here.call("/embed", {}) == (422, {"error": "missing field inputs"})
        await here.system.engine.wait_for(lambda: len(here.system.engine.finished) == 14, GUARD_S)
        assert [f.request.status for f in here.system.engine.finished][-3:] == ["Success", "Error", "Success"]


async def test_the_routes_of_infinity(tmp_path: Path) -> None:
    options = ("--infinity", "--task", "rerank")
    async with embeddings(tmp_path, *options, line=INFINITY_LINE, env={"MODEL_NAME": MODEL}) as here:
        request = {"query": "a", "documents": ["b", "c"]}
        status, answer = await here.call("/rerank", request)
        assert (status, len(answer["results"])) == (200, 2)
        assert await here.last_message() == {**request, "model": MODEL}
        assert await here.call("/models", {}) == (200, {"data": [{"id": MODEL}]})
        status, answer = await here.call("/embeddings", {"input": ["a"]})
        assert (status, answer["error"]["message"]) == (400, "the model has another task")
        assert await here.call("/rerank", {"query": "a"}) == (422, {"error": "missing field documents"})


@pytest.mark.parametrize(
    ("options", "path", "workload"),
    [
        ((), "/embeddings", "input"),
        (("--task", "rerank"), "/rerank", "texts"),
        (("--task", "predict"), "/predict", "inputs"),
        (("--task", "sparse"), "/embed_sparse", "inputs"),
        (("--infinity",), "/embeddings", "input"),
        (("--infinity", "--task", "rerank"), "/rerank", "documents"),
        (("--infinity", "--task", "predict"), "/classify", "input"),
    ],
)
async def test_the_benchmark_finds_the_models_task(
    tmp_path: Path, options: tuple[str, ...], path: str, workload: str
) -> None:
    async with embeddings(tmp_path, *options, measured=False) as here:
        received = await here.received()
        used = [json.loads(r["body"]) for r in received if r["path"] == path]
        # After the routes in the order of trying, only the one that the model has.
        paths = [r["path"] for r in received]
        assert paths[paths.index(path) :] == [path] * len(used)
        assert len(used) > 1
        assert {len(m[workload]) for m in used} == {BENCHMARK_TEXTS}
        assert len({json.dumps(m[workload]) for m in used}) == len(used)
        assert here.system.last_report.max_perf > 0


async def test_an_error_line_of_the_log_is_reported(tmp_path: Path) -> None:
    async with embeddings(tmp_path) as here:
        with (tmp_path / "model.log").open("a") as log:
            log.write("Error: Could not create backend\n")
        assert "Could not create backend" in await here.system.errored()


async def test_the_example_client_and_the_load_test(tmp_path: Path) -> None:
    async with embeddings(tmp_path) as here:
        status, output = await here.run("workers.embeddings.client")
        assert (status, len(output.splitlines())) == (0, 3)
        assert output.startswith("1.000  A bee")
        status, output = await here.run("workers.embeddings.client", "rerank")
        assert (status, "HTTP 424" in output) == (1, True)
        status, output = await here.run("workers.embeddings.test_load", "-n", "2", "-rps", "1000")
        assert (status, "2 of 2 requests" in output) == (0, True)


@pytest.mark.parametrize("options", [(), ("--infinity",)])
async def test_the_example_client_reads_the_ranks_of_both_servers(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    async with embeddings(tmp_path, "--task", "rerank", *options) as here:
        status, output = await here.run("workers.embeddings.client", "rerank")
        assert (status, output.splitlines()[0].startswith("0.500  A bee")) == (0, True)
