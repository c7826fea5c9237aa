"""`pyworker deployment`: serve a deployment of Vast.ai's SDK."""

from __future__ import annotations

import argparse

from lib.runtime.exit_status import EXIT_FAILED
from lib.tools.command import EXIT_USAGE, Command, environment, print_error

# A payload in the format of the SDK, shown as an example.
SAMPLE = '{"kwargs": {"name": "value"}}'


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument(
        "deployment",
        metavar="MODULE:APP",
        help="a module, looked up from this folder, and the name of the deployment in it",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="run on this machine, with a local engine and with the variables that an instance would have",
    )


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.errors import SettingsError
    from lib.tools.deployment_target import parse_target
    from lib.tools.run_local import run_with_local_engine
    from lib.tools.worker_file import WorkerFailed

    try:
        target = parse_target(args.deployment)
    except ValueError as e:
        parser.error(f"{args.deployment!r} {e}")
    try:
        if args.local:
            return run_with_local_engine(
                str(target), str(target), environment(), command="deployment", sample=SAMPLE
            )
        target.run()
    except SettingsError as e:
        print_error("deployment", "; ".join(e.problems))
        return EXIT_USAGE
    except WorkerFailed as e:
        print_error("deployment", e)
        return EXIT_FAILED
    return 0


COMMAND = Command(
    "serve the functions of a deployment of Vast.ai's SDK, on an instance or, with --local, on this machine",
    "Imports the module with IS_DEPLOYMENT set, so that its Deployment registers the functions that are "
    "decorated with remote(), and serves each at /remote/NAME until SIGTERM or Ctrl-C. The deployment's "
    "contexts are entered before the worker is ready, and left when it stops. Needs the package vastai: "
    "pip install 'pyworker[vastai]'.",
    configure,
    run,
)
