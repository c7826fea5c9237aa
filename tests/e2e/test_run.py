"""`pyworker run`: its exit status, its signals, and its messages when something is wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.fakes.command import ROOT, command, done
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import engine_and_model_server, environment

FAKE_WORKER = str(ROOT / "tests" / "fakes" / "worker.py")

# Prints without delay what the worker waits for.
IMPATIENT = """
import os, sys
from lib.tools.run_local import run_with_local_engine
sys.exit(run_with_local_engine("hello_world", "hello_world", os.environ, interval_s=0.2))
"""

# Prints which package its event loop is of.
LOOPED = """
import asyncio
from contextlib import asynccontextmanager

from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig

@asynccontextmanager
async def lifecycle():
    print("runs on", type(asyncio.get_running_loop()).__module__, flush=True)
    yield

async def double(number: int):
    return 2 * number

benchmark = BenchmarkConfig(dataset=[{"number": 1}])
double_handler = HandlerConfig("/double", remote_function=double, benchmark_config=benchmark)
worker = Worker(WorkerConfig(lifecycle=lifecycle, handlers=[double_handler]))
if __name__ == "__main__":
    worker.run()
"""


def worker_in(folder: Path, text: str) -> str:
    (folder / "worker.py").write_text(text)
    return "worker.py"


async def test_a_signal_reaches_the_worker_which_drains(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        env = environment(system, Setup(health="/health"))
        async with command("run", FAKE_WORKER, cwd=tmp_path, env=env) as worker:
            await system.ready()
            assert (await system.call("/echo", 2.0))[0] == 200
            worker.process.send_signal(signal.SIGTERM)
            ended = await worker.end()
        await system.reported(served=2.0)
    assert ended.status == 0
    assert "ready → draining" in ended.errors


@pytest.mark.parametrize("local", [(), ("--local",)])
async def test_the_exit_status_is_that_of_the_worker(local: tuple[str, ...], tmp_path: Path) -> None:
    name = worker_in(tmp_path, "import sys\nprint('here I am', sys.argv, flush=True)\nsys.exit(7)\n")
    ended = await done("run", name, *local, cwd=tmp_path)
    assert ended.status == 7
    assert f"here I am ['{tmp_path / name}']" in ended.output


@pytest.mark.parametrize("local", [(), ("--local",)])
@pytest.mark.parametrize("instead", ["pass", "raise SystemExit"])
async def test_a_file_that_never_runs_its_worker_has_failed(
    instead: str, local: tuple[str, ...], tmp_path: Path
) -> None:
    name = worker_in(tmp_path, LOOPED.replace("worker.run()", instead))
    ended = await done("run", name, *local, cwd=tmp_path)
    assert ended.status == 1
    told = "worker.py ended without serving: call start_server(backend, routes), or run() of a Worker"
    assert f"pyworker run: {told}" in ended.output + ended.errors


async def test_a_killed_worker_gives_the_status_a_shell_gives(tmp_path: Path) -> None:
    name = worker_in(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    ended = await done("run", name, "--local", cwd=tmp_path)
    assert ended.status == 128 + signal.SIGKILL
    assert "The worker ended by itself, with exit status -9" in ended.output


async def test_the_worker_runs_in_its_projects_folder_and_finds_its_modules(tmp_path: Path) -> None:
    folder = tmp_path / "project" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "project" / "requirements.txt").write_text("")
    (tmp_path / "project" / "words.txt").write_text("from the project")
    (folder / "beside.py").write_text("from pathlib import Path\nTEXT = Path('words.txt').read_text()\n")
    worker_in(folder, "import beside, mine.beside\nprint(beside.TEXT, __name__)\n")
    ended = await done("run", "project/mine", cwd=tmp_path)
    assert (ended.status, ended.output) == (1, "from the project __main__\n")  # it serves nothing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import os\nimport no_such_thing.at_all\n",
            "worker.py, line 2: import no_such_thing.at_all\n  ModuleNotFound",
        ),
        ("from os import no_such_name\n", "worker.py, line 1: from os import no_such_name\n  ImportError: "),
        ("x = 1\ndef f(:\n", "worker.py, line 2: def f(:\n  SyntaxError: "),
        (
            "import os\nTOKEN = os.environ['NO_SUCH_TOKEN']\n",
            "line 2: TOKEN = os.environ['NO_SUCH_TOKEN']\n"
            "  the environment variable NO_SUCH_TOKEN is not set",
        ),
        (
            "import json\njson.loads('{')\n",
            "worker.py, line 2: json.loads('{')\n  json.decoder.JSONDecodeError: ",
        ),
    ],
)
async def test_an_exception_in_the_worker_is_reported_with_its_line(
    text: str, said: str, tmp_path: Path
) -> None:
    ended = await done("run", worker_in(tmp_path, text), cwd=tmp_path)
    assert ended.status == 1
    assert ended.errors.startswith("pyworker run: ")
    assert said in ended.errors
    assert "runpy" not in ended.errors


async def test_outside_an_instance_the_missing_variables_and_the_local_mode_are_named(tmp_path: Path) -> None:
    ended = await done("run", "hello_world", cwd=tmp_path)
    assert ended.status == 2
    for name in ("CONTAINER_ID", "PUBLIC_IPADDR", "VAST_TCP_PORT_3000"):
        assert f"  - {name}: missing (" in ended.errors
    assert "to run it on this machine, not on an instance: pyworker run " in ended.errors
    assert ended.errors.endswith("--local\n")


async def test_without_an_engine_the_local_mode_is_not_recommended(tmp_path: Path) -> None:
    env = {"ENGINE": "none", "LOG_FORMAT": "xml"}
    ended = await done("run", "hello_world", cwd=tmp_path, env=env)
    assert ended.status == 2
    assert "LOG_FORMAT: 'xml' is none of text, json" in ended.errors
    assert "--local" not in ended.errors


async def test_a_workers_own_refusal_is_printed_once(tmp_path: Path) -> None:
    ended = await done("run", "hello_world", cwd=tmp_path, env={"MAX_QUEUE_TIME": "soon"})
    assert ended.status == 2
    assert ended.errors.count("\n") == 2
    assert "MAX_QUEUE_TIME: 'soon' is neither" in ended.errors


async def test_a_taken_port_is_reported_with_its_holder_and_a_remedy(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        env = environment(system, Setup(health="/health"))
        with socket.create_server(("127.0.0.1", int(env["WORKER_PORT"]))):
            ended = await done("run", FAKE_WORKER, cwd=tmp_path, env=env)
    assert ended.status == 3
    assert f"port {env['WORKER_PORT']} is taken by process {os.getpid()}" in ended.errors
    assert ended.errors.count("stop that process, or set WORKER_PORT to another port") == 1
    assert "--local" not in ended.errors


async def test_a_taken_loopback_port_is_reported_with_its_own_variable(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        env = environment(system, Setup(health="/health"))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            ended = await done("run", FAKE_WORKER, cwd=tmp_path, env={**env, "WORKER_HTTP_PORT": str(port)})
    assert ended.status == 3
    assert f"port {port} is taken by process {os.getpid()}" in ended.errors
    assert "stop that process, or set WORKER_HTTP_PORT to another port" in ended.errors
    assert "set WORKER_PORT" not in ended.errors


async def test_in_local_mode_other_ports_replace_taken_ones_with_a_message(tmp_path: Path) -> None:
    name = worker_in(tmp_path, "import os\nprint('my port is', os.environ['WORKER_PORT'])\n")
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
        env = {"WORKER_PORT": str(ports[0]), "WORKER_HTTP_PORT": str(ports[1])}
        ended = await done("run", name, "--local", cwd=tmp_path, env=env)
    assert ended.status == 1  # it serves nothing
    assert f"(port {ports[0]} is taken)" in ended.output
    assert f"(port {ports[1]} is taken)" in ended.output
    assert f"my port is {ports[0]}\n" not in ended.output


@pytest.mark.skipif(sys.platform != "linux", reason="uvloop is installed on Linux only")
@pytest.mark.parametrize("words", [("run", "worker.py", "--local"), ("check", "worker.py")])
async def test_a_worker_runs_on_uvloop(words: tuple[str, ...], tmp_path: Path) -> None:
    worker_in(tmp_path, LOOPED)
    async with command(*words, cwd=tmp_path, errors_in_output=True) as running:
        await running.until("runs on uvloop")


async def test_without_uvloop_a_worker_runs_on_asyncio_s_own_loop(tmp_path: Path) -> None:
    name = worker_in(tmp_path, f"import sys\nsys.modules['uvloop'] = None\n{LOOPED}")
    async with command("run", name, "--local", cwd=tmp_path) as running:
        await running.until("runs on asyncio.unix_events")
        await running.until("The worker is ready.")


async def test_an_invalid_port_is_refused(tmp_path: Path) -> None:
    ended = await done("run", "hello_world", "--local", cwd=tmp_path, env={"WORKER_PORT": "http"})
    assert (ended.status, ended.output) == (2, "")
    assert ended.errors.startswith("pyworker run: WORKER_PORT: 'http' is not an integer")


async def test_a_waiting_worker_says_what_it_waits_for(tmp_path: Path) -> None:
    log = tmp_path / "model.log"
    log.write_text("loading model\nstill at it\n")
    env = {"MODEL_LOG": str(log), "MODEL_SERVER_URL": "http://127.0.0.1:1", "WORKER_PORT": "0"}
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        env |= {"WORKER_PORT": str(one.getsockname()[1]), "WORKER_HTTP_PORT": str(other.getsockname()[1])}
        async with command("python", "-c", IMPATIENT, cwd=tmp_path, env=env) as worker:
            await worker.until("Not ready yet: the worker doesn't listen yet.")
            await worker.until("nothing listens at http://127.0.0.1:1: is the model server running?")
            await worker.until("no load rule has matched 2 lines yet")
            worker.process.send_signal(signal.SIGINT)
            assert (await worker.end()).status == 0


# A worker whose answer a test changes.
CHANGED = """
import answers
from lib.worker import HandlerConfig, Worker, WorkerConfig

