"""A worker with a backlog asks for no NOTIFY; with hundreds of queues that is one look, not hundreds of statements (SPEC Q10)."""

from __future__ import annotations

import pytest

from tests.support.postgres import Database
from worker.db.connection import connect
from worker.store import messages as store


@pytest.mark.slow
def test_only_queues_with_sleepers_are_touched(any_database: Database) -> None:
    for queue in ("a", "b", "c"):
        any_database.query("select declare_queue(%s)", queue)
    any_database.query("select announce_sleep(array['a', 'c'])")
    with connect(any_database.url) as listener, connect(any_database.url) as worker:
        listener.execute("listen packhorse_wake", prepare=False)
        store.announce_busy(worker, ["a", "b", "c", "default"])
        assert sorted(n.payload for n in listener.notifies(timeout=1)) == ["a", "c"]
        store.announce_busy(worker, ["a", "b", "c", "default"])
        assert list(listener.notifies(timeout=0.3)) == []
    assert any_database.query("select queue from queue_wakeups where wake_until is not null") == []
