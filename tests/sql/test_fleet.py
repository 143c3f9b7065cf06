"""refresh_fleet_statistics() and fleet_statistics(): counted once per fleet, in bounded work
(migrations/functions/fleet_statistics.sql, count.sql).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.sql.client import Sql
from tests.sql.parking import in_background
from tests.support.postgres import Database


def counted(sql: Sql) -> dict[str, Any]:
    assert sql.value("select refresh_fleet_statistics('0')") is True
    return sql.value("select statistics from fleet_statistics()")


def by(rows: list[dict[str, Any]], **labels: str) -> float:
    (found,) = [row["value"] for row in rows if all(row[key] == value for key, value in labels.items())]
    return found


def test_messages_are_counted_by_queue_and_state(sql: Sql) -> None:
    for _ in range(3):
        sql.enqueue(conversation_key="c")
    sql.enqueue(priority=1)
    sql.enqueue(priority=9, delay="1 hour")
    sql.rows("update message_queue set run_at = clock_timestamp() - interval '1 minute' where priority = 1")
    sql.rows("update message_queue set crashes = 2 where priority = 1")
    sql.rows(
        "update message_queue set state = 'blocked' where conversation_key = 'c' and id > (select min(id) from message_queue)"
    )
    sql.rows("select pause_queue('q', 'ann')")
    found = counted(sql)
    states = {
        state: by(found["queue_messages"], queue="q", state=state)
        for state in ("pending", "delayed", "blocked", "running")
    }
    assert states == {"pending": 2, "delayed": 1, "blocked": 2, "running": 0}
    assert not any(row["estimated"] for row in found["queue_messages"])
    assert 59 < by(found["queue_oldest_due_age_seconds"], queue="q") < 120, "one that runs apart counts, too"
    assert by(found["queue_paused"], queue="q") == 1
    assert found["queue_forwarded"] is None
    assert by(found["conversations_blocked"], queue="q") == 1
    assert by(found["dead_letters"], queue="q") == 0


def test_queues_that_are_forwarded_are_named(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    sql.set_queue("r", forward="amqp")
    assert counted(sql)["queue_forwarded"] == [{"queue": "r", "value": 1}]


def test_a_queue_without_messages_is_shown_with_zeros(sql: Sql) -> None:
    found = counted(sql)
    assert by(found["queue_messages"], queue="q", state="pending") == 0
    assert (
        by(found["queue_oldest_due_age_seconds"], queue="q")
        == 0
        == by(found["conversation_blocked_age_seconds"], queue="q")
    )


def test_workers_tables_partitions_and_snapshots_are_there(sql: Sql) -> None:
    found = counted(sql)
    assert {row["state"] for row in found["workers"]} == {"running", "quiet", "draining", "silent"}
    assert {row["table"] for row in found["table_bytes"]} == {
        "message_queue",
        "message_archive",
        "dead_letters",
    }
    assert by(found["table_bytes"], table="message_queue") > 0
    assert by(found["partition_runway_seconds"], table="message_archive") > 6 * 86400
    assert "oldest_snapshot_age_seconds" in found, "null, when somebody else's snapshot is hidden"


def test_a_snapshot_that_the_role_may_not_see_is_not_none(any_database: Database) -> None:
    """Everybody sees that there is one, only members of pg_read_all_stats how old it is: 0 would be a lie."""
    with any_database.connect() as worker, any_database.connect(admin=True) as reporter:
        read = "select (table_statistics(clock_timestamp()) ->> 'oldest_snapshot_age_seconds')::float8, (health_system_summary()).*"
        reporter.execute("begin isolation level repeatable read")
        reporter.execute("select count(*) from message_queue")
        ((age, _, summary, details),) = worker.execute(read).fetchall()
        assert age is None and "grant pg_read_all_stats" in summary
        assert (details["oldest_snapshot_seconds"], details["sees_all_snapshots"]) == (None, False)
        with any_database.connect(admin=True) as owner:
            owner.execute("select pg_sleep(0.1)")
            ((age, _, summary, details),) = owner.execute(read).fetchall()
        assert age >= 0.1 and details["oldest_snapshot_seconds"] >= 0.1 and "grant" not in summary
        reporter.execute("rollback")


def test_the_age_of_the_conversation_that_waits_longest(sql: Sql) -> None:
    for key in ("a", "a", "b", "b"):
        sql.enqueue(conversation_key=key)
    sql.rows(
        "update message_queue set state = 'blocked', created_at = created_at - interval '1 hour', run_at = run_at - interval '2 hours' "
        "where id in (select max(id) from message_queue group by conversation_key)"
    )
    sql.rows(
        "update message_queue set run_at = clock_timestamp() - interval '1 minute' where state = 'blocked' and conversation_key = 'a'"
    )
    found = counted(sql)
    assert by(found["conversations_blocked"], queue="q") == 2
    assert 3600 <= by(found["conversation_blocked_age_seconds"], queue="q") < 3700, (
        "from when it was due, not before it was there"
    )


@pytest.mark.parametrize(
    ("kind", "ranges", "ends"),
    [
        ("timestamptz", [(-3, -2), (-1, 1), (1, 2), (4, 9)], 2),  # tomorrow is there, the day after is not
        ("timestamp", [(-1, 1), (1, 2), (4, 9)], 2),
        ("date", [(0, 1), (1, 5)], 5),
        ("timestamptz", [(-2, 0), (1, 9)], 0),  # not even now
        ("timestamptz", [(-9, -2)], -2),
        ("timestamptz", [(-1, 3), (3, None)], None),  # it never ends
    ],
)
def test_the_runway_of_partitions_ends_at_the_first_gap(
    any_database: Database, kind: str, ranges: list[tuple[int, int | None]], ends: int | None
) -> None:
    """A month that is missing stops inserts, however many there are behind it."""
    any_database.query(f"alter database {any_database.name} set timezone to 'Asia/Kolkata'")
    today = any_database.value("select date_trunc('day', clock_timestamp() at time zone 'UTC')")
    any_database.query(f"create table parts (at {kind} not null) partition by range (at)")
    zone = "+00" if kind == "timestamptz" else ""
    for number, (first, last) in enumerate(ranges):
        upper = "maxvalue" if last is None else f"'{today + timedelta(days=last)}{zone}'"
        any_database.query(
            f"create table parts_{number} partition of parts for values from ('{today + timedelta(days=first)}{zone}') to ({upper})"
        )
    any_database.query("select refresh_fleet_statistics('0')")
    rows = [
        row["value"]
        for row in any_database.value("select statistics from fleet_statistics()")["partition_runway_seconds"]
        if row["table"] == "parts"
    ]
    now = any_database.value("select clock_timestamp() at time zone 'UTC'")
    expected = (
        [] if ends is None else [0.0 if ends == 0 else (today + timedelta(days=ends) - now).total_seconds()]
    )
    assert rows == pytest.approx(expected, abs=60)


def test_a_worker_that_is_silent_is_told_from_one_that_lives(sql: Sql) -> None:
    sql.rows(
        "select register_worker(gen_random_uuid(), 'h', 1, '1', '{q}', '{t}', 4, interval '20 seconds') from generate_series(1, 2)"
    )
    sql.rows(
        "update workers set last_seen_at = clock_timestamp() - interval '1 minute' where id = (select id from workers limit 1)"
    )
    workers = counted(sql)["workers"]
    assert (by(workers, state="running"), by(workers, state="silent")) == (1, 1)


def test_what_is_young_enough_is_not_counted_again(sql: Sql) -> None:
    counted(sql)
    assert sql.value("select refresh_fleet_statistics('1 hour')") is False
    assert sql.value("select age_seconds < 3600 from fleet_statistics()")
    sql.rows(
        "update fleet_statistics set took = '10 seconds', refreshed_at = clock_timestamp() - interval '1 minute'"
    )
    assert sql.value("select refresh_fleet_statistics('15 seconds')") is False, (
        "counting takes at most a twentieth of the time"
    )


def test_before_the_first_count_there_are_no_numbers(sql: Sql) -> None:
    sql.rows("delete from fleet_statistics")
    assert sql.rows("select * from fleet_statistics()") == []
    assert counted(sql)


def test_only_one_counts_at_a_time_and_nobody_waits(clients: Callable[..., Sql]) -> None:
    first, second = clients(), clients()
    first.value("select refresh_fleet_statistics('0')")
    with first.connection.transaction():
        assert first.value("select refresh_fleet_statistics('0')") in (True, False)
        first.rows("select from fleet_statistics for update")
        assert in_background(lambda: second.value("select refresh_fleet_statistics('0')")).result(10) is False
        assert second.rows("select * from fleet_statistics()"), "reading goes on"


def counts_within(database: Database, limit: int) -> tuple[dict[tuple[str, str], tuple[int, bool]], int]:
    """What is counted, by queue and state, and how many rows that took."""
    with database.connect() as connection:
        connection.autocommit = False
        sql = Sql(connection)
        rows = sql.rows(
            "select queue, state, messages, estimated from count_queue_messages(clock_timestamp(), %s)", limit
        )
        walked = sql.value(
            "select coalesce(sum(seq_tup_read + idx_tup_fetch), 0) from pg_stat_xact_user_tables where relname = 'message_queue'"
        )
        connection.rollback()
    return {(queue, state): (messages, estimated) for queue, state, messages, estimated in rows}, walked


@pytest.mark.slow
def test_beyond_the_limit_stands_an_estimate_and_no_more_rows_are_read(any_database: Database) -> None:
    any_database.query("select declare_queue(q) from unnest(array['later', 'few']) q")
    any_database.query(
        "insert into message_queue (queue, message_type, run_at, priority) select 'default', 't', "
        "clock_timestamp() + case when n % 4 = 0 then 1 else -1 end * interval '1 hour', 1 + n % 10 from generate_series(1, 40000) n"
    )
    any_database.query(
        "insert into message_queue (queue, message_type, run_at) select 'later', 't', clock_timestamp() + interval '2 hours' from generate_series(1, 20000)"
    )
    any_database.query(
        "insert into message_queue (queue, message_type) select 'few', 't' from generate_series(1, 999)"
    )
    any_database.query("analyze message_queue")
    found, walked = counts_within(any_database, 1000)
    assert found["default", "running"] == found["default", "blocked"] == (0, False)
    assert found["default", "pending"][1] and 15_000 < found["default", "pending"][0] < 40_000
    assert found["default", "delayed"][1] and 5_000 < found["default", "delayed"][0] < 25_000
    assert found["later", "pending"] == (0, False), "nothing of it is due, and that is certain"
    assert found["later", "delayed"][1] and 18_000 < found["later", "delayed"][0] < 22_000, (
        "all that waits there, which the planner knows well"
    )
    assert found["few", "pending"] == (999, False)
    assert walked < 4000, "three queues of at most 1,000, and the ends of each priority"


def test_a_negative_age_is_refused(sql: Sql) -> None:
    assert sql.refused("select refresh_fleet_statistics('-1 second')")[0] == "PH001"


def test_a_reader_may_read_but_not_count(any_database: Database) -> None:
    with any_database.connect(admin=True) as connection:
        connection.execute("set role packhorse_reader")
        assert connection.execute("select * from fleet_statistics()").fetchall() is not None
        with pytest.raises(Exception, match="permission denied"):
            connection.execute("select refresh_fleet_statistics('0')")


def test_messages_that_run_apart_and_completions_that_are_refused_are_counted(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows(
        "select mark_completion_refused(array[%s::bigint], array[%s::bigint], 'SQLSTATE 42501: no right')",
        lease.id,
        lease.token,
    )
    sql.enqueue()
    sql.rows("update message_queue set crashes = 2 where state = 'pending'")
    found = counted(sql)
    assert (found["isolated_messages"], found["refused_completions"]) == (1, 1)
    status, summary, details = sql.rows("select * from health_queue_health()")[0]
    assert (
        status == "warn"
        and "1 wait to run apart, 1 done but not written: SQLSTATE 42501: no right" in summary
    )
    assert (details["isolated"], details["refused"]) == (1, 1)


def test_the_scopes_that_rest_are_shown_with_since_when(sql: Sql) -> None:
    sql.rows(
        "select park_scope('api', interval '1 hour'), park_scope('lifted', interval '1 hour'), lift_scope('lifted')"
    )
    sql.rows("update scopes set parked_at = parked_at - interval '1 minute' where name = 'api'")
    sql.rows("select refresh_fleet_statistics(interval '0')")
    ((shown,),) = sql.rows("select statistics -> 'scope_parked_seconds' from fleet_statistics()")
    assert [(row["scope"], 60 <= row["value"] < 120) for row in shown] == [("api", True)]


def test_dead_letters_are_counted_by_queue_up_to_a_limit(any_database: Database) -> None:
    any_database.query(
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, created_at) "
        "select n, case when n <= 40 then 'gone' else 'default' end, 't', '{}', '{}', 5, 'failed', 'f', 1, 0, now() from generate_series(1, 50) n"
    )

    def counted(limit: int) -> list[tuple[str, int, bool]]:
        return any_database.query("select queue, messages, estimated from count_dead_letters(%s)", limit)

    assert counted(10) == [("default", 10, True), ("gone", 10, True)], "what was seen, without statistics"
    any_database.query("analyze dead_letters")
    assert counted(41) == [("default", 10, False), ("gone", 40, False)]
    assert counted(20) == [("default", 10, False), ("gone", 40, True)]


def test_less_is_counted_while_vacuum_has_not_seen_the_table(database: Database) -> None:
    def bound(each: int, together: int) -> int:
        return database.value("select count_bound('message_queue', %s, %s)", each, together)

    queues = database.value("select count(*) from queues")
    database.query(
        "insert into message_queue (queue, message_type) select 'default', 't' from generate_series(1, 1000)"
    )
    database.query("analyze message_queue")
    assert bound(10**6, 10_000 * queues) == 2000, "a fifth"
    database.query("vacuum message_queue")
    assert bound(10**6, 10_000 * queues) == 10_000
    assert bound(500, 10_000 * queues) == 500
    assert bound(500, 1) == 100, "of each a hundred at least"
