"""Checkouts whose repository's URL has changed, and packages in place of checkouts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lib.launch.checkout import Checkout, Fetcher
from lib.launch.commands import Commands
from lib.launch.errors import CannotStart
from lib.launch.log import LaunchLog
from lib.runtime.exit_status import EXIT_SETTINGS

pytestmark = pytest.mark.process

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


# Packages

# An installer that puts the files of `$TEST_FILES` into the folder after `--target`.
UV = """#!/bin/sh
for word; do
  if [ "$before" = --target ]; then mkdir -p "$word"; (cd "$word" && mkdir -p $TEST_FILES); fi
  before=$word
done
"""


class OneAttempt(Commands):
    """Commands that are not tried again."""

    def attempt(self, step: Callable[[], bool], pauses_s: Sequence[float] = ()) -> bool:
        return super().attempt(step, pauses_s)


def package_in(folder: Path, *, installs: str, is_update: bool) -> tuple[Fetcher, Checkout]:
    """Make the folder of a package, with the launcher only, and a uv that `installs` these folders."""
    (folder / "framework" / "lib").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "uv").write_text(UV)
    (folder / "bin" / "uv").chmod(0o755)
    if is_update:
        (folder / "force_update").touch()
    log = LaunchLog()
    environ = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TEST_FILES": installs}
    fetcher = Fetcher(OneAttempt(log, environ), log, folder / "force_update")
    return fetcher, Checkout(folder / "framework", "pyworker>=1", "", "PYWORKER_FRAMEWORK", True)


@pytest.mark.parametrize("is_update", [False, True])
def test_a_package_without_workers_is_refused_and_never_cloned(tmp_path: Path, is_update: bool) -> None:
    fetcher, package = package_in(tmp_path, installs="lib", is_update=is_update)
    with pytest.raises(CannotStart) as refused:
        fetcher.get(package)
    assert str(refused.value).startswith("pyworker>=1 has no workers/: check PYWORKER_FRAMEWORK")
    assert refused.value.status == EXIT_SETTINGS
    assert not (package.folder / ".git").exists()


def test_a_package_without_workers_is_replaced_by_an_update_that_has_them(tmp_path: Path) -> None:
    fetcher, package = package_in(tmp_path, installs="lib workers", is_update=True)
    assert fetcher.get(package)
    assert sorted(os.listdir(package.folder)) == ["lib", "workers"]


@pytest.mark.parametrize("fails", ["the old folder", "the new folder"])
def test_a_folder_that_cannot_be_moved_leaves_the_package_as_it_was(tmp_path: Path, fails: str) -> None:
    fetcher, package = package_in(tmp_path, installs="lib", is_update=True)
    (package.folder / "workers").mkdir()
    if fails == "the old folder":
        (tmp_path / "framework.old").touch()  # a file, which is not removed and stands in the way
    else:
        (tmp_path / "bin" / "uv").write_text("#!/bin/sh\n")  # so that there is no new folder
    assert not fetcher.get(package)
    assert sorted(os.listdir(package.folder)) == ["lib", "workers"]
