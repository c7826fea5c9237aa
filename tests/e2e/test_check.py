"""`pyworker check`: its findings for workers of each kind, without serving anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib.local.local_worker_env import instance_variables
from tests.fakes.command import ROOT, done
from tests.system import engine_and_model_server

AUTHORS = ROOT / "tests" / "authors"
INSTANCE = instance_variables("http://127.0.0.1:1", 3000, 3001, Path("/nowhere"))

# A worker by classes; a test changes a part of it.
CLASSIC = """
import os
from dataclasses import dataclass
from aiohttp import web
from lib.backend import Backend, LogAction
from lib.data_types import ApiPayload, EndpointHandler
from lib.server import start_server

@dataclass
class Job(ApiPayload):
    prompt: str
    words: int = 5
    def count_workload(self): return self.words
    @classmethod
    def for_test(cls): return cls("Once")

@dataclass
class Handler(EndpointHandler[Job]):
    @property
    def endpoint(self): return "/echo"
    @property
    def healthcheck_endpoint(self): return "/health"
    @classmethod
    def payload_cls(cls): return Job

print("I say something")
handler = Handler()
backend = Backend(os.environ.get("TEST_MODEL_URL", "http://127.0.0.1:1"), benchmark_handler=handler)
routes = [web.post("/generate", backend.create_handler(handler))]
if __name__ == "__main__":
    start_server(backend, routes)
"""


def found(output: str, level: str, about: str) -> list[str]:
    """The texts of the findings of this level about this part."""
    begin = f"{level:<8} {about:<13} "
    return [line.removeprefix(begin) for line in output.splitlines() if line.startswith(begin)]


async def test_a_classic_worker_is_checked_through_its_main(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        system.write_log("loading\ninfer server has started\n")
        env = {"TEST_MODEL_URL": system.model.url, "MODEL_LOG": str(system.model_log), **INSTANCE}
        checked = await done("check", str(AUTHORS / "classic.py"), cwd=tmp_path, env=env)
        assert checked.status == 0, checked.output
        assert not system.engine.workers  # it was not served
        assert [r.path for r in system.model.requests if r.method == "POST"] == ["/base/echo"]
    assert found(checked.output, "ok", "settings") == ["all variables are valid"]
    assert "POST /generate_stream" in found(checked.output, "ok", "worker")[0]
    assert found(checked.output, "ok", "workload") == ["the benchmark's payload counts as 50"]
    assert found(checked.output, "ok", "request")[0].startswith("answered 200 after ")
    assert any("matches line 2: infer server has started" in t for t in found(checked.output, "ok", "log"))
    assert found(checked.output, "note", "log")
    assert checked.output.splitlines()[-1].endswith("classic.py: no problems, no warnings")


async def test_a_declared_worker_and_its_function_are_checked(tmp_path: Path) -> None:
    env = {"TEST_MODEL_URL": "http://127.0.0.1:1", "MODEL_LOG": str(tmp_path / "no" / "model.log")}
    checked = await done("check", str(AUTHORS / "declared.py"), cwd=tmp_path, env=env)
    assert checked.status == 1, checked.output
    assert found(checked.output, "ok", "worker") == ["routes: POST /echo, POST /shout"]
    assert found(checked.output, "note", "settings")[0].startswith("CONTAINER_ID: missing (")
    assert found(checked.output, "note", "model server") == [
        "nothing listens at http://127.0.0.1:1, so no request was sent"
    ]
    (missing,) = found(checked.output, "problem", "log")
    assert "does not exist, and neither does its folder: start the model server" in missing


async def test_a_ready_made_worker_is_checked_by_name_with_its_own_settings(tmp_path: Path) -> None:
    log = tmp_path / "model.log"
    log.write_text("loading model\nInfer server has started\n")
    checked = await done("check", "hello_world", "--log", str(log), cwd=tmp_path)
    assert checked.status == 1
    assert found(checked.output, "problem", "log") == [
        "load rule 'infer server has started' matches no line, but differs only in case or spaces from "
        "line 2: Infer server has started",
        "no load rule matches: this log would never make the worker ready",
    ]
    env = {**INSTANCE, "CONTAINER_ID": "first", "MODEL_SERVER_URL": "here", "MAX_QUEUE_TIME": "soon"}
    checked = await done("check", "hello_world", cwd=tmp_path, env=env)
    assert checked.status == 1
    assert [t.split(":")[0] for t in found(checked.output, "problem", "settings")] == ["CONTAINER_ID"]
    assert [t.split(":")[0] for t in found(checked.output, "problem", "worker")] == [
        "MODEL_SERVER_URL",
        "MAX_QUEUE_TIME",
    ]


async def test_on_an_instance_a_missing_variable_is_a_problem(tmp_path: Path) -> None:
    checked = await done("check", "hello_world", cwd=tmp_path, env={"CONTAINER_ID": "1"})
    assert checked.status == 1
    assert [t.split(":")[0] for t in found(checked.output, "problem", "settings")] == [
        "PUBLIC_IPADDR",
        "VAST_TCP_PORT_3000",
    ]


READY_MADE = sorted(path.parent.name for path in ROOT.glob("workers/*/server.py"))

# A copy of a ready-made worker with another benchmark payload.
ALTERED = """
import os
from lib.server import run_worker
from workers.{name}.server import build

