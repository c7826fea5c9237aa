"""The shell blocks of docs/ run, each document's in one folder and in order, as whoever reads it would.

What differs here from what is written: ports, which are of the system's choice, and the pace of a load
(`Reader._here`).
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
from tests.docs.blocks import document, every_document
from tests.docs.model_server import guide_model
from tests.fakes.command import Command, Done, command, done

# What is told, in its time, by commands that run until they are stopped.
LASTING = {
    "engine": "local engine on http://",
    "run": "The worker is ready.",
    "model_server.py": "Running on http://",
}
# Beginnings of commands that can't run here.
NOT_HERE = {"pyworker load-test -k": "asks the engine in the cloud, with a key"}
# These run in a test of their own, for what they are about.
ELSEWHERE = {("migrating", "import"): "tests/docs/test_guides.py"}


class Reader:
    """Runs commands in `folder`; those that last are stopped, the last one first, at the end."""

    def __init__(self, folder: Path, env: dict[str, str], stack: AsyncExitStack) -> None:
        self._folder = folder
        self._env = env
        self._stack = stack
        self._engine_url = ""

    async def run(self, line: str) -> Done | None:
        """What became of a command line; None if it was one that can't run here, or goes on."""
        if any(line.startswith(beginning) for beginning in NOT_HERE):
            return None
        words = self._here(shlex.split(line.removesuffix("&")))
        told = LASTING.get(Path(words[1]).name if words[0] == "python" else words[0])
        if told is None:
            return await done(*words, cwd=self._folder, env=self._env)
        running = await self._stack.enter_async_context(self._lasting(words))
        await running.until(told)
        if found := re.search(r"engine +(?:on )?(http://127.0.0.1:\d+)", running.output):
            self._engine_url = found[1]
        return None

    def _here(self, words: list[str]) -> list[str]:
        """The words of a command, with the ports that are free here, and in no need to wait."""
        program, *rest = words
        if program == "pytest":
            return ["python", "-m", "pytest", "-p", "no:cacheprovider", *rest]
        if program == "python":
            return [*words, "--port", self._env["MODEL_SERVER_URL"].rsplit(":", 1)[1]]
        assert program == "pyworker", words
        port = self._env["WORKER_HTTP_PORT"]
        here = {
            "-l": ["--engine", self._engine_url],
            "3001": [port],
            "http://127.0.0.1:13001": [f"http://127.0.0.1:{port}"],
            "-rps": ["-rps", "50"],
        }
        if "-rps" in rest:
            del rest[rest.index("-rps") + 1]
        told = [word for written in rest for word in here.get(written, [written])]
        return [*told, "--port", "0"] if told[0] == "engine" else told

    @asynccontextmanager
    async def _lasting(self, words: list[str]) -> AsyncGenerator[Command, None]:
        async with command(*words, cwd=self._folder, env=self._env) as running:
            yield running
            running.process.send_signal(signal.SIGINT)
            assert (await running.end()).status in (0, EXIT_SIGNAL + signal.SIGINT)


@pytest.fixture
def env(tmp_path: Path) -> Generator[dict[str, str], None, None]:
    """What the commands are told by their environment."""
    with ExitStack() as stack:
        model, worker, loopback = (str(stack.enter_context(free_port())) for _ in range(3))
        yield {
            "MODEL_SERVER_URL": f"http://127.0.0.1:{model}",
            "WORKER_PORT": worker,
            "WORKER_HTTP_PORT": loopback,
            "BENCHMARK_TIME_LIMIT_S": "2",
            "PYTEST_ADDOPTS": "",  # ours may ask for coverage
        }


def lines(name: str) -> list[str]:
    """The command lines of a document, less those of blocks that run elsewhere."""
    blocks = [b for b in document(name).blocks if b.kind == "shell" and (name, b.name) not in ELSEWHERE]
    return [line for block in blocks for line in block.text.splitlines()]


async def outputs(name: str, folder: Path, env: dict[str, str]) -> dict[str, str]:
    """What each command of a document printed that came to its end, which has to be a good one."""
    told: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        reader = Reader(folder, env, stack)
        for line in lines(name):
            if (ended := await reader.run(line)) is not None:
                assert ended.status == 0, (line, ended)
                told[line] = ended.output
    return told


async def test_writing_a_worker(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "model.log").write_text("model is ready\n")
    told = await outputs("writing-a-worker", tmp_path, env)
    for beginning, text in {
        "pyworker new": "my_model/ is a worker",
        "pyworker request": '{"response": ',
        "pyworker status": "1 served",
        "pytest": "2 passed",
        "pyworker check": "no problems",
        "pyworker load-test": "100 of 100 requests",
    }.items():
        (output,) = [output for line, output in told.items() if line.startswith(beginning)]
        assert text in output, beginning


async def test_migrating(tmp_path: Path, env: dict[str, str]) -> None:
    document("migrating").write_files(tmp_path)
    (tmp_path / "old.py").rename(tmp_path / "worker.py")
    (tmp_path / "model.log").write_text("model is ready\n")
    async with guide_model() as model:
        env |= {"MODEL_SERVER_URL": model.url, "MODEL_LOG": str(tmp_path / "model.log")}
        told = await outputs("migrating", tmp_path, env)
    assert "no problems" in told["pyworker check worker.py --log model.log"]


async def test_operating(tmp_path: Path, env: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        reader = Reader(tmp_path, env, stack)
        for line in (
            "pyworker new w",
            "python w/model_server.py &",
            "pyworker run w/worker.py --local",
        ):
            await reader.run(line)
        told = [await reader.run(line) for line in lines("operating")]
    assert [ended and ended.status for ended in told] == [0, 0, 0]
    assert all(ended is not None and "ready" in ended.output for ended in told)


async def test_local_engine(tmp_path: Path, env: dict[str, str]) -> None:
    for line in lines("local-engine"):
        async with AsyncExitStack() as stack:
            assert await Reader(tmp_path, env, stack).run(line) is None


def test_no_block_is_left_out() -> None:
    with_commands = {doc.name for doc in every_document() if any(b.kind == "shell" for b in doc.blocks)}
    assert with_commands == {"writing-a-worker", "migrating", "operating", "local-engine"}


@pytest.mark.parametrize("beginning", NOT_HERE)
def test_what_can_not_run_here_is_a_command(beginning: str) -> None:
    (line,) = [line for doc in every_document() for line in lines(doc.name) if line.startswith(beginning)]
    _, name, *arguments = shlex.split(line)
    parser = argparse.ArgumentParser(exit_on_error=False)
    COMMANDS[name].configure(parser)
    parser.parse_args(arguments)
