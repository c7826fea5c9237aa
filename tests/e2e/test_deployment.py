"""`pyworker deployment`: a deployment of Vast.ai's SDK, called over HTTP and by the SDK's own client."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lib.client import CA_PATH
from tests.e2e.author_runs import assert_totals, output_of
from tests.fakes.command import RunningCommand, command, done
from tests.fakes.worker import Setup
from tests.system import System, engine_and_model_server, environment

needs_vastai = pytest.mark.skipif(
    importlib.util.find_spec("vastai") is None, reason="Vast.ai's SDK, `vastai`, can't be installed here"
)
needs_client = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="the client of the SDK's deployments needs Python 3.12"
)

# A deployment as its author writes it: the same file is served, and is the client when it is run.
APP = f"""
import asyncio
import os
import threading

from vastai import Deployment

ENGINE = os.environ.get("TEST_ENGINE", "")
app = Deployment(name="example", api_key="any", webserver_url=ENGINE, autoscaler_url=ENGINE)
print("imported to", "serve" if os.environ.get("IS_DEPLOYMENT") else "call")

class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

class Refusal(Exception):
    def __init__(self, text, code):
        super().__init__(text, code)
        self.code = code

class Opaque(Exception):
    def __init__(self):
        super().__init__("no client knows me")
        self.lock = threading.Lock()

@app.context(factor=3)
class Model:
    def __init__(self, factor):
        self.factor = factor
    async def __aenter__(self):
        print("context entered", flush=True)
        return self
    async def __aexit__(self, *exception):
        print("context left", flush=True)

@app.remote(benchmark_dataset=[{{"n": 1}}, {{"n": 2}}], workload_calculator=lambda n, *more, **named: n)
async def times(n, *more, scale=1, **named):
    return app.get_context(Model).factor * n * scale, more, named

@app.remote
def plain(text: str):
    assert threading.current_thread() is not threading.main_thread()
    return text.encode()

@app.remote()
async def echo(value):
    return value

@app.remote()
async def moved(point, by):
    assert type(point) is Point
    return Point(point.x + by.x, point.y + by.y)

@app.remote()
async def fails(kind):
    raise {{"key": KeyError("who", 7), "own": Refusal("not today", 42), "opaque": Opaque()}}[kind]

async def main():
    app.client.SSL_CERT_URL = app.async_client.SSL_CERT_URL = ENGINE + "{CA_PATH}"
    app.image("any", 10)
    app.configure_autoscaling(max_workers=1)
    await app.async_ensure_ready()
    print(await times(5), await times(2, "a", b"\\0b", scale=2.5, k=None))
    print(await plain("ä"))
    numbers, texts = (-1, 2**70, 1.5, float("inf")), ("ü\\n", b"\\xff")
    for value in (None, *numbers, *texts, [1, (2, [])], {{1: {{"a": ()}}, None: "none"}}):
        assert await echo(value) == value and type(await echo(value)) is type(value), value
    point = await moved(Point(1, 2.5), by=Point(1, 1))
    print(type(point).__name__, point.x, point.y)
    for kind in ("key", "own", "opaque"):
        try:
            await fails(kind)
        except Exception as e:
            print(repr(e), vars(e))
    try:
        await echo({{1, 2}})
    except TypeError as e:
        print("not sent:", e)

if __name__ == "__main__":
    asyncio.run(main())
"""


@asynccontextmanager
async def served(tmp_path: Path, text: str = APP) -> AsyncGenerator[tuple[System, RunningCommand], None]:
    """Run `pyworker deployment app:app` for the module `text`, with an engine; yield once it is ready."""
    (tmp_path / "app.py").write_text(text)
    async with engine_and_model_server(tmp_path) as system:
        env = environment(system, Setup())
        async with command("deployment", "app:app", cwd=tmp_path, env=env, errors_in_output=True) as worker:
            await worker.until("benchmarking → ready")
            await system.ready()
            yield system, worker


async def call(system: System, name: str, payload: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of the answer to a signed call."""
    body = {"auth_data": system.auth(100.0), "payload": payload}
    async with system.http.post(f"{system.url}/remote/{name}", json=body) as answer:
        return answer.status, await answer.json()


