"""The settings of the comfyui worker, read once from the environment.

Owns this worker's own variables (`COMFYUI_…`, `COMFY_MODEL`, `INPUT_…`, `S3_…`, `BENCHMARK_…`), the
defaults of each dialect and the benchmark's workflow. The variables of all ready-made workers are in
lib/model_settings.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

from lib.errors import SettingsError
from lib.fetch import FetchLimits
from lib.model_settings import EnvironmentReader, ModelSettings, http_url
from workers.comfyui import storage
from workers.comfyui.data_types import MIN_SIZE, TEST_SIZE, TEST_STEPS
from workers.comfyui.storage import Bucket
from workers.comfyui.workflows import MISC, RANDOM_INT, default_workflow, fill, graph_problem, reseeded
from workers.comfyui.workload import MAX_SIZE, MAX_STEPS, SECONDS_ON_4090

BENCHMARK_FILE = MISC / "benchmark.json"
SYNC_ROUTE = "/generate/sync"
PROMPT_ROUTE = "/prompt"


class DialectName(str, Enum):
    """The kinds of model servers, in the order of preference for detection."""

    WRAPPER = "wrapper"
    NATIVE = "native"
    RUNSYNC = "runsync"


@dataclass(frozen=True)
class Defaults:
    """The default address, log and health check of one dialect's model server."""

    server_url: str
    log: str
    load_lines: tuple[str, ...]
    error_lines: tuple[str, ...] = ()
    health: str | None = None


DEFAULTS: Mapping[DialectName, Defaults] = {
    DialectName.WRAPPER: Defaults(
        "http://127.0.0.1:18288",
        "/var/log/portal/api-wrapper.log",
        ("BACKENDS_READY",),
        ("BACKENDS_READY_TIMEOUT", "BACKEND_UNRECOVERABLE", "Application startup failed"),
        "/health",
    ),
    DialectName.NATIVE: Defaults(
        "http://127.0.0.1:18188", "/var/log/portal/comfyui.log", ("To see the GUI go to:",), (), "/prompt"
    ),
    DialectName.RUNSYNC: Defaults(
        "http://127.0.0.1:38188", "/var/log/portal/comfyui.log", ("To see the GUI go to:",)
    ),
}


@dataclass(frozen=True, kw_only=True)
class ComfySettings:
    """All settings of the worker.

    `dialect` None: it is detected (dialects.py) among `candidates`, each with its URL. `comfyui_url` is the
    ComfyUI behind a wrapper. `concurrency` is the number of jobs at once. `benchmark_graph` has placeholders
    for prompt and seed.
    """

    model: ModelSettings
    dialect: DialectName | None
    candidates: tuple[tuple[DialectName, str], ...]
    comfyui_url: str
    concurrency: int
    comfy_model: str
    bucket: Bucket | None
    input_limits: FetchLimits
    benchmark_route: str
    benchmark_graph: dict[str, Any]
    benchmark_size: tuple[int, int]
    benchmark_steps: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str], benchmark_file: Path = BENCHMARK_FILE) -> ComfySettings:
        """Read the settings from `environ`, and the operator's own benchmark workflow, if there is one.

        Raises `SettingsError`, whose message names every malformed variable.
        """
        read = EnvironmentReader(environ)
        dialect = read.value("COMFYUI_DIALECT", _dialect, None, "the kind of model server")
        model = _model_settings(read, environ, dialect)
        comfy_model = read.choice("COMFY_MODEL", tuple(SECONDS_ON_4090), "the model of the default workflow")
        width, height, steps = (
            read.value(f"BENCHMARK_TEST_{name}", _IntRange(low, high), default, "the benchmark's image")
            for name, low, high, default in (
                ("WIDTH", MIN_SIZE, MAX_SIZE, TEST_SIZE),
                ("HEIGHT", MIN_SIZE, MAX_SIZE, TEST_SIZE),
                ("STEPS", 1, MAX_STEPS, TEST_STEPS),
            )
        )
        default_route = PROMPT_ROUTE if dialect is DialectName.RUNSYNC else SYNC_ROUTE
        settings = cls(
            model=model,
            dialect=dialect,
            candidates=_candidates(environ, dialect, model.server_url),
            comfyui_url=read.value(
                "COMFYUI_URL",
                http_url,
                model.server_url
                if dialect is DialectName.NATIVE
                else DEFAULTS[DialectName.NATIVE].server_url,
                "the ComfyUI behind a wrapper",
            ),
            concurrency=read.positive_int("COMFYUI_CONCURRENCY", 1, "jobs at once"),
            comfy_model=comfy_model,
            bucket=_bucket(read),
            input_limits=FetchLimits.from_env(read),
            benchmark_route=read.value("BENCHMARK_ROUTE", _route, default_route, "the benchmark's route"),
            benchmark_graph=_benchmark_graph(read, benchmark_file, comfy_model, (width, height, steps)),
            benchmark_size=(width, height),
            benchmark_steps=steps,
        )
        read.finish()
        return settings


