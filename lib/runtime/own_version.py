"""The version of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Return the version of the installed package; "unknown" if only its files are there."""
    try:
        return version("pyworker")
    except PackageNotFoundError:
        return "unknown"