@needs_vastai
async def test_a_call_and_its_answer_over_http(tmp_path: Path) -> None:
    async with served(tmp_path) as (system, _):
        assert await call(system, "times", {"kwargs": {"n": 5}}) == (
            200,
            {
                "result": {
                    "ok": {
                        "type": "tuple",
                        "contents": [
                            15,
                            {"type": "tuple", "contents": []},
                            {"type": "dict", "contents": []},
                        ],
                    }
                }
            },
        )
        assert await call(system, "plain", {"args": ["a"]}) == (
            200,
            {"result": {"ok": {"type": "bytes", "contents": "YQ=="}}},
        )
        status, answer = await call(system, "fails", {"kwargs": {"kind": "key"}})
        assert (status, answer["result"].keys()) == (200, {"err"})
        assert answer["result"]["err"]["class"] == "KeyError"
        assert await call(system, "echo", {"kwargs": {"value": [1]}, "args": None}) == (
            422,
            {"payload": {"args": "must be a list of serialized arguments"}},
        )
        assert await call(system, "plain", {"kwargs": {}}) == (
            422,
            {"payload": {"kwargs": "missing a required argument: 'text'"}},
        )
        # Only the calls that were served count: 5 by the calculator, and 100 of the function without one.
        await system.reported(served=105.0)
    assert [f.request.status for f in system.engine.finished].count("Error") == 3


@needs_vastai
@needs_client
async def test_the_sdks_client_and_a_load_test_call_it_until_it_is_drained(tmp_path: Path) -> None:
    async with served(tmp_path) as (system, worker):
        assert worker.output.index("context entered") < worker.output.index("benchmarking → ready")
        assert "imported to serve" in worker.output
        assert system.last_report.max_perf > 0
        client = await done("python", "app.py", cwd=tmp_path, env={"TEST_ENGINE": system.engine_url})
        assert client.status == 0, client.errors
        assert client.output.splitlines() == [
            "imported to call",
            "(15, (), {}) (15.0, ('a', b'\\x00b'), {'k': None})",
            "b'\\xc3\\xa4'",
            "Point 2 3.5",
            "KeyError('who', 7) {}",
            "Refusal('not today', 42) {'code': 42}",
            "RuntimeError('Opaque: no client knows me') {}",
            "not sent: Object of type <class 'set'> is not JSON serializable!",
        ]
        call = ("--route", "/remote/times", "--payload", '{"kwargs": {"n": 5}}', "--cost", "5")
        load = ("load-test", "--engine", system.engine_url, *call, "-n", "20", "-c", "4")
        assert re.match(
            r'20 of 20 .*\n  ok +20  {"result": {"ok": {"type": "tuple", "contents": \[15, ',
            await output_of(tmp_path, *load),
        )
        # 5 and 2 by the calculator, 20 calls of other functions; 3 that raise; 5 of each of the load test's.
        await assert_totals(system, 5 + 2 + 20 * 100 + 20 * 5.0, errored=300.0, Success=42, Error=3)
        worker.process.send_signal(signal.SIGTERM)
        ended = await worker.end()
    assert ended.status == 0
    assert ended.output.index("ready → draining") < ended.output.index("context left")
    # What the deployment prints may stand before a line of the log.
    said = re.findall(r" (?:WARNING|ERROR|CRITICAL) .*: (.*)", ended.output)
    assert said == ["fails raised an exception"] * 3


# A benchmark that never succeeds must not be taken for a fast one.
FAILING = """
from vastai import Deployment
app = Deployment(name="failing")

@app.remote(benchmark_generator=lambda: {"n": 1})
async def broken(n):
    raise ValueError("no GPU")
"""


@needs_vastai
async def test_a_benchmark_whose_calls_raise_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FAILING)
    async with (
        engine_and_model_server(tmp_path) as system,
        command("deployment", "app:app", cwd=tmp_path, env=environment(system, Setup())),
    ):
        assert "broken raised ValueError('no GPU')" in await system.errored()