def altered(environ):
    backend, routes = build(environ)
    backend.benchmark_handler.make_benchmark_payload = lambda: backend.benchmark_handler.payload_cls()
    return backend, routes

if __name__ == "__main__":
    run_worker(altered, os.environ)
"""


@pytest.mark.parametrize("name", READY_MADE)
async def test_each_problem_of_each_ready_made_worker_is_one_line(name: str, tmp_path: Path) -> None:
    """Cover a missing log, a rule that can't match, a missing variable and a refused payload."""
    (tmp_path / "worker.py").write_text(ALTERED.format(name=name))
    instance = {variable: value for variable, value in INSTANCE.items() if variable != "CONTAINER_ID"}
    env = {**instance, "COMFYUI_DIALECT": "native", "MODEL_NAME": "m", "MODEL_LOG": str(tmp_path / "no.log")}
    env["MODEL_SERVER_URL"] = "http://127.0.0.1:1"
    checked = await done("check", "worker.py", cwd=tmp_path, env=env)
    assert checked.status == 1
    (missing,) = found(checked.output, "problem", "settings")
    assert missing.startswith("CONTAINER_ID: missing")
    assert "no.log does not exist" in found(checked.output, "problem", "log")[0]
    # What clients upload is not made of the benchmark's payload.
    is_uploaded = bool(found(checked.output, "note", "benchmark"))
    assert len(found(checked.output, "problem", "benchmark")) == (not is_uploaded)
    assert len(found(checked.output, "problem", "workload")) == 1

    (tmp_path / "model.log").write_text("the MODEL is there\n")
    env["MODEL_LOAD_LOG_MSG"] = "The model is there"
    checked = await done("check", "worker.py", "--log", "model.log", cwd=tmp_path, env=env)
    assert checked.status == 1
    cannot = "load rule 'The model is there' matches no line, but differs only in case or spaces from line 1"
    assert any(cannot in text for text in found(checked.output, "problem", "log")), checked.output


