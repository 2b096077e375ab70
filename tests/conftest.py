"""Hypothesis profiles: "ci" repeats the same examples on every run, "nightly" (SOLVEMUT_NIGHTLY=1) draws fresh ones.

And what tests of several folders share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile(
    "nightly", deadline=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("nightly" if os.environ.get("SOLVEMUT_NIGHTLY") == "1" else "ci")


@pytest.fixture
def exact() -> Iterator[None]:
    """What a forward creates, states of recurrent layers included, is as exact as the rest."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