@needs_vastai
async def test_with_a_local_engine_the_suggested_request_is_a_call(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    env = {"BENCHMARK_TARGET_S": "1"}
    suggested = """pyworker request /remote/fails '{"kwargs": {"name": "value"}}' """
    async with command("deployment", "app:app", "--local", cwd=tmp_path, env=env) as local:
        await local.until(suggested)
        (engine,) = re.findall("engine +(http://.*)  stands in", local.output)
        words = ("request", "/remote/echo", '{"kwargs": {"value": 1}}', "--engine", engine)
        sent = await done(*words, cwd=tmp_path)
        assert '{"result": {"ok": 1}}' in sent.output, sent.errors


@needs_vastai
async def test_a_deployment_is_checked_without_serving_it(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    ended = await done("check", "app:app", "--json", cwd=tmp_path)
    assert ended.status == 0, ended.output
    assert "routes: POST /remote/times, POST /remote/plain" in ended.output
    assert "a client that sends its payload is accepted" in ended.output
    assert "answered 200" in ended.output


@pytest.mark.parametrize(
    ("target", "text", "status", "said"),
    [
        ("app:nope", "", 2, "the module app has no 'nope'. Its deployments are app"),
        (
            "app:other",
            "other = {}",
            2,
            "'other' is of the type dict, not a Deployment. Its deployments are app",
        ),
        ("nothing:app", "", 2, "there is no module nothing in "),
        ("app:app", "", 2, "the deployment has no functions: decorate one with its remote()"),
        (
            "app:app",
            "@app.remote(max_queue_tme=3)\nasync def f(): ...\n",
            1,
            "app.py, line 3: @app.remote(max_queue_tme=3)\n  TypeError: ",
        ),
        (
            "app:app",
            "import no_such_thing",
            1,
            "app.py, line 3: import no_such_thing\n  ModuleNotFoundError: ",
        ),
    ],
)
@needs_vastai
async def test_what_is_wrong_is_said_before_anything_starts(
    target: str, text: str, status: int, said: str, tmp_path: Path
) -> None:
    begin = "from vastai import Deployment\napp = Deployment(name='a')\n"
    (tmp_path / "app.py").write_text(begin + text)
    ended = await done("deployment", target, cwd=tmp_path)
    assert ended.status == status, ended.errors
    assert said in ended.errors
    assert "importlib" not in ended.errors


@needs_vastai
async def test_a_package_that_cannot_be_imported_is_named_with_its_line(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("import os\n{}['key']\n")
    (package / "app.py").write_text("from vastai import Deployment\napp = Deployment(name='a')\n")
    ended = await done("deployment", "package.app:app", cwd=tmp_path)
    assert ended.status == 1, ended.errors
    assert "package/__init__.py, line 2: {}['key']\n  KeyError: 'key'" in ended.errors
    assert "importlib" not in ended.errors


# Runs `pyworker` where the package's import fails at this module.
WITHOUT = """
import sys
from lib.tools.cli import main

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Hidden())
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("vastai", "the package vastai is not installed: pip install 'pyworker[vastai]'"),
        pytest.param(
            "vastai.serverless.remote",
            "the package vastai has no deployments, it is too old: pip install 'pyworker[vastai]'",
            marks=needs_vastai,
        ),
    ],
)
async def test_without_the_package_the_extra_is_named(missing: str, said: str, tmp_path: Path) -> None:
    code = WITHOUT.format(missing=missing)
    ended = await done("python", "-c", code, "deployment", "app:app", cwd=tmp_path)
    assert ended.status == 2
    assert said in ended.errors


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("app", "'app' must be MODULE:APP, such as "),
        ("app:", "'app:' must be MODULE:APP, such as "),
        (f"my{os.sep}app.py:app", "must name a module, not a file: my.app:app"),
        ("app.py", "must name a module, not a file: app:app"),
    ],
)
async def test_the_argument_is_a_module_and_a_name(target: str, said: str, tmp_path: Path) -> None:
    ended = await done("deployment", target, cwd=tmp_path)
    assert ended.status == 2
    assert said in ended.errors
