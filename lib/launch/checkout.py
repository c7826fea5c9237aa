"""A folder of code, and the git repository, or the package of the framework, that it is fetched from."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from lib.launch.commands import Commands
from lib.launch.errors import CannotStart
from lib.launch.log import LaunchLog
from lib.launch.packages import install_command
from lib.launch.settings import without_password
from lib.runtime.exit_status import EXIT_FAILED, EXIT_SETTINGS


@dataclass(frozen=True)
class Checkout:
    """The code in `folder`. `url` is empty if nobody says where it is from; `variables` set the other two.

    With `is_package`, the folder has a package, and `url` is the requirement for it, such as `pyworker==1.2`.
    """

    folder: Path
    url: str
    ref: str
    variables: str
    is_package: bool = False

    @property
    def has_code(self) -> bool:
        """Whether the folder has a worker."""
        return os.path.isfile(self.folder / "worker.py") or os.path.isdir(self.folder / "workers")

    @property
    def source(self) -> str:
        """The repository and the reference, as they may be logged."""
        url = without_password(self.url) or "its repository"
        return f"{url} at {self.ref}" if self.ref else url


class Fetcher:
    """Fetches and updates checkouts with git, and updates packages.

    Without a network, code that is there runs unchanged.
    """

    def __init__(self, commands: Commands, log: LaunchLog, update_file: Path) -> None:
        self._commands = commands
        self._log = log
        self._update_file = update_file

    def get(self, checkout: Checkout) -> bool:
        """Fetch the code if there is none, or `refresh` it; return whether it was updated on request.

        Raises `CannotStart` if there is no worker then. A package is not fetched: start_server.sh does that.
        """
        if not (checkout.has_code or checkout.is_package):
            self._fetch_first(checkout)
            return False
        is_updated = self.refresh(checkout)
        if checkout.is_package and not checkout.has_code:
            text = f"{checkout.source} has no workers/: check PYWORKER_FRAMEWORK, or set PYWORKER_REPO"
            raise CannotStart(EXIT_SETTINGS, text)
        return is_updated

    def refresh(self, checkout: Checkout) -> bool:
        """Update the code if the engine has requested that, and return whether it was; fetch another `ref`.

        Raises `CannotStart` if the code is another repository's, or if `ref` can't be fetched.
        """
        origin = self._git(checkout, "remote", "get-url", "origin")
        if checkout.url and origin is not None and origin != checkout.url:
            if without_password(origin) != without_password(checkout.url):
                raise CannotStart(
                    EXIT_SETTINGS,
                    f"{checkout.folder} is a clone of {without_password(origin)}, not of {checkout.source}:"
                    " move it away",
                )
            # Its token has changed.
            self._commands.run("git", "-C", checkout.folder, "remote", "set-url", "origin", checkout.url)
        if os.path.exists(self._update_file):
            self._log.begin(f"updating {checkout.folder}, as {self._update_file} exists")
            if self._commands.attempt(lambda: self._update(checkout)):
                return True
            self._log.say(f"{checkout.folder} could not be updated: it runs unchanged")
            return False
        before = self._git(checkout, "config", "pyworker.ref")
        if before is not None and before != checkout.ref:
            self._log.begin(f"fetching {checkout.source} in place of {before or 'the default branch'}")
            if not self._commands.attempt(lambda: self._update(checkout)):
                raise self._not_fetched(checkout)
        return False

    def _fetch_first(self, checkout: Checkout) -> None:
        nothing = f"has neither a worker.py nor workers/: check {checkout.variables}"
        if not checkout.url:
            raise CannotStart(EXIT_SETTINGS, f"{checkout.folder} {nothing}")
        if shutil.which("git", path=self._commands.environ.get("PATH")) is None:
            raise CannotStart(EXIT_SETTINGS, f"git is missing: install it, to fetch {checkout.source}")
        self._log.begin(f"fetching {checkout.source}")
        if not self._commands.attempt(lambda: self._clone(checkout)):
            raise self._not_fetched(checkout)
        if not checkout.has_code:
            raise CannotStart(EXIT_SETTINGS, f"{checkout.source} {nothing}")

    def _not_fetched(self, checkout: Checkout) -> CannotStart:
        text = f"{checkout.source} could not be fetched: check the network, {checkout.variables}"
        return CannotStart(EXIT_FAILED, text, has_lines=True)

    def _git(self, checkout: Checkout, *command: str) -> str | None:
        """The output of a git command in the checkout; None if it fails, as in code that is no clone."""
        if not os.path.exists(checkout.folder / ".git"):
            return None
        output = self._commands.output("git", "-C", checkout.folder, *command)
        return None if output is None else output.rstrip("\n")

    def _clone(self, checkout: Checkout) -> bool:
        """Clone into another folder first, so that an interruption leaves no incomplete code."""
        new = checkout.folder.with_name(f"{checkout.folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        run = self._commands.run
        if not (
            run("git", "init", "-q", new)
            and run("git", "-C", new, "remote", "add", "origin", checkout.url)
            and self._fetch(new, checkout.ref or "HEAD", checkout.ref)
        ):
            return False
        os.rename(new, checkout.folder)
        return True

    def _update(self, checkout: Checkout) -> bool:
        if checkout.is_package:
            return self._install(checkout)
        branch = self._git(checkout, "symbolic-ref", "--short", "-q", "HEAD")
        return self._fetch(checkout.folder, checkout.ref or branch or "HEAD", checkout.ref)

    def _install(self, checkout: Checkout) -> bool:
        """Install the package anew, into another folder first, so that a failure changes nothing."""
        folder = checkout.folder
        new, old = (folder.with_name(folder.name + end) for end in (".new", ".old"))
        shutil.rmtree(new, ignore_errors=True)
        command = install_command(self._commands, sys.executable)
        if not self._commands.run(*command, "--no-deps", "--target", new, checkout.url):
            return False
        shutil.rmtree(old, ignore_errors=True)
        try:
            os.rename(folder, old)
            os.rename(new, folder)
        except OSError as e:
            self._log.say(f"{new} could not be moved to {folder}: {e.strerror}")
            if not os.path.exists(folder):
                os.rename(old, folder)
            return False
        shutil.rmtree(old, ignore_errors=True)
        return True

    def _fetch(self, folder: Path, wanted: str, ref: str) -> bool:
        """Check out a branch, a tag or a full commit id. Files changed by hand are not overwritten."""
        git = ("git", "-C", folder)
        run = self._commands.run
        return (
            run(*git, "fetch", "-q", "--depth", "1", "origin", wanted)
            and run(*git, "checkout", "-q", "--detach", "FETCH_HEAD")
            and run(*git, "config", "pyworker.ref", ref)
        )
