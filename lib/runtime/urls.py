"""Checks of http and https URLs in settings, declarations and messages, and queries without a key.

Owns the check of whether a text is such a URL, and which parameter of a query is a secret. It does not make
error messages (callers name the wrong setting or field) or compare signed URLs (lib/access/signatures.py
does).
"""

from __future__ import annotations

from ipaddress import IPv6Address
from urllib.parse import SplitResult, unquote_plus, urlsplit


def is_http_url(text: str) -> bool:
    """Whether `text` is an absolute http or https URL that a client can request (RFC 9110, section 4.2).

    The host is an IPv6 address in brackets, an IPv4 address, or a name that IDNA can encode. A port is 1 to
    65535. User information, a path, a query and a fragment are allowed, white space is not.
    """
    return _split(text) is not None


def is_http_base_url(text: str) -> bool:
    """Whether `text` is an http or https URL to which a path can be appended: it has no query."""
    parts = _split(text)
    return parts is not None and not parts.query


def _split(text: str) -> SplitResult | None:
    """The parts of an http or https URL; None for any other text."""
    if any(character.isspace() for character in text):  # urlsplit drops some of it silently
        return None
    try:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            return None
        if "[" in parts.netloc:
            IPv6Address(parts.hostname)
        else:
            parts.hostname.encode("idna")  # fails for a name that DNS can't resolve
    except ValueError:
        return None
    return parts


def without_api_key(query: str) -> str:
    """`query`, that of a URL as it was received, without its parameters called `api_key`."""
    pairs = query.split("&")
    return "&".join(pair for pair in pairs if unquote_plus(pair.partition("=")[0]) != "api_key")