async def double(number: int):
    return answers.FACTOR * number

worker = Worker(WorkerConfig(handlers=[HandlerConfig("/double", remote_function=double)]))
if __name__ == "__main__":
    worker.run()
"""


async def test_with_reload_a_changed_worker_is_started_anew_beside_the_same_engine(tmp_path: Path) -> None:
    worker_in(tmp_path, CHANGED)
    (tmp_path / "answers.py").write_text("FACTOR = 2\n")

    async def answer() -> str:
        words = ("request", "/double", '{"number": 21}', "--engine", engine, "--timeout", f"{GUARD_S}")
        return (await done(*words, cwd=tmp_path)).output

    async def key() -> str:
        return (await done("curl", "-s", f"{engine}/pubkey/", cwd=tmp_path)).output

    async with command("run", "--local", "--reload", cwd=tmp_path, errors_in_output=True) as running:
        await running.until("The worker is ready.")
        found = re.search(r"engine +(http://\S+)", running.output)
        assert found is not None
        engine = found[1]
        assert await answer() == '{"result": 42}\n'
        first_key = await key()

        running.output = ""
        (tmp_path / "answers.py").write_text("FACTOR = 2 + 2\n")  # of another length, for Python's cache
        await running.until("Changed: answers.py. The worker is started anew.")
        await running.until("The worker is ready.")
        assert await answer() == '{"result": 84}\n'

        running.output = ""
        worker_in(tmp_path, "def f(:\n")
        await running.until("SyntaxError: ")
        await running.until(
            "The worker ended by itself, with exit status 1.\nWaiting for a change of its files."
        )

        running.output = ""
        worker_in(tmp_path, CHANGED.replace("* number", "+ number"))
        await running.until("Changed: worker.py.")
        await running.until("The worker is ready.")
        assert await answer() == '{"result": 25}\n'
        assert await key() == first_key

        running.process.send_signal(signal.SIGINT)
        assert (await running.end()).status == 0


# Its requests don't end by themselves.
ENDLESS = """
import asyncio
from contextlib import asynccontextmanager
from lib.worker import HandlerConfig, Worker, WorkerConfig

