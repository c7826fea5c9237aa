"""`pyworker demo` as a process: its output, its exit status, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from tests.fakes.command import RunningCommand, command
from tests.guard import GUARD_S

ROOT = Path(__file__).parents[2]
HELLO_WORLD = Path("workers", "hello_world")


@asynccontextmanager
async def running(tmp_path: Path, *args: str, instead: str = "") -> AsyncGenerator[RunningCommand, None]:
    """Run a demo in an empty folder, which it must leave empty; modules are imported from `instead` first."""
    folder, temporary = tmp_path / "folder", tmp_path / "tmp"
    folder.mkdir(parents=True)
    temporary.mkdir()
    env = {
        "PYTHONPATH": os.pathsep.join(place for place in (instead, str(ROOT)) if place),
        "TMPDIR": str(temporary),
        # Variables of a real instance must not reach the demo's worker.
        "USE_SSL": "true",
        "MODEL_LOG": "/nonexistent/model.log",
        "WORKER_PORT": "1",
    }
    async with command("demo", *args, cwd=folder, env=env) as demo:
        yield demo
    assert not list(folder.iterdir())
    assert not list(temporary.iterdir())


def altered(tmp_path: Path, name: str, text: str, place: str = "") -> str:
    """A folder with a copy of hello_world whose module `name` has `text` in place of `place` or is `text`."""
    folder = tmp_path / "altered"
    shutil.copytree(ROOT / HELLO_WORLD, folder / HELLO_WORLD)
    module = folder / HELLO_WORLD / name
    if place:
        assert place in module.read_text()
        text = module.read_text().replace(place, text)
    module.write_text(text)
    return str(folder)


async def once(tmp_path: Path) -> str:
    """Run `demo --once`; return its output."""
    async with running(tmp_path, "--once") as demo:
        await demo.until("loading (started)")
        assert len(demo.children) == 2
        done = await demo.end()
        assert (done.status, done.errors) == (0, "")
    return demo.output


async def test_once_shows_everything_and_ends_also_with_two_at_a_time(tmp_path: Path) -> None:
    for output in await asyncio.gather(once(tmp_path / "one"), once(tmp_path / "two")):
        start, whole, streamed, final_status = re.split(r"^(?:Request|What).*\n", output, flags=re.MULTILINE)
        assert start.startswith("\nPyWorker demo")
        for text, least in ((whole, 20), (streamed, 80)):
            assert text.strip().startswith("The White Rabbit")
            assert len(text.split()) > least
            assert max(len(line) for line in text.splitlines()) <= 110
        rows = dict(re.findall(r"^  (\S+(?: \d)?)\s+(\S+)", final_status, re.MULTILINE))
        assert rows["requests"] == "2"
        assert (rows["new_load"], rows["cur_load"], rows["cur_perf"]) == ("190", "0", "190")
        assert 0 < float(rows["max_perf"]) <= 300
        assert (rows["request 1"], rows["request 2"]) == ("Success", "Success")


@pytest.mark.parametrize(
    ("module", "text", "place", "said", "tail"),
    [
        (
            "model_server.py",
            "raise SystemExit('weights.bin: no such file')",
            "",
            "the model server ended with exit status 1",
            "  | weights.bin: no such file",
        ),
        (
            "model_server.py",
            "import signal\nprint('Exception: corrupted model file', flush=True)\nsignal.pause()",
            "",
            "the worker reports an error: Exception: corrupted model file",
            "loading → errored",
        ),
        (
            "server.py",
            "import os\nos.abort()",
            "",
            "the worker was ended by signal 6",
            "(it is empty)",
        ),
        (
            "server.py",
            '"/elsewhere"',
            '"/generate_stream", backend',
            "/generate_stream was answered with 404",
            "The end of the worker's log",
        ),
        (
            "model_server.py",
            '"chunk"',
            '"token":',
            "the answer has no 'token': b'{\"chunk\"",
            "The end of the worker's log",
        ),
    ],
)
async def test_a_failed_start_is_reported_with_the_last_lines_of_the_log(
    module: str, text: str, place: str, said: str, tail: str, tmp_path: Path
) -> None:
    if place:
        text += place.removeprefix('"/generate_stream"').removeprefix('"token"')
    async with running(tmp_path, instead=altered(tmp_path, module, text, place)) as demo:
        await demo.until("  worker  ")
        done = await demo.end()
    assert done.status == 1
    assert done.errors.startswith(f"\npyworker demo: {said}")
    assert tail in done.errors
    assert "Traceback" not in done.errors


async def test_the_demo_runs_until_ctrl_c_and_answers_the_requests_it_suggests(tmp_path: Path) -> None:
    async with running(tmp_path) as demo:
        await demo.until("Ctrl-C ends it.\n")
        suggested = next(line for line in demo.output.splitlines() if "hello_world.client" in line)
        client = await asyncio.create_subprocess_exec(
            *shlex.split(suggested),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        with anyio.fail_after(GUARD_S):
            answer, _ = await client.communicate()
        assert client.returncode == 0
        assert answer.startswith(b"Alice was ")

        demo.process.send_signal(signal.SIGINT)
        done = await demo.end()
        assert (done.status, done.errors) == (0, "")
    assert "Stopping" in demo.output


async def test_a_worker_that_dies_later_is_reported(tmp_path: Path) -> None:
    async with running(tmp_path) as demo:
        await demo.until("Ctrl-C ends it.\n")
        worker = next(c for c in demo.children if "workers.hello_world.server" in c.cmdline())
        worker.kill()
        done = await demo.end()
    assert done.status == 1
    assert done.errors.startswith("\npyworker demo: the worker was ended by signal 9\n")
    assert "benchmark" in done.errors


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_stopping_before_everything_was_shown_is_a_failure(
    signum: signal.Signals, status: int, tmp_path: Path
) -> None:
    async with running(tmp_path, "--once") as demo:
        await demo.until("  worker  ")
        demo.process.send_signal(signum)
        done = await demo.end()
        assert (done.status, done.errors) == (status, "")
