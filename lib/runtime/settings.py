"""Settings: the environment of the worker, read once into one frozen dataclass.

Owns every variable that the library itself reads (docs/operating.md, "Environment"). It does not read the
variables of ready-made workers (`COMFY_MODEL`, …): each of them does, and lib/model_settings.py reads the
shared ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar, cast
from urllib.parse import urlsplit

from lib.errors import SettingsError
from lib.runtime.addresses import Network, networks_in
from lib.runtime.hosts import is_loopback, parse_host_name
from lib.runtime.urls import is_http_base_url

T = TypeVar("T")
AuthScheme = Literal["auto", "full", "url"]
CarrierKind = Literal["direct", "aiohttp"]
LogFormat = Literal["text", "json"]
EngineKind = Literal["vast", "none"]

MIB = 1024 * 1024
GIB = 1024 * MIB

LOOPBACK = "127.0.0.1"
_ALL_ADDRESSES = frozenset({"0.0.0.0", "::"})
LOOPBACK_HOSTS = frozenset({LOOPBACK, "::1", "localhost"})
DEFAULT_REPORT_ADDR = "https://run.vast.ai"
# Accepts status reports only: no finished requests, and it has no public key.
STATUS_ONLY_ADDR = "https://cloud.vast.ai/api/v0"

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a worker (docs/operating.md, "Environment"). Sizes in bytes, durations in seconds."""

    container_id: int
    public_url: str
    engine: EngineKind = "vast"
    worker_host: str | None = None
    worker_http_host: str = LOOPBACK
    worker_http_names: tuple[str, ...] = ()
    worker_port: int = 3000
    worker_http_port: int = 3001
    report_addrs: tuple[str, ...] = (DEFAULT_REPORT_ADDR,)
    master_token: str = ""
    use_ssl: bool = False
    ssl_cert: Path = Path("/etc/instance.crt")
    ssl_key: Path = Path("/etc/instance.key")
    unsecured: bool = False
    auth_scheme: AuthScheme = "auto"
    auth_check_url: bool = True
    max_json_bytes: int = 64 * MIB
    max_request_bytes: int = GIB
    max_body_memory_bytes: int | None = None  # None: a part of what the worker may use
    max_spool_bytes: int = 4 * GIB
    trusted_proxies: tuple[Network, ...] = ()
    request_body_timeout_s: float = 60.0
    client_stall_timeout_s: float = 60.0
    carrier: CarrierKind = "direct"
    model_timeout_s: float | None = None
    model_load_timeout_s: float | None = None
    model_stall_timeout_s: float | None = None  # None: the worker's own default; 0: no limit
    benchmark_target_s: float = 20.0
    benchmark_time_limit_s: float = 300.0
    benchmark_dir: Path = Path()
    workspace_dir: Path = Path("/workspace")
    health_overrides_log: bool = True
    live_capacity: bool = False
    gpu_health: bool = True
    drain_timeout_s: float = 30.0
    log_level: str = "INFO"
    log_format: LogFormat = "text"
    model_name: str = ""
    model_api_key: str = field(default="", repr=False)
    force_update_file: Path = Path("/.force_update")
    # No variable sets this limit: it is the engine's (docs/protocol.md, "Worker status").
    max_report_pause_s: float = 1.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings from `environ`.

        Raises `SettingsError`: one message that names every missing or malformed variable and its purpose.
        """
        read = EnvironmentReader(environ)
        port, http_port = _ports(read)
        engine = cast(EngineKind, read.choice("ENGINE", ("vast", "none"), "the engine to use"))
        host, http_host = _bind_hosts(read, engine)
        target_s, limit_s = _benchmark_times(read)
        settings = cls(
            engine=engine,
            container_id=_container_id(read, engine),
            worker_host=host,
            worker_http_host=http_host,
            worker_http_names=_http_names(read),
            worker_port=port,
            worker_http_port=http_port,
            report_addrs=_report_addrs(read),
            master_token=read.text("MASTER_TOKEN", ""),
            use_ssl=(use_ssl := read.boolean("USE_SSL", False, "TLS on the public port")),
            public_url=_public_url(read, engine, host, port, use_ssl),
            unsecured=read.boolean("UNSECURED", False, "accept unsigned requests"),
            auth_scheme=_auth_scheme(read),
            auth_check_url=read.boolean("AUTH_CHECK_URL", True, "require this worker's URL in signatures"),
            max_json_bytes=read.positive_int("MAX_JSON_BYTES", cls.max_json_bytes, "JSON body limit, bytes"),
            max_request_bytes=_max_request_bytes(read),
            max_body_memory_bytes=_max_body_memory_bytes(read),
            max_spool_bytes=_max_spool_bytes(read),
            trusted_proxies=_trusted_proxies(read),
            request_body_timeout_s=read.seconds(
                "REQUEST_BODY_TIMEOUT_S", cls.request_body_timeout_s, "how long a body may stall, seconds"
            ),
            client_stall_timeout_s=_client_stall_timeout_s(read),
            carrier=cast(
                CarrierKind, read.choice("CARRIER", ("direct", "aiohttp"), "who carries requests and answers")
            ),
            model_timeout_s=_model_timeout_s(read),
            model_load_timeout_s=_model_load_timeout_s(read),
            model_stall_timeout_s=_model_stall_timeout_s(read),
            benchmark_target_s=target_s,
            benchmark_time_limit_s=limit_s,
            health_overrides_log=_health_overrides_log(read),
            live_capacity=read.boolean("LIVE_CAPACITY", False, "move max_perf to what requests show"),
            gpu_health=read.boolean("GPU_HEALTH", True, "whether a broken GPU is an error of the worker"),
            drain_timeout_s=read.seconds(
                "DRAIN_TIMEOUT_S", cls.drain_timeout_s, "how long requests may go on after SIGTERM, seconds"
            ),
            log_level=_log_level(read),
            log_format=cast(LogFormat, read.choice("LOG_FORMAT", ("text", "json"), "format of log lines")),
            model_name=read.text("MODEL_NAME", "") or read.text("MODEL_ID", ""),
            model_api_key=_model_api_key(read),
        )
        settings = _with_files(read, settings)
        _check_combinations(read, settings)
        read.finish()
        return settings

    @property
    def key_addrs(self) -> tuple[str, ...]:
        """The report addresses that also have the public key and accept finished requests."""
        return tuple(a for a in self.report_addrs if a != STATUS_ONLY_ADDR)

    @property
    def loopback_url(self) -> str:
        """The URL at which this machine reaches the loopback port; "" if it can't by a loopback address."""
        host = LOOPBACK if self.worker_http_host in _ALL_ADDRESSES else self.worker_http_host
        return f"http://{_host(host)}:{self.worker_http_port}" if is_loopback(host) else ""


