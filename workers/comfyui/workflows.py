"""Workflows: graphs in ComfyUI's API format with placeholders.

Owns the placeholders `{{NAME}}` and `__RANDOM_INT__`, the default workflows in misc/, and the check of a
client's graph. Placeholders are replaced in the parsed graph, never in JSON text, so that a value can't
change the graph's structure.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

MISC = Path(__file__).with_name("misc")

RANDOM_INT = "__RANDOM_INT__"
# The number of different random integers. Some nodes accept seeds of 32 bits only.
RANDOM_INTS = 2**32
# Real graphs are less deeply nested. Much deeper ones would overflow the stack.
MAX_DEPTH = 50

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z0-9_]+)\}\}|" + RANDOM_INT)
_SEED_INPUTS = ("seed", "noise_seed")


def default_workflow(model: str) -> dict[str, Any]:
    """The default workflow of `model`, flux or sd3."""
    return json.loads(_template_text(model))


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """A copy of `template` with the placeholders in its strings replaced by `values`.

    The names of `values` are upper case. A string that consists of one placeholder becomes the value with its
    type; inside a longer string, the value becomes text. Placeholders without a value stay, and those inside
    of values are not replaced. Each `__RANDOM_INT__` becomes a new integer. Keys of objects don't change.
    """
    if isinstance(template, dict):
        return {name: fill(value, values) for name, value in cast("dict[str, Any]", template).items()}
    if isinstance(template, list):
        return [fill(item, values) for item in cast("list[Any]", template)]
    if not isinstance(template, str) or not ("{{" in template or RANDOM_INT in template):
        return template  # at once, since it may be a file of many megabytes
    whole = _PLACEHOLDER.fullmatch(template)
    if whole is not None:
        return _value(whole, values)
    return _PLACEHOLDER.sub(lambda found: _text(_value(found, values)), template)


def reseeded(graph: Mapping[str, Any]) -> dict[str, Any]:
    """`graph`, which has no `graph_problem`, with new seeds, so that it is not in ComfyUI's cache."""
    return {
        node_id: {**node, "inputs": {k: _reseeded(k, v) for k, v in node.get("inputs", {}).items()}}
        for node_id, node in cast("Mapping[str, dict[str, Any]]", graph).items()
    }


def graph_problem(graph: Any) -> str | None:
    """The reason why `graph` is not a graph in API format, or None. ComfyUI itself checks the nodes."""
    if not isinstance(graph, dict):
        return "must be an object: a workflow in API format"
    for name, node in cast("dict[str, Any]", graph).items():
        if not isinstance(node, dict):
            return f"node {name!r} must be an object: is this a workflow in API format?"
        if not isinstance(cast("dict[str, Any]", node).get("inputs", {}), dict):
            return f"inputs of node {name!r} must be an object"
    return "is nested too deeply" if _is_deep(graph) else None


@lru_cache
def _template_text(model: str) -> str:
    return (MISC / f"{model}.json").read_text("utf-8")


def _value(found: re.Match[str], values: Mapping[str, Any]) -> Any:
    if found[0] == RANDOM_INT:
        return random.randrange(RANDOM_INTS)
    return values.get(found[1].upper(), found[0])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _reseeded(name: str, value: Any) -> Any:
    is_seed = name in _SEED_INPUTS and isinstance(value, int) and not isinstance(value, bool)
    return random.randrange(RANDOM_INTS) if is_seed else value


def _is_deep(graph: Any) -> bool:
    level = [graph]
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _items(value)]
    return bool(level)


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []
