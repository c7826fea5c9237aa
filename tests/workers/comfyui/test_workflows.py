from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.comfyui.workflows import default_workflow, fill, graph_problem, reseeded

TEMPLATE = {
    "1": {"class_type": "Text", "inputs": {"text": "{{PROMPT}}", "other": "before {{PROMPT}} after"}},
    "2": {"class_type": "Sampler", "inputs": {"seed": "{{SEED}}", "link": ["1", 0], "name": "s{{SEED}}"}},
}


@given(
    st.text()
    | st.lists(
        st.sampled_from(["{{PROMPT}}", "{{", "}}", "SEED", "{{seed}}", "__RANDOM_INT__", '"', "\\", "a"])
    ).map("".join)
)
@example('"}, "9": {"class_type": "Evil"}, "x": {"a": "')
@example("line\nbreak \\ {{SEED}} {{PROMPT}} __RANDOM_INT__ ünïcödé 狐\ud800")
def test_any_prompt_arrives_unchanged(prompt: str) -> None:
    graph = fill(TEMPLATE, {"PROMPT": prompt, "SEED": 7})

    assert graph["1"]["inputs"] == {"text": prompt, "other": f"before {prompt} after"}
    assert graph["2"]["inputs"] == {"seed": 7, "link": ["1", 0], "name": "s7"}
    assert set(graph) == {"1", "2"}
    assert json.loads(json.dumps(graph)) == graph


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.text()))
def test_a_string_of_one_placeholder_becomes_the_value_with_its_type(value: Any) -> None:
    filled = fill(["{{X}}"], {"X": value})[0]

    assert (filled, type(filled)) == (value, type(value))


def test_names_are_compared_without_case_and_unknown_ones_stay() -> None:
    assert fill("{{width}}x{{Height}} {{unknown}} {{}} {{ width }}", {"WIDTH": 5, "HEIGHT": True}) == (
        "5xtrue {{unknown}} {{}} {{ width }}"
    )


def test_keys_are_not_filled_in() -> None:
    assert fill({"{{X}}": "__RANDOM_INT__{{X}}"}, {"X": 1}).keys() == {"{{X}}"}


def test_random_integers_differ_and_are_numbers_if_they_are_the_whole_string() -> None:
    numbers = fill(["__RANDOM_INT__"] * 8, {})

    assert len(set(numbers)) == 8
    assert all(isinstance(number, int) and 0 <= number < 2**32 for number in numbers)
    text = fill("seed-__RANDOM_INT__-__RANDOM_INT__", {}).split("-")
    assert text[0] == "seed"
    assert all(part.isdigit() for part in text[1:])


def test_the_template_is_not_changed() -> None:
    before = json.dumps(TEMPLATE)
    fill(TEMPLATE, {"PROMPT": "x", "SEED": 1})
    assert json.dumps(TEMPLATE) == before


def test_seeds_are_replaced() -> None:
    graph = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 1, "link": ["2", 0]}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
        "3": {"class_type": "Other", "inputs": {"seed": ["2", 0]}},
        "4": {"class_type": "Other"},
    }
    new = reseeded(graph)

    assert new["1"]["inputs"]["seed"] != 1
    assert new["2"]["inputs"]["noise_seed"] != 1
    assert new["1"]["inputs"]["steps"] == 1
    assert new["3"] == graph["3"]


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_the_default_workflows_have_all_placeholders(model: str) -> None:
    template = default_workflow(model)
    text = json.dumps(template)
    graph = fill(template, {"PROMPT": "p", "WIDTH": 1, "HEIGHT": 2, "STEPS": 3, "SEED": 4})

    assert all(f"{{{{{name}}}}}" in text for name in ("PROMPT", "WIDTH", "HEIGHT", "STEPS", "SEED"))
    assert "{{" not in json.dumps(graph)
    assert graph_problem(graph) is None
    links: list[Any] = [v for n in graph.values() for v in n["inputs"].values() if isinstance(v, list)]
    assert all(link[0] in graph for link in links)
    assert [n["class_type"] for n in graph.values()].count("SaveImage") == 1


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("graph", "problem"),
    [
        (None, "must be an object"),
        ([], "must be an object"),
        ({"nodes": []}, "node 'nodes' must be an object"),
        ({"1": {"inputs": []}}, "inputs of node '1' must be an object"),
        ({"1": {"inputs": {"a": nested(900)}}}, "is nested too deeply"),
    ],
)
def test_invalid_graphs(graph: Any, problem: str) -> None:
    assert (graph_problem(graph) or "").startswith(problem)


def test_valid_graphs() -> None:
    assert graph_problem({}) is None
    assert graph_problem({"1": {"class_type": "A", "inputs": {"a": nested(20)}}, "2": {}}) is None
