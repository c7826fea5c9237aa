"""Checks docs/architecture.md: each name is in the file that it links to."""

from __future__ import annotations

import re

from tests.docs.blocks import DOCS, document


def test_every_name_is_in_the_file_it_links_to() -> None:
    text = document("architecture").text
    rows = re.findall(r"`([A-Za-z_.]+)`(?:, by default `(\w+)`)? in \[[^]]+\]\(([^)]+)\)", text)
    assert len(rows) > 4
    for name, default, path in rows:
        for word in (default or name).split("."):
            assert re.search(rf"\b(class|def) {word}\b", (DOCS / path).read_text()), (word, path)
