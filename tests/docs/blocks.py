"""Reads the documents in docs/ for tests: blocks of code with their markers, sections and tables.

A block is preceded by an HTML comment that says how it is tested: `<!-- test: KIND NAME -->`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"(?:<!-- test: ([^>]+) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code. `kind` is the marker's first word, `name` the rest; both "" without a marker."""

    kind: str
    name: str
    language: str
    text: str


@dataclass(frozen=True)
class Document:
    """One file of docs/."""

    name: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        found = cast("list[tuple[str, str, str]]", _BLOCK.findall(self.text))
        return [Block(*_words(marker), language, text) for marker, language, text in found]

    def block(self, kind: str, name: str = "") -> str:
        """The text of the only block with this marker."""
        (text,) = [b.text for b in self.blocks if (b.kind, b.name) == (kind, name)]
        return text

    def sample(self, name: str) -> Any:
        """The value in the block that is marked `json NAME`."""
        return json.loads(self.block("json", name))

    def write_files(self, folder: Path) -> None:
        """Write the files in its blocks to `folder`. Several blocks of one file are joined in order."""
        names = dict.fromkeys(b.name for b in self.blocks if b.kind == "file")
        for name in names:
            parts = [b.text for b in self.blocks if (b.kind, b.name) == ("file", name)]
            (folder / name).write_text("\n\n".join(parts))

    @property
    def prose(self) -> str:
        """The text without the blocks."""
        return _BLOCK.sub("", self.text)

    def section(self, heading: str) -> str:
        """The text below `heading`, up to the next heading of its level or above."""
        level, _, _ = heading.partition(" ")
        _, below = self.text.split(f"\n{heading}\n", 1)
        return re.split(rf"^#{{1,{len(level)}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


@lru_cache
def document(name: str) -> Document:
    """docs/`name`.md."""
    return Document(name, (DOCS / f"{name}.md").read_text())


def every_document() -> list[Document]:
    return [document(path.stem) for path in sorted(DOCS.glob("*.md"))]


def tables(text: str) -> list[list[list[str]]]:
    """The tables in `text`. A table is a list of rows without its head, a row is a list of cells."""
    found: list[list[list[str]]] = []
    for lines in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines.splitlines()]
        found.append(rows[2:])
    return found


def table(text: str, number: int = 0) -> list[list[str]]:
    """The rows of one of the tables in `text`."""
    return tables(text)[number]


def codes(text: str) -> list[str]:
    """The parts of `text` in backquotes."""
    return _CODE.findall(text)


def shape(value: Any) -> Any:
    """`value` with its scalars replaced by the names of their types, and its lists by their first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [shape(item) for item in cast("list[Any]", value)[:1]]
    return type(value).__name__


def _words(marker: str) -> tuple[str, str]:
    kind, _, name = marker.strip().partition(" ")
    return kind, name
