"""The worker in the code, and the variables that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.launch.worker_module import missing_variables, module_of, workers_in


def make(code: Path, *files: str) -> None:
    for file in files:
        (code / file).parent.mkdir(parents=True, exist_ok=True)
        (code / file).write_text("")


def test_a_worker_at_the_root_comes_first_then_the_folders_own(tmp_path: Path) -> None:
    assert module_of(tmp_path, "tgi") is None
    make(tmp_path, "workers/tgi/server.py", "workers/notes/README.md", "workers/abc/worker.py")
    assert (module_of(tmp_path, "tgi"), module_of(tmp_path, "")) == ("workers.tgi.server", None)
    assert workers_in(tmp_path) == "abc, tgi"
    make(tmp_path, "workers/tgi/worker.py")
    assert module_of(tmp_path, "tgi") == "workers.tgi.worker"
    make(tmp_path, "worker.py")
    assert module_of(tmp_path, "tgi") == module_of(tmp_path, "") == "worker"


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ("| `HF_TOKEN` | required | for models |", ["HF_TOKEN: missing: set it (for models)"]),
        ("| `HF_TOKEN`, `B` |required| x | y |", ["HF_TOKEN: missing: set it (x)"]),
        ("| `HF_TOKEN` | none | required |", []),
        ("| `SET` | required | x |", []),
        ("| route | required | workload, in tokens |", []),
        ("`HF_TOKEN` is required", []),
    ],
)
def test_variables_are_required_by_rows_of_the_readme(tmp_path: Path, row: str, missing: list[str]) -> None:
    make(tmp_path, "workers/tgi/server.py")
    (tmp_path / "workers" / "tgi" / "README.md").write_text(f"# TGI\n\n{row}\n")
    assert list(missing_variables(tmp_path, "workers.tgi.server", {"SET": "1"})) == missing


def test_comfyui_needs_a_workflow_and_no_other_worker_does(tmp_path: Path) -> None:
    def missing(module: str, **environ: str) -> list[str]:
        return list(missing_variables(tmp_path, module, environ))

    assert [each[:11] for each in missing("workers.comfyui.server")] == ["COMFY_MODEL"]
    assert missing("workers.comfyui.server", COMFY_MODEL="flux") == []
    assert missing("workers.comfyui.server", BENCHMARK_JSON_PATH="x") == []
    assert missing("worker") == []
    make(tmp_path, "workers/comfyui/misc/benchmark.json")
    assert missing("workers.comfyui.server") == []
