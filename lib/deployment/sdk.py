"""The parts of the package `vastai` by which a deployment is served: its class and its serializers.

Owns the import of the package, an extra, and the names and types of what is used of it, since it has no
types that a checker could use. What a deployment becomes is in lib/deployment/worker.py.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from lib.errors import SettingsError

# The package reads it while it is imported: if set, its `Deployment` registers functions, to serve them.
# Otherwise, it replaces them by functions that call a deployment elsewhere.
SERVE_VARIABLE = "IS_DEPLOYMENT"
_PACKAGE = "vastai"
_DEPLOYMENTS = "vastai.serverless.remote"

Json = Any
Serialize = Callable[[Any, str], Json]


class RegisteredFunction(Protocol):
    """A function that `Deployment.remote` has registered, with its options.

    `max_queue_time` is in seconds. The benchmark's dataset and generator have or make the function's
    arguments by name.
    """

    func: Callable[..., Any]
    globals: dict[str, Any]
    allow_parallel_requests: bool
    max_queue_time: float
    benchmark_dataset: list[dict[str, Any]] | None
    benchmark_generator: Callable[[], dict[str, Any]] | None
    benchmark_runs: int
    workload_calculator: Callable[..., float] | None


class Deployment(Protocol):
    """The SDK's `Deployment` when it serves: its functions by route, and its contexts by class.

    `root_module` is the name of the module that has the functions, None if there are none. `contexts` has
    what entering a context has returned, while it is entered.
    """

    root_module: str | None
    remote_funcs: Mapping[tuple[str, ...], RegisteredFunction]
    context_managers: Mapping[type[Any], AbstractAsyncContextManager[Any]]
    contexts: dict[type[Any], Any]


@dataclass(frozen=True)
class Sdk:
    """The SDK's class of deployments and its serializers.

    `serialize`, `serialize_ok` and `serialize_err` take an object and the root module; `deserialize` takes
    JSON, the root module and the globals of the function.
    """

    deployment_class: type[Any]
    serialize: Serialize
    serialize_ok: Serialize
    serialize_err: Serialize
    deserialize: Callable[[Json, str, dict[str, Any]], Any]

    @property
    def default_runs(self) -> int:
        """The `benchmark_runs` of a function for which none are given."""
        return inspect.signature(self.deployment_class.remote).parameters["benchmark_runs"].default


def load_sdk() -> Sdk:
    """Import the package, to serve deployments. Raises `SettingsError` if it is not installed."""
    os.environ[SERVE_VARIABLE] = "1"  # noqa: TID251 - not read here: it tells the package what to be
    try:
        deployments = importlib.import_module(_DEPLOYMENTS)
        serialization = importlib.import_module(f"{_DEPLOYMENTS}.serialization")
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != _PACKAGE:
            raise
        missing = "is not installed" if e.name == _PACKAGE else "has no deployments, it is too old"
        raise SettingsError([f"the package {_PACKAGE} {missing}: pip install 'pyworker[vastai]'"]) from e
    return Sdk(
        deployments.Deployment,
        serialization.serialize,
        serialization.serialize_ok,
        serialization.serialize_err,
        serialization.deserialize,
    )
