"""The graphs of the fake ComfyUI: its nodes, its checks, the order of execution.

Owns the answers to refused prompts, which are like those of ComfyUI 0.3.64.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, cast

from aiohttp import web

# The nodes that load an input file, and the fields that name it.
LOADERS = {"LoadImage": "image", "LoadImageMask": "image", "LoadAudio": "audio", "VHS_LoadVideo": "video"}
# The existing nodes and their required inputs.
NODES: dict[str, tuple[str, ...]] = {
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "KSampler": ("seed", "steps", "latent_image"),
    "SamplerCustomAdvanced": ("noise", "guider", "sampler", "sigmas", "latent_image"),
    "RegexReplace": ("regex_pattern",),
    "Hold": (),
    "Text": ("text",),
    **{name: (field,) for name, field in LOADERS.items()},
    **dict.fromkeys(
        (
            *("CLIPTextEncode", "VAEDecode", "VAELoader", "DualCLIPLoader", "UNETLoader", "KSamplerSelect"),
            *("BasicScheduler", "BasicGuider", "RandomNoise", "FluxGuidance", "ModelSamplingFlux"),
            *("CheckpointLoaderSimple", "ModelSamplingSD3", "PrimitiveInt"),
        ),
        (),
    ),
}
OUTPUT_NODES: dict[str, tuple[str, ...]] = {
    "SaveImage": ("images",),
    "PreviewImage": ("images",),
    "PreviewAny": ("source",),
    "Preview3D": ("model_file",),
    "SaveGLB": ("mesh",),
    "ShowValues": ("values",),
    "VHS_VideoCombine": ("images",),
    "SaveAudio": ("audio",),
    "SaveImageWebsocket": ("images",),
    "SaveLarge": ("size_mib",),
}


def validate(graph: dict[str, Any], inputs: Collection[str]) -> tuple[web.Response | None, dict[str, Any]]:
    for name, node in graph.items():
        known = node.get("class_type")
        if known is None:
            what = "Cannot execute because a node is missing the class_type property."
            return invalid("invalid_prompt", what, f"Node ID '#{name}'"), {}
        if known not in NODES and known not in OUTPUT_NODES:
            what = f"Cannot execute because node {known} does not exist."
            return invalid("invalid_prompt", what, f"Node ID '#{name}'"), {}
    outputs = [name for name, node in graph.items() if node["class_type"] in OUTPUT_NODES]
    if not outputs:
        return invalid("prompt_no_outputs", "Prompt has no outputs", ""), {}
    errors: dict[str, Any] = {}
    good: list[str] = []
    for output in outputs:
        wrong = {name: _error(graph[name], output, inputs) for name in in_order(graph, [output])}
        wrong = {name: error for name, error in wrong.items() if error is not None}
        errors.update(wrong)
        if not wrong:
            good.append(output)
    if not good:
        what = "Prompt outputs failed validation"
        return invalid("prompt_outputs_failed_validation", what, "", errors), errors
    for output in outputs:
        if output not in good:
            del graph[output]
    return None, errors


def loaded_name(node: dict[str, Any]) -> str:
    """The input file that a loader node names."""
    return node["inputs"][LOADERS[node["class_type"]]].removesuffix(" [input]")


def _error(node: dict[str, Any], output: str, inputs: Collection[str]) -> dict[str, Any] | None:
    kind = node["class_type"]
    field = LOADERS.get(kind, "")
    if field in node["inputs"] and loaded_name(node) not in inputs:
        wrong = {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": f"{field} - Invalid image file: {node['inputs'][field]}",
            "extra_info": {"input_name": field},
        }
        return {"errors": [wrong], "dependent_outputs": [output], "class_type": kind}
    required = {**NODES, **OUTPUT_NODES}[kind]
    absent = [name for name in required if name not in node["inputs"]]
    if not absent:
        return None
    what = {"type": "required_input_missing", "message": "Required input is missing"}
    errors = [{**what, "details": name, "extra_info": {"input_name": name}} for name in absent]
    return {"errors": errors, "dependent_outputs": [output], "class_type": kind}


def invalid(kind: str, message: str, details: str, errors: dict[str, Any] | None = None) -> web.Response:
    error: dict[str, Any] = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return web.json_response({"error": error, "node_errors": errors or {}}, status=400)


def error_of(node: dict[str, Any]) -> dict[str, Any]:
    return {
        "exception_message": "missing ), unterminated subpattern at position 0\n",
        "exception_type": "re.error",
        "traceback": ['  File "execution.py", line 1, in execute\n'],
        "current_inputs": {name: [value] for name, value in node["inputs"].items()},
        "current_outputs": [],
    }


def in_order(graph: dict[str, Any], outputs: list[str]) -> list[str]:
    """The nodes on which `outputs` depend, each after its own dependencies."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        for value in graph[name]["inputs"].values():
            if isinstance(value, list) and value and cast("list[Any]", value)[0] in graph:
                visit(cast("list[Any]", value)[0])
        order.append(name)

    for output in outputs:
        visit(output)
    return order


def key(graph: dict[str, Any], name: str) -> str:
    """The cache key of a node's output."""
    return json.dumps([name, *(graph[other] for other in in_order(graph, [name]))], sort_keys=True)
