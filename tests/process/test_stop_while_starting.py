"""W6: a stop that is asked while a child still imports its actors is not lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.postgres import Database
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_sigterm_during_the_import_of_the_actors_ends_the_child(
    database: Database, start_daemon: Callable[..., Any]
) -> None:
    daemon = start_daemon(
        database, actors="tests.support.slow_actors", drain_seconds=0, call_deadline_seconds=1
    )
    wait_until(lambda: "importing" in daemon.log, 20)
    assert daemon.stop(30) == 0
    assert "child_killed" not in daemon.log
