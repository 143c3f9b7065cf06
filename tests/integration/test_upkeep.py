"""Slow upkeep by the heartbeat: a step per turn, none of which holds up leases or other steps (SPEC W5, FAILURES 36, 65)."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest

from tests.support.houses import quick_settings
from tests.support.postgres import Database
from tests.support.waiting import wait_until
from worker.heartbeat import Heartbeat
from worker.store import workers as store


@pytest.fixture
def heartbeat(database: Database):
    from worker.db.connection import connect

    heartbeat = Heartbeat(lambda: connect(database.url), uuid4(), quick_settings(database), lambda: [], lambda message, held: None)
    with connect(database.url) as connection:
        heartbeat.register(connection, ["default"], ["mine"], 4)
    yield heartbeat
    heartbeat.stop()
    heartbeat.wait(10)
    heartbeat.on_stop()


def expired_windows(database: Database, count: int) -> None:
    database.query(
        "insert into message_dedup (queue, dedup_key, message_id, expires_at)"
        " select 'default', n::text, n, clock_timestamp() - interval '1 minute' from generate_series(1, %s) n",
        count,
    )


@pytest.mark.slow
def test_upkeep_keeps_up_with_more_windows_than_one_step_takes(database, heartbeat):
    """Five thousand in five minutes is seventeen per second; a busy webhook makes more, and the table grew for ever."""
    expired_windows(database, 2 * store.CLEANUP_ROWS + 1)
    heartbeat.start()
    wait_until(lambda: database.value("select count(*) from message_dedup") == 0, 30, "all windows are gone")


def test_a_step_that_cannot_be_done_stops_no_other_and_is_not_tried_in_each_turn(database, heartbeat):
    expired_windows(database, 3)
    with database.connect(admin=True) as other:
        other.execute("select pg_advisory_lock(hashtext('packhorse.message_archive'))")
        for _ in (*store.UPKEEP_STEPS, "once more"):
            heartbeat.run_once()
        failing = heartbeat.duties.failing_seconds(time.monotonic())
        assert [duty.name for duty in failing] == ["upkeep_partitions"]
    assert database.value("select count(*) from message_dedup") == 0


def test_all_steps_are_done_one_per_turn(database, heartbeat):
    done = []
    original = store.upkeep

    def noted(connection, step, seconds):
        done.append(step)
        return original(connection, step, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "upkeep", noted)
        for turn in range(1, len(store.UPKEEP_STEPS) + 3):
            heartbeat.run_once()
            assert len(done) == min(turn, len(store.UPKEEP_STEPS))
    assert tuple(done) == store.UPKEEP_STEPS
