"""`pyworker benchmark`, as a process, for a worker whose model server runs in the test."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from lib.local.processes import free_port
from tests.fakes.command import command, done
from tests.fakes.model_server import malicious_model
from tests.fakes.process import EndedProcess
from tests.fakes.worker import Setup
from tests.system import engine_and_model_server
from tests.system import environment as instance_environment

# A worker whose route, and whose part that a test is about, a test changes.
WORKER = """
import os
from dataclasses import dataclass
from aiohttp import web
from lib.backend import Backend
from lib.data_types import ApiPayload, EndpointHandler
from lib.server import start_server

@dataclass
class Job(ApiPayload):
    words: int = 5
    def count_workload(self): return self.words
    @classmethod
    def for_test(cls): return cls()

@dataclass
class Handler(EndpointHandler[Job]):
    @property
    def endpoint(self): return "/echo"
    @property
    def healthcheck_endpoint(self): return "/health"
    @classmethod
    def payload_cls(cls): return Job

print("I say something")
OTHERS = {"allow_parallel_requests": True, "max_perf": 7.0}
handler = Handler()
backend = Backend(os.environ["MODEL_SERVER_URL"], benchmark_handler=handler, **OTHERS)
routes = [web.post("/generate", backend.create_handler(handler))]
if __name__ == "__main__":
    start_server(backend, routes)
"""
SAVED = ".pyworker_benchmark.json"
# Seconds for one answer of the model server, so that its throughput doesn't depend on this machine's.
ANSWER_S = 0.02


def environment(url: str) -> dict[str, str]:
    return {"MODEL_SERVER_URL": url, "BENCHMARK_TARGET_S": "1"}


async def benchmarked(tmp_path: Path, url: str, *options: str) -> EndedProcess:
    return await done("benchmark", *options, cwd=tmp_path, env=environment(url))


def only_error(ended: EndedProcess) -> str:
    """The one line of a command that failed: nothing but it, and the benchmark's progress, is printed."""
    assert (ended.status, ended.output) == (1, ""), ended
    assert "Traceback" not in ended.errors
    (line,) = [line for line in ended.errors.splitlines() if line.startswith("pyworker benchmark: ")]
    return line.removeprefix("pyworker benchmark: ")


