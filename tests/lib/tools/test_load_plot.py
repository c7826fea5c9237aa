from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lib.client import Target
from lib.tools.load_plot import KINDS, CannotPlot, check_plot, save_plot
from lib.tools.load_tally import OK, Sample
from lib.tools.load_test import LoadPlan, LoadTest

TARGET = Target("http://engine", "small", "key")
PNG = b"\x89PNG\r\n\x1a\n"


def load_test(*samples: Sample) -> LoadTest:
    test = LoadTest(LoadPlan(TARGET, "/generate", len(samples) or 1, 1.0), dict)
    for sample in samples:
        test.tally.add(sample)
    return test


def test_without_matplotlib_the_error_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CannotPlot, match=r"matplotlib is not installed: pip install 'pyworker\[plot\]'"):
        check_plot(tmp_path / "out.png")


@pytest.mark.parametrize("name", ["out.txt", "out", ""])
def test_an_unknown_file_type_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CannotPlot, match=r"must end in one of .pdf, .png, .svg"):
        check_plot(tmp_path / name)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "folder.png", tmp_path / "missing" / "out.png"):
        with pytest.raises(CannotPlot, match="cannot be written"):
            check_plot(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "samples",
    [
        (),
        (Sample(0.0, 0.0, 5.0, "http://a", "HTTP 429", ended_s=0.5),),
        tuple(Sample(n / 10, 0.0, 5.0, "http://a", OK, "", 0.0, 0.1, n / 50) for n in range(50)),
    ],
    ids=["nothing", "a failure", "some"],
)
def test_any_number_of_requests_can_be_plotted(
    kind: str, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib.figure")
    path = tmp_path / f"out{kind}"
    check_plot(path)
    save_plot(load_test(*samples), path)

    assert path.stat().st_size > 5_000
    assert kind != ".png" or path.read_bytes().startswith(PNG)


def test_a_failure_to_write_the_plot_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib.figure")
    (tmp_path / "out.png").mkdir()
    with pytest.raises(CannotPlot, match="cannot be written: Is a directory"):
        save_plot(load_test(), tmp_path / "out.png")
