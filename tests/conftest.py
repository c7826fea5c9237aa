"""What holds for every test: Hypothesis doesn't judge how fast this machine is."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("pyworker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pyworker")
