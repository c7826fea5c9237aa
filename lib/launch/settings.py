"""The launcher's settings: the variables of `start_server.sh` (docs/operating.md, "Start on an instance").

Owns those and their checks. The worker checks its own when it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BOOLEANS = ("true", "false", "1", "0", "yes", "no", "on", "off")
_FALSE = _BOOLEANS[1::2]


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """The settings; those that are wrong are in `problems`, one line each, and have a default here."""

    container_id: int
    address: str  # the public one, without brackets
    worker_port: int
    public_port: str
    report_addrs: tuple[str, ...]
    master_token: str
    backend: str
    workspace: Path
    repo: str  # empty: the framework's own workers
    ref: str
    venv: Path | None  # an environment that has all packages
    use_ssl: bool
    ssl_cert: Path
    ssl_key: Path
    console_url: str
    model_log: str
    force_update_file: Path
    problems: tuple[str, ...]

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> LaunchSettings:
        """Read the settings from `environ`. An empty variable counts as unset."""

        def text(name: str, default: str = "") -> str:
            return environ.get(name, "").strip() or default

        def path(name: str, default: str) -> Path:
            return Path(text(name, default)).absolute()  # the worker runs in another folder

        port = text("WORKER_PORT", "3000")
        addresses = text("REPORT_ADDR", "https://run.vast.ai").split(",")
        return cls(
            container_id=int(text("CONTAINER_ID")) if _is_integer(text("CONTAINER_ID")) else 0,
            address=text("PUBLIC_IPADDR").removeprefix("[").removesuffix("]"),
            worker_port=int(port) if _is_port(port) else 0,
            public_port=text(f"VAST_TCP_PORT_{port}"),
            report_addrs=tuple(a.strip().rstrip("/") for a in addresses if a.strip()),
            master_token=text("MASTER_TOKEN"),
            backend=text("BACKEND"),
            workspace=path("WORKSPACE_DIR", "/workspace"),
            repo=text("PYWORKER_REPO"),
            ref=text("PYWORKER_REF"),
            venv=path("PYWORKER_VENV", "") if text("PYWORKER_VENV") else None,
            use_ssl=text("USE_SSL", "true").lower() not in _FALSE,
            ssl_cert=path("SSL_CERT", "/etc/instance.crt"),
            ssl_key=path("SSL_KEY", "/etc/instance.key"),
            console_url=text("VAST_CONSOLE_URL", "https://console.vast.ai").rstrip("/"),
            model_log=text("MODEL_LOG"),
            force_update_file=path("FORCE_UPDATE_FILE", "/.force_update"),
            problems=tuple(_problems(text("USE_SSL", "true"), text("CONTAINER_ID"), port, environ)),
        )

    @property
    def public_url(self) -> str:
        """The worker's public URL; empty if the environment doesn't have it."""
        if not (self.address and self.worker_port and self.public_port):
            return ""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self.use_ssl else 'http'}://{host}:{self.public_port}"

    @property
    def code(self) -> Path | None:
        """The folder for the code of `repo`; None if it does not end in a name."""
        name = re.split("[/:]", self.repo.rstrip("/").removesuffix(".git"))[-1]
        return self.workspace / name if name.strip(".") else None


def without_password(url: str) -> str:
    """Return a repository's URL as it may be logged."""
    return re.sub(r"^([a-z+]+://)[^/]*@", r"\1", url)


def _problems(use_ssl: str, container_id: str, port: str, environ: Mapping[str, str]) -> Iterator[str]:
    if use_ssl.lower() not in _BOOLEANS:
        yield f"USE_SSL: '{use_ssl}' is none of {', '.join(_BOOLEANS)}"
    if not _is_integer(container_id):
        yield "CONTAINER_ID: missing or not an integer: set the instance's id"
    if not re.fullmatch(r"[][A-Za-z0-9.:_-]+", environ.get("PUBLIC_IPADDR", "").strip()):
        yield "PUBLIC_IPADDR: missing or not an address: set the instance's public address"
    if not _is_port(port):
        yield f"WORKER_PORT: '{port}' is not a port: set a number from 1 to 65535"
    elif not environ.get(f"VAST_TCP_PORT_{port}", "").strip():
        yield f"VAST_TCP_PORT_{port}: missing: set it to the public port that leads to WORKER_PORT {port}"


def _is_integer(text: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,17}", text) is not None


def _is_port(text: str) -> bool:
    return _is_integer(text) and 1 <= int(text) <= 65535