@asynccontextmanager
async def lifecycle():
    yield
    print("the lifecycle is left", flush=True)

async def wait():
    print("the request waits", flush=True)
    await asyncio.Event().wait()

worker = Worker(WorkerConfig(lifecycle=lifecycle, handlers=[HandlerConfig("/wait", remote_function=wait)]))
if __name__ == "__main__":
    worker.run()
"""


async def test_with_reload_a_lifecycle_is_left_also_while_a_request_waits(tmp_path: Path) -> None:
    worker_in(tmp_path, ENDLESS)
    async with command("run", "--local", "--reload", cwd=tmp_path, errors_in_output=True) as running:
        await running.until("The worker is ready.")
        found = re.search(r"engine +(http://\S+)", running.output)
        assert found is not None
        async with command("request", "/wait", "{}", "--engine", found[1], cwd=tmp_path):
            await running.until("the request waits")
            worker_in(tmp_path, CHANGED.replace("import answers", ""))
            await running.until("the lifecycle is left")
            await running.until("The worker is started anew.")


# Writes a Python file at each start, as a compiler does.
WRITING = """
import pathlib
pathlib.Path("compiled.py").open("a").write("#\\n")
import worker_name
"""


async def test_with_reload_a_file_that_the_worker_writes_at_each_start_is_ignored(tmp_path: Path) -> None:
    worker_in(tmp_path, WRITING)
    async with command("run", "--local", "--reload", cwd=tmp_path, errors_in_output=True) as running:
        await running.until("Changed soon after 5 starts in a row: compiled.py. No longer watched,")
        assert running.output.count("Changed: compiled.py. The worker is started anew.") == 4
        (tmp_path / "worker_name.py").write_text("print('found')\n")
        await running.until("Changed: worker_name.py. The worker is started anew.")
        await running.until("found")


async def test_with_reload_a_signal_ends_the_wait_for_a_change(tmp_path: Path) -> None:
    worker_in(tmp_path, "import sys\nsys.exit(7)\n")
    async with command("run", "--local", "--reload", cwd=tmp_path) as running:
        await running.until("Waiting for a change of its files.")
        running.process.send_signal(signal.SIGINT)
        assert (await running.end()).status == 7


async def test_reload_needs_the_local_mode(tmp_path: Path) -> None:
    ended = await done("run", worker_in(tmp_path, CHANGED), "--reload", cwd=tmp_path)
    assert ended.status == 2
    assert ended.errors.endswith("argument --reload: only with --local\n")
