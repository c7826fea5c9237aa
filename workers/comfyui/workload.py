"""How much work an image is, and how much of it a workflow's graph asks for (workers.md, comfyui).

Owns the formula, and the reading of size, steps and batch out of a graph in API format. Which route counts
in which unit is in data_types.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, cast

Graph = Mapping[str, Any]

# Seconds that the standard image takes on an RTX 4090, which is to rate 200 tokens/s.
SECONDS_ON_4090: Mapping[str, float] = {"flux": 23.0, "sd3": 6.0}
TOKENS_PER_S_ON_4090 = 200.0
STANDARD_SIZE = 1024
STANDARD_STEPS = 28

# ComfyUI's own limits: what lies outside is refused there, and must not count as work done at once.
MAX_SIZE = 16384
MAX_STEPS = 10000
MAX_BATCH = 4096

_TILE = 512
# Inputs that lead from a sampler to the empty latent image it begins with.
_LATENT_INPUTS = ("latent_image", "samples", "latent")
# Inputs in which nodes that only hold a number have it.
_VALUE_INPUTS = ("value", "int", "number", "Number")
_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")


def image_workload(model: str, width: int, height: int, steps: int) -> float:
    """The workload of one image in tokens; `model` is one of `SECONDS_ON_4090`."""
    return relative_work(width, height, steps) * TOKENS_PER_S_ON_4090 * SECONDS_ON_4090[model]


def relative_work(width: int, height: int, steps: int) -> float:
    """The work of one image, in standard images: 1024 by 1024 at 28 steps."""
    return _cost(width, height, steps) / _cost(STANDARD_SIZE, STANDARD_SIZE, STANDARD_STEPS)


def graph_work(graph: Graph) -> float | None:
    """The work that `graph` asks for, in standard images, over all of its samplers and their batches.

    None where a sampler's size or steps aren't told (an image of the user's, an unknown node), where they
    are outside of ComfyUI's limits, or where there is no sampler. Never raises: the graph is a client's.
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
    """How many steps `sampler` makes: its own, or its scheduler's."""
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
    """Width, height and number of the images that `sampler` works on."""
    batch, node = 1, sampler
    for _ in range(len(graph)):  # as long as no path without a circle is
        link = next((v for k, v in _inputs(node).items() if k in _LATENT_INPUTS and _is_link(v)), None)
        linked = _linked(graph, link)
        if linked is None:
            return None
        node, inputs = linked, _inputs(linked)
        for name in ("batch_size", "amount"):  # of an empty latent; of RepeatLatentBatch
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
    """`value`, or what the node that it links to holds, where that is an integer from 1 to `limit`."""
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
    """The node that `link` names, `[id, output]`."""
    if not _is_link(link) or not isinstance(link[0], str):
        return None
    node = graph.get(link[0])
    return cast("Mapping[str, Any]", node) if isinstance(node, dict) else None
