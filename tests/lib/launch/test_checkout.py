"""Checkouts whose repository's URL has changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lib.launch.checkout import Checkout, Fetcher
from lib.launch.commands import Commands
from lib.launch.errors import CannotStart
from lib.launch.log import LaunchLog

# One token's URL, and others that name the same repository.
CLONED = "https://me:first@host.example/mine"
SAME = [CLONED, *(f"https://{user}host.example/mine" for user in ("me:second@", "third@", ""))]


def cloned(folder: Path) -> Path:
    """Make a checkout of `CLONED`, with a worker."""
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run(["git", "-C", folder, "remote", "add", "origin", CLONED], check=True)
    (folder / "worker.py").touch()
    return folder


def origin_after(folder: Path, url: str) -> str:
    """Refresh the checkout with this URL, and return the URL that it is fetched from then."""
    log = LaunchLog()
    Fetcher(Commands(log, dict(os.environ)), log, folder / "none").refresh(
        Checkout(folder, url, "", "PYWORKER_REPO")
    )
    command = ["git", "-C", folder, "remote", "get-url", "origin"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("url", SAME)
def test_a_token_that_has_changed_replaces_the_old_one(tmp_path: Path, url: str) -> None:
    assert origin_after(cloned(tmp_path / "mine"), url) == url


@pytest.mark.parametrize(
    "url", ["https://me:first@host.example/other", "https://me:first@other.example/mine"]
)
def test_another_repository_is_refused_without_a_token_in_the_message(tmp_path: Path, url: str) -> None:
    with pytest.raises(CannotStart) as refused:
        origin_after(cloned(tmp_path / "mine"), url)
    assert "is a clone of https://host.example/mine, not of https://" in str(refused.value)
    assert "first" not in str(refused.value)
