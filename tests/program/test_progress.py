"""What is shown while something takes long: a bar where it is asked for, else lines in the log."""

from __future__ import annotations

import io
import logging

import pytest

from solvemut import progress


@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever somebody looks."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


def test_a_bar_tells_how_far_it_is(clock, monkeypatch):
    pytest.importorskip("tqdm")
    screen = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    assert list(progress.counted(range(9), "trials", show=True)) == list(range(9))
    assert "trials: 9 of 9" in screen.getvalue()


def test_without_a_bar_the_log_does(clock, caplog):
    with caplog.at_level(logging.INFO, logger="solvemut"):
        assert list(progress.counted(iter("abcdefgh"), "batches", show=False)) == list("abcdefgh")
    assert any(r.getMessage().startswith("batches: 8") for r in caplog.records)
