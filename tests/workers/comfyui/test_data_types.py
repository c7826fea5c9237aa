from __future__ import annotations

from typing import Any

import pytest

from lib.data_types import JsonDataException
from tests.workers.comfyui.graphs import image
from workers.comfyui.data_types import CustomWorkflowInput, GenerateInput, PromptInput, ViewQuery
from workers.comfyui.workload import graph_work, image_workload


def problems_of(cls: Any, message: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(JsonDataException) as raised:
        cls.from_json_msg(message)
    return raised.value.message


def test_a_generate_request_is_passed_on_unchanged() -> None:
    message = {"input": {"modifier": "A", "anything": [1, None]}, "other": {"x": 1}}

    assert GenerateInput.from_json_msg(message).generate_payload_json() == message
    assert problems_of(GenerateInput, {}) == {"input": "missing parameter"}
    assert problems_of(GenerateInput, {"input": []}) == {"input": "must be an object"}


def generate(graph: Any, benchmark: dict[str, Any] | None) -> float:
    payload = GenerateInput.from_json_msg({"input": {"workflow_json": graph}})
    payload.benchmark_work = None if benchmark is None else graph_work(benchmark)
    return payload.count_workload()


def test_a_generate_request_counts_relative_to_the_benchmark() -> None:
    assert generate(image(), image()) == 100.0
    assert generate(image(size=1024, steps=28), image()) == pytest.approx(100 * 785 * 23.65 / (260 * 18.77))
    assert generate(image(), None) == 100.0
    assert generate({"1": "no node"}, image()) == 100.0
    assert generate("no graph", image()) == 100.0
    assert GenerateInput({"modifier": "A"}).count_workload() == 100.0


def test_a_prompt_counts_in_tokens() -> None:
    payload = PromptInput.from_json_msg({"prompt": "a fox"})
    assert payload.count_workload() == 4600.0
    payload.model = "sd3"
    assert payload.count_workload() == 1200.0


def test_a_prompt_without_a_seed_gets_a_random_one() -> None:
    payload = PromptInput.from_json_msg({"prompt": "a fox", "seed": None})
    seeds = {payload.graph()["25"]["inputs"]["noise_seed"] for _ in range(8)}

    assert len(seeds) == 8
    assert PromptInput("x", seed=0).graph()["25"]["inputs"]["noise_seed"] == 0


def test_every_wrong_field_of_a_prompt_is_named() -> None:
    message = {"prompt": 1, "width": 8, "height": 10**9, "steps": 0, "seed": -1}

    assert problems_of(PromptInput, message) == {
        "prompt": "must be a string",
        "width": "must be from 16 to 16384",
        "height": "must be from 16 to 16384",
        "steps": "must be from 1 to 10000",
        "seed": f"must be from 0 to {2**64 - 1}",
    }
    assert problems_of(PromptInput, {"width": 1.5}) == {
        "prompt": "missing parameter",
        "width": "must be an integer",
    }


def test_clients_can_not_set_the_workers_own_fields() -> None:
    message: dict[str, Any] = {
        "prompt": "x",
        "model": "sd3",
        "workflow": {},
        "input": {},
        "benchmark_work": 1e9,
        "uploads": False,
    }

    assert PromptInput.from_json_msg(message).model == "flux"
    assert CustomWorkflowInput.from_json_msg(message).model == "flux"
    assert GenerateInput.from_json_msg(message).benchmark_work is None


def test_a_custom_workflow_counts_the_work_of_its_graph() -> None:
    graph = image()
    graph["5"]["inputs"] |= {"width": "{{WIDTH}}", "height": "{{HEIGHT}}"}
    payload = CustomWorkflowInput.from_json_msg(
        {"workflow": graph, "custom_fields": {"width": 1024, "Height": 512}}
    )

    assert payload.count_workload() == pytest.approx(image_workload("flux", 1024, 512, 20))
    assert CustomWorkflowInput({"1": {"class_type": "A"}}).count_workload() == 4600.0
    assert CustomWorkflowInput.for_test().count_workload() == pytest.approx(
        image_workload("flux", 512, 512, 20)
    )


def test_every_wrong_field_of_a_custom_workflow_is_named() -> None:
    message: dict[str, Any] = {"workflow": {"1": []}, "custom_fields": {"a": 1, "b": [], "c": None}}

    wrong = problems_of(CustomWorkflowInput, message)
    assert wrong["workflow"].startswith("node '1' must be an object")
    assert set(wrong["custom_fields"]) == {"b", "c"}
    assert set(problems_of(CustomWorkflowInput, {"custom_fields": []})) == {"workflow", "custom_fields"}


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({}, {"filename"}),
        ({"filename": ""}, {"filename"}),
        ({"filename": "../x.png"}, {"filename"}),
        ({"filename": ".."}, {"filename"}),
        ({"filename": "a\\b"}, {"filename"}),
        ({"filename": "a\0"}, {"filename"}),
        ({"filename": "a", "subfolder": "/etc"}, {"subfolder"}),
        ({"filename": "a", "subfolder": "a/../b"}, {"subfolder"}),
        ({"filename": "a", "subfolder": "a//b"}, {"subfolder"}),
        ({"filename": "a", "type": "models"}, {"type"}),
        ({"filename": 1, "subfolder": 2, "type": 3}, {"filename", "subfolder", "type"}),
    ],
)
def test_view_refuses_paths(message: dict[str, Any], wrong: set[str]) -> None:
    assert set(problems_of(ViewQuery, message)) == wrong


def test_a_view_query() -> None:
    payload = ViewQuery.from_json_msg(
        {"filename": "a..b.png", "subfolder": "x/y", "type": "temp", "preview": "webp"}
    )

    assert payload == ViewQuery("a..b.png", "x/y", "temp")
    assert payload.count_workload() == 0.0


@pytest.mark.parametrize("cls", [GenerateInput, PromptInput, CustomWorkflowInput])
def test_payloads_for_tests_are_valid_and_differ(cls: Any) -> None:
    payloads = [cls.for_test() for _ in range(4)]

    assert [cls.from_json_msg(p.generate_payload_json()) for p in payloads[:1]]
    assert len({str(p) for p in payloads}) == 4
