"""Hypothesis profiles: "ci" repeats the same examples on every run, "nightly" (SOLVEMUT_NIGHTLY=1) draws fresh ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile(
    "nightly", deadline=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("nightly" if os.environ.get("SOLVEMUT_NIGHTLY") == "1" else "ci")
