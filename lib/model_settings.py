"""What every ready-made worker lets an operator override by environment (workers.md).

Owns the variables that name the model server and its log: `MODEL_SERVER_URL`, `MODEL_LOG`,
`MODEL_HEALTH_ENDPOINT`, `MODEL_LOAD_LOG_MSG`, `MODEL_ERROR_LOG_MSGS`, `MODEL_INFO_LOG_MSGS` and
`MAX_QUEUE_TIME`. Their defaults are the worker's; the instance's own variables are in settings.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from lib.data_types import LogAction
from lib.runtime.settings import EnvironmentReader

__all__ = ["EnvironmentReader", "ModelSettings"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Where the model server is and how it shows its state.

    `health` is a path on the model server or an absolute URL. The lines are substrings of lines of `log`.
    `max_queue_time` is in seconds, None for no limit.
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
        """Settings out of `environ`; the keywords are what holds where a variable is unset or empty.

        Raises `SettingsError`, one message that names every malformed variable.
        """
        read = EnvironmentReader(environ)
        settings = cls(
            server_url=read.value("MODEL_SERVER_URL", _server_url, server_url, "where the model server is"),
            log=read.text("MODEL_LOG", log),
            load_lines=_lines(read, "MODEL_LOAD_LOG_MSG", load_lines),
            error_lines=_lines(read, "MODEL_ERROR_LOG_MSGS", error_lines),
            info_lines=_lines(read, "MODEL_INFO_LOG_MSGS", info_lines),
            health=read.value(
                "MODEL_HEALTH_ENDPOINT",
                _path_or_url,
                health,
                "what is asked whether the model server is well",
            ),
            max_queue_time=read.value(
                "MAX_QUEUE_TIME", _seconds_or_none, max_queue_time, "how long a request may wait, in seconds"
            ),
        )
        read.finish()
        return settings

    @property
    def log_actions(self) -> list[tuple[LogAction, str]]:
        """The log rules, as `Backend` takes them."""
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
    """One rule a line. White space around a rule goes: in a variable it is an accident."""
    own = (line.strip() for line in read.text(name, "").splitlines())
    return tuple(line for line in own if line) or tuple(default)


def _server_url(raw: str) -> str:
    if not _is_url(raw):
        raise ValueError("is not an http(s) URL")
    return raw.rstrip("/")


def _path_or_url(raw: str) -> str:
    if not raw.startswith("/") and not _is_url(raw):
        raise ValueError("is neither a path, which begins with /, nor an http(s) URL")
    return raw


def _is_url(raw: str) -> bool:
    try:
        parts = urlsplit(raw)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _seconds_or_none(raw: str) -> float | None:
    if raw.lower() == "none":
        return None
    try:
        seconds = float(raw)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError("is neither a finite number of seconds above 0 nor none, for no limit")
    return seconds
