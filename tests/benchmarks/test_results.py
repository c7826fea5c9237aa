"""Medians, ratios and targets of figures that are given."""

from __future__ import annotations

import pytest

from benchmarks.frames import package_of
from benchmarks.loads import FULL, QUICK, chosen
from benchmarks.processes import ROOT
from benchmarks.report import markdown
from benchmarks.results import Results, Spread, ratio
from benchmarks.targets import targets


def results_of(**cpu_us: list[float]) -> Results:
    """The results of one load, `plain-32-url`, with these figures by subject and round."""
    (load,) = chosen(FULL, ["plain-32-url"])
    results = Results([load], list(cpu_us), 3, False, {"Python": "3.13"}, {"nginx": "it is not on PATH"})
    for subject, figures in cpu_us.items():
        for number, figure in enumerate(figures, 1):
            results.add(load, subject, number, {"cpu_us_per_request": figure})
    return results


def test_ratios_are_formed_round_by_round() -> None:
    results = results_of(official_worker=[100.0, 300.0, 200.0], worker=[10.0, 60.0, 10.0])
    found = results.ratio("plain-32-url", "cpu_us_per_request", "worker", "official_worker")
    assert found == Spread(0.1, 0.05, 0.2, (0.1, 0.2, 0.05))


def test_a_round_that_only_one_subject_has_or_without_a_divisor_gives_no_ratio() -> None:
    assert ratio({1: 1.0, 2: 2.0}, {2: 4.0, 3: 1.0}) == Spread(0.5, 0.5, 0.5, (0.5,))
    assert ratio({1: 1.0}, {1: 0.0}) is None
    assert ratio({1: 1.0}, {}) is None


@pytest.mark.parametrize(("worker_us", "met"), [(10.0, True), (20.0, False)])
def test_a_target_is_met_by_the_median(worker_us: float, met: bool) -> None:
    (target,) = targets(results_of(official_worker=[200.0] * 3, worker=[worker_us, worker_us, 150.0]))
    assert (target.limit_text, target.met) == ("1/12", met)


def test_the_results_file_has_machine_targets_figures_and_what_is_absent() -> None:
    text = markdown(results_of(official_worker=[200.0] * 3, worker=[10.0, 20.0, 30.0]))
    assert "| Python | 3.13 |" in text
    assert "| CPU a request ÷ the official worker's | 1/12 | 0.100 (0.050 to 0.150) | no |" in text
    assert "| CPU a request, µs | 200 (200 to 200) | 20 (10 to 30) | 0.100 (0.050 to 0.150) |" in text
    assert "- nginx was skipped: it is not on PATH." in text


def test_loads_are_chosen_by_group_or_name() -> None:
    large = ["large-in", "large-out"]
    assert [load.name for load in chosen(QUICK, ["large", "idle"])] == ["idle", "idle-few", *large]
    assert [load.name for load in chosen(QUICK, ["large-out"])] == ["large-out"]
    assert [load.name for load in QUICK] == [load.name for load in FULL]


@pytest.mark.parametrize(
    ("file", "name", "package"),
    [
        (str(ROOT / "lib" / "backend.py"), "_serve", "pyworker"),
        ("/venv/lib/python3.13/site-packages/yarl/_url.py", "build", "aiohttp"),
        ("/venv/lib/python3.13/site-packages/Crypto/Hash/SHA256.py", "new", "pycryptodome"),
        ("/usr/lib/python3.13/json/encoder.py", "encode", "json"),
        ("/usr/lib/python3.13/weakref.py", "get", "standard library"),
        ("~", "<method 'get' of 'multidict._multidict.CIMultiDictProxy' objects>", "aiohttp"),
        ("~", "<built-in method builtins.len>", "compiled"),
    ],
)
def test_a_function_belongs_to_a_package(file: str, name: str, package: str) -> None:
    assert package_of(file, name) == package
