"""Finding the deployment that MODULE:APP names, and running it.

Owns the import of the module, from the current folder as `python -m` would find it. What a deployment
becomes is in lib/deployment/worker.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import cast

from aiohttp import web

from lib.backend import Backend
from lib.deployment.sdk import Deployment, Sdk, load_sdk
from lib.deployment.worker import worker_of
from lib.errors import SettingsError, result_or_error
from lib.server import run_worker
from lib.tools.worker_file import WorkerFile, describe_failure, find


@dataclass(frozen=True)
class DeploymentTarget:
    """A deployment by the name of its module and by its own name in that module."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    def run(self) -> None:
        """Serve the deployment until SIGTERM or SIGINT.

        Prints why it can't be served, and raises `SystemExit` with status 2, if the package `vastai`, the
        module or the deployment is missing or can't work. Raises `WorkerFailed` if the module raises an
        exception, and `SystemExit` for an exit status other than 0.
        """
        run_worker(lambda _: self._worker(), {})

    def _worker(self) -> tuple[Backend, list[web.RouteDef]]:
        sdk = load_sdk()
        return worker_of(self._find(sdk), sdk)

    def _find(self, sdk: Sdk) -> Deployment:
        module = self._import()
        found = getattr(module, self.name, None)
        if isinstance(found, sdk.deployment_class):
            return cast(Deployment, found)
        names = [name for name, value in vars(module).items() if isinstance(value, sdk.deployment_class)]
        what = (
            f"{self.name!r} is of the type {type(found).__name__}, not a Deployment"
            if found is not None
            else f"the module {self.module} has no {self.name!r}"
        )
        raise SettingsError([what + (f". Its deployments are {', '.join(names)}" if names else "")])

    def _import(self) -> ModuleType:
        """Import the module. Raises `SettingsError` if there is none, `WorkerFailed` if it can't be run."""
        here = Path.cwd()
        if sys.path[:1] != [str(here)]:
            sys.path.insert(0, str(here))
        result = result_or_error(partial(importlib.import_module, self.module))
        if not isinstance(result, Exception):
            return result
        missing = result.name if isinstance(result, ModuleNotFoundError) else None
        if missing is not None and f"{self.module}.".startswith(f"{missing}."):
            raise SettingsError(
                [f"there is no module {missing} in {here} or among the installed packages"]
            ) from result
        # To find a module in a package, the package is imported: that may be what has failed.
        spec = result_or_error(partial(importlib.util.find_spec, self.module))
        path = Path(spec.origin) if isinstance(spec, ModuleSpec) and spec.origin else here
        raise describe_failure(result, WorkerFile(path, here, here)) from result


def find_target(name: str | None, here: Path, backend: str = "") -> WorkerFile | DeploymentTarget:
    """The deployment that `name` is, if it has a colon, or else the worker that `worker_file.find` finds.

    Raises `ValueError` if it is a deployment's and wrong, or `NoSuchWorker`.
    """
    return parse_target(name) if name and ":" in name else find(name, here, backend)


def parse_target(text: str) -> DeploymentTarget:
    """Parse MODULE:APP. Raises `ValueError` with what is wrong."""
    module, colon, name = text.partition(":")
    if module.endswith(".py") or os.sep in module:
        path = os.path.normpath(module.removesuffix(".py"))
        dotted, folder = path.replace(os.sep, "."), ""
        if not _is_dotted(dotted):
            dotted, folder = os.path.basename(path), os.path.dirname(path)
        if _is_dotted(dotted):
            where = f", run in the folder {folder}" if folder else ""
            raise ValueError(f"must name a module, not a file: {dotted}:{name or 'app'}{where}")
    if not colon or not name.isidentifier() or not _is_dotted(module):
        raise ValueError(
            "must be MODULE:APP, such as my_model:app for `app = Deployment(…)` in the module my_model"
        )
    return DeploymentTarget(module, name)


def _is_dotted(text: str) -> bool:
    """Whether `text` can be the name of a module, with those of its packages."""
    return all(part.isidentifier() for part in text.split("."))
