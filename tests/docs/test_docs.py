"""Checks every document: its blocks are tested, its commands and links exist, its lines are short."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from lib.tools.cli import COMMANDS
from tests.docs.blocks import DOCS, ROOT, Document, every_document

# The languages of each kind of block. Shell blocks are tested in test_commands.py, others in the document's
# own test.
KINDS = {
    "shell": {"sh"},
    "script": {"sh"},
    "file": {"python"},
    "python": {"python"},
    "json": {"json"},
    "log": {"", "json"},
}
# Tested in test_manifests.py, and the metrics that they name in tests/lib/routes/test_prometheus.py.
ELSEWHERE = {"manifests": {"yaml"}}

DOCUMENTS = every_document()
WRITTEN = [doc for doc in DOCUMENTS if doc.name != "api"]  # docs/api.md is generated: test_api.py
by_document = pytest.mark.parametrize("doc", DOCUMENTS, ids=lambda doc: doc.name)


@pytest.mark.parametrize("doc", WRITTEN, ids=lambda doc: doc.name)
def test_every_block_says_how_it_is_tested(doc: Document) -> None:
    for block in doc.blocks:
        assert block.language in {**KINDS, **ELSEWHERE}.get(block.kind, ()), block
    assert doc.text.count("```") == 2 * len(doc.blocks)


@by_document
def test_commands_in_sentences_exist(doc: Document) -> None:
    for command in re.findall(r"`pyworker ([^`]+)`", doc.prose):
        name, *arguments = shlex.split(command)
        parser = argparse.ArgumentParser()
        COMMANDS[name].configure(parser)
        for option in (word for word in arguments if word.startswith("-")):
            assert option in parser.format_help(), command


@by_document
def test_every_linked_file_exists(doc: Document) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", doc.prose) if "://" not in link]
    assert not [link for link in links if not (DOCS / link).exists()]


@by_document
def test_lines_are_not_long(doc: Document) -> None:
    lines = [line for line in doc.prose.splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(line) > 125]


@by_document
def test_the_readme_links_to_it(doc: Document) -> None:
    assert f"](docs/{doc.name}.md)" in (ROOT / "README.md").read_text()
