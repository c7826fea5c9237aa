"""Rules of the code that a reader relies on, as far as they can be counted."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FUNCTION_LINES = 60
MAX_BACKEND_LINES = 350
MAX_SHELL_LINES = 200
# A docstring begins with a verb, or with the noun that is returned.
RIDDLES = ("What", "How", "Who", "Whose", "Why", "Where", "When", "Which")
# Copied by `pyworker new`: their classes are examples, not names of the project.
TEMPLATES = "lib/tools/template/"

Function = ast.FunctionDef | ast.AsyncFunctionDef
SOURCES = [
    path for folder in ("lib", "workers", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
]


def parsed() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def documented(tree: ast.Module) -> Iterator[tuple[ast.AST, str, str]]:
    """Each module, class and function with a docstring: the node, its name and the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node, getattr(node, "name", "the module"), docstring


def test_functions_fit_a_screen() -> None:
    too_long = [
        f"{path}: {function.name} has {lines} lines"
        for path, tree in parsed()
        for function in functions(tree)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not too_long


def test_the_backend_is_the_story_and_no_more() -> None:
    lines = len((ROOT / "lib" / "backend.py").read_text().splitlines())
    assert lines <= MAX_BACKEND_LINES


def test_what_must_be_shell_is_little() -> None:
    lines = len((ROOT / "start_server.sh").read_text().splitlines())
    assert lines <= MAX_SHELL_LINES


def test_no_class_is_defined_inside_a_function() -> None:
    inside = [
        f"{path}: {node.name} in {function.name}"
        for path, tree in parsed()
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.ClassDef)
    ]
    assert not inside


def test_no_two_classes_have_one_name() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path, tree in parsed():
        if not path.startswith(TEMPLATES):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_docstrings_open_with_a_verb_or_with_what_is_returned() -> None:
    riddles = [
        f"{path}: {name}: {docstring.splitlines()[0]}"
        for path, tree in parsed()
        for _, name, docstring in documented(tree)
        if docstring.split()[0] in RIDDLES
    ]
    assert not riddles, "\n" + "\n".join(riddles)


def test_whether_is_for_predicates() -> None:
    wrong = [
        f"{path}: {name}"
        for path, tree in parsed()
        for node, name, docstring in documented(tree)
        if docstring.startswith("Whether ")
        and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and "bool" not in (ast.unparse(node.returns) if node.returns else "")
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "is_riddle"), [('"""What it is."""', True), ('"""Return it."""', False), ("x = 1", False)]
)
def test_the_rule_about_docstrings_can_fail(source: str, is_riddle: bool) -> None:
    found = [docstring.split()[0] in RIDDLES for _, _, docstring in documented(ast.parse(source))]
    assert any(found) is is_riddle
