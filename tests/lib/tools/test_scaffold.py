from __future__ import annotations

from pathlib import Path

import pytest

from lib.tools.scaffold import PLACEHOLDER, TEMPLATE, CannotMake, make_worker, wrong_name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-model", "my_model, for instance"),
        ("My Model", "my_model, for instance"),
        ("3d", "no digit first"),
        ("", "no name for Python"),
        ("../up", "up, for instance"),
        ("modèle", "no name for Python"),
        ("class", "a word of Python's own"),
        ("json", "a module that Python or PyWorker imports"),
        ("lib", "a module that Python or PyWorker imports"),
    ],
)
def test_names_that_no_folder_may_have_are_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CannotMake, match=said.replace("(", r"\(")):
        make_worker(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CannotMake, match="mine is there already"):
        make_worker("mine", tmp_path)
    assert not list((tmp_path / "mine").iterdir())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotMake, match="No such file or directory"):
        make_worker("mine", tmp_path / "nowhere")


def test_every_file_of_the_template_is_made_under_the_new_name(tmp_path: Path) -> None:
    made = make_worker("storyteller", tmp_path)
    assert {p.name for p in made} == {p.name for p in TEMPLATE.iterdir() if p.is_file()}
    texts = {p.name: p.read_text() for p in made}
    assert not [name for name, text in texts.items() if PLACEHOLDER in text]
    assert "pyworker run storyteller/worker.py --local" in texts["README.md"]


def test_the_worker_is_short_and_says_what_to_edit() -> None:
    worker = (TEMPLATE / "worker.py").read_text()
    assert worker.count("\n") < 40
    assert all(f"\n# {number}. " in worker for number in (1, 2, 3, 4))


def test_its_own_name_is_one_that_may_be_used() -> None:
    assert wrong_name(PLACEHOLDER) is None
