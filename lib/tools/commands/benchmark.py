"""`pyworker benchmark`: measure the model server, or a deployment, as a worker does, by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

from lib.runtime.exit_status import EXIT_FAILED
from lib.tools.command import EXIT_INTERRUPTED, EXIT_USAGE, Command, environment, print_error


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument(
        "worker",
        nargs="?",
        help="a file, a folder or a name, as for `pyworker run`, or MODULE:APP, as for `pyworker deployment`",
    )
    parser.add_argument(
        "--save", action="store_true", help="save the result, which the worker's next start then uses"
    )
    parser.add_argument(
        "--plot", action="store_true", help="draw throughput against the number of requests in flight"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON; a plot goes to standard error then"
    )


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.tools.benchmark_report import print_report
    from lib.tools.benchmark_run import BenchmarkInterrupted, CannotMeasure, run_benchmark
    from lib.tools.deployment_target import find_target
    from lib.tools.worker_file import NoSuchWorker

    environ = environment()
    try:
        file = find_target(args.worker, Path.cwd(), environ.get("BACKEND", ""))
        report = run_benchmark(file, environ, save=args.save)
    except (NoSuchWorker, ValueError) as e:
        print_error("benchmark", e)
        return EXIT_USAGE
    except CannotMeasure as e:
        print_error("benchmark", e)
        return EXIT_FAILED
    except BenchmarkInterrupted:
        print_error("benchmark", "interrupted")
        return EXIT_INTERRUPTED
    print_report(report, as_json=args.json, with_plot=args.plot)
    if args.save and not report.is_saved:
        print_error("benchmark", f"the result can't be saved in {report.directory}")
        return EXIT_FAILED
    return 0


COMMAND = Command(
    "measure a worker's model server, and show what it would report",
    "Runs a worker's file up to where it would serve, and measures its model server as the worker does at "
    "its start: without an engine, a public port or an account. The model server must run: the ready-made "
    "workers find it by MODEL_SERVER_URL. Of a deployment, it measures the function that has a benchmark, "
    "inside the deployment's contexts. BENCHMARK_TARGET_S is how long to measure. Progress goes to "
    "standard error. Nothing is saved without --save. Ctrl-C stops it, with exit status 130. The exit status "
    "is 1 if nothing could be measured.",
    configure,
    run,
)
