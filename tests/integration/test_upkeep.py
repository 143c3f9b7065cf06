"""Slow upkeep by the heartbeat: a step per turn, none of which holds up leases or other steps (SPEC W5,
FAILURES 36, 65).
"""

from __future__ import annotations

import time

import psycopg
import pytest

from packhorse.worker.db.connection import connect
from packhorse.worker.store import workers as store
from tests.sql.platform.conftest import create_platform_database
from tests.support.calendar import past_midnight
from tests.support.postgres import Database
from tests.support.waiting import wait_until


def expired_windows(database: Database, count: int) -> None:
    database.query(
        "insert into message_dedup (queue, dedup_key, message_id, expires_at)"
        " select 'default', n::text, n, clock_timestamp() - interval '1 minute' from generate_series(1, %s) n",
        count,
    )


@pytest.mark.slow
def test_upkeep_keeps_up_with_more_windows_than_one_step_takes(database, heartbeat):
    """Five thousand in five minutes is seventeen per second; a busy webhook makes more, and the table grew
    for ever.
    """
    expired_windows(database, 2 * store.CLEANUP_ROWS + 1)
    heartbeat.start()
    wait_until(lambda: database.value("select count(*) from message_dedup") == 0, 30, "all windows are gone")


def test_a_step_that_cannot_be_done_stops_no_other_and_is_not_tried_in_each_turn(database, heartbeat):
    expired_windows(database, 3)
    with database.connect(admin=True) as other:
        other.execute("select pg_advisory_lock(hashtext('packhorse message_archive'))")
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


def upkeep_once(database: Database) -> None:
    """Every step of one worker, as its heartbeat does them."""
    with connect(database.url) as connection:
        for step in store.UPKEEP_STEPS:
            store.upkeep(connection, step, 3600.0)


def test_a_worker_deletes_nothing_that_ages_by_a_policy(database):
    """Constants in the upkeep deleted what configuration kept, and what blocked a conversation."""
    database.query("""select declare_queue('blocky'), set_queue('blocky', '{"on_dead": "block"}')""")
    for queue, key in (("blocky", "c"), ("default", None)):
        database.query(
            "select bury_message((select message_id from enqueue_message(%s, 'gone', p_conversation_key => %s)))",
            queue,
            key,
        )
    database.query("update dead_letters set dead_at = '2020-01-01'")
    database.query(
        "insert into processed_messages (external_id, first_seen_at, processed_at) values ('a', '2020-01-01', '2020-01-01'), ('b', '2020-01-01', null)"
    )
    expired_windows(database, 3)
    upkeep_once(database)
    assert database.value("select count(*) from message_dedup") == 0
    assert (
        database.value("select count(*) from processed_messages") == 2
        and database.value("select count(*) from dead_letters") == 2
    )


PARTITIONS = "select inhrelid::regclass::text from pg_inherits where inhparent = '{0}'::regclass order by 1"


@pytest.mark.parametrize("place", [0, 1], ids=["the current one", "the next one"])
@pytest.mark.parametrize("table", ["message_archive", "messages"])
def test_a_partition_that_is_missing_is_made_by_a_worker_without_traffic(server, table, place):
    database = create_platform_database(server)
    try:
        past_midnight(database)
        upkeep_once(database)  # it was cloned from a template, maybe of yesterday
        whole = [row[0] for row in database.query(PARTITIONS.format(table))]
        # yesterday's, or that of the month in which the template was made, is still there
        form = "YYYYMMDD" if table == "message_archive" else "YYYY_MM"
        today = database.value(f"select to_char(clock_timestamp() at time zone 'UTC', '{form}')")
        place += whole.index(f"{table}_{today}")
        database.query(f"drop table {whole[place]}")
        upkeep_once(database)
        assert [row[0] for row in database.query(PARTITIONS.format(table))] == whole
        database.query(f"alter table {table} detach partition {whole[-1]}")
        database.query(f"alter table {whole[-1]} rename to put_aside")
        upkeep_once(database)
        assert [row[0] for row in database.query(PARTITIONS.format(table))] == whole
    finally:
        database.drop()


@pytest.mark.parametrize(("policy", "months"), [('{"ahead": 2}', 3), ("{}", 0)])
def test_a_worker_makes_as_many_months_as_configuration_says(server, policy, months):
    database = create_platform_database(server)
    try:
        for (name,) in database.query(PARTITIONS.format("messages")):
            database.query(f"drop table {name}")
        database.query(
            "select declare_policies(jsonb_build_object('partitions.messages.make', %s::jsonb))", policy
        )
        upkeep_once(database)
        assert len(database.query(PARTITIONS.format("messages"))) == months
    finally:
        database.drop()


def test_months_that_are_there_are_seen_without_a_lock(server):
    """Every worker asks each five minutes."""
    database = create_platform_database(server)
    try:
        with connect(database.url) as connection:
            store.upkeep(connection, "upkeep_messages", 3600.0)  # its template may be of last month
        with database.connect(admin=True) as other, other.transaction():
            other.execute("lock table messages in share row exclusive mode")
            other.execute("select pg_advisory_xact_lock(hashtext('packhorse.messages'))")
            with connect(database.url) as connection:
                store.upkeep(connection, "upkeep_messages", 3600.0)
    finally:
        database.drop()


def test_a_month_that_cannot_be_made_stops_no_other_and_is_said(server):
    database = create_platform_database(server)
    try:
        with connect(database.url) as connection:
            store.upkeep(connection, "upkeep_messages", 3600.0)  # its template may be of last month
        months = [row[0] for row in database.query(PARTITIONS.format("messages"))]
        for name in months[1:4]:
            database.query(f"drop table {name}")
        database.query(f"create table {months[2]} (note text)")
        with connect(database.url) as connection:
            store.upkeep(connection, "upkeep_messages", 3600.0)
            assert [row[0] for row in database.query(PARTITIONS.format("messages"))] == [
                *months[:2],
                *months[3:],
            ]
            with pytest.raises(psycopg.ProgrammingError, match=f"{months[2]} exists and is no partition"):
                store.upkeep(connection, "upkeep_messages", 3600.0)
    finally:
        database.drop()