def ports_in(environ: Mapping[str, str]) -> tuple[int, int]:
    """Read the public port and the port of `/metrics` from `environ`. Raises `SettingsError`."""
    read = EnvironmentReader(environ)
    ports = _ports(read)
    read.finish()
    return ports


def from_environment() -> Settings:
    """Read the settings from this process's environment. Raises `SettingsError`."""
    return Settings.from_env(os.environ)  # noqa: TID251 - the one place that reads it


class EnvironmentReader:
    """Reads variables one by one, and collects their problems.

    Each variable's `purpose` appears in the message about it. An empty variable counts as unset.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def problem(self, name: str, text: str) -> None:
        """Add a problem with the variable `name`."""
        self._problems.append(f"{name}: {text}")

    @property
    def problems(self) -> Sequence[str]:
        """The problems so far, each with the variable's name."""
        return self._problems

    def finish(self) -> None:
        """Raise `SettingsError` with all problems so far; do nothing if there are none."""
        if self._problems:
            raise SettingsError(self._problems)

    def text(self, name: str, default: str) -> str:
        """The variable without white space around it, or `default` if it is unset."""
        return self._environ.get(name, "").strip() or default

    def value(self, name: str, parse: Callable[[str], T], default: T, purpose: str) -> T:
        """The variable as `parse` reads it, which raises `ValueError` for a malformed one."""
        raw = self.text(name, "")
        if not raw:
            return default
        try:
            return parse(raw)
        except ValueError as e:
            self.problem(name, f"{raw!r} {e} ({purpose})")
            return default

    def required(self, name: str, parse: Callable[[str], T], placeholder: T, purpose: str) -> T:
        """The variable as `parse` reads it; `placeholder`, and a problem, if it is unset."""
        if not self.text(name, ""):
            self.problem(name, f"missing ({purpose})")
            return placeholder
        return self.value(name, parse, placeholder, purpose)

    def boolean(self, name: str, default: bool, purpose: str) -> bool:
        """The variable as a boolean: true, 1, yes, on, false, 0, no or off in any case."""
        return self.value(name, _boolean, default, purpose)

    def port(self, name: str, default: int, purpose: str) -> int:
        """The variable as a port, 1 to 65535."""
        return self.value(name, _port, default, purpose)

    def positive_int(self, name: str, default: int, purpose: str) -> int:
        """The variable as an integer of at least 1."""
        return self.value(name, _positive_int, default, purpose)

    def seconds(self, name: str, default: float, purpose: str) -> float:
        """The variable as a finite number of seconds above 0."""
        return self.value(name, _seconds, default, purpose)

    def choice(
        self, name: str, choices: tuple[str, ...], purpose: str, normalize: Callable[[str], str] = str.lower
    ) -> str:
        """The variable after `normalize`, one of `choices`, the first of which is the default."""
        raw = self.text(name, choices[0])
        if normalize(raw) in choices:
            return normalize(raw)
        self.problem(name, f"{raw!r} is none of {', '.join(choices)} ({purpose})")
        return choices[0]


