from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.comfyui.graphs import image, node
from workers.comfyui.workflows import default_workflow, fill
from workers.comfyui.workload import graph_work, image_workload, relative_work


@pytest.mark.parametrize(
    ("model", "width", "height", "steps", "workload"),
    [
        ("flux", 1024, 1024, 28, 4600.0),
        ("flux", 512, 512, 28, 1523.57),
        ("flux", 1024, 1024, 14, 2938.94),
        ("flux", 1025, 1024, 28, 4600.0 * (85 + 175 * 6) / 785),
        ("sd3", 1024, 1024, 28, 1200.0),
        ("sd3", 1, 1, 28, 1200.0 * 260 / 785),
    ],
)
def test_the_workload_of_an_image(model: str, width: int, height: int, steps: int, workload: float) -> None:
    assert image_workload(model, width, height, steps) == pytest.approx(workload, abs=0.005)


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_the_work_of_the_default_workflows(model: str) -> None:
    graph = fill(default_workflow(model), {"WIDTH": 768, "HEIGHT": 1024, "STEPS": 14})

    assert graph_work(graph) == relative_work(768, 1024, 14)


def with_inputs(node_id: str, **inputs: Any) -> dict[str, Any]:
    graph = image(size=1024, steps=28)
    graph[node_id]["inputs"] |= inputs
    return graph


@pytest.mark.parametrize(
    ("graph", "work"),
    [
        (image(size=1024, steps=28), 1.0),
        (with_inputs("5", batch_size=4), 4.0),
        (
            {**with_inputs("5", width=["7", 0]), "7": node("PrimitiveInt", value=512)},
            relative_work(512, 1024, 28),
        ),
        (
            {**with_inputs("3", steps=["7", 0]), "7": node("INTConstant", value=14)},
            relative_work(1024, 1024, 14),
        ),
        (
            {
                **with_inputs("3", latent_image=["7", 0]),
                "7": node("RepeatLatentBatch", samples=["5", 0], amount=3),
            },
            3.0,
        ),
        (
            {
                **image(size=512, steps=20),
                "11": node("KSampler", steps=28, latent_image=["12", 0]),
                "12": node("LatentUpscale", samples=["3", 0], width=1024, height=1024),
            },
            relative_work(512, 512, 20) + 1.0,
        ),
    ],
)
def test_the_work_of_a_graph(graph: dict[str, Any], work: float) -> None:
    assert graph_work(graph) == pytest.approx(work)


@pytest.mark.parametrize(
    ("first", "end", "steps"), [(0, 10000, 28), (0, 20, 20), (20, 10000, 8), (-5, 14, 14)]
)
def test_the_steps_of_an_advanced_sampler(first: int, end: int, steps: int) -> None:
    graph = with_inputs("3", start_at_step=first, end_at_step=end)
    graph["3"]["class_type"] = "KSamplerAdvanced"

    assert graph_work(graph) == pytest.approx(relative_work(1024, 1024, steps))


@pytest.mark.parametrize(
    "graph",
    [
        {},
        {"1": node("EmptyImage", width=64, height=64)},
        with_inputs("5", width="wide"),
        with_inputs("5", width=True),
        with_inputs("5", width=16385),
        with_inputs("5", batch_size=4097),
        with_inputs("5", batch_size=0),
        with_inputs("3", steps=10**400),
        with_inputs("3", steps=0),
        with_inputs("3", latent_image=["3", 0]),
        with_inputs("3", latent_image=["nowhere", 0]),
        with_inputs("3", latent_image="none"),
        {**with_inputs("3", steps=["7", 0]), "7": node("PrimitiveInt", value=["7", 0])},
        {"1": node("SamplerCustomAdvanced", latent_image=["2", 0]), "2": image()["5"]},
        {**with_inputs("3", latent_image=["7", 0]), "7": node("VAEEncode", pixels=["8", 0])},
        {"1": "no node", "2": {"class_type": "KSampler"}, "3": {"class_type": "KSampler", "inputs": []}},
    ],
)
def test_graphs_of_unknown_work(graph: dict[str, Any]) -> None:
    assert graph_work(graph) is None


LINKS = st.lists(st.sampled_from(["1", "2", "3", 0, None]), max_size=3)
VALUES = st.one_of(
    st.integers(), st.sampled_from(["", "1", "wide"]), st.none(), st.booleans(), st.floats(), LINKS
)
NAMES = st.sampled_from(
    ["steps", "width", "height", "batch_size", "latent_image", "samples", "sigmas", "value"]
)
CLASSES = st.sampled_from(["KSampler", "KSamplerAdvanced", "SamplerCustom", "EmptyLatentImage", "Other"])
NODES = st.fixed_dictionaries({"class_type": CLASSES, "inputs": st.dictionaries(NAMES, VALUES)})


GRAPHS = st.dictionaries(st.sampled_from(["1", "2", "3"]), st.one_of(NODES, VALUES))
# Graphs that have a work, at the bounds of their numbers or with a part replaced.
SIZES = st.sampled_from([1, 8, 512, 768, 1024, 16384, 16385])


def near_graph(steps: int, width: int, height: int, batch: int, others: dict[str, Any]) -> dict[str, Any]:
    sampler = node("KSampler", steps=steps, latent_image=["2", 0])
    size = node("EmptyLatentImage", width=width, height=height, batch_size=batch)
    return {"1": sampler, "2": size, **others}


NEAR_GRAPHS = st.builds(
    near_graph,
    st.integers(1, 200) | st.sampled_from([0, 10_000]),
    SIZES,
    st.sampled_from([64, 512, 1024]),
    st.sampled_from([1, 1, 2, 4096, 0, 4097]),
    st.just(dict[str, Any]()) | GRAPHS,
)


@given(GRAPHS | NEAR_GRAPHS)
def test_any_graph_has_a_finite_work_or_none(graph: dict[str, Any]) -> None:
    work = graph_work(graph)

    assert work is None or 0 < work < 1e13