async def test_it_shows_levels_chart_and_result_and_saves_nothing(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    async with malicious_model() as model:
        model.speed_s = ANSWER_S
        ended = await benchmarked(tmp_path, model.url, "--plot")
        url = model.url
    assert ended.status == 0, ended
    lines = ended.output.splitlines()
    assert lines[0].startswith(f"worker.py at {url}/echo: measured for ")
    assert lines[2].split() == ["in", "flight", "workload/s"]
    assert lines[3].split()[0] == "1"
    assert "◆" in ended.output
    assert any(line.startswith("max_perf to report: ") for line in lines)
    assert lines[-1].startswith("No result is saved: the worker's next start measures anew. ")
    assert not (tmp_path / SAVED).exists()
    assert "benchmark: warming up" in ended.errors
    assert "with 4 in flight" in ended.errors
    assert "I say something" not in ended.output


async def test_json_is_one_object_and_a_saved_result_is_compared(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    async with malicious_model() as model:
        model.speed_s = ANSWER_S
        ended = await benchmarked(tmp_path, model.url, "--json", "--plot", "--save")
        again = await benchmarked(tmp_path, model.url)
    facts: Any = json.loads(ended.output)
    assert (ended.status, again.status) == (0, 0)
    assert (facts["worker"], facts["endpoint"], facts["saved"]) == ("worker.py", "/echo", None)
    assert facts["is_saved"] is True
    assert facts["levels"][0]["concurrency"] == 1
    assert max(level["perf"] for level in facts["levels"]) >= facts["max_perf"] > 0
    assert facts["requests"]["failed"] == 0
    assert set(facts["versions"]) == {"pyworker", "python"}
    assert "◆" in ended.errors
    assert json.loads((tmp_path / SAVED).read_text())["perf"] == facts["max_perf"]
    assert "The worker's next start reports the saved result of " in again.output


async def test_a_result_that_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / SAVED).mkdir()
    async with malicious_model() as model:
        model.speed_s = ANSWER_S
        ended = await benchmarked(tmp_path, model.url, "--save")
    assert ended.status == 1
    # Not necessarily as the last line: a thread writes the log, which says why.
    assert f"pyworker benchmark: the result can't be saved in {tmp_path}" in ended.errors.splitlines()


async def test_ctrl_c_ends_it_and_its_requests(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER.replace("/echo", "/held"))
    async with (
        malicious_model() as model,
        command("benchmark", cwd=tmp_path, env=environment(model.url)) as running,
    ):
        await model.until(lambda: len(model.requests) == 1)
        running.process.send_signal(signal.SIGINT)
        ended = await running.end()
        await model.until(lambda: model.cancelled == 1)
    assert (ended.status, ended.output) == (130, "")
    assert ended.errors.splitlines()[-1] == "pyworker benchmark: interrupted"
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        (
            "/echo",
            401,
            'answered 401: {"error": "broken GPU"} (the model server at URL wants a key: see MODEL_API_KEY)',
        ),
        ("/nowhere", None, 'answered 404: {"error": "no such path"} (URL may be another server, or'),
        ("/error500", None, "answered 500: <h1>CUDA out of memory</h1> (the model server at URL may still"),
        ("/close", None, "no request of the benchmark succeeded: the model server could not be reached"),
    ],
)
async def test_a_model_server_that_refuses_is_quoted(
    tmp_path: Path, path: str, status: int | None, said: str
) -> None:
    (tmp_path / "worker.py").write_text(WORKER.replace("/echo", path))
    async with malicious_model() as model:
        model.fail_status = status
        ended = await benchmarked(tmp_path, model.url, "--json")
        assert said.replace("URL", model.url) in only_error(ended)


async def test_a_model_server_that_is_not_well_is_measured_with_a_remark(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    async with malicious_model() as model:
        model.speed_s, model.health_status = ANSWER_S, 503
        ended = await benchmarked(tmp_path, model.url)
    assert ended.status == 0
    assert "/health: health check answered 503; the model may still be loading" in ended.errors


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "benchmark_handler=handler, ",
            "",
            "worker.py has no benchmark: it states its capacity, 7 workload/s",
        ),
        ("return self.words", "return 0", "the workload counted is 0: see count_workload"),
        ("return cls()", "return 1 / 0", "make_benchmark_payload raised ZeroDivisionError"),
        ("start_server(backend, routes)", "pass", "worker.py: it ended without serving: call start_server("),
        ("handler = Handler()", "handler = Handlr()", "handler = Handlr(): NameError"),
        ("handler = Handler()", "handler = Handler(max_concurrency=0)", "Handler: max_concurrency is 0"),
    ],
)
async def test_each_mistake_of_an_author_is_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert WORKER.count(old) == 1
    (tmp_path / "worker.py").write_text(WORKER.replace(old, new))
    async with malicious_model() as model:
        ended = await benchmarked(tmp_path, model.url)
    assert said in only_error(ended)


async def test_a_lifecycle_that_fails_is_the_reason(tmp_path: Path) -> None:
    lifecycle = "backend.lifecycle = lambda: 1 / 0\nif __name__"
    (tmp_path / "worker.py").write_text(WORKER.replace("if __name__", lifecycle))
    async with malicious_model() as model:
        ended = await benchmarked(tmp_path, model.url)
    assert "the lifecycle raised " in only_error(ended)


