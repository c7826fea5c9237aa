"""Finds references in the project's text to files, headings and modules that don't exist.

Owns the forms of references and where their targets are looked up. The searched files and the exceptions are
in test_references.py.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from tests.docs.blocks import ROOT, Document

# A path with a placeholder or a variable in it names no file: `workers/<name>/server.py`.
_FILE = re.compile(r"(?<![\w./$}>*\])%-])((?:[\w-]+/)*[\w.-]+\.(?:md|py))\b(?!\w)")
# What may follow a document: `, "Heading"`, ` §3`, `#anchor`.
_HEADINGS = re.compile(r',\s(\\?"[^"]+"(?:(?:,| and|, and)\s\\?"[^"]+")*)')
_SECTION = re.compile(r",?\s§")
_ANCHOR = re.compile(r"#([\w-]+)")
_MODULE = re.compile(r"(?<![\w./$-])(?:lib|workers|tests|benchmarks)(?:\.[a-zA-Z_]\w*)+\b(?![/(])")
_BREAK = re.compile(r"\s*\n\s*(?:#\s)?")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
# Stands for the name of some worker: `workers/NAME/server.py`.
_PLACEHOLDER = re.compile(r"\bNAME\b")
# Enough text behind a document's name for the headings that are cited.
_LOOK_AHEAD = 300


@dataclass(frozen=True)
class Dangling:
    """A reference to something that doesn't exist, in the file `path`, relative to the root."""

    path: Path
    line: int
    reference: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reference}"


def dangling_references(path: Path, text: str, made: frozenset[str] = frozenset()) -> Iterator[Dangling]:
    """Yield the references in `text` to something that doesn't exist.

    `path` is the text's file, relative to the root. Files are looked up in the root, in the folder of `path`,
    and in lib/. Names in `made` are files that authors make.
    """
    for found in _FILE.finditer(text):
        name = found[1]
        if name in made or _PLACEHOLDER.search(name):
            continue
        line = text.count("\n", 0, found.start()) + 1
        target = _file(path, name)
        if target is None:
            yield Dangling(path, line, name)
        elif target.suffix == ".md":
            behind = _BREAK.sub(" ", text[found.end() : found.end() + _LOOK_AHEAD])
            for missing in _missing_headings(target, behind):
                yield Dangling(path, line, f"{name}{missing}")
    for found in _MODULE.finditer(text):
        if _PLACEHOLDER.search(found[0]):
            continue
        if not _module_exists(found[0]) and _file(path, found[0]) is None:
            yield Dangling(path, text.count("\n", 0, found.start()) + 1, found[0])


def text_of_comments(source: str) -> str:
    """The comments and docstrings of Python code, on their lines; all else is removed."""
    lines = [""] * (source.count("\n") + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            ast.get_docstring(node) is not None
        ):
            docstring = node.body[0]
            first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
            lines[first:last] = source.splitlines()[first:last]
    return "\n".join(lines)


def headings(document: Path) -> list[str]:
    """The headings of a Markdown file, without backquotes."""
    text = Document(document.stem, document.read_text()).prose
    return [heading.replace("`", "").strip() for heading in _HEADING.findall(text)]


def _file(path: Path, name: str) -> Path | None:
    folders = (ROOT, ROOT / path.parent, ROOT / "lib")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _missing_headings(document: Path, behind: str) -> Iterator[str]:
    """The headings cited by the text `behind` the document's name that it doesn't have."""
    if _SECTION.match(behind):
        yield " §… (cite a heading)"
    known = headings(document)
    if found := _HEADINGS.match(behind):
        for cited in re.findall(r'\\?"([^"\\]+)\\?"', found[1]):
            if cited.replace("`", "") not in known:
                yield f', "{cited}"'
    if found := _ANCHOR.match(behind):
        slugs = [re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in known]
        if found[1] not in slugs:
            yield found[0]


@lru_cache
def _module_exists(dotted: str) -> bool:
    """Whether `dotted` is a module, or a name in one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        try:
            if find_spec(name) is None:
                continue
        except ModuleNotFoundError:  # its parent is no package
            continue
        rest = parts[count:]
        return not rest or (count > 1 and hasattr(importlib.import_module(name), rest[0]))
    return False