@pytest.mark.parametrize(
    ("old", "new", "about", "said"),
    [
        ('cls("Once")', "cls(7)", "benchmark", 'is refused: {"payload": {"prompt": "must be a string"}}'),
        ('cls("Once")', "1 / 0", "benchmark", "make_benchmark_payload raised ZeroDivisionError"),
        ('cls("Once")', 'cls(b"Once")', "benchmark", "is refused: it is not JSON: "),
        ("return self.words", "return -1", "workload", "count_workload returned -1, not a finite number"),
        ("return self.words", "return 1 / 0", "workload", "count_workload raised ZeroDivisionError"),
        ("return self.words", "return 0", "workload", "counts as 0, so the throughput would be 0"),
        ("start_server(backend, routes)", "pass", "worker", "it ended without serving: call start_server"),
        ("start_server(backend, routes)", "start_server(backend, [])", "worker", "it has no routes"),
        (
            "start_server(backend, routes)",
            "raise SystemExit(4)",
            "worker",
            "it exited before it served, with status 4",
        ),
        ("handler = Handler()", "handler = Handlr()", "worker", "line 27: handler = Handlr(): NameError"),
        ("handler = Handler()", "handler = Handler(max_concurrency=0)", "worker", "max_concurrency is 0"),
        (
            "handler = Handler()",
            "os.environ['HF_TOKEN_']; handler = Handler()",
            "worker",
            "the environment variable HF_TOKEN_ is not set",
        ),
        ('"http://127.0.0.1:1"', '"127.0.0.1:1"', "worker", "is not an http(s) URL"),
        (
            "benchmark_handler=handler)",
            "log_actions=[(LogAction.ModelError, 'a\\nb')], model_log_file='/no/m.log')",
            "log",
            "error rule 'a\\nb' can never match",
        ),
    ],
)
async def test_each_mistake_is_found(old: str, new: str, about: str, said: str, tmp_path: Path) -> None:
    assert CLASSIC.count(old) == 1
    (tmp_path / "worker.py").write_text(CLASSIC.replace(old, new))
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 1
    assert any(said in text for text in found(checked.output, "problem", about)), checked.output
    assert "I say something" not in checked.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "from lib.worker import Worker, WorkerConfig\n"
            "Worker(WorkerConfig('http://127.0.0.1:1', model_healthcheck_url='/health')).run()\n",
            "it declares no handlers, so its only route is POST /: add a HandlerConfig",
        ),
        (
            CLASSIC.replace("backend.create_handler(handler)", "lambda request: web.Response()"),
            "no handler serves POST /generate, so requests are neither authenticated nor counted",
        ),
    ],
    ids=["declared", "classic"],
)
async def test_a_worker_without_handlers_has_a_problem(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(text)
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 1
    (problem,) = found(checked.output, "problem", "worker")
    assert problem.startswith(said)


async def test_a_declared_handler_at_the_root_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "from lib.worker import HandlerConfig, Worker, WorkerConfig\n"
        "root = HandlerConfig('/')\n"
        "config = WorkerConfig('http://127.0.0.1:1', model_healthcheck_url='/health', handlers=[root])\n"
        "Worker(config).run()\n"
    )
    checked = await done("check", cwd=tmp_path)
    assert (checked.status, found(checked.output, "ok", "worker")) == (0, ["routes: POST /"])


