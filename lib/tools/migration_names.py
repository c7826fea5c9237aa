"""The modules of the other package, `vastai`, and where PyWorker has their names.

Owns this mapping only. Imports are rewritten with it in migration.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from functools import cache

ROOT = "vastai"
_ROOTS = (ROOT, "vastai_sdk")
_SERVER = f"{ROOT}.serverless.server"
_LIB = f"{_SERVER}.lib"
# Each module of the other package that a worker imports, with the module that has its names here.
COUNTERPARTS: Mapping[str, str] = {
    ROOT: "lib.worker",
    f"{_SERVER}.worker": "lib.worker",
    **{f"{_LIB}.{name}": f"lib.{name}" for name in ("data_types", "backend", "server", "metrics")},
    **{f"{_LIB}.{name}": f"lib.{name}" for name in ("test_utils", "test_harness")},
}
_PACKAGES = frozenset({ROOT, f"{ROOT}.serverless", _SERVER, _LIB})
# A copy of the library inside the worker's own package: `from .lib.data_types import …`.
_VENDORED = re.compile(r"(?:\w+\.)*lib(?P<module>\.\w+)?")
# Fields of older declarations, with what has their meaning here.
RENAMED_FIELDS: Mapping[str, str] = {
    "on_request": "request_parser",
    "on_response": "response_generator",
    "calculate_workload": "workload_calculator",
    "log_actions": "log_action_config",
    "benchmark_data": "benchmark_config",
    "allow_parallel_requests": "allow_parallel_requests of each HandlerConfig",
}


def upstream(module: str, level: int = 0) -> str | None:
    """The module of the other package that an import of `module` means, or None if it is none of its server.

    `level` is the number of dots before it. The result begins with `vastai`.
    """
    if level:
        found = _VENDORED.fullmatch(module)
        name = _LIB + (found["module"] or "") if found else None
        return name if is_module(name) else None
    root, _, rest = module.partition(".")
    if root not in _ROOTS:
        return None
    name = f"{ROOT}.{rest}" if rest else ROOT
    return name if is_module(name) or name.startswith(f"{_SERVER}.") else None


def is_module(name: str | None) -> bool:
    """Whether `name` is a known module or package of the other package."""
    return name in COUNTERPARTS or name in _PACKAGES


def home_of(module: str, name: str) -> str | None:
    """The module of PyWorker from which `name` of the upstream `module` is imported; None without one."""
    if is_module(inner := f"{module}.{name}"):
        return "lib" if inner in COUNTERPARTS and inner != ROOT else None
    own = COUNTERPARTS.get(module)
    if own is None:
        return None
    places = (own,) if module == ROOT else (own, *COUNTERPARTS.values())
    return next((place for place in places if name in public_names(place)), None)


@cache
def public_names(module: str) -> frozenset[str]:
    """The documented names of one of PyWorker's modules; empty if there is no such module."""
    try:
        return frozenset(importlib.import_module(module).__all__)
    except (ImportError, AttributeError):
        return frozenset()
