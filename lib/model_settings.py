"""The settings that all ready-made workers have, and the reading of a worker's own variables.

Owns `MODEL_SERVER_URL`, `MODEL_LOG`, `MODEL_HEALTH_ENDPOINT`, `MODEL_LOAD_LOG_MSG`, `MODEL_ERROR_LOG_MSGS`,
`MODEL_INFO_LOG_MSGS` and `MAX_QUEUE_TIME`, whose defaults each worker gives. The instance's variables are in
lib/runtime/settings.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lib.data_types import LogAction
from lib.runtime.settings import EnvironmentReader
from lib.runtime.urls import is_http_url

__all__ = ["EnvironmentReader", "ModelSettings", "http_url", "is_http_url"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model server's address, its log and its health check.

    `log` is the path of its log file. `load_lines`, `error_lines` and `info_lines` are texts to find in lines
    of the log. `health` is a path on the model server or an absolute URL; None: no health check.
    `max_queue_time` is in seconds; None: no limit.
    """

    server_url: str
    log: str
    load_lines: tuple[str, ...] = ()
    error_lines: tuple[str, ...] = ()
    info_lines: tuple[str, ...] = ()
    health: str | None = None
    max_queue_time: float | None = None

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str],
        *,
        server_url: str,
        log: str,
        load_lines: Sequence[str] = (),
        error_lines: Sequence[str] = (),
        info_lines: Sequence[str] = (),
        health: str | None = None,
        max_queue_time: float | None = None,
    ) -> ModelSettings:
        """Read the settings from `environ`. The keywords are the defaults for unset or empty variables.

        Raises `SettingsError`, whose message names every malformed variable.
        """
        read = EnvironmentReader(environ)
        settings = cls(
            server_url=read.value("MODEL_SERVER_URL", http_url, server_url, "the model server's address"),
            log=read.text("MODEL_LOG", log),
            load_lines=_lines(read, "MODEL_LOAD_LOG_MSG", load_lines),
            error_lines=_lines(read, "MODEL_ERROR_LOG_MSGS", error_lines),
            info_lines=_lines(read, "MODEL_INFO_LOG_MSGS", info_lines),
            health=read.value(
                "MODEL_HEALTH_ENDPOINT",
                _path_or_url,
                health,
                "the model server's health check",
            ),
            max_queue_time=read.value(
                "MAX_QUEUE_TIME", _seconds_or_none, max_queue_time, "limit of a request's wait, in seconds"
            ),
        )
        read.finish()
        return settings

    @property
    def log_actions(self) -> list[tuple[LogAction, str]]:
        """The rules for the log, as the argument `log_actions` of `Backend`."""
        return [
            (action, line)
            for action, lines in (
                (LogAction.ModelLoaded, self.load_lines),
                (LogAction.ModelError, self.error_lines),
                (LogAction.Info, self.info_lines),
            )
            for line in lines
        ]


def _lines(read: EnvironmentReader, name: str, default: Sequence[str]) -> tuple[str, ...]:
    """The texts in a variable, one per line, without surrounding white space; `default` if there are none."""
    own = (line.strip() for line in read.text(name, "").splitlines())
    return tuple(line for line in own if line) or tuple(default)


def http_url(raw: str) -> str:
    """`raw` without a trailing slash. Raises `ValueError` if it is not an http(s) URL."""
    if not is_http_url(raw):
        raise ValueError("is not an http(s) URL")
    return raw.rstrip("/")


def _path_or_url(raw: str) -> str:
    if not raw.startswith("/") and not is_http_url(raw):
        raise ValueError("is neither a path, which begins with /, nor an http(s) URL")
    return raw


def _seconds_or_none(raw: str) -> float | None:
    if raw.lower() == "none":
        return None
    try:
        seconds = float(raw)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError('is neither a finite number of seconds above 0 nor "none", which means no limit')
    return seconds