@pytest.mark.parametrize(
    ("old", "new", "about", "said"),
    [
        ('"/echo"', '"/error500"', "request", "failed after "),
        ('"/health"', '"/error500"', "health check", "health check answered 500"),
        (
            "benchmark_handler=handler",
            "model_log_file='/no/m.log'",
            "log",
            "does not exist, although the model server is up",
        ),
    ],
)
async def test_a_running_model_server_gets_a_request(
    old: str, new: str, about: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(CLASSIC.replace(old, new))
    async with engine_and_model_server(tmp_path) as system:
        checked = await done("check", cwd=tmp_path, env={"TEST_MODEL_URL": system.model.url})
    assert checked.status == 1
    assert any(said in text for text in found(checked.output, "problem", about)), checked.output


# A worker without a model server, whose handler needs what its `running` makes.
POOLED = """
from contextlib import asynccontextmanager
from dataclasses import dataclass
from aiohttp import web
from lib.backend import Backend
from lib.data_types import ApiPayload, EndpointHandler
from lib.server import start_server

@dataclass
class Text(ApiPayload):
    text: str
    def count_workload(self): return 1
    @classmethod
    def for_test(cls): return cls("abc")

@dataclass
class Letters(EndpointHandler[Text]):
    @property
    def endpoint(self): return "/letters"
    @classmethod
    def payload_cls(cls): return Text

    @asynccontextmanager
    async def running(self):
        self.pool = {"count": len}
        yield
        print("the pool is closed")

    @asynccontextmanager
    async def call_model(self, model, payload):
        yield web.json_response({"letters": self.pool["count"](payload.text)})

handler = Letters()
backend = Backend("", benchmark_handler=handler)
if __name__ == "__main__":
    start_server(backend, [web.post("/letters", backend.create_handler(handler))])
"""


async def test_a_handler_is_called_inside_what_it_runs(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(POOLED)
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 0, checked.output
    assert found(checked.output, "ok", "request")[0].startswith("answered 200 after ")
    assert "the pool is closed" in checked.errors


# A worker whose lifecycle fails, without a benchmark.
LIFELESS = """
from contextlib import asynccontextmanager
from lib.worker import HandlerConfig, Worker, WorkerConfig

@asynccontextmanager
async def loaded():
    raise RuntimeError("weights missing")
    yield

def f(a: int): return a
worker = Worker(WorkerConfig(lifecycle=loaded, handlers=[HandlerConfig("/f", remote_function=f)]))
if __name__ == "__main__": worker.run()
"""


async def test_without_a_benchmark_the_lifecycle_is_entered_too(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(LIFELESS)
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 1
    assert found(checked.output, "problem", "lifecycle") == [
        "the lifecycle raised RuntimeError('weights missing')"
    ]
    needed = 'WorkerConfig("http://127.0.0.1:1", model_healthcheck_url="/health", '
    (tmp_path / "worker.py").write_text(LIFELESS.replace("WorkerConfig(lifecycle", needed + "lifecycle"))
    checked = await done("check", cwd=tmp_path)
    assert (checked.status, found(checked.output, "problem", "lifecycle")) == (0, [])
    assert found(checked.output, "note", "lifecycle") == [
        "neither it nor running() of a handler was entered, without a model server"
    ]


# A worker with what has no effect, or another than its author expects.
INEFFECTIVE = """
from aiohttp import web
from lib.data_types import EndpointHandler
from lib.worker import HandlerConfig, Worker, WorkerConfig

def f(a: int = 0): return a

class Own(EndpointHandler):
    idempotent = True
    remote_function = f
    @property
    def endpoint(self): return None
    @classmethod
    def payload_cls(cls): return dict

async def answer(request): return web.Response()

handlers = [
    HandlerConfig("/f", remote_function=f, idempotent=True),
    HandlerConfig("/own", handler_class=Own),
    HandlerConfig("/readyz", remote_function=f, method="GET"),
    HandlerConfig("/called", idempotent=True),
]
worker = Worker(WorkerConfig("http://127.0.0.1:1", model_healthcheck_url="/health", handlers=handlers))
worker.routes.append(web.post("/guarded", worker.backend.guard(answer, idempotent=True)))
worker.routes += [web.get(path, answer) for path in ("/healthz", "/ping")]
if __name__ == "__main__": worker.run()
"""


async def test_what_has_no_effect_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(INEFFECTIVE)
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 0, checked.output + checked.errors
    without = "idempotent has no effect: a function's requests aren't sent to the model server, or sent again"
    replaces = "replaces the worker's own route: probes get your answer"
    assert sorted(found(checked.output, "warning", "worker")) == [
        f"GET /healthz {replaces}",
        f"GET /readyz {replaces}",
        f"POST /f: {without}",
        f"POST /guarded: {without}",
        f"POST /own: {without}",
    ]


async def test_contexts_find_the_worker_that_they_belong_to(tmp_path: Path) -> None:
    worker = POOLED.replace("yield\n", "await ready.wait()\n        yield\n")
    lifecycle = """
import asyncio

ready = asyncio.Event()

@asynccontextmanager
async def lifecycle():
    assert backend.session is not None
    watch = asyncio.create_task(backend.watch_health("http://127.0.0.1:1/health"))
    ready.set()
    yield
    watch.cancel()

backend.lifecycle = lifecycle
if __name__"""
    assert worker != POOLED
    (tmp_path / "worker.py").write_text(worker.replace("if __name__", lifecycle))
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 0, checked.output + checked.errors
    assert found(checked.output, "ok", "request")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('self.pool = {"count": len}', "1 / 0", "raised ZeroDivisionError('division by zero')"),
        ("yield\n        print", "print", "raised TypeError("),
        ("@asynccontextmanager\n    async def running", "async def running", "raised TypeError("),
        ('print("the pool is closed")', "1 / 0", "raised ZeroDivisionError('division by zero')"),
    ],
    ids=["raises", "has no yield", "is not a context manager", "raises when it is left"],
)
async def test_a_handler_whose_running_fails_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert POOLED.count(old) == 1
    (tmp_path / "worker.py").write_text(POOLED.replace(old, new))
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 1
    (problem,) = found(checked.output, "problem", "handlers")
    # Python 3.10 raises an AttributeError for an object that is no context manager.
    assert problem.replace("AttributeError", "TypeError").startswith(f"running() of Letters {said}")
    was_entered = "closed" in old
    assert bool(found(checked.output, "ok", "request")) == was_entered


@pytest.mark.parametrize(
    "text",
    [
        "from lib.worker import Worker, WorkerConfig\nWorker(WorkerConfig()).run()\n",
        "from lib.errors import SettingsError\nfrom lib.server import run_worker\n"
        "def build(environ): raise SettingsError(['it has no routes'])\nrun_worker(build, {})\n",
    ],
    ids=["a declaration", "run_worker"],
)
async def test_each_problem_of_a_refused_worker_is_printed_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("import sys\nprint('before', file=sys.stderr)\n" + text)
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 1
    assert found(checked.output, "problem", "worker")
    assert checked.errors == "before\n"


async def test_an_upload_payload_need_not_be_json(tmp_path: Path) -> None:
    uploads = (
        "@classmethod\n    def from_upload(cls, upload): return cls('')\n    @classmethod\n    def for_test"
    )
    text = CLASSIC.replace("@classmethod\n    def for_test", uploads).replace('cls("Once")', 'cls(b"Once")')
    (tmp_path / "worker.py").write_text(text)
    checked = await done("check", cwd=tmp_path)
    assert checked.status == 0, checked.output
    assert "clients send uploads" in found(checked.output, "note", "benchmark")[0]


async def test_the_json_option_prints_the_findings_as_json(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(CLASSIC)
    checked = await done("check", "--json", cwd=tmp_path)
    report = json.loads(checked.output)
    assert (checked.status, report["ok"], report["worker"]) == (0, True, "worker.py")
    assert {"level": "ok", "about": "worker", "text": "routes: POST /generate"} in report["findings"]
    assert "I say something" in checked.errors


async def test_a_file_with_relative_imports_is_checked_as_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "workers" / "mine"
    folder.mkdir(parents=True)
    (folder / "handlers.py").write_text("def answer(n: int) -> int:\n    return n\n")
    (folder / "server.py").write_text(
        "from lib.worker import HandlerConfig, Worker, WorkerConfig\n"
        "from .handlers import answer\n"
        'if __name__ == "__main__":\n'
        '    Worker(WorkerConfig(handlers=[HandlerConfig("/answer", remote_function=answer)])).run()\n'
    )
    outputs: list[str] = []
    for name in ("mine", "workers/mine/server.py", "workers/mine", str(folder / "server.py")):
        checked = await done("check", name, cwd=tmp_path, env=INSTANCE)
        assert checked.status == 0, checked.output
        outputs.append(checked.output)
    assert outputs == [outputs[0]] * 4
    inside = await done("check", "server.py", cwd=folder, env=INSTANCE)
    assert (inside.status, found(inside.output, "ok", "worker")) == (0, ["routes: POST /answer"])


# A declared worker with a payload class, a parser and a sample for the benchmark; a test changes them.
SAMPLED = """
from lib.data_types import ApiPayload
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig

class Picture(ApiPayload):
    def __init__(self, data): self.data = data
    @classmethod
    def for_test(cls): return cls(b"picture")
    @classmethod
    def from_json_msg(cls, message): return cls(message["data"].encode())
    def generate_payload_json(self): raise NotImplementedError("a form")
    def generate_payload_multipart(self): return {"image": ("a.png", self.data, "image/png")}
    def count_workload(self): return 1.0

def parse(payload): return {"prompt": payload["input"]["text"]}

handler = HandlerConfig("/a", FIELDS)
if __name__ == "__main__":
    Worker(WorkerConfig("http://127.0.0.1:1", model_healthcheck_url="/h", handlers=[handler])).run()
"""


@pytest.mark.parametrize(
    ("fields", "level", "text"),
    [
        (
            "payload_class=Picture, benchmark_config=BenchmarkConfig()",
            "note",
            "clients send what its payload class makes a form of, so it is not checked whether one with",
        ),
        (
            'request_parser=parse, benchmark_config=BenchmarkConfig([{"prompt": "p"}])',
            "warning",
            "a sample was refused (JsonDataException({'payload': {'input': 'missing parameter'}})): used it",
        ),
    ],
)
async def test_a_benchmarks_sample_that_clients_could_not_send_is_told(
    fields: str, level: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(SAMPLED.replace("FIELDS", fields))
    checked = await done("check", cwd=tmp_path, env=INSTANCE)
    assert checked.status == 0, checked.output
    assert found(checked.output, level, "benchmark")[0].startswith(text)
