from __future__ import annotations

from pathlib import Path

import pytest

from lib.tools.scaffold import PLACEHOLDER, TEMPLATE, CannotMake, make_worker, name_problem


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-model", "for instance my_model"),
        ("My Model", "for instance my_model"),
        ("3d", "no digit first"),
        ("", "not a Python module name"),
        ("../up", "for instance up"),
        ("modèle", "for instance mod_le"),
        ("class", "is a keyword of Python"),
        ("json", "a module that Python or PyWorker imports"),
        ("lib", "a module that Python or PyWorker imports"),
    ],
)
def test_names_that_no_module_can_have_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CannotMake, match=message):
        make_worker(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CannotMake, match="mine exists already"):
        make_worker("mine", tmp_path)
    assert not list((tmp_path / "mine").iterdir())


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CannotMake, match="No such file or directory"):
        make_worker("mine", tmp_path / "nowhere")


def test_every_file_of_the_template_is_copied_with_the_new_name(tmp_path: Path) -> None:
    made = make_worker("storyteller", tmp_path)
    assert {p.name for p in made} == {p.name for p in TEMPLATE.iterdir() if p.is_file()}
    texts = {p.name: p.read_text() for p in made}
    assert not [name for name, text in texts.items() if PLACEHOLDER in text]
    assert "pyworker run storyteller/worker.py --local" in texts["README.md"]


def test_the_worker_is_short_and_numbers_what_to_edit() -> None:
    worker = (TEMPLATE / "worker.py").read_text()
    assert worker.count("\n") < 40
    assert all(f"\n# {number}. " in worker for number in (1, 2, 3, 4))


def test_the_templates_own_name_is_valid() -> None:
    assert name_problem(PLACEHOLDER) is None
