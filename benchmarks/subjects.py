"""The subjects: ways to reach the model server, each of which is started and measured in the same way.

Owns how each one is started and which requests it gets. The shared model server and engine are in system.py,
the measuring is in measurement.py.
"""

from __future__ import annotations

import importlib.util
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio
import psutil

from benchmarks.loads import Form, Load
from benchmarks.processes import ChildProcess, free_ports, python, running

SubjectName = Literal["direct", "nginx", "official_worker", "worker"]
# Seconds until a started subject accepts connections.
LISTEN_LIMIT_S = 60.0
LISTEN_POLL_S = 0.05
# A benchmark's result in workload/s, which both workers find, so that they are ready at once.
GIVEN_BENCHMARK = ".has_benchmark"
GIVEN_RESULT = "1000\n"

_NGINX_CONF = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid nginx.pid;
error_log errors.log warn;
events { worker_connections 8192; }
http {
  access_log off;
  client_max_body_size 0;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  tcp_nodelay on;
  upstream model {
    server 127.0.0.1:MODEL_PORT;
    keepalive 1024;
    keepalive_requests 1000000000;
  }
  server {
    listen 127.0.0.1:PORT backlog=4096;
    location / {
      proxy_pass http://model;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 600s;
    }
  }
}
"""


@dataclass(frozen=True)
class Surroundings:
    """The environment in which a subject starts: the folder of the run, the model server and the engine."""

    folder: Path
    model_port: int
    model_log: Path
    engine_url: str


@dataclass(frozen=True)
class RunningSubject:
    """A subject that listens on `port`. `process` is None if there is none to measure."""

    subject: Subject
    port: int
    process: psutil.Process | None

    @property
    def url(self) -> str:
        """The URL that requests to it are signed for."""
        return f"http://127.0.0.1:{self.port}"


class Subject(ABC):
    """One way to reach the model server. `forms` are the signatures that it checks; () if it checks none."""

    name: SubjectName
    title: str
    forms: tuple[Form, ...] = ()

    def missing(self) -> str | None:
        """The reason why it can't run on this machine, or None."""
        return None

    def takes(self, load: Load) -> bool:
        """Whether there is something to measure: refused signatures need a subject that checks them."""
        return load.form != "refused" or bool(self.forms)

    def form_of(self, load: Load) -> Form:
        """The form of the signatures it gets under `load`: the one closest to it that it accepts."""
        return load.form if load.form == "refused" or load.form in self.forms else "url"

    @abstractmethod
    def running(self, around: Surroundings) -> AbstractAsyncContextManager[RunningSubject]:
        """Run it for the block, which begins when it accepts connections."""


class Direct(Subject):
    """The model server itself: no process is in between, so only latencies are measured."""

    name = "direct"
    title = "direct"

    def takes(self, load: Load) -> bool:
        return super().takes(load) and load.kind != "held"

    def running(self, around: Surroundings) -> AbstractAsyncContextManager[RunningSubject]:
        return nullcontext(RunningSubject(self, around.model_port, None))


class ProcessSubject(Subject):
    """A subject with a process of its own, which is started in a folder of its own."""

    @asynccontextmanager
    async def running(self, around: Surroundings) -> AsyncGenerator[RunningSubject, None]:
        port, other_port = free_ports(2)
        folder = around.folder / f"{self.name}-{port}"
        folder.mkdir()
        command, env = self._launch(around, folder, port, other_port)
        async with running(command, folder, env) as child:
            await _listening(port, child)
            yield RunningSubject(self, port, psutil.Process(child.process.pid))

    @abstractmethod
    def _launch(
        self, around: Surroundings, folder: Path, port: int, other_port: int
    ) -> tuple[Sequence[str], Mapping[str, str]]:
        """The command and the environment variables with which it listens on `port`."""


class Nginx(ProcessSubject):
    """nginx as a reverse proxy: one worker process, keep-alive to the model server, no buffering."""

    name = "nginx"
    title = "nginx"

    def missing(self) -> str | None:
        return None if shutil.which("nginx") else "nginx is not on PATH"

    def _launch(
        self, around: Surroundings, folder: Path, port: int, other_port: int
    ) -> tuple[Sequence[str], Mapping[str, str]]:
        config = folder / "nginx.conf"
        ports = (("MODEL_PORT", around.model_port), ("PORT", port))
        text = _NGINX_CONF
        for placeholder, number in ports:
            text = text.replace(placeholder, str(number))
        config.write_text(text)
        return ["nginx", "-p", str(folder), "-c", str(config), "-e", "errors.log"], {}


class WorkerSubject(ProcessSubject):
    """A worker in the environment of an instance, with LOG_LEVEL=WARNING and a benchmark's result given."""

    module: str
    container_id: int

    def _launch(
        self, around: Surroundings, folder: Path, port: int, other_port: int
    ) -> tuple[Sequence[str], Mapping[str, str]]:
        (folder / GIVEN_BENCHMARK).write_text(GIVEN_RESULT)
        env = {
            "CONTAINER_ID": str(self.container_id),
            "PUBLIC_IPADDR": "127.0.0.1",
            "WORKER_PORT": str(port),
            "WORKER_HTTP_PORT": str(other_port),
            f"VAST_TCP_PORT_{port}": str(port),
            "REPORT_ADDR": around.engine_url,
            "MODEL_SERVER_URL": f"http://127.0.0.1:{around.model_port}",
            "MODEL_PORT": str(around.model_port),
            "MODEL_LOG": str(around.model_log),
            "WORKSPACE_DIR": str(folder),  # of the journal
            "LOG_LEVEL": "WARNING",
        }
        return python(self.module), env


class OfficialWorker(WorkerSubject):
    """The official worker. It knows the `url` form only, and verifies each request's signature anew."""

    name = "official_worker"
    title = "the official worker"
    module = "official_worker"
    container_id = 2
    forms = ("url",)

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("vastai") else "vastai is not installed (the extra `vastai`)"


class ThisWorker(WorkerSubject):
    """This project's worker; with `profile`, cProfile's figures go to that file (bench_worker.py)."""

    name = "worker"
    title = "this worker"
    module = "bench_worker"
    container_id = 1
    forms = ("url", "full")

    def __init__(self, profile: Path | None = None) -> None:
        self._profile = profile

    def _launch(
        self, around: Surroundings, folder: Path, port: int, other_port: int
    ) -> tuple[Sequence[str], Mapping[str, str]]:
        command, env = super()._launch(around, folder, port, other_port)
        return command, {**env, "PROFILE_FILE": str(self._profile)} if self._profile else env


SUBJECTS: tuple[Subject, ...] = (Direct(), Nginx(), OfficialWorker(), ThisWorker())


async def _listening(port: int, child: ChildProcess) -> None:
    """Wait until `port` accepts connections. Raises `ProcessFailed`."""
    with anyio.move_on_after(LISTEN_LIMIT_S):
        while child.process.returncode is None:
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                return
            except OSError:
                await anyio.sleep(LISTEN_POLL_S)
        raise await child.failure(f"ended with status {child.process.returncode}")
    raise await child.failure(f"not listened on port {port} within {LISTEN_LIMIT_S:g} s")
