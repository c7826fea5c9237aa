"""The work of an image, and of a workflow's graph.

Owns the formula, and the reading of size, steps and batch from a graph in API format. Each route's unit of
workload is in data_types.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, cast

Graph = Mapping[str, Any]

# Seconds for the standard image on an RTX 4090. Workloads are scaled so that its throughput is 200 tokens/s.
SECONDS_ON_4090: Mapping[str, float] = {"flux": 23.0, "sd3": 6.0}
TOKENS_PER_S_ON_4090 = 200.0
STANDARD_SIZE = 1024
STANDARD_STEPS = 28

# ComfyUI's own limits. ComfyUI refuses values beyond them, which must not count as work that is quickly
# finished.
MAX_SIZE = 16384
MAX_STEPS = 10000
MAX_BATCH = 4096

_TILE = 512
# Inputs that link a sampler, over several nodes, to the empty latent image with which it begins.
_LATENT_INPUTS = ("latent_image", "samples", "latent")
# The input that contains the number, in nodes that only hold a number.
_VALUE_INPUTS = ("value", "int", "number", "Number")
_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")


def image_workload(model: str, width: int, height: int, steps: int) -> float:
    """The workload of one image in tokens; `model` is one of `SECONDS_ON_4090`."""
    return relative_work(width, height, steps) * TOKENS_PER_S_ON_4090 * SECONDS_ON_4090[model]


def relative_work(width: int, height: int, steps: int) -> float:
    """The work of one image relative to a standard image, 1024 by 1024 pixels at 28 steps."""
    return _cost(width, height, steps) / _cost(STANDARD_SIZE, STANDARD_SIZE, STANDARD_STEPS)


def graph_work(graph: Graph) -> float | None:
    """The work of all samplers in `graph` and their batches, in standard images.

    None if there is no sampler, if a sampler's size or steps are unknown (an uploaded image, an unknown
    node), or if they exceed ComfyUI's limits. Never raises, since the graph is a client's.
    """
    total = 0.0
    for node in _nodes(graph):
        if _class(node) in _SAMPLERS:
            steps = _steps(graph, node)
            image = _image(graph, node)
            if steps is None or image is None:
                return None
            width, height, batch = image
            total += relative_work(width, height, steps) * batch
    return total or None


def _cost(width: int, height: int, steps: int) -> float:
    tiles = math.ceil(width / _TILE) * math.ceil(height / _TILE)
    return (85 + 175 * tiles) * (0.61 * steps + 6.57)


def _steps(graph: Graph, sampler: Mapping[str, Any]) -> int | None:
    """The number of steps of `sampler`, by its own inputs or its scheduler's; None if unknown."""
    inputs = _inputs(sampler)
    if "steps" not in inputs:
        scheduler = _linked(graph, inputs.get("sigmas"))
        return None if scheduler is None else _number(graph, _inputs(scheduler).get("steps"), MAX_STEPS)
    steps = _number(graph, inputs["steps"], MAX_STEPS)
    if steps is None or _class(sampler) != "KSamplerAdvanced":
        return steps
    first, end = inputs.get("start_at_step", 0), inputs.get("end_at_step", steps)
    if not _is_int(first) or not _is_int(end):
        return None
    return max(0, min(end, steps) - max(first, 0))


def _image(graph: Graph, sampler: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Width, height and number of the images of `sampler`; None if unknown."""
    batch, node = 1, sampler
    for _ in range(len(graph)):  # no path without a cycle is longer
        link = next((v for k, v in _inputs(node).items() if k in _LATENT_INPUTS and _is_link(v)), None)
        linked = _linked(graph, link)
        if linked is None:
            return None
        node, inputs = linked, _inputs(linked)
        for name in ("batch_size", "amount"):  # in an empty latent image; in RepeatLatentBatch
            if name in inputs:
                count = _number(graph, inputs[name], MAX_BATCH)
                if count is None or batch * count > MAX_BATCH:
                    return None
                batch *= count
        if "width" in inputs and "height" in inputs:
            width = _number(graph, inputs["width"], MAX_SIZE)
            height = _number(graph, inputs["height"], MAX_SIZE)
            return None if width is None or height is None else (width, height, batch)
    return None


def _number(graph: Graph, value: Any, limit: int) -> int | None:
    """`value`, or the number in the node that it links to, if it is an integer from 1 to `limit`."""
    for _ in range(len(graph) + 1):
        if not _is_link(value):
            break
        inputs = _inputs(_linked(graph, value) or {})
        value = next((inputs[name] for name in _VALUE_INPUTS if name in inputs), None)
    return value if _is_int(value) and 1 <= value <= limit else None


def _nodes(graph: Graph) -> Iterator[Mapping[str, Any]]:
    return (cast("Mapping[str, Any]", node) for node in graph.values() if isinstance(node, dict))


def _class(node: Mapping[str, Any]) -> Any:
    return node.get("class_type")


def _inputs(node: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return cast("Mapping[str, Any]", inputs) if isinstance(inputs, dict) else {}


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(cast("list[Any]", value)) == 2


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _linked(graph: Graph, link: Any) -> Mapping[str, Any] | None:
    """The node to which `link`, `[id, output]`, leads; None if there is none."""
    if not _is_link(link) or not isinstance(link[0], str):
        return None
    node = graph.get(link[0])
    return cast("Mapping[str, Any]", node) if isinstance(node, dict) else None