async def test_each_mistake_of_a_newcomer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    with free_port() as port:
        url = f"http://127.0.0.1:{port}"
        error = only_error(await benchmarked(tmp_path, url))
    assert error == f"nothing listens at {url}: start the model server, or name it in MODEL_SERVER_URL"
    assert "'nowhere' is not an http(s) URL" in only_error(await benchmarked(tmp_path, "nowhere"))
    assert "MODEL_SERVER_URL: 'nowhere' is not" in only_error(
        await benchmarked(tmp_path, "nowhere", "hello_world")
    )
    env = {"MODEL_SERVER_URL": url, "BENCHMARK_TARGET_S": "soon"}
    error = only_error(await done("benchmark", cwd=tmp_path, env=env))
    assert error.startswith("BENCHMARK_TARGET_S: 'soon' is not a number of seconds")
    unknown = await benchmarked(tmp_path, url, "helo_world")
    assert unknown.status == 2
    assert "Did you mean 'hello_world'?" in unknown.errors


APP = """
import asyncio
from vastai import Deployment

app = Deployment(name="measured")

@app.context()
class Model:
    async def __aenter__(self):
        print("context entered")
        return self
    async def __aexit__(self, *exception):
        print("context left")

@app.remote(benchmark_dataset=[{"n": 3}], workload_calculator=lambda n: n)
async def work(n):
    app.get_context(Model)
    await asyncio.sleep(0.02)

if __name__ == "__main__":
    raise AssertionError("it is imported, not run")
"""
needs_vastai = pytest.mark.skipif(
    importlib.util.find_spec("vastai") is None, reason="Vast.ai's SDK, `vastai`, can't be installed here"
)


@needs_vastai
@pytest.mark.one_python
async def test_a_deployment_is_measured_in_its_contexts_and_its_next_start_has_the_result(
    tmp_path: Path,
) -> None:
    (tmp_path / "measured.py").write_text(APP)
    ended = await done(
        "benchmark", "measured:app", "--save", "--json", cwd=tmp_path, env={"BENCHMARK_TARGET_S": "1"}
    )
    assert ended.status == 0, ended.errors
    facts: Any = json.loads(ended.output)
    assert (facts["worker"], facts["endpoint"], facts["model_server"]) == (
        "measured:app",
        "/remote/work",
        "",
    )
    assert facts["max_perf"] > 0
    assert facts["requests"]["failed"] == 0
    entered, left = ended.errors.index("context entered"), ended.errors.index("context left")
    assert entered < ended.errors.index("benchmark: warming up") < left
    async with engine_and_model_server(tmp_path) as system:
        env = instance_environment(system, Setup())
        words = ("deployment", "measured:app")
        async with command(*words, cwd=tmp_path, env=env, errors_in_output=True) as worker:
            await worker.until("saved benchmark")
            await system.ready()
            assert system.last_report.max_perf == facts["max_perf"]


@needs_vastai
@pytest.mark.one_python
@pytest.mark.parametrize(
    ("target", "old", "new", "status", "said"),
    [
        (
            "measured:app",
            'benchmark_dataset=[{"n": 3}], ',
            "",
            1,
            "measured:app has no benchmark: it states its capacity, 100 workload/s",
        ),
        ("measured:app", 'print("context entered")', "1 / 0", 1, "ZeroDivisionError('division by zero')"),
        ("measured:app", "app.get_context(Model)", "raise KeyError(7)", 1, "work raised KeyError(7)"),
        ("measured.py:app", "", "", 2, "must name a module, not a file: measured:app"),
        ("nowhere:app", "", "", 1, "nowhere:app: there is no module nowhere in "),
    ],
)
async def test_each_mistake_of_a_deployment_is_one_line(
    target: str, old: str, new: str, status: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "measured.py").write_text(APP.replace(old, new))
    ended = await done("benchmark", target, cwd=tmp_path, env={"BENCHMARK_TARGET_S": "1"})
    assert (ended.status, ended.output) == (status, ""), ended
    assert "Traceback" not in ended.errors
    (line,) = [line for line in ended.errors.splitlines() if line.startswith("pyworker benchmark: ")]
    assert said in line
    assert "model server" not in line
