"""Shortens text from elsewhere, such as log lines and answers, to one line of output."""

from __future__ import annotations


def shorten(text: str, limit: int) -> str:
    """Return `text` on one line, with single spaces; more than `limit` characters are cut and end in `…`."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
