"""The saved result, the inputs it depends on, and the names of the GPUs."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.model.benchmark_store import (
    FILE_NAME,
    MAX_SHAPE_DEPTH,
    OLD_FILE_NAME,
    BenchmarkInputs,
    Result,
    gpus,
    load,
    payload_shape,
    save,
)

INPUTS = BenchmarkInputs(
    handler="workers.hello_world.GenerateHandler",
    endpoint="/generate",
    concurrency=None,
    runs=8,
    model_url="http://127.0.0.1:5001",
    model_name="tiny",
    gpus=("NVIDIA H100", "NVIDIA H100"),
    payload_shape={"inputs": "str"},
)


def write(directory: Path, text: str | bytes, name: str = FILE_NAME) -> None:
    (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_saved_result_is_used_for_the_same_inputs(tmp_path: Path) -> None:
    assert load(tmp_path, INPUTS) is None
    save(tmp_path, INPUTS, Result(perf=12.5))
    assert load(tmp_path, replace(INPUTS)) == Result(perf=12.5)
    save(tmp_path, INPUTS, Result(perf=13.5))
    assert load(tmp_path, INPUTS) == Result(perf=13.5)
    assert names(tmp_path) == [FILE_NAME]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"handler": "workers.hello_world.StreamHandler"}, "handler"),
        ({"endpoint": "/generate/stream"}, "endpoint"),
        ({"concurrency": 4}, "concurrency"),
        ({"runs": 3}, "runs"),
        ({"model_url": "http://127.0.0.1:5002"}, "model_url"),
        ({"model_name": "large"}, "model_name"),
        ({"gpus": ("NVIDIA H100",)}, "gpus"),
        ({"gpus": ("NVIDIA H200", "NVIDIA H200")}, "gpus"),
        ({"gpus": ()}, "gpus"),
        ({"payload_shape": {"inputs": ["str"]}}, "payload_shape"),
        ({"gpus": (), "model_name": "large"}, "gpus, model_name"),
    ],
)
def test_a_result_of_other_inputs_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], name: str
) -> None:
    caplog.set_level(logging.INFO)
    save(tmp_path, INPUTS, Result(perf=12.5))
    changed = replace(INPUTS, **change)
    assert load(tmp_path, changed) is None
    assert caplog.messages == [f"benchmark: measuring again, since these inputs changed: {name}"]
    assert changed.key() != INPUTS.key()


def test_an_input_that_an_older_version_did_not_know_is_a_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    save(tmp_path, INPUTS, Result(perf=12.5))
    saved = json.loads((tmp_path / FILE_NAME).read_text())
    del saved["inputs"]["gpus"]
    saved["inputs"]["driver"] = "1.0"
    write(tmp_path, json.dumps(saved))
    assert load(tmp_path, INPUTS) is None
    assert caplog.messages == ["benchmark: measuring again, since these inputs changed: driver, gpus"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "12.5",
        b"\xff\xfe\x00",
        "[" * 100_000,
        '{"perf": 12.5}',
        '{"perf": 12.5, "inputs": []}',
        *(
            '{"inputs": {}, "perf": ' + perf + "}"
            for perf in ("0", "-1", "NaN", "Infinity", "true", '"12"', "null", "1" + "0" * 400)
        ),
    ],
)
def test_a_file_of_something_else_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | bytes
) -> None:
    write(tmp_path, text)
    write(tmp_path, "99", OLD_FILE_NAME)
    assert load(tmp_path, INPUTS) is None
    assert caplog.messages == [f"{tmp_path / FILE_NAME} is ignored: it holds no benchmark result"]


def test_a_file_that_cannot_be_read_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).mkdir()
    write(tmp_path, "99", OLD_FILE_NAME)
    assert load(tmp_path, INPUTS) is None
    assert len(caplog.messages) == 1
    assert f"{tmp_path / FILE_NAME} is ignored: it can't be read" in caplog.text


@pytest.mark.parametrize(("text", "perf"), [("123.5", 123.5), (" 7\n", 7.0), ("1e3", 1000.0)])
def test_a_bare_number_of_another_worker_is_used(tmp_path: Path, text: str, perf: float) -> None:
    write(tmp_path, text, OLD_FILE_NAME)
    assert load(tmp_path, INPUTS) == Result(perf=perf)
    save(tmp_path, INPUTS, Result(perf=12.5))
    assert load(tmp_path, INPUTS) == Result(perf=12.5)


@pytest.mark.parametrize("text", ["", "fast", "nan", "inf", "0", "-3", "1e999", b"\xff"])
def test_a_malformed_bare_number_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | bytes
) -> None:
    write(tmp_path, text, OLD_FILE_NAME)
    assert load(tmp_path, INPUTS) is None
    assert caplog.messages == [f"{tmp_path / OLD_FILE_NAME} is ignored: it holds no number above 0"]


def test_a_directory_that_cannot_be_written_only_causes_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "absent", INPUTS, Result(perf=12.5))
    (tmp_path / FILE_NAME).mkdir()
    save(tmp_path, INPUTS, Result(perf=12.5))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert names(tmp_path) == [FILE_NAME], "a temporary file was left"


def test_a_new_result_replaces_the_older_one_completely(tmp_path: Path) -> None:
    save(tmp_path, INPUTS, Result(perf=12.5))
    before = tmp_path / "before"
    before.mkdir()
    os.link(tmp_path / FILE_NAME, before / FILE_NAME)
    save(tmp_path, INPUTS, Result(perf=13.5))
    assert load(before, INPUTS) == Result(perf=12.5)
    assert load(tmp_path, INPUTS) == Result(perf=13.5)


MEASURED = Result(
    perf=12.5,
    concurrency=64,
    spread=0.02,
    duration_s=9.5,
    measured_at=1.7e9,
    workload_per_unit=0.5,
    is_cut=True,
    is_unsure=True,
    versions={"python": "3.13.0"},
    served_model="tiny",
)


def test_all_of_a_result_is_saved(tmp_path: Path) -> None:
    save(tmp_path, INPUTS, MEASURED)
    assert load(tmp_path, INPUTS) == MEASURED
    assert MEASURED.remark == " (cut by its time limit, unsure)"
    assert Result(perf=1.0).remark == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("concurrency", "64"), ("is_cut", 1), ("versions", [])),
        *(("concurrency", 0), ("measured_at", -1), ("measured_at", 1e300), ("measured_at", float("nan"))),
    ],
)
def test_of_a_file_with_a_wrong_field_only_the_number_is_used(
    tmp_path: Path, name: str, value: object
) -> None:
    save(tmp_path, INPUTS, MEASURED)
    saved = json.loads((tmp_path / FILE_NAME).read_text())
    write(tmp_path, json.dumps({**saved, name: value}))
    assert load(tmp_path, INPUTS) == Result(perf=12.5)


def test_a_file_of_an_older_version_has_the_number_only(tmp_path: Path) -> None:
    save(tmp_path, INPUTS, MEASURED)
    saved = json.loads((tmp_path / FILE_NAME).read_text())
    write(tmp_path, json.dumps({"perf": 12.5, "inputs": saved["inputs"]}))
    assert load(tmp_path, INPUTS) == Result(perf=12.5)


# The payload's shape


@pytest.mark.parametrize(
    ("payload", "shape"),
    [
        (None, "null"),
        (True, "bool"),
        (1, "number"),
        (1.5, "number"),
        ("text", "str"),
        (b"bytes", "bytes"),
        ([], []),
        ([3, 1.5, "a", 2], ["number", "str"]),
        (({"b": 1}, {"b": 2}, {"a": None}), [{"a": "null"}, {"b": "number"}]),
        ({"b": {"d": 1, "c": "x"}, "a": []}, {"a": [], "b": {"c": "str", "d": "number"}}),
    ],
)
def test_a_shape_is_keys_and_types(payload: Any, shape: Any) -> None:
    assert payload_shape(payload) == shape
    assert json.loads(json.dumps(payload_shape(payload))) == shape


def test_a_shape_has_a_limited_depth() -> None:
    payload: Any = 1
    for _ in range(100_000):
        payload = [payload]
    assert json.dumps(payload_shape(payload)).count("[") == MAX_SHAPE_DEPTH


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
)


def turned(value: Any) -> Any:
    """Return the same payload in another order, with the items of every list twice."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {key: turned(members[key]) for key in reversed(list(members))}
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [turned(item) for item in reversed(items + items)]
    return value


@given(JSON)
def test_order_and_number_make_no_difference_to_a_shape(payload: Any) -> None:
    shape = payload_shape(payload)
    assert payload_shape(turned(payload)) == shape
    assert json.loads(json.dumps(shape)) == shape


# The GPUs


def fake_smi(directory: Path, script: str) -> list[str]:
    path = directory / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return [str(path)]


def test_each_gpu_is_named(tmp_path: Path) -> None:
    command = fake_smi(tmp_path, "echo NVIDIA H200; echo ' NVIDIA H200 '; echo; echo 'Tesla T4'")
    assert gpus(command) == ("NVIDIA H200", "NVIDIA H200", "Tesla T4")


def test_nvidia_smi_is_asked_for_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, 'echo "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus() == ("--query-gpu=name --format=csv,noheader",)


@pytest.mark.process
def test_without_an_answer_there_is_no_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert gpus([str(tmp_path / "absent")]) == ()
    assert gpus(fake_smi(tmp_path, "echo no driver; exit 9")) == ()
    assert not caplog.messages
    assert gpus(fake_smi(tmp_path, "exec cat /dev/zero >/dev/null"), limit_s=0.05) == ()
    assert "did not answer within 0.05 s" in caplog.text
