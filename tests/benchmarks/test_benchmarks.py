"""The benchmarks run and report what they measured. Speed itself is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT

LIMIT_S = 110.0


def benchmark(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.one_python
def test_a_quick_run_reports_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    args = ("--quick", "--only", "direct,worker", "--loads", "plain", "--json", str(path))
    ended = benchmark(*args)
    assert ended.returncode == 0, ended.stderr
    assert "plain, 32 at once, `full` form" in ended.stdout
    figures: dict[str, Any] = json.loads(path.read_text())
    assert (figures["quick"], figures["rounds"]) == (True, 1)
    assert figures["subjects"] == ["direct", "worker"]
    assert (figures["skipped"], figures["failed"]) == ({}, [])
    assert {"date", "Python", "aiohttp", "uvloop", "nginx", "vastai"} <= set(figures["machine"])
    assert list(figures["loads"]) == ["plain-1-url", "plain-1-full", "plain-32-url", "plain-32-full"]
    for name, load in figures["loads"].items():
        throughput = {"requests_per_s"} if name.startswith("plain-32") else set[str]()
        assert set(load["figures"]) == {"cpu_us_per_request", "p50_us", "p99_us"} | throughput
        assert set(load["figures"]["cpu_us_per_request"]) == {"worker"}
        assert set(load["worker_ratios"]["p50_us"]) == {"direct"}
        assert set(load["added_p50_us"]) == {"worker"}
        for by_subject in load["figures"].values():
            for spread in by_subject.values():
                assert set(spread) == {"median", "low", "high", "rounds"}
                assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    # The targets compare with the official worker, which was not measured.
    assert [target["met"] for target in figures["targets"]] == [None] * 3


@pytest.mark.one_python
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("--only", "apache"),
            "no subject is called apache; there are direct, nginx, official_worker, worker",
        ),
        (("--loads", "plain,heavy"), "no load is called heavy; there are"),
        (("--quick", "--write"), "--write needs a run of all loads on all subjects"),
    ],
)
def test_wrong_arguments_are_refused(args: tuple[str, ...], message: str) -> None:
    ended = benchmark(*args)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(message)
