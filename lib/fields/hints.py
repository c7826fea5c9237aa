"""The annotations of a class or a function, resolved one by one.

Owns what becomes of an annotation that names something unknown: it accepts every value, and the log says so.
"""

from __future__ import annotations

import logging
import sys
import typing
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

log = logging.getLogger(__name__)


def resolved_hints(owner: str, named: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """The annotations of `named`, a class or a function, by the name of the field or the parameter.

    One of `names` that can't be resolved, such as one of a name that only type checkers import, is `Any`, and
    is logged for `owner`.
    """
    try:
        return typing.get_type_hints(named, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation in quotes may be any expression
        return {name: _resolved(owner, name, *_written(named, name)) for name in names}


def _written(named: Any, name: str) -> tuple[Any, Mapping[str, Any]]:
    """The annotation as written, and the names that it may use."""
    for holder in named.__mro__ if isinstance(named, type) else (named,):
        own: Mapping[str, Any] = (
            vars(holder).get("__annotations__", {})
            if isinstance(holder, type)
            else (getattr(holder, "__annotations__", {}))
        )
        if name in own:
            return own[name], vars(sys.modules.get(holder.__module__, SimpleNamespace()))
    return Any, {}


def _resolved(owner: str, name: str, annotation: Any, names: Mapping[str, Any]) -> Any:
    holder: Any = SimpleNamespace(__annotations__={name: annotation})
    try:
        return typing.get_type_hints(holder, globalns=dict(names), include_extras=True)[name]
    except Exception as e:  # noqa: BLE001 - as above
        log.warning(
            "%s: the annotation of %s can't be resolved (%s): its values are not checked", owner, name, e
        )
        return Any
