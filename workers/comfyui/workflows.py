"""Workflows: graphs in ComfyUI's API format, with placeholders that are filled in on the parsed graph.

Owns the placeholders `{{NAME}}` and `__RANDOM_INT__`, the default workflows in misc/, and the check of a
client's graph. Text is never substituted into JSON: a prompt with quotes or newlines can't break out.
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
# Fits every seed input: some nodes hand it to a generator that takes 32 bits.
RANDOM_INTS = 2**32
# No real graph is nested so deep; deeper ones would overflow the stack.
MAX_DEPTH = 50

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z0-9_]+)\}\}|" + RANDOM_INT)
_SEED_INPUTS = ("seed", "noise_seed")


def default_workflow(model: str) -> dict[str, Any]:
    """The default workflow of `model`, flux or sd3."""
    return json.loads(_template_text(model))


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """A copy of `template` with its placeholders filled in; keys of objects are left alone.

    The names of `values` are upper case. A text that is one placeholder becomes the value itself, a number
    for a number; inside a text, a value becomes part of it. What is filled in is not looked at again. Names
    without a value stay, each `__RANDOM_INT__` is another integer.
    """
    if isinstance(template, dict):
        return {name: fill(value, values) for name, value in cast("dict[str, Any]", template).items()}
    if isinstance(template, list):
        return [fill(item, values) for item in cast("list[Any]", template)]
    if not isinstance(template, str):
        return template
    whole = _PLACEHOLDER.fullmatch(template)
    if whole is not None:
        return _value(whole, values)
    return _PLACEHOLDER.sub(lambda found: _text(_value(found, values)), template)


def reseeded(graph: Mapping[str, Any]) -> dict[str, Any]:
    """`graph`, which has no `graph_problem`, with other seeds: ComfyUI answers equal ones from its cache."""
    return {
        node_id: {**node, "inputs": {k: _reseeded(k, v) for k, v in node.get("inputs", {}).items()}}
        for node_id, node in cast("Mapping[str, dict[str, Any]]", graph).items()
    }


def graph_problem(graph: Any) -> str | None:
    """Why `graph` can't be a graph in API format, None: it can. What its nodes mean is ComfyUI's to check."""
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
