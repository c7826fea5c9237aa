"""Checks docs/api.md: it is current, complete, and its links lead to headings."""

from __future__ import annotations

import importlib
import re

import pytest

from docs.make_api import COMMAND, MODULES, PAGE, make_page
from tests.docs.blocks import document

HEADING = re.compile(r"^#{2,4} (\S+)$", re.MULTILINE)


@pytest.mark.process  # griffe asks git
def test_the_page_is_current() -> None:
    assert PAGE.read_text() == make_page(), f"run `{COMMAND}`"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_heading_and_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    headings = HEADING.findall(document("api").text)
    assert name in headings
    for public in module.__all__:
        assert public in headings
        value = getattr(module, public)
        assert not callable(value) or value.__doc__, public


def test_every_link_leads_to_a_heading() -> None:
    text = document("api").prose
    slugs: list[str] = []
    for heading in HEADING.findall(text):
        slug = re.sub(r"[^a-z0-9_-]", "", heading.lower())
        repeated = sum(re.fullmatch(rf"{slug}(-\d+)?", other) is not None for other in slugs)
        slugs.append(f"{slug}-{repeated}" if repeated else slug)
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) > 50
    assert not set(links) - set(slugs)


def test_declared_configs_show_their_fields() -> None:
    text = document("api").text
    for config, field in (
        ("WorkerConfig", "middlewares"),
        ("HandlerConfig", "keepalive_s"),
        ("BenchmarkConfig", "concurrency"),
        ("LogActionConfig", "on_load"),
    ):
        signature = text.split(f"\n{config}(", 1)[1].split("```", 1)[0]
        assert field in signature
        assert "kwargs" not in signature
