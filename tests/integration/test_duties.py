"""Each duty of a heartbeat broken alone, in a real database: it is named with its SQLSTATE, and stops no
other (SPEC P8, O4).
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from uuid import uuid4

import pytest

from packhorse.worker.attempt.heartbeat import Heartbeat
from packhorse.worker.config import Settings
from packhorse.worker.db.connection import connect
from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.fleet.exporter import FleetReader
from packhorse.worker.observe.fleet_stats import FleetStats
from packhorse.worker.store.workers import UPKEEP_STEPS
from tests.support.harness import quick_settings
from tests.support.postgres import Database

FUNCTIONS = {
    "beat": "beat_worker",
    "rescue": "rescue_expired_messages",
    "expire": "expire_messages",
    "upkeep_partitions": "ensure_message_archive_partitions",
    "upkeep_unknown_types": "bury_unknown_types",
    "upkeep_workers": "forget_dead_workers",
    "upkeep_conversations": "promote_stranded_conversations",
    "upkeep_messages": "keep_messages_partitions",
    "upkeep_windows": "cleanup_expired_windows",
    "upkeep_archive": "drop_expired_archive_partitions",
}
TURNS = len(UPKEEP_STEPS) + 1


def turn(heartbeat):
    """One turn of each duty, whatever its interval."""
    heartbeat._next_beat = heartbeat._next_rescue = heartbeat._next_expiry = 0.0
    heartbeat._steps = dict.fromkeys(heartbeat._steps, 0.0)
    for _ in range(TURNS):
        heartbeat.run_once()


def failing(heartbeat):
    """Duty -> code, of those that fail."""
    return {problem.duty.name: problem.code for problem in heartbeat.duties._found(time.monotonic())}


def told(database: Database):
    """What the process's row says."""
    return database.value("select worker_problems(w) from workers w")


@pytest.mark.parametrize("duty", FUNCTIONS)
def test_a_right_that_is_missing_is_named_and_stops_no_other_duty(database, heartbeat, duty):
    signature = database.value(
        "select oid::regprocedure::text from pg_proc where proname = %s", FUNCTIONS[duty]
    )
    turn(heartbeat)
    assert failing(heartbeat) == {}
    database.query(f"revoke execute on function {signature} from packhorse_worker")
    turn(heartbeat)
    assert failing(heartbeat) == {duty: "42501"}
    database.query(f"grant execute on function {signature} to packhorse_worker")
    turn(heartbeat)
    assert failing(heartbeat) == {}


def test_a_locked_table_is_named_and_the_other_steps_are_done(database, heartbeat):
    with database.connect(admin=True) as other, other.transaction():
        other.execute("lock table message_dedup")
        turn(heartbeat)
        assert failing(heartbeat) == {"upkeep_windows": "55P03"}
    turn(heartbeat)
    assert failing(heartbeat) == {}


def test_a_statement_that_does_not_come_back_is_named(database):
    impatient = Heartbeat(
        lambda: connect(database.url, deadline_seconds=0.5),
        uuid4(),
        quick_settings(database),
        lambda: [],
        lambda message, held: None,
    )
    with database.connect(admin=True) as other, other.transaction():
        other.execute("lock table workers")
        with pytest.raises(StoreUnavailable):
            impatient.run_once()
    assert failing(impatient) == {"beat": "StoreUnavailable"}
    impatient.on_stop()


def test_a_trigger_that_raises_is_named(database, heartbeat):
    database.query("create function no() returns trigger language plpgsql as $$ begin raise 'no'; end $$")
    database.query("create trigger no before update on workers for each row execute function no()")
    turn(heartbeat)
    assert failing(heartbeat) == {"beat": "P0001"}


def test_the_row_of_a_process_says_what_it_cannot_do_and_that_it_is_silent(database, heartbeat):
    heartbeat.duties.failing("rescue", "42501", began=time.monotonic() - 31)
    heartbeat.beat()
    assert told(database) == ["rescue has failed for 31 s (42501)"]
    database.query("update workers set last_seen_at = clock_timestamp() - interval '31 seconds'")
    assert told(database) == ["silent for 31 s", "rescue has failed for 31 s (42501)"]
    heartbeat.duties.well("rescue")
    heartbeat.beat()
    assert told(database) == []


def test_a_process_says_at_its_registration_what_its_predecessor_could_not_do(database, heartbeat):
    database.query("delete from workers")
    heartbeat.duties.failing("beat", "42501", began=time.monotonic() - 31)
    with connect(database.url) as connection:
        heartbeat.register(connection, ["default"], ["mine"], 4)
    assert told(database) == ["beat has failed for 31 s (42501)"]


def test_problems_are_bounded_whoever_writes_them(database, heartbeat):
    database.query(
        "select from beat_worker(%s, '{}', '{}', '1 minute', p_problems => %s)",
        heartbeat._worker_id,
        [None, *["x" * 5000] * 50],
    )
    assert told(database) == ["x" * 200] * 19
    database.query(
        "select from beat_worker(%s, '{}', '{}', '1 minute', p_problems => null)", heartbeat._worker_id
    )
    assert told(database) == []


@pytest.mark.parametrize("apart", [-7.0, 0.0, 7.0])
def test_the_clock_of_the_host_is_compared_with_the_database_s(database, monkeypatch, apart):
    monkeypatch.setattr(
        "packhorse.worker.fleet.exporter.time",
        SimpleNamespace(time=lambda: time.time() + apart, monotonic=time.monotonic),
    )
    fleet = FleetReader(Settings(database_url=database.url), FleetStats(1))
    fleet.run_once()
    fleet.on_stop()
    found = fleet.latest()[0]["clock_skew_seconds"]
    assert found == pytest.approx(apart, abs=1.0) and (apart or found == 0)
