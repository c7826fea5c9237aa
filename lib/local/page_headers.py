"""The headers of the engine's pages: each loads files of the engine only.

Owns the Content-Security-Policy that the pages have in common.
"""

from __future__ import annotations

from collections.abc import Mapping


def page_headers(media: str) -> Mapping[str, str]:
    """The headers of a page, on which nothing that a worker sends may run.

    `media` are the directives for what it shows besides text.
    """
    return {
        "Content-Security-Policy": f"default-src 'none'; script-src 'self'; style-src 'self'; {media}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    }