def _ports(read: EnvironmentReader) -> tuple[int, int]:
    port = read.port("WORKER_PORT", 3000, "the worker's public port")
    return port, read.port("WORKER_HTTP_PORT", port + 1, "the worker's loopback port")


def _max_request_bytes(read: EnvironmentReader) -> int:
    default = Settings.max_request_bytes
    return read.positive_int("MAX_REQUEST_BYTES", default, "limit of any other body, bytes")


def _max_body_memory_bytes(read: EnvironmentReader) -> int | None:
    purpose = "limit of all JSON bodies in memory together, bytes"
    return read.value("MAX_BODY_MEMORY_BYTES", _positive_int, None, purpose)


def _max_spool_bytes(read: EnvironmentReader) -> int:
    default = Settings.max_spool_bytes
    return read.positive_int("MAX_SPOOL_BYTES", default, "limit of all bodies on disk together, bytes")


def _trusted_proxies(read: EnvironmentReader) -> tuple[Network, ...]:
    purpose = "the proxies whose X-Forwarded-For is believed: addresses or networks, comma-separated"
    return read.value("TRUSTED_PROXIES", networks_in, (), purpose)


def _client_stall_timeout_s(read: EnvironmentReader) -> float:
    default = Settings.client_stall_timeout_s
    return read.seconds("CLIENT_STALL_TIMEOUT_S", default, "how long a client may read nothing, seconds")


def _model_timeout_s(read: EnvironmentReader) -> float | None:
    return read.value("MODEL_TIMEOUT_S", _seconds, None, "how long the model server may take, seconds")


def _model_load_timeout_s(read: EnvironmentReader) -> float | None:
    return read.value("MODEL_LOAD_TIMEOUT_S", _seconds, None, "how long the model may load, seconds")


