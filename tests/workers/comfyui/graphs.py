"""Workflows for tests, of nodes that the fake ComfyUI has."""

from __future__ import annotations

from typing import Any

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def image(seed: int = 1, *, hold: bool = False, size: int = 512, steps: int = 20) -> Graph:
    """One image. With `hold`, it is made when the test releases it."""
    return {
        "3": node(
            "KSampler", seed=seed, steps=steps, latent_image=["5", 0], **({"wait": ["2", 0]} if hold else {})
        ),
        "5": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "8": node("VAEDecode", samples=["3", 0]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="test"),
        **({"2": node("Hold", nonce=seed)} if hold else {}),
    }


def failing() -> Graph:
    return {
        "1": node("RegexReplace", string="abc", regex_pattern="(", replace="x"),
        "2": node("PreviewAny", source=["1", 0]),
    }


def invalid() -> Graph:
    graph = image()
    del graph["5"]["inputs"]["width"]
    return graph
