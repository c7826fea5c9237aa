"""Runs `start_server.sh` and its launcher in a test's own folder, beside its engine and model server.

Its PATH has only the commands that the script may rely on, so that a missing one is noticed.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.fakes.process import RunningProcess
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import ROOT, System, engine_and_model_server, environment

COMMANDS = (
    *("bash", "sh", "git", "openssl", "curl"),
    *("df", "dirname", "id", "mkdir", "mktemp", "mv", "readlink", "rm", "tail"),
)
# The tests' own environment: nothing has to be installed.
VENV = Path(sys.executable).parents[1]

FAKE_WORKER = """
import json, os
from lib.server import start_server
from tests.fakes.worker import Setup, build

setup = Setup(**json.loads(os.environ["TEST_WORKER"]))
start_server(*build(os.environ["TEST_MODEL_URL"], setup), host="127.0.0.1")
"""
CRASHING_WORKER = """
import os, sys
print("a first line")
print('then "boom": ü, \\\\ and \\x01', file=sys.stderr)
os.kill(os.getpid(), 9) if "TEST_KILLED" in os.environ else sys.exit(7)
"""
# An installer that records its calls and makes environments that use the tests' Python. It fails if told so.
FAKE_UV = """#!/usr/bin/env bash
echo "$*" >>"$TEST_UV_CALLS"
folder=${!#}
if [[ $1 == "${TEST_UV_FAILS:-}" ]]; then echo "uv fails"; exit 1; fi
if [[ $1 == venv ]]; then
  if [[ ${TEST_UV_HANGS:-} ]]; then echo "uv hangs"; exec tail -f /dev/null; fi
  mkdir -p "$folder/bin"
  printf '#!/bin/sh\\nexec "%s" "$@"\\n' "$TEST_PYTHON" >"$folder/bin/python"
  chmod +x "$folder/bin/python"
fi
"""

# A command that notes its arguments before it does its work.
RECORDED = """#!{bash}
echo "{command} $*" >>{calls}
exec {command} "$@"
"""


@dataclass
class Instance:
    """An instance under `root`: a checkout of the project, its commands, its workspace.

    `env` overrides the variables of the instance; `script` is the copy of start_server.sh.
    """

    system: System
    root: Path
    setup: Setup = field(default_factory=lambda: Setup(health="/health"))
    env: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.script.parent.mkdir()
        shutil.copy(ROOT / "start_server.sh", self.script)
        shutil.copy(ROOT / "pyproject.toml", self.script.parent)
        self.launcher.parent.mkdir()
        for path in (ROOT / "lib").iterdir():
            if path.name not in ("launch", "__pycache__"):
                (self.launcher.parent / path.name).symlink_to(path)
        self.launcher.symlink_to(ROOT / "lib" / "launch")
        self.bin.mkdir()
        for name in COMMANDS:
            found = shutil.which(name)
            assert found, f"{name} is needed for the tests of start_server.sh"
            (self.bin / name).symlink_to(found)
        # Not a link: a Python finds its packages, which measure coverage, beside the file that is executed.
        (self.bin / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (self.bin / "python3").chmod(0o755)
        self.add_worker("fake", FAKE_WORKER)
        tls = {"SSL_CERT": str(self.root / "instance.crt"), "SSL_KEY": str(self.root / "instance.key")}
        self.env = {**tls, **self.env}

    @property
    def script(self) -> Path:
        return self.root / "checkout" / "start_server.sh"

    @property
    def launcher(self) -> Path:
        """The folder of the launcher's modules."""
        return self.script.parent / "lib" / "launch"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def log(self) -> Path:
        return self.workspace / "pyworker.log"

    @property
    def force_update(self) -> Path:
        return self.root / "force_update"

    def add_worker(self, name: str, code: str) -> Path:
        """Add a worker with this `code` to the checkout; return its folder."""
        folder = self.script.parent / "workers" / name
        folder.mkdir(parents=True)
        (folder / "server.py").write_text(code)
        return folder

    def alter(self, module: str, text: str, other: str) -> None:
        """Replace `text` in a module of the launcher, where it must occur once."""
        if self.launcher.is_symlink():
            self.launcher.unlink()
            shutil.copytree(ROOT / "lib" / "launch", self.launcher)
        replace_in(self.launcher / module, text, other)

    def hurry(self) -> None:
        """Make the script and the launcher retry without pauses."""
        self.alter("commands.py", "RETRY_PAUSES_S = (1.0, 2.0)", "RETRY_PAUSES_S = (0.0, 0.0)")
        replace_in(self.script, "RETRY_PAUSES_S=(1 2 '')", "RETRY_PAUSES_S=(0.01 0.01 '')")

    def use_uv(self) -> Path:
        """Install the fake uv and no environment; return the file that records its calls."""
        (self.bin / "uv").write_text(FAKE_UV)
        (self.bin / "uv").chmod(0o755)
        (self.bin / "chmod").symlink_to(shutil.which("chmod") or "")
        calls = self.root / "uv_calls"
        self.env |= {"PYWORKER_VENV": "", "TEST_UV_CALLS": str(calls), "TEST_PYTHON": sys.executable}
        return calls

    def record_arguments(self) -> Path:
        """Have every command note its arguments; return the file that has them, a call a line."""
        calls = self.root / "arguments"
        for command in self.bin.iterdir():
            found = command.resolve() if command.is_symlink() else shutil.copy(command, self.root)
            command.unlink()
            command.write_text(RECORDED.format(bash=shutil.which("bash"), calls=calls, command=found))
            command.chmod(0o755)
        return calls

    def use_own_clock(self) -> Callable[[float], object]:
        """Have certificates judged by another clock; return a function that sets the seconds it is ahead."""
        ahead = self.root / "seconds_ahead"
        ahead.write_text("0")
        self.alter("certificate.py", "- time.time()", f"- time.time() - float(open({str(ahead)!r}).read())")
        return lambda seconds: ahead.write_text(f"{seconds:.0f}")

    def environment(self) -> dict[str, str]:
        """The variables of the instance."""
        return environment(
            self.system,
            self.setup,
            {
                "PATH": str(self.bin),
                "BACKEND": "fake",
                "USE_SSL": "false",
                "WORKSPACE_DIR": str(self.workspace),
                "PYWORKER_VENV": str(VENV),
                "FORCE_UPDATE_FILE": str(self.force_update),
                "VAST_CONSOLE_URL": self.system.engine_url,
                "MODEL_LOG": str(self.system.model_log),
                "GIT_CONFIG_GLOBAL": "/dev/null",
                **self.env,
            },
        )

    @asynccontextmanager
    async def started(
        self, stdin: Path | None = None, user: int | None = None
    ) -> AsyncGenerator[RunningProcess, None]:
        """Run the script, as a file or piped from `stdin`; no process of it is left after the block."""
        command = ["bash"] if stdin else [str(self.script)]
        with (stdin or Path("/dev/null")).open() as source:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self.root if user is None else "/",
                env=self.environment(),
                stdin=source,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        script = RunningProcess(process)
        try:
            yield script
        finally:
            if process.returncode is None:
                process.terminate()
                await script.end()
        # Processes that the script has signalled may take a moment to end.
        _, alive = await asyncio.to_thread(psutil.wait_procs, self.processes(), timeout=GUARD_S)
        assert not alive

    async def run(self, stdin: Path | None = None, user: int | None = None) -> tuple[int, str]:
        """Run a script that ends by itself; return its exit status and output."""
        async with self.started(stdin, user) as script:
            done = await script.end()
            return done.status, done.output

    def processes(self) -> list[psutil.Process]:
        """The processes whose command line names this instance's folder."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "status"])
            if str(self.root) in " ".join(process.info["cmdline"] or ())
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]


def replace_in(path: Path, text: str, other: str) -> None:
    """Replace `text` in the file, where it must occur once."""
    old = path.read_text()
    assert old.count(text) == 1
    path.write_text(old.replace(text, other))


@asynccontextmanager
async def with_instance(tmp_path: Path, **options: str) -> AsyncGenerator[Instance, None]:
    """Make an instance beside an engine and a model server; `options` are variables of its environment."""
    async with engine_and_model_server(tmp_path) as system:
        yield Instance(system, tmp_path, env=options)


class Repository:
    """A git repository with a custom worker."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder = folder
        self.url = folder.as_uri()
        folder.mkdir()
        self._git("init", "-q", "-b", "main")
        self.commit(files)

    def commit(self, files: dict[str, str]) -> str:
        """Commit these files; return the commit's id."""
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        self._git("add", "-A")
        self._git("-c", "user.name=A", "-c", "user.email=a@b", "commit", "-q", "-m", "change")
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *args: str) -> str:
        command = ["git", "-C", str(self.folder), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make_wheel(folder: Path, name: str, version: str, paths: list[str]) -> str:
    """Make a wheel of a module `name`, which also makes `paths` importable; return a requirement for it."""
    files = {f"{name}.py": f"VERSION = '{version}'\n", f"{name}.pth": "\n".join(paths) + "\n"}
    return f"{name} @ {write_wheel(folder, name, version, files).as_uri()}"


def write_wheel(folder: Path, name: str, version: str, content: dict[str, str]) -> Path:
    """Write a wheel with the files `content` and without requirements into `folder`; return its path."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        **content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel
