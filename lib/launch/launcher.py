"""The launch of a worker: its steps in order, each skipped if it is done, and their ends.

The exit status is the worker's. If no worker ran: 2 for wrong settings, 3 if another process uses the port,
1 if a step failed, and 128 plus the signal's number after a signal.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lib.launch.boot import find_model_log, rotate, this_boot
from lib.launch.certificate import InstanceCertificate, Renewals
from lib.launch.checkout import Checkout, Fetcher
from lib.launch.commands import Commands
from lib.launch.environment import Environment
from lib.launch.errors import CannotStart, LaunchStopped
from lib.launch.log import LaunchLog
from lib.launch.packages import is_requirement
from lib.launch.port import holder_of
from lib.launch.reports import report
from lib.launch.settings import LaunchSettings, without_password
from lib.launch.worker_module import missing_variables, module_of, workers_in
from lib.runtime.exit_status import EXIT_FAILED, EXIT_PORT_TAKEN, EXIT_SETTINGS

EXIT_SIGNAL = 128
LOCK_INTERVAL_S = 0.2


def main(arguments: Sequence[str], environ: dict[str, str]) -> int:
    """Launch a worker with `environ`, and return the exit status.

    The arguments are the framework's folder; if the script has fetched it, also its repository and reference,
    or the requirement for its package.
    """
    folder, url, ref = (*arguments, "", "")[:3]
    log = LaunchLog()
    settings = LaunchSettings.from_env(environ)
    is_package = bool(url) and not set(url) & {"/", ":"}  # as start_server.sh decides it
    framework = Checkout(Path(folder), url, ref, "PYWORKER_FRAMEWORK", is_package)
    launch = Launch(settings, framework, environ, log)
    try:
        return launch.run()
    except LaunchStopped as e:
        log.say(str(e))
        return EXIT_SIGNAL + e.number
    except CannotStart as e:
        return launch.give_up(e)
    except OSError as e:
        return launch.give_up(CannotStart(EXIT_FAILED, f"the start has failed: {e}", has_lines=True))
    finally:
        launch.close()


class Launch:
    """One launch. `framework` is the code of the launcher itself. `run` may be called once, then `close`."""

    def __init__(
        self, settings: LaunchSettings, framework: Checkout, environ: dict[str, str], log: LaunchLog
    ) -> None:
        self._settings = settings
        self._framework = framework
        self._log = log
        self._commands = Commands(log, environ)
        self._renewals: Renewals | None = None

    def run(self) -> int:
        """Run all steps, and the worker until its end; return its exit status."""
        settings = self._settings
        self._commands.handle_signals()
        code = self._locate_code()
        self._open_log_and_check(code)
        self._refuse_taken_port()
        lock = self._lock_workspace()
        self._refuse_taken_port()  # another start may have taken the port meanwhile
        assert code is not None  # or it is one of the problems
        is_update = self._get_code(code)
        module = self._find_worker(code.folder)
        environment = self._make_environment(code, is_update)
        if settings.use_ssl:
            InstanceCertificate(settings, self._commands, self._log).get()
        self._commands.inherited = ()
        os.close(lock)  # the installation is complete
        if settings.use_ssl:
            self._renewals = Renewals(settings, dict(self._commands.environ), self._log)
        return self._run_worker(code.folder, module, environment.python)

    def give_up(self, end: CannotStart) -> int:
        """Say and report why there is no worker; return the exit status."""
        message = str(end)
        lines = ""
        if end.has_lines:
            self.close()
            lines = self._log.last_lines()
        self._log.say(message)
        if end.is_reported:
            report(self._settings, f"{message}\n{lines}" if lines else message, self._log.say)
        return end.status

    def close(self) -> None:
        """End the renewals of the certificate, and wait until the log is complete."""
        if self._renewals is not None:
            self._renewals.close()
            self._renewals = None
        self._log.close()

    def _locate_code(self) -> Checkout | None:
        """Return the code to run; None if PYWORKER_REPO does not end in a name."""
        settings, framework = self._settings, self._framework
        if not settings.repo:
            variables = "PYWORKER_FRAMEWORK and PYWORKER_REF"
            return replace(framework, ref=settings.ref or framework.ref, variables=variables)
        variables = "PYWORKER_REPO and PYWORKER_REF"
        return settings.code and Checkout(settings.code, settings.repo, settings.ref, variables)

    def _open_log_and_check(self, code: Checkout | None) -> None:
        settings, log = self._settings, self._log
        path = settings.workspace / "pyworker.log"
        problems: list[str] = []
        if not log.open(path):
            what_to_do = "set a folder that this user may write"
            problems.append(f"WORKSPACE_DIR: {path} can't be written by {_user()}: {what_to_do}")
        model_log = find_model_log(settings.model_log, code and code.folder, settings.backend)
        if model_log is not None:
            marker = settings.workspace / f".rotated{str(model_log).replace('/', '_')}"
            rotate(model_log, marker, this_boot(), log.say)
        problems += settings.problems
        problems += self._problems_of_code(code)
        _refuse(problems)

    def _problems_of_code(self, code: Checkout | None) -> Iterator[str]:
        """Yield what is missing on this machine, and what the settings of the code have wrong."""
        settings, framework = self._settings, self._framework
        name_of_folder = "set the name of a folder of workers/"
        if shutil.which("curl") is None:
            yield "curl is missing: install it (for reports and certificates)"
        if settings.use_ssl and shutil.which("openssl") is None:
            yield "openssl is missing: install it, or set USE_SSL=false"
        if code is None:
            repo = without_password(settings.repo)
            yield f"PYWORKER_REPO: '{repo}' does not end in a name: set a repository's URL"
        source = f"{framework.url}#{framework.ref}" if framework.ref else framework.url
        if framework.is_package and not is_requirement(source):
            how = "a package is named with its version and without #, such as pyworker==1.2"
            yield f"PYWORKER_FRAMEWORK: there is no folder '{source}' with lib/launch, and {how}"
        if settings.ref and not settings.repo and framework.is_package:
            yield "PYWORKER_REF: a package has no git references: set its version in PYWORKER_FRAMEWORK"
        if settings.backend and not re.fullmatch("[A-Za-z0-9_-]+", settings.backend):
            yield f"BACKEND: '{settings.backend}' is not a worker's name: {name_of_folder}"
        elif not settings.backend and not settings.repo and module_of(framework.folder, "") is None:
            yield f"BACKEND: missing: {name_of_folder}, as there is no worker.py"
        if settings.venv is not None and not os.access(settings.venv / "bin" / "python", os.X_OK):
            what_to_do = "set a Python environment, or unset it"
            yield f"PYWORKER_VENV: {settings.venv}/bin/python does not exist: {what_to_do}"

    def _refuse_taken_port(self) -> None:
        """Raise `CannotStart` if another process uses the port.

        This is not reported: the running worker may have the same id, and the engine would take it for that
        worker's error.
        """
        port = self._settings.worker_port
        holder = holder_of(port)
        if holder is not None:
            text = (
                f"port {port} is in use by {holder}, which keeps running: stop it, or set another WORKER_PORT"
            )
            raise CannotStart(EXIT_PORT_TAKEN, text, is_reported=False)

    def _lock_workspace(self) -> int:
        """Wait for another start in the same folder: two installations into one environment would break it.

        Return the lock's descriptor. The lock ends with the last process that has it open; the processes of
        all steps have.
        """
        workspace = self._settings.workspace
        path = workspace / "pyworker.lock"
        lock = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        is_waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if e.errno != errno.EWOULDBLOCK:
                    self._log.say(f"{path} could not be locked: don't start twice at the same time")
                    break
            if not is_waiting:
                is_waiting = True
                self._log.begin(f"waiting for another start_server.sh in {workspace}")
            self._commands.pause(LOCK_INTERVAL_S)
            self._log.say_waiting()
        self._commands.inherited = (lock,)
        return lock

    def _get_code(self, code: Checkout) -> bool:
        """Get the code, and the framework if the script fetched it; return whether an update is complete."""
        environ = self._commands.environ
        environ["FORCE_UPDATE_FILE"] = str(self._settings.force_update_file)
        environ["GIT_TERMINAL_PROMPT"] = "0"
        fetcher = Fetcher(self._commands, self._log, self._settings.force_update_file)
        if code.folder == self._framework.folder or not self._framework.url:
            return fetcher.get(code)
        is_new = fetcher.refresh(self._framework)
        return fetcher.get(code) and is_new

    def _find_worker(self, code: Path) -> str:
        """Return the worker's module. Raises `CannotStart` if there is none, or if variables are missing."""
        backend = self._settings.backend
        module = module_of(code, backend)
        if module is not None:
            _refuse(list(missing_variables(code, module, self._commands.environ)))
            return module
        problem = f"missing: set it to one of {workers_in(code)}, as {code} has no worker.py"
        if backend:
            problem = f"there is no worker '{backend}' in {code}: set it to one of {workers_in(code)}"
        raise _refusal([f"BACKEND: {problem}"])

    def _make_environment(self, code: Checkout, is_update: bool) -> Environment:
        settings, environ = self._settings, self._commands.environ
        folder = settings.venv or settings.workspace / "pyworker-venv"
        environment = Environment(folder, code.folder, self._framework, self._commands, self._log, is_update)
        if settings.venv is None:
            environment.make()
        if is_update:
            self._remove_request()
        environ["VIRTUAL_ENV"] = str(folder)
        environ["PATH"] = f"{folder}/bin:{environ.get('PATH', os.defpath)}"
        return environment

    def _remove_request(self) -> None:
        file = self._settings.force_update_file
        try:
            file.unlink(missing_ok=True)
        except OSError as e:
            self._log.say(f"{file} could not be removed, so the next start updates again: {e.strerror}")

    def _run_worker(self, code: Path, module: str, python: Path) -> int:
        """Run the worker in the root of its code, as authors open files by relative paths."""
        settings, environ = self._settings, self._commands.environ
        environ |= {"PYTHONUNBUFFERED": "1", "USE_SSL": str(settings.use_ssl).lower()}
        if settings.use_ssl:
            environ |= {"SSL_CERT": str(settings.ssl_cert), "SSL_KEY": str(settings.ssl_key)}
        self._commands.leave_if_stopped()
        self._log.begin(f"starting {module}")
        status = self._commands.run_worker(python, "-m", module, cwd=code)
        how = f"the worker ended with exit status {status}"
        if status > EXIT_SIGNAL and status - EXIT_SIGNAL in set(signal.Signals):
            how = f"the worker was ended by {signal.Signals(status - EXIT_SIGNAL).name}"
        # A port in use is not reported: see _refuse_taken_port.
        if status in (0, EXIT_PORT_TAKEN) or self._commands.is_stopped:
            self._log.say(how)
            return status
        raise CannotStart(status, how, has_lines=True)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise _refusal(problems)


def _refusal(problems: Sequence[str]) -> CannotStart:
    return CannotStart(EXIT_SETTINGS, "cannot start:" + "".join(f"\n  - {each}" for each in problems))


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
