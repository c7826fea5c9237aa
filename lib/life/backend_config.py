"""What an author configured of the model server and the worker's life, and what of it cannot work.

Owns the checks of `Backend`'s arguments. What is declared besides is checked in declare/declaration.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data_types import EndpointHandler, LogAction
from lib.model.readiness import ReadySignal
from lib.runtime.urls import is_http_url

Lifecycle = AbstractAsyncContextManager[Any] | Callable[[], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """What an author told `Backend` about the model server and its life."""

    url: str
    log_file: Path | None
    log_actions: Sequence[tuple[LogAction, str]]
    healthcheck: str | None
    lifecycle: Lifecycle | None
    benchmark_handler: EndpointHandler[Any] | None
    benchmark_cap: int | None
    max_perf: float
    max_sessions: int | None

    def problems(self) -> list[str]:
        """Every reason why this can't work, a line each."""
        problems: list[str] = []
        if self.url and not is_http_url(self.url):
            problems.append(f"model_server_url: {self.url!r} is not an http(s) URL")
        if self.max_sessions is not None and self.max_sessions < 0:
            problems.append(f"max_sessions is {self.max_sessions}, less than 0")
        if self.log_actions and self.log_file is None:
            problems.append("log_actions are given, but no model_log_file to look for them in")
        problems += [f"log_actions: an empty text for {a.name}" for a, text in self.log_actions if not text]
        if not 0 <= self.max_perf < math.inf:
            problems.append(f"max_perf is {self.max_perf}, not a finite number of workload/s ≥ 0")
        if self.url and not self.signs:
            problems.append(
                "nothing tells when the model is loaded: give a LogAction.ModelLoaded line with "
                "model_log_file, a health check (healthcheck_endpoint or healthcheck_url), or a lifecycle"
            )
        return problems

    @property
    def signs(self) -> tuple[ReadySignal, ...]:
        """What has to be seen before the model counts as loaded (authoring.md §3)."""
        if self.lifecycle is not None:
            return (ReadySignal.LIFECYCLE,)
        if not self.url:
            return ()
        has_rule = self.log_file is not None and self.has_load_rule
        return (
            *((ReadySignal.LOG,) if has_rule else ()),
            *((ReadySignal.HEALTH,) if self.healthcheck else ()),
        )

    @property
    def has_load_rule(self) -> bool:
        return any(action is LogAction.ModelLoaded for action, _ in self.log_actions)
