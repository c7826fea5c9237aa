"""Runs the shell blocks of each document in docs/, in one folder and in order.

Only ports, which must be free, files in /tmp and the rate of a load test differ from the document
(`DocumentReader._adapted`). curl also fails if the status is an error.
"""

from __future__ import annotations

import argparse
import re
import shlex
import signal
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from lib.local.processes import free_port
from lib.tools.cli import COMMANDS
from lib.tools.command import EXIT_SIGNAL
from tests.docs.blocks import ROOT, document, every_document
from tests.docs.model_server import guide_model
from tests.fakes.command import RunningCommand, command, done
from tests.fakes.process import EndedProcess
from workers.hello_world.model_server import READY_LINE

# Beginnings of commands that run until they are stopped, with the text that they print when they are ready.
LONG_RUNNING = {
    "pyworker engine": "local engine on http://",
    "pyworker run": "The worker is ready.",
    "ENGINE=none pyworker run": "ready: benchmark",
    "python my_model/model_server.py": "Running on http://",
    "python -m workers.hello_world.model_server": READY_LINE,
}
# Beginnings of commands that tests can't run, with the reason.
NOT_RUN = {"pyworker load-test -k": "needs the engine in the cloud, and a key"}
# Blocks that are tested elsewhere.
ELSEWHERE = {
    ("deployments", "my_model"): "tests/docs/test_deployments.py",
    ("local-engine", "parts"): "test_the_parts_by_hand",
    ("operating", "start"): "tests/e2e/test_start_server.py",
    ("writing-a-worker", "install"): "test_the_guide_installs_like_the_readme",
}
# A variable before a command.
ASSIGNMENT = re.compile(r"([A-Z_]+)=(.*)")


class DocumentReader:
    """Runs commands in `folder`. Those that keep running are stopped by `stack`, the last one first."""

    def __init__(self, folder: Path, env: dict[str, str], stack: AsyncExitStack) -> None:
        self._folder = folder
        self._env = env
        self._stack = stack
        self.engine_url = ""

    async def run(self, line: str) -> EndedProcess | None:
        """Run a command line; return its result, or None if it is not run, or keeps running."""
        if any(line.startswith(beginning) for beginning in NOT_RUN):
            return None
        words = shlex.split(line.removesuffix("&"))
        env = dict(self._env)
        while assignment := ASSIGNMENT.fullmatch(words[0]):
            env[assignment[1]] = assignment[2]
            del words[0]
        words = self._adapted(words)
        started = next((text for begin, text in LONG_RUNNING.items() if line.startswith(begin)), None)
        if started is None:
            return await done(*words, cwd=self._folder, env=env)
        running = await self._stack.enter_async_context(self._long_running(words, env))
        await running.until(started)
        if found := re.search(r"engine +(?:on )?(http://127.0.0.1:\d+)", running.output):
            self.engine_url = found[1]
        return None

    def _adapted(self, words: list[str]) -> list[str]:
        """The words of a command, with free ports, files in the folder, and a high rate of requests."""
        program, *rest = words
        if program == "pytest":
            return ["python", "-m", "pytest", "-p", "no:cacheprovider", *rest]
        if program == "python":
            in_folder = [word.replace("/tmp/", f"{self._folder}/") for word in words]
            return [*in_folder, "--port", self._env["MODEL_SERVER_URL"].rsplit(":", 1)[1]]
        port = self._env["WORKER_HTTP_PORT"]
        if program == "curl":
            ports = {":3000/": f":{self._env['WORKER_PORT']}/", ":3001/": f":{port}/"}
            (documented,) = (name for name in ports if name in rest[-1])
            url = rest[-1].replace(documented, ports[documented])
            return [program, "--fail", "--silent", *rest[:-1], url]
        assert program == "pyworker", words
        replacements = {
            "-l": ["--engine", self.engine_url],
            "3001": [port],
            "http://127.0.0.1:13001": [f"http://127.0.0.1:{port}"],
            "-rps": ["-rps", "50"],
        }
        if "-rps" in rest:
            del rest[rest.index("-rps") + 1]
        adapted = [new for word in rest for new in replacements.get(word, [word])]
        return [*adapted, "--port", "0"] if adapted[0] == "engine" else adapted

    @asynccontextmanager
    async def _long_running(
        self, words: list[str], env: dict[str, str]
    ) -> AsyncGenerator[RunningCommand, None]:
        async with command(*words, cwd=self._folder, env=env, errors_in_output=True) as running:
            yield running
            running.process.send_signal(signal.SIGINT)
            assert (await running.end()).status in (0, EXIT_SIGNAL + signal.SIGINT)


@pytest.fixture
def env(tmp_path: Path) -> Generator[dict[str, str], None, None]:
    """The variables of the commands."""
    with ExitStack() as stack:
        model, worker, loopback = (str(stack.enter_context(free_port())) for _ in range(3))
        yield {
            "MODEL_SERVER_URL": f"http://127.0.0.1:{model}",
            "WORKER_PORT": worker,
            "WORKER_HTTP_PORT": loopback,
            "BENCHMARK_TARGET_S": "1",
            "PYTEST_ADDOPTS": "",  # ours may ask for coverage
        }


