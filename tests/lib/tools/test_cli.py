from __future__ import annotations

import asyncio
import importlib.metadata
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import anyio
import pytest

from lib import __version__
from lib.tools.cli import COMMANDS, main
from tests.guard import GUARD_S
from tests.lib.tools.fakes import FakeEngine, FakeWorker, engine_and_worker

ROOT = Path(__file__).parents[3]

HELP_ONLY = """
import sys
from lib.tools.cli import main
try:
    main(["--help"])
except SystemExit as e:
    assert e.code == 0
heavy = {"aiohttp", "rich", "lib.local.engine"} & set(sys.modules)
assert not heavy, heavy
"""


async def start(*args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lib.tools.cli", *args),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def result(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """The exit status, standard output and standard error."""
    with anyio.fail_after(GUARD_S):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


@asynccontextmanager
async def running_engine(*args: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str], None]:
    """Run a local engine on a free port; give its process and its URL."""
    process = await start("engine", "--port", "0", *args)
    assert process.stdout is not None
    try:
        with anyio.fail_after(GUARD_S):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("local engine on http://127.0.0.1:")
        yield process, line.split()[3]
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def exit_status(*argv: str) -> object:
    with pytest.raises(SystemExit) as raised:
        main(argv)
    return raised.value.code


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--help") == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\b", text, re.MULTILINE) for name in COMMANDS)
    assert "Start with `pyworker demo`" in " ".join(text.split())


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("demo", ["--once"]),
        ("new", ["NAME"]),
        ("run", ["--local"]),
        ("request", ["ROUTE", "JSON", "-l", "--engine", "--cost"]),
        ("status", ["--port", "--url", "--json"]),
        ("check", ["--log", "--json"]),
        ("migrate", ["FILE", "--write"]),
        ("engine", ["--port", "--host", "--scheme", "--api-key", "--endpoint"]),
        ("load-test", ["-k", "-e", "-l", "--engine", "-n", "-rps", "--route", "--payload", "--cost"]),
        ("load-test", ["--duration", "--json", "--plot"]),
    ],
)
def test_a_commands_help_names_its_arguments(
    command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(command, "--help") == 0
    text = capsys.readouterr().out
    assert all(f"  {argument} " in text or f"  {argument}\n" in text for argument in arguments)


def test_help_does_not_import_large_modules() -> None:
    subprocess.run([sys.executable, "-c", HELP_ONLY], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--version") == 0
    assert capsys.readouterr().out == f"pyworker {__version__}\n"
    assert __version__ == importlib.metadata.version("pyworker")


def test_without_a_command_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_the_processes_own_arguments_are_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pyworker"])
    assert main() == 2
    assert "usage: pyworker" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["enigne"], "unknown command 'enigne': did you mean 'engine'?"),
        (["xyzzy"], "unknown command 'xyzzy': choose from demo, new, run, "),
        (["--verbose"], "unrecognized arguments: --verbose"),
        (["demo", "twice"], "unrecognized arguments: twice"),
        (["engine", "--port", "http"], "argument --port: must be a port, 0 to 65535"),
        (["engine", "--port", "65536"], "argument --port: must be a port, 0 to 65535"),
        (["engine", "--scheme", "half"], "argument --scheme: invalid choice: 'half'"),
        (["engine", "--api-key", ""], "argument --api-key: must not be empty"),
        (["engine", "--endpoint", ""], "argument --endpoint: must be a name of 1 to"),
        (["run", "hello_wrld"], "Did you mean 'hello_world'?"),
        (["run", "nowhere/worker.py"], "Choose from "),
        (["check", "nowhere/"], "Choose from "),
        (["new", "my-model"], "for instance my_model"),
        (["request", "/generate", "{}"], "-k KEY and -e NAME are needed, or -l for the local engine"),
        (["request", "/generate", "prompt", "-l"], "argument JSON: is not JSON"),
        (["status", "--port", "1", "--url", "http://127.0.0.1:1"], "not allowed with argument"),
        (["status", "--port", "0"], "argument --port: must be a port, 1 to 65535"),
        (["status", "--url", "here"], "argument --url: 'here' is not an http(s) URL"),
        (["engine", "--worker", "mine"], "argument --worker: needs --autoscale N"),
        (["engine", "--autoscale", "0"], "argument --autoscale: must be a number of workers, 1 to 64"),
        (["load-test"], "-k KEY and -e NAME are needed, or -l for the local engine"),
        (["load-test", "--engine", "here"], "argument --engine: 'here' is not an http(s) URL"),
        (["load-test", "-l", "-n", "none"], "argument -n"),
        (["load-test", "-l", "--payload", "{"], "argument --payload: is not JSON"),
        (["load-test", "-l", "--payload", "[]"], "argument --payload: must be a JSON object"),
        (["load-test", "-l", "--cost", "free"], "argument --cost: must be a finite number, 0 or more"),
        (["load-test", "-l", "--cost", "nan"], "argument --cost: must be a finite number, 0 or more"),
    ],
)
def test_wrong_arguments_are_reported_on_the_last_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status: object
    try:
        status = main(argv)
    except SystemExit as e:
        status = e.code
    assert status == 2
    errors = capsys.readouterr().err
    assert message in errors.splitlines()[-1]
    assert "Traceback" not in errors


async def test_an_engine_serves_until_ctrl_c() -> None:
    async with running_engine("--scheme", "url", "--endpoint", "mine", "--api-key", "secret") as (
        process,
        url,
    ):
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/pubkey/") as answer:
                assert "PUBLIC KEY" in await answer.text()
            request = {"endpoint": "mine", "api_key": "other", "cost": 1.0}
            async with http.post(f"{url}/route/", json=request) as answer:
                assert answer.status == 401
        process.send_signal(signal.SIGINT)
        status, _, errors = await result(process)
    assert status == 130
    assert "Traceback" not in errors


async def test_a_port_in_use_is_reported_in_one_line() -> None:
    async with running_engine() as (_, url):
        port = url.rsplit(":", 1)[1]
        status, output, errors = await result(await start("engine", "--port", port))
    assert (status, output) == (2, "")
    assert errors == (f"pyworker engine: port {port} on 127.0.0.1 is in use: choose another with --port\n")


def test_a_closed_output_causes_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lib.tools.cli", "engine", "--port", "0"],
            cwd=ROOT,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=GUARD_S,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


async def test_a_load_test_sends_what_it_was_given() -> None:
    worker = FakeWorker()
    async with worker.server:
        engine = FakeEngine(worker.url)
        async with engine.server:
            process = await start(
                *("load-test", "--engine", engine.target.engine_url, "-e", "small", "-n", "3", "-rps", "500"),
                *("--route", "chat", "--payload", '{"words": 7}', "--cost", "7"),
            )
            status, output, errors = await result(process)
    assert (status, errors) == (0, "")
    assert output.startswith("3 of 3 requests")
    assert worker.paths == ["/chat"] * 3
    assert all(b'"payload": {"words": 7}' in body for body in worker.bodies)
    assert {(a["endpoint"], a["cost"]) for a in engine.requests} == {("small", 7.0)}


async def test_a_load_test_without_an_engine_fails_and_reports_why() -> None:
    process = await start("load-test", "--engine", "http://127.0.0.1:1", "-n", "1")
    status, output, errors = await result(process)
    assert (status, errors) == (1, "")
    assert "engine: cannot connect" in output


OPTIONS = ("--cost", "3", "--header", "X-A: b")


@pytest.mark.parametrize(
    "args",
    [
        ("/generate", '{"prompt": "a"}', *OPTIONS),
        ("/generate", *OPTIONS, '{"prompt": "a"}'),
        (*OPTIONS, "/generate", '{"prompt": "a"}'),
        ("/generate", "@payload.json", *OPTIONS),
        ("/generate", *OPTIONS, "@payload.json"),
        ("/generate", *OPTIONS, "-"),
    ],
)
async def test_a_payload_is_given_anywhere_and_in_a_file(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "payload.json").write_text('{"prompt": "a"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"prompt": "a"}'))
    async with engine_and_worker() as (engine, worker):
        own = ("--engine", engine.target.engine_url, "-e", "small")
        assert await asyncio.to_thread(main, ["request", *own, *args]) == 0
        load = ["load-test", *own, *OPTIONS, "--payload", "-"]
        sys.stdin.seek(0)
        assert await asyncio.to_thread(main, load) == 0
    assert [json.loads(body)["payload"] for body in worker.bodies] == [{"prompt": "a"}] * 2
    assert [message["cost"] for message in engine.requests] == [3.0, 3.0]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("@none.json", "none.json can't be read: No such file or directory"),
        ("@text.json", "text.json is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("@latin.json", "latin.json can't be read: it is not UTF-8"),
        ("-", 'standard input must be a JSON object: {"name": value}'),
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_a_payload_that_can_not_be_read_is_reported_with_its_source(
    given: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.json").write_text("text")
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1]"))
    for args in (["request", "/a", given], ["load-test", "--payload", given]):
        sys.stdin.seek(0)
        with pytest.raises(SystemExit):
            main(args)
        assert problem in capsys.readouterr().err.splitlines()[-1]