def _model_stall_timeout_s(read: EnvironmentReader) -> float | None:
    purpose = "how long nothing may come on an answer that has begun, seconds; 0: no limit"
    return read.value("MODEL_STALL_TIMEOUT_S", _seconds_or_0, None, purpose)


def _model_api_key(read: EnvironmentReader) -> str:
    key = read.text("MODEL_API_KEY", "")
    if key and not _KEY.fullmatch(key):  # the message must not show it
        read.problem("MODEL_API_KEY", "has white space or another character that a header can't have in it")
    return key


def _health_overrides_log(read: EnvironmentReader) -> bool:
    purpose = "whether a model that works is loaded without a load line"
    return read.boolean("HEALTH_OVERRIDES_LOG", True, purpose)


def _benchmark_times(read: EnvironmentReader) -> tuple[float, float]:
    """The seconds that the benchmark should take, and those after which it is cut off."""
    target, limit = Settings.benchmark_target_s, Settings.benchmark_time_limit_s
    return (
        read.seconds("BENCHMARK_TARGET_S", target, "how long the benchmark should take, seconds"),
        read.seconds("BENCHMARK_TIME_LIMIT_S", limit, "limit of the benchmark, seconds"),
    )


def _bind_hosts(read: EnvironmentReader, engine: EngineKind) -> tuple[str | None, str]:
    """The addresses of the public port (None: all) and of the port of `/metrics`."""
    host = read.value("WORKER_HOST", _bind_address, None, "the address that the public port is bound to")
    if engine == "none":
        _check_no_engine(read)
        host = host or LOOPBACK
    purpose = "the address that the port of /metrics is bound to"
    return host, read.value("WORKER_HTTP_HOST", _bind_address, LOOPBACK, purpose)


def _http_names(read: EnvironmentReader) -> tuple[str, ...]:
    purpose = "further names by which the port of /metrics may be asked for, comma-separated"
    return read.value("WORKER_HTTP_NAMES", _host_names, (), purpose)


def _check_no_engine(read: EnvironmentReader) -> None:
    """Add a problem for each variable that contradicts `ENGINE=none`."""
    for name in ("REPORT_ADDR", "MASTER_TOKEN"):
        if read.text(name, ""):
            read.problem(name, "must be unset with ENGINE=none, where no reports are sent")
    for name in ("AUTH_SCHEME", "AUTH_CHECK_URL"):
        if read.text(name, ""):
            read.problem(name, "must be unset with ENGINE=none, where no signatures are checked")
    if read.text("UNSECURED", "") and not read.boolean("UNSECURED", True, "accept unsigned requests"):
        read.problem("UNSECURED", "can't be false with ENGINE=none, where no signatures are checked")


def _with_files(read: EnvironmentReader, settings: Settings) -> Settings:
    """The same settings, with the files and folders of the environment."""
    return replace(
        settings,
        ssl_cert=Path(read.text("SSL_CERT", str(settings.ssl_cert))),
        ssl_key=Path(read.text("SSL_KEY", str(settings.ssl_key))),
        benchmark_dir=Path(read.text("BENCHMARK_DIR", "")),
        workspace_dir=Path(read.text("WORKSPACE_DIR", str(settings.workspace_dir))),
        force_update_file=Path(read.text("FORCE_UPDATE_FILE", str(settings.force_update_file))),
    )


def _check_combinations(read: EnvironmentReader, settings: Settings) -> None:
    """Add a problem for settings that are valid alone, but not together."""
    needs_key = settings.engine == "vast" and not settings.unsecured
    if needs_key and set(settings.report_addrs) == {STATUS_ONLY_ADDR}:
        read.problem("REPORT_ADDR", f"{STATUS_ONLY_ADDR} has no public key: add another report address")
    if settings.worker_http_port > 65535:
        port = settings.worker_port
        read.problem("WORKER_HTTP_PORT", f"missing: there is no port {port + 1} after WORKER_PORT {port}")
    if settings.worker_port == settings.worker_http_port:
        read.problem(
            "WORKER_HTTP_PORT", f"{settings.worker_http_port} is the public port too: choose another"
        )


