"""Checks README.md: its worker runs, its links exist, and its commands are valid."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from aiohttp.test_utils import TestServer

from tests.fakes.worker import Setup
from tests.system import engine_and_model_server, worker_process
from workers.hello_world.model_server import READY_LINE, Pace, TextServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block_after(marker: str) -> str:
    """The code block after `marker`."""
    _, after = README.split(f"<!-- {marker} -->")
    return after.split("```", 2)[1].split("\n", 1)[1]


async def test_its_worker_runs(tmp_path: Path) -> None:
    model = TextServer(Pace(0))
    await model.load()
    async with engine_and_model_server(tmp_path) as system, TestServer(model.app()) as server:
        system.write_log(READY_LINE + "\n")
        worker = block_after("test: worker.py")
        for documented, actual in (
            ("http://127.0.0.1:5001", str(server.make_url(""))),
            ("/tmp/hello_world.log", str(system.model_log)),
        ):
            assert worker.count(documented) == 1
            worker = worker.replace(documented, actual)
        (tmp_path / "readme_worker.py").write_text(worker)

        async with worker_process(system, tmp_path, Setup(), module="readme_worker"):
            await system.ready()
            request = {"auth_data": system.auth(7.0), "payload": {"prompt": "Hi", "max_response_tokens": 7}}
            async with system.http.post(f"{system.url}/generate", json=request) as answer:
                assert answer.status == 200
                assert (await answer.json())["tokens"] == 7
            await system.reported(served=7.0)


def test_every_file_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]


def test_its_commands_are_one_line_each_and_valid_shell() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    first, tests = blocks[0], blocks[1]
    assert first.count("\n") == tests.count("\n") == 1
    assert tests == block_after("ci: tests")
    for block in blocks:
        subprocess.run(["bash", "-n", "-c", block], check=True)
