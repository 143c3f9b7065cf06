"""When the fetcher looks again, without a database: how long it pauses after a turn."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from packhorse.worker.config import load_settings
from packhorse.worker.runtime.fetcher import Fetcher
from packhorse.worker.runtime.pace import Pace
from packhorse.worker.service import Service


def fetcher_after_a_turn(*, backlog: bool, room: int) -> tuple[Fetcher, Any]:
    """A fetcher whose handlers all run, and none of them has ended; and its intake."""
    pace = Pace(1000, 1000)
    intake = SimpleNamespace(
        looks_at=math.inf,
        pace=pace,
        backlog=backlog,
        room=lambda: room,
        done=[],
        signalled=False,
        next_poll=math.inf,
        pool=SimpleNamespace(patient=False),
    )
    fetcher = Fetcher.__new__(Fetcher)  # without a broker and a database
    Service.__init__(fetcher)
    fetcher.claims = SimpleNamespace(  # type: ignore[assignment]
        intakes=[intake],
        backlog=backlog,
        attending=False,
        wakeups=SimpleNamespace(next_turn=math.inf, call_at=math.inf),
    )
    fetcher.in_flight = [object()]  # type: ignore[assignment]
    fetcher.finished, fetcher._outcomes = [], []  # type: ignore[assignment]
    fetcher.draining = False
    fetcher._settings = load_settings({})
    return fetcher, intake


@pytest.mark.parametrize(
    ("backlog", "room", "pauses"), [(True, 900, False), (True, 0, True), (False, 900, True)]
)
def test_a_claim_that_was_cut_off_by_its_batch_is_followed_by_the_next_one_at_once(backlog, room, pauses):
    """A thousand coroutines are filled by ten claims of a hundred: nobody has to end first, and nothing is
    waited for.
    """
    fetcher, intake = fetcher_after_a_turn(backlog=backlog, room=room)
    assert (fetcher._pause([intake] if room else []) > 0) is pauses