def _report_addrs(read: EnvironmentReader) -> tuple[str, ...]:
    purpose = "where the engine accepts reports: base URLs, comma-separated"
    return read.value("REPORT_ADDR", _addresses, (DEFAULT_REPORT_ADDR,), purpose)


def _auth_scheme(read: EnvironmentReader) -> AuthScheme:
    choices = ("auto", "full", "url")
    return cast(AuthScheme, read.choice("AUTH_SCHEME", choices, "which signatures are accepted"))


def _log_level(read: EnvironmentReader) -> str:
    choices = ("INFO", "DEBUG", "WARNING", "ERROR", "CRITICAL")
    return read.choice("LOG_LEVEL", choices, "lowest level that is logged", str.upper)


def _container_id(read: EnvironmentReader, engine: EngineKind) -> int:
    if engine == "none":
        return 0
    return read.required("CONTAINER_ID", _integer, 0, "the instance's id, an integer")


def _public_url(
    read: EnvironmentReader, engine: EngineKind, worker_host: str | None, port: int, use_ssl: bool
) -> str:
    scheme = "https" if use_ssl else "http"
    if engine == "none":
        return f"{scheme}://{_host(worker_host or LOOPBACK)}:{port}"
    host = read.required("PUBLIC_IPADDR", _host, "127.0.0.1", "the instance's public address")
    public_port = read.required(
        f"VAST_TCP_PORT_{port}", _port, port, f"the public port that leads to WORKER_PORT {port}"
    )
    return f"{scheme}://{host}:{public_port}"


def _boolean(raw: str) -> bool:
    folded = raw.lower()
    if folded in _TRUE:
        return True
    if folded in _FALSE:
        return False
    raise ValueError("is none of true, false, 1, 0, yes, no, on, off")


def _integer(raw: str) -> int:
    try:
        return int(raw)
    except ValueError as e:
        raise ValueError("is not an integer") from e


def _positive_int(raw: str) -> int:
    number = _integer(raw)
    if number < 1:
        raise ValueError("is less than 1")
    return number


def _port(raw: str) -> int:
    number = _integer(raw)
    if not 1 <= number <= 65535:
        raise ValueError("is not a port, 1 to 65535")
    return number


def _seconds(raw: str) -> float:
    try:
        number = float(raw)
    except ValueError as e:
        raise ValueError("is not a number of seconds") from e
    if not 0 < number < float("inf"):
        raise ValueError("is not a finite number of seconds above 0")
    return number


def _seconds_or_0(raw: str) -> float:
    return 0.0 if raw.strip() == "0" else _seconds(raw)


def _host(raw: str) -> str:
    host = f"[{raw}]" if ":" in raw and "[" not in raw and "]" not in raw else raw
    if "[" in host and not host.endswith("]"):
        raise ValueError("is not a host name or an IP address: give it without a port")
    if not is_http_base_url(f"http://{host}") or urlsplit(f"http://{host}").netloc != host or "@" in host:
        raise ValueError("is not a host name or an IP address")
    return host


def _bind_address(raw: str) -> str:
    return _host(raw).strip("[]")


def _host_names(raw: str) -> tuple[str, ...]:
    try:
        return tuple(parse_host_name(part.strip()) for part in raw.split(",") if part.strip())
    except ValueError as e:
        raise ValueError(f"has a wrong name: {e}") from e


def _addresses(raw: str) -> tuple[str, ...]:
    addresses = tuple(part.strip().rstrip("/") for part in raw.split(",") if part.strip())
    if not addresses:
        raise ValueError("has no address")
    wrong = [a for a in addresses if not is_http_base_url(a)]
    if wrong:
        raise ValueError(f"has an address that is not an http(s) URL: {', '.join(wrong)}")
    return addresses
