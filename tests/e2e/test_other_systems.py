"""The first hour on a system that lacks what only Linux has, such as macOS: nothing of it is assumed.

The processes run without uvloop, on asyncio's own event loop (tests/fakes/other_system).
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import aiohttp

from tests.fakes.command import ROOT, command, done

OTHER_SYSTEM = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "fakes" / "other_system"), str(ROOT)])}

LACKS = """
import asyncio, importlib.util, os, resource, select, socket
names = {socket: ("TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "TCP_INFO"), os: ("pidfd_open",), select: ("epoll",)}
assert not [name for module, all in names.items() for name in all if hasattr(module, name)]
assert asyncio.new_event_loop()._selector.__class__.__name__ == "PollSelector"
try:
    import uvloop
except ImportError:
    print("lacks")
with socket.socket() as held, socket.socket() as second:
    for each in (held, second):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    try:
        second.bind(held.getsockname())
    except OSError:
        print("is bound once")
assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == resource.RLIM_INFINITY
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except ValueError:
    print("refuses")
"""


async def test_the_stand_in_lacks_what_it_should(tmp_path: Path) -> None:
    shown = await done("python", "-c", LACKS, cwd=tmp_path, env=OTHER_SYSTEM)
    assert (shown.output.splitlines(), shown.errors) == (["lacks", "is bound once", "refuses"], "")


async def test_the_demo(tmp_path: Path) -> None:
    shown = await done("demo", "--once", cwd=tmp_path, env=OTHER_SYSTEM)
    assert (shown.status, shown.errors) == (0, "")
    assert re.search(r"request 2 +Success", shown.output)


async def test_a_new_worker_with_the_local_engine_and_its_page(tmp_path: Path) -> None:
    made = await done("new", "storyteller", cwd=tmp_path, env=OTHER_SYSTEM)
    assert (made.status, made.errors) == (0, "")
    words = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "storyteller")
    tested = await done(*words, cwd=tmp_path, env={**OTHER_SYSTEM, "PYTEST_ADDOPTS": ""})
    assert tested.status == 0, tested.output
    async with command("python", "storyteller/model_server.py", "--port", "0", cwd=tmp_path) as model:
        await model.until("Running on")
        found = re.search(r"http://\S+:(\d+)", model.output)
        assert found is not None
        env = {**OTHER_SYSTEM, "MODEL_SERVER_URL": f"http://127.0.0.1:{found[1]}"}
        async with command("run", "storyteller/worker.py", "--local", cwd=tmp_path, env=env) as worker:
            await worker.until("The worker is ready.")
            engine = re.search(r"engine +(http://127.0.0.1:\d+)", worker.output)
            assert engine is not None
            asked = await done(
                *("request", "/generate", '{"prompt": "Once", "max_words": 3}', "--engine", engine[1]),
                cwd=tmp_path,
                env=OTHER_SYSTEM,
            )
            assert (asked.status, asked.errors) == (0, "")
            assert json.loads(asked.output)
            async with aiohttp.ClientSession() as http, http.get(engine[1]) as page:
                assert (page.status, page.content_type) == (200, "text/html")
            worker.process.send_signal(signal.SIGINT)
            assert (await worker.end()).status == 0
