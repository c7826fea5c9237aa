"""The tests' worker (tests/fakes/worker.py), in a process that may open 64 files (`ulimit -n 64`)."""

from __future__ import annotations

import resource
import runpy

FILES = 64

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    runpy.run_module("tests.fakes.worker", run_name="__main__", alter_sys=True)
