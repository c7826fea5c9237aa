"""Settings of every test: Hypothesis's profile, and the marker of tests that start processes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests import process_marker

settings.register_profile("pyworker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pyworker")


def pytest_configure(config: pytest.Config) -> None:
    process_marker.install(config)