def lines(name: str) -> list[str]:
    """The command lines of a document, without those of blocks that are tested elsewhere."""
    blocks = [b for b in document(name).blocks if b.kind == "shell" and (name, b.name) not in ELSEWHERE]
    return [line for block in blocks for line in block.text.splitlines()]


async def outputs(name: str, folder: Path, env: dict[str, str]) -> dict[str, str]:
    """Run a document's commands; return the output of each that ends, by its line. All must succeed."""
    printed: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        reader = DocumentReader(folder, env, stack)
        for line in lines(name):
            if (ended := await reader.run(line)) is not None:
                assert ended.status == 0, (line, ended)
                printed[line] = ended.output
    return printed


async def test_writing_a_worker(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "model.log").write_text("model is ready\n")
    printed = await outputs("writing-a-worker", tmp_path, env)
    for beginning, text in {
        "pyworker new": "my_model/ is a worker",
        "pyworker request": '{"response": ',
        "pyworker status": "1 served",
        "pytest": "2 passed",
        "pyworker check": "no problems",
        "pyworker benchmark": "max_perf to report: ",
        "pyworker load-test": "100 of 100 requests",
    }.items():
        (output,) = [output for line, output in printed.items() if line.startswith(beginning)]
        assert text in output, beginning


async def test_migrating(tmp_path: Path, env: dict[str, str]) -> None:
    document("migrating").write_files(tmp_path)
    (tmp_path / "old.py").rename(tmp_path / "worker.py")
    (tmp_path / "model.log").write_text("model is ready\n")
    async with guide_model() as model:
        env |= {"MODEL_SERVER_URL": model.url, "MODEL_LOG": str(tmp_path / "model.log")}
        printed = await outputs("migrating", tmp_path, env)
    assert "no problems" in printed["pyworker check worker.py --log model.log"]


async def test_operating(tmp_path: Path, env: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        reader = DocumentReader(tmp_path, env, stack)
        for line in (
            "pyworker new my_model",
            "python my_model/model_server.py &",
            "pyworker run my_model/worker.py --local",
        ):
            await reader.run(line)
        results = [await reader.run(line) for line in lines("operating")]
    assert [ended and ended.status for ended in results] == [0, 0, 0]
    assert all(ended is not None and "ready" in ended.output for ended in results)


async def test_local_engine(tmp_path: Path, env: dict[str, str]) -> None:
    for line in lines("local-engine"):
        async with AsyncExitStack() as stack:
            assert await DocumentReader(tmp_path, env, stack).run(line) is None


async def test_the_parts_by_hand(tmp_path: Path, env: dict[str, str]) -> None:
    engine, model, worker, client = document("local-engine").block("shell", "parts").splitlines()
    async with AsyncExitStack() as stack:
        reader = DocumentReader(tmp_path, env, stack)
        await reader.run(engine)
        await reader.run(model)
        adapted = worker.replace("3000", env["WORKER_PORT"]).replace(
            "http://127.0.0.1:8081", reader.engine_url
        )
        *assignments, program, option, module = shlex.split(adapted)
        variables = dict(assignment.split("=", 1) for assignment in assignments)
        variables |= env | {"MODEL_LOG": str(tmp_path / "hello_world.log")}
        running = command(program, option, module, cwd=tmp_path, env=variables, errors_in_output=True)
        await (await stack.enter_async_context(running)).until("ready: benchmark")
        words = shlex.split(client.replace(" -l ", f" --engine {reader.engine_url} "))
        asked = await done(*words, cwd=tmp_path)
        assert asked.status == 0, asked
        assert len(asked.output.split()) > 20


async def test_kubernetes(tmp_path: Path, env: dict[str, str]) -> None:
    env["MODEL_LOG"] = str(tmp_path / "hello_world.log")
    printed = await outputs("kubernetes", tmp_path, env)
    for end, text in {
        "/readyz": "ready",
        "/generate": '{"response": ',
        "/metrics": "pyworker_requests_received_total 1.0",
    }.items():
        (output,) = [output for line, output in printed.items() if line.endswith(end)]
        assert text in output, end


def test_the_guide_installs_like_the_readme() -> None:
    install = document("writing-a-worker").block("shell", "install").splitlines()
    assert len(install) == 2
    assert " && ".join([*install, ".venv/bin/pytest "]) in (ROOT / "README.md").read_text()


def test_every_document_with_commands_is_tested() -> None:
    with_commands = {doc.name for doc in every_document() if any(b.kind == "shell" for b in doc.blocks)}
    elsewhere = {"deployments"}  # all of their blocks are in ELSEWHERE
    here = {"writing-a-worker", "migrating", "operating", "kubernetes", "local-engine"}
    assert with_commands == here | elsewhere


@pytest.mark.parametrize("beginning", NOT_RUN)
def test_commands_that_are_not_run_are_valid(beginning: str) -> None:
    (line,) = [line for doc in every_document() for line in lines(doc.name) if line.startswith(beginning)]
    _, name, *arguments = shlex.split(line)
    parser = argparse.ArgumentParser(exit_on_error=False)
    COMMANDS[name].configure(parser)
    parser.parse_args(arguments)
