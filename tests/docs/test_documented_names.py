"""Ready-made workers, templates and guides import documented names only, as other authors do."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.make_api import MODULES
from tests.docs.blocks import ROOT, document

GUIDES = ("writing-a-worker", "migrating", "load-test", "operating", "kubernetes", "protocol")
SOURCES = [
    path.relative_to(ROOT)
    for folder in ("workers", "lib/tools/template", "tests/seams", "tests/authors")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if folder != "tests/seams" or not path.name.startswith("test_")
]


def imported_names(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import from lib; the name is "" where the whole module is imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lib":
            for alias in node.names:
                yield node.module or "", alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "lib":
                    yield alias.name, ""


def undocumented(source: str) -> list[str]:
    return [
        f"{module}.{name}".rstrip(".")
        for module, name in imported_names(source)
        if module not in MODULES or (name and name not in importlib.import_module(module).__all__)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_worker_imports_documented_names_only(path: Path) -> None:
    assert undocumented((ROOT / path).read_text()) == []


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_shows_documented_names_only(guide: str) -> None:
    blocks = [block.text for block in document(guide).blocks if block.language == "python"]
    assert [name for block in blocks for name in undocumented(block)] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from lib.backend import Backend", []),
        ("from lib.backend import nothing", ["lib.backend.nothing"]),
        ("from lib.request.exchange import Exchange", ["lib.request.exchange.Exchange"]),
        ("import lib.wire", ["lib.wire"]),
        ("import aiohttp", []),
    ],
)
def test_what_counts_as_documented(source: str, expected: list[str]) -> None:
    assert undocumented(source) == expected
