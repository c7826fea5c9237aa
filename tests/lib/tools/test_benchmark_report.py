"""The report's text, for measurements of each kind."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib.model.benchmark import Measurement, TriedLevel
from lib.model.benchmark_store import BenchmarkInputs, Result
from lib.runtime.settings import Settings
from lib.tools.benchmark_report import chart_lines, conclusions, print_report
from lib.tools.benchmark_run import BenchmarkReport

MEASURED = Measurement(
    perf=1404.0,
    concurrency=64,
    spread=0.012,
    duration_s=18.3,
    succeeded=124,
    failed=0,
    last_message="",
    levels=(TriedLevel(1, 62.0, 1.0), TriedLevel(8, 480.5, 0.03), TriedLevel(64, 1404.0, 0.012)),
)
MAX_PERF = "max_perf to report: 1,404 workload/s (± 1.2 %), with 64 in flight."
NOT_SAVED = "No result is saved: the worker's next start measures anew. --save would save this one."
LONGER = "Set BENCHMARK_TARGET_S higher than 20 s to measure for longer."


def report(saved: Result | None = None, is_saved: bool = False, **changed: Any) -> BenchmarkReport:
    """The report of `MEASURED` with `changed` fields."""
    measured = replace(MEASURED, **changed)
    inputs = BenchmarkInputs("Bench", "/generate", None, 8, "http://127.0.0.1:5001", "", (), None)
    return BenchmarkReport(
        worker="vllm",
        settings=Settings(container_id=0, public_url=""),
        inputs=inputs,
        measured=measured,
        result=Result(perf=measured.perf, concurrency=measured.concurrency),
        saved=saved,
        directory=Path("/models"),
        is_saved=is_saved,
    )


def test_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(), as_json=False, with_plot=False)
    assert capsys.readouterr().out.splitlines() == [
        "vllm at http://127.0.0.1:5001/generate: measured for 18.3 s, 124 requests succeeded, none failed",
        "",
        "   in flight    workload/s",
        "           1            62  one request alone",
        "           8           480  ± 3.0 %",
        "          64         1,404  ± 1.2 %  best",
        "",
        MAX_PERF,
        NOT_SAVED,
    ]


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        (
            {"is_cut": True},
            "It is cut: BENCHMARK_TIME_LIMIT_S, 300 s, ended the benchmark. A worker measures it anew when "
            "it has no requests.",
        ),
        (
            {"is_unsure": True},
            "It is unsure: there was no time to try another number in flight that may give more. " + LONGER,
        ),
        (
            {"is_unsure": True, "failed": 2, "last_message": "500: CUDA\nerror"},
            "2 of 126 requests failed, the last with: 500: CUDA error",
        ),
    ],
)
def test_each_doubt_is_a_sentence(changed: dict[str, Any], doubt: str) -> None:
    first, *doubts, last = conclusions(report(**changed))
    assert (first, last) == (MAX_PERF, NOT_SAVED)
    assert doubts[-1] == doubt


def test_a_result_that_is_known_badly_is_unsure() -> None:
    _, doubt, _ = conclusions(report(spread=0.25, is_unsure=True))
    assert doubt == f"It is unsure: it is known to ± 25.0 % and should be to ± 10 %. {LONGER}"
    _, doubt, _ = conclusions(report(spread=1.0, is_unsure=True))
    assert doubt == f"It is unsure: it rests on too few requests. {LONGER}"


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (Result(perf=1418.0, concurrency=64), "1,418 workload/s (+1.0 %), which this confirms."),
        (
            Result(perf=702.0, concurrency=64, measured_at=1_700_000_000.0),
            "702 workload/s (-50.0 %), and measures anew once it has no requests, as that is off by more",
        ),
        (Result(perf=702.0), "702 workload/s (-50.0 %), which it does not verify."),
    ],
)
def test_a_saved_result_is_compared(saved: Result, said: str) -> None:
    *_, last = conclusions(report(saved))
    assert last.startswith("The worker's next start reports the saved result")
    assert (" of 2023-11-1" in last) == (saved.measured_at > 0)
    assert said in last
    assert last.endswith("--save would replace it.")


def test_a_result_that_was_saved_is_reported_next_time() -> None:
    *_, last = conclusions(report(Result(perf=1.0), is_saved=True))
    assert last == "It is saved in /models: the worker's next start reports it."


def test_an_output_with_few_characters_gets_them_only() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert "\n".join(chart_lines(report(), out)).isascii()
