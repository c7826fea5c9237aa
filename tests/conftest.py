"""Settings of every test: Hypothesis's profile, the marker of tests that start processes, and `untraced`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import process_marker

settings.register_profile("pyworker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pyworker")


def pytest_configure(config: pytest.Config) -> None:
    process_marker.install(config)
    # A shell starts what runs in the background with SIGINT ignored, and so would be all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Run the test without the tracer of coverage: in hours of virtual time it takes four times as long.

    pytest-cov's marker `no_cover` has no effect in the processes of pytest-xdist.
    """
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)
