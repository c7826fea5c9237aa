"""Runs the launcher, with the arguments of `main`."""

from __future__ import annotations

import os
import sys

from lib.launch.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], dict(os.environ)))  # noqa: TID251 - no worker runs yet: its settings aren't read
