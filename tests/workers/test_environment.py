"""Every ready-made worker reports a malformed environment without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.workers.test_imports import ROOT, WORKERS


@pytest.mark.parametrize("name", WORKERS)
def test_a_malformed_variable_is_reported_without_a_traceback(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"workers.{name}.server"],
        cwd=ROOT,
        env={**os.environ, "MODEL_SERVER_URL": "nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "MODEL_SERVER_URL: 'nowhere' is not an http(s) URL" in done.stderr
    assert "Traceback" not in done.stderr
