"""Comparing two clocks over a network (worker/clock.py)."""

from __future__ import annotations

import pytest

from packhorse.worker.clock import skew


@pytest.mark.parametrize(
    ("before", "theirs", "after", "apart"),
    [(10.0, 10.5, 11.0, 0.0), (10.0, 7.0, 11.0, 3.0), (10.0, 15.0, 11.0, -4.0), (10.0, 10.0, 10.0, 0.0)],
)
def test_only_what_the_round_trip_does_not_explain_is_skew(before, theirs, after, apart):
    assert skew(before, theirs, after) == apart
