"""`pyworker migrate`: its diff, what it says needs a hand, and what it writes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import anyio
import pytest

from tests.fakes.command import done

OLD = """\
from vastai import (
    Worker,  # as it was
    WorkerConfig,
    HandlerConfig,
)


def double(n):
    return 2 * n


worker = Worker(WorkerConfig(handlers=[HandlerConfig("/double", remote_function=double)]))
if __name__ == "__main__":
    worker.run()
"""
NEW = OLD.replace("from vastai import", "from lib.worker import")
DIFF = """\
--- a/worker.py
+++ b/worker.py
@@ -1,4 +1,4 @@
-from vastai import (
+from lib.worker import (
     Worker,  # as it was
     WorkerConfig,
     HandlerConfig,
"""


async def test_the_diff_is_printed_and_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(OLD)
    migrated = await done("migrate", "worker.py", cwd=tmp_path)
    assert (migrated.status, migrated.output) == (0, DIFF)
    assert migrated.errors == "1 of 1 to rewrite: do so with --write\n"
    assert (tmp_path / "worker.py").read_text() == OLD


async def test_a_written_worker_passes_the_check(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(OLD)
    worker.chmod(0o755)
    migrated = await done("migrate", "worker.py", "--write", cwd=tmp_path)
    assert (migrated.status, migrated.output, migrated.errors) == (0, "rewritten: worker.py\n", "")
    assert worker.read_text() == NEW
    assert worker.stat().st_mode & 0o777 == 0o755
    checked = await done("check", "worker.py", cwd=tmp_path)
    assert checked.status == 0, checked.output
    again = await done("migrate", "worker.py", "--write", cwd=tmp_path)
    assert (again.status, again.output, again.errors) == (0, "", "nothing to rewrite in 1 file\n")


async def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path) -> None:
    worker, text = tmp_path / "worker.py", OLD + "# padding\n" * 1000
    worker.write_text(text)
    limited = f"ulimit -f 1; {sys.executable} -m lib.tools.cli migrate worker.py --write"  # as a full disk
    migrated = await done("bash", "-c", limited, cwd=tmp_path, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert migrated.status == 1
    assert "worker.py can't be written: " in migrated.errors
    assert worker.read_text() == text
    assert os.listdir(tmp_path) == ["worker.py"]


async def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    worker, link = tmp_path / "real" / "worker.py", tmp_path / "worker.py"
    worker.write_text(OLD)
    link.symlink_to(worker)
    await done("migrate", "worker.py", "--write", cwd=tmp_path)
    assert link.is_symlink()
    assert worker.read_text() == NEW


@pytest.mark.skipif(shutil.which("patch") is None, reason="there is no patch")
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("last", ["", "\n"], ids=["no-last-end", "last-end"])
async def test_the_diff_can_be_applied(end: str, last: str, tmp_path: Path) -> None:
    old = f"from vastai import Worker, Serverless{end}# é{last}"
    (tmp_path / "worker.py").write_text(old, newline="")
    migrated = await done("migrate", "worker.py", cwd=tmp_path)
    await anyio.run_process(["patch", "-p1", "--binary"], input=migrated.output.encode(), cwd=tmp_path)
    expected = f"from lib.worker import Worker{end}from vastai import Serverless{end}# é{last}"
    assert (tmp_path / "worker.py").read_bytes().decode() == expected


async def test_a_folder_is_migrated_without_what_belongs_to_others(tmp_path: Path) -> None:
    others = ("venv/lib/a.py", ".git/a.py", "node_modules/a.py", "__pycache__/a.py")
    for name in ("worker.py", "workers/x/data.py", *others, "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(OLD)
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    (tmp_path / "plain.py").write_text("import os\n")
    migrated = await done("migrate", ".", "worker.py", "--write", cwd=tmp_path)
    assert migrated.output.splitlines() == ["rewritten: worker.py", "rewritten: workers/x/data.py"]
    assert all((tmp_path / name).read_text() == OLD for name in (*others, "notes.txt"))


async def test_what_needs_a_hand_is_named_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "from vastai.serverless.server.lib.data_types import ApiPayload, Session\n"
    )
    (tmp_path / "client.py").write_text("from vastai import Serverless\n")
    (tmp_path / "requirements.txt").write_text("aiohttp\nvastai>=1.0  # the worker\n# vastai\n")
    (tmp_path / "pyproject.toml").write_text('dependencies = ["vastai-sdk"]\n')
    (tmp_path / "start.sh").write_text("#!/bin/sh\npip install vastai\npython worker.py\n")
    migrated = await done("migrate", "worker.py", "client.py", cwd=tmp_path)
    assert migrated.status == 1  # the worker can't run without Session
    lines = migrated.errors.splitlines()
    assert lines[:2] == [
        "worker.py:1: Session of vastai.serverless.server.lib.data_types has no counterpart in PyWorker",
        "client.py:1: Serverless comes from vastai itself: it stays, and so must the package",
    ]
    by_hand = "change by hand (still needed by worker.py, client.py): "
    assert sorted(lines[2:5]) == [
        f'pyproject.toml:1: {by_hand}dependencies = ["vastai-sdk"]',
        f"requirements.txt:2: {by_hand}vastai>=1.0  # the worker",
        f"start.sh:2: {by_hand}pip install vastai",
    ]
    (tmp_path / "worker.py").write_text(OLD)
    assert (
        "start.sh:2: change by hand (PyWorker doesn't need it)"
        in (await done("migrate", "worker.py", cwd=tmp_path)).errors
    )


async def test_files_that_cannot_be_read_stop_no_other(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(OLD)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    migrated = await done("migrate", "broken.py", "latin.py", "worker.py", "--write", cwd=tmp_path)
    assert migrated.status == 1
    assert migrated.output == "rewritten: worker.py\n"
    assert migrated.errors.startswith("broken.py: can't be parsed: ")
    assert "line 1" in migrated.errors
    assert "latin.py: can't be parsed: " in migrated.errors
    assert "Traceback" not in migrated.errors


@pytest.mark.parametrize(
    ("encoding", "first"), [("latin-1", "# -*- coding: latin-1 -*-\n"), ("utf-8-sig", ""), ("utf-8", "")]
)
async def test_a_files_encoding_stays(encoding: str, first: str, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_bytes(f"{first}x = 'é'; import vastai as v\nv.Worker\n".encode(encoding))
    migrated = await done("migrate", "worker.py", "--write", cwd=tmp_path)
    assert migrated.status == 0, migrated.errors
    expected = f"{first}x = 'é'; import lib.worker\nlib.worker.Worker\n"
    assert worker.read_bytes() == expected.encode(encoding)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the following arguments are required: FILE"),
        (("missing.py", "."), "pyworker migrate: there is no missing.py"),
    ],
)
async def test_wrong_arguments_are_status_2(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    migrated = await done("migrate", *words, cwd=tmp_path)
    assert migrated.status == 2
    assert message in migrated.errors