def _model_settings(
    read: EnvironmentReader, environ: Mapping[str, str], dialect: DialectName | None
) -> ModelSettings:
    """The settings of all ready-made workers. Their problems are added to those of `read`."""
    known = [DEFAULTS[dialect]] if dialect else list(DEFAULTS.values())
    defaults: Mapping[str, Any] = {
        # While the dialect is unknown, this address is a placeholder: requests go to the detected one.
        "server_url": known[0].server_url,
        "log": known[0].log,
        "load_lines": list(dict.fromkeys(line for d in known for line in d.load_lines)),
        "error_lines": list(dict.fromkeys(line for d in known for line in d.error_lines)),
        "health": known[0].health if dialect else None,
    }
    try:
        return ModelSettings.from_env(environ, **defaults)
    except SettingsError as e:
        for problem in e.problems:
            name, _, what = problem.partition(": ")
            read.problem(name, what)
        return ModelSettings.from_env({}, **defaults)


def _candidates(
    environ: Mapping[str, str], dialect: DialectName | None, url: str
) -> tuple[tuple[DialectName, str], ...]:
    if dialect is not None:
        return ((dialect, url),)
    own = environ.get("MODEL_SERVER_URL", "").strip()
    return tuple((name, url if own else DEFAULTS[name].server_url) for name in DialectName)


def _bucket(read: EnvironmentReader) -> Bucket | None:
    """The bucket in `S3_…`, or None if no such variable is set. If one is, all required ones must be."""
    given = {name: read.text(f"S3_{name.upper()}", "") for name in storage.FIELDS}
    if not any(given.values()):
        return None
    problems = storage.problems({name: value for name, value in given.items() if value})
    for name, problem in problems.items():
        read.problem(f"S3_{name.upper()}", problem)
    if not storage.is_installed():
        read.problem("S3_ENDPOINT_URL", storage.NOT_INSTALLED)
    return Bucket(**given)


def _benchmark_graph(
    read: EnvironmentReader, file: Path, comfy_model: str, size: tuple[int, int, int]
) -> dict[str, Any]:
    """The operator's benchmark workflow, or the default one with this width, height and number of steps."""
    own = Path(read.text("BENCHMARK_JSON_PATH", ""))
    path = file if file.exists() else own if own.parts else None
    if path is None:
        return fill(default_workflow(comfy_model), dict(zip(("WIDTH", "HEIGHT", "STEPS"), size, strict=True)))
    try:
        graph: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        read.problem("BENCHMARK_JSON_PATH", f"{path} can't be read: {e}")
        return {}
    if problem := graph_problem(graph):
        read.problem("BENCHMARK_JSON_PATH", f"{path} {problem}")
        return {}
    text = json.dumps(graph)
    if RANDOM_INT not in text and "{{SEED}}" not in text and reseeded(graph) == graph:
        read.problem(
            "BENCHMARK_JSON_PATH",
            f"{path} has neither a seed nor {RANDOM_INT}: add one, or ComfyUI answers it from its cache",
        )
    return cast("dict[str, Any]", graph)


def _dialect(raw: str) -> DialectName | None:
    try:
        return DialectName(raw.lower())
    except ValueError as e:
        raise ValueError(f"is none of {', '.join(d.value for d in DialectName)}") from e


def _route(raw: str) -> str:
    if raw not in (SYNC_ROUTE, PROMPT_ROUTE):
        raise ValueError(f"is neither {SYNC_ROUTE} nor {PROMPT_ROUTE}")
    return raw


class _IntRange:
    """A parser of integers from `low` to `high`."""

    def __init__(self, low: int, high: int) -> None:
        self._low = low
        self._high = high

    def __call__(self, raw: str) -> int:
        try:
            number = int(raw)
        except ValueError as e:
            raise ValueError("is not an integer") from e
        if not self._low <= number <= self._high:
            raise ValueError(f"is not from {self._low} to {self._high}")
        return number
