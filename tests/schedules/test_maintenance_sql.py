"""Runs of maintenance in SQL, on every server: one runner per task, cursor and progress in the database (SPEC
M6, M7).
"""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest


def start(sql, task="t", kind="retention", message=None, **arguments):
    named = "".join(f", p_{key} => %s" for key in arguments)
    rows = sql.rows(
        f"select run_id, run_cutoff, run_cursor, run_rows, run_batch_size, run_resumed from start_maintenance_run(%s, %s, 'me', %s{named})",
        task,
        kind,
        message,
        *arguments.values(),
    )
    return rows[0] if rows else None


def beat(sql, run, rows=0, cursor=None, gate=None, seconds=0.0):
    return sql.value(
        "select beat_maintenance_run(%s, %s, %s::jsonb, 50, %s, %s)", run, rows, cursor, gate, seconds
    )


def silent(sql, for_="3 minutes"):
    sql.rows("update maintenance_runs set beat_at = beat_at - %s::interval", for_)


def test_one_runner_per_task_and_tasks_do_not_hinder_each_other(sql):
    run = start(sql)
    assert run is not None and start(sql) is None
    assert start(sql, "other") is not None
    sql.value("select end_maintenance_run(%s, 'succeeded')", run[0])
    assert start(sql)[0] > run[0]


def test_a_paused_or_silent_run_goes_on_with_its_cutoff_and_cursor(sql):
    cutoff = sql.value("select clock_timestamp() - interval '7 days'")
    first = start(sql, cutoff=cutoff, batch_size=500)
    assert beat(sql, first[0], 10, '["2026-01-01", "5"]') == "go"
    sql.value("select end_maintenance_run(%s, 'paused')", first[0])
    paused = start(sql, cutoff=cutoff + timedelta(days=1))
    assert paused == (first[0], cutoff, ["2026-01-01", "5"], 10, 50, 1)
    assert start(sql) is None
    silent(sql)
    assert start(sql)[5] == 2
    assert beat(sql, first[0], 5, '["2026-01-02", "9"]') == "go"
    assert sql.rows("select rows_done, batches, resumed from maintenance_runs") == [(15, 2, 2)]


def test_the_retry_of_the_same_message_goes_on_at_once_and_another_message_waits(sql):
    run = start(sql, message=7)
    assert start(sql, message=8) is None
    assert start(sql, message=7)[0] == run[0]


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_run_that_is_over_hears_that_it_is_lost_and_ends_once(sql, state):
    run = start(sql)[0]
    assert sql.value("select end_maintenance_run(%s, %s, 'why')", run, state) is True
    assert beat(sql, run) == "lost"
    assert sql.value("select end_maintenance_run(%s, 'succeeded')", run) is False
    assert sql.rows("select state, error, ended_at is not null, gate from maintenance_runs") == [
        (state, "why", True, None)
    ]


def test_a_cancel_is_heard_at_the_next_beat_and_survives_a_takeover(sql):
    run = start(sql)[0]
    assert sql.value("select cancel_maintenance_run('t', 'ada', 'wrong')") == "requested"
    assert beat(sql, run) == "cancel"
    silent(sql)
    assert start(sql)[0] == run and beat(sql, run) == "cancel"
    sql.value("select end_maintenance_run(%s, 'paused')", run)
    assert sql.value("select cancel_maintenance_run('t', 'ada')") == "cancelled"
    assert sql.value("select cancel_maintenance_run('t', 'ada')") == "nothing"
    assert sql.rows("select operator, reason from operator_actions order by id") == [
        ("ada", "wrong"),
        ("ada", None),
    ]


def test_each_time_that_a_gate_closes_is_counted_once(sql):
    run = start(sql)[0]
    for gate in ("lag", "lag", None, "lag", "snapshot", "snapshot"):
        beat(sql, run, gate=gate, seconds=0.5 if gate else 0.0)
    assert sql.rows("select gates_hit, throttled_seconds, gate from maintenance_runs") == [
        ({"lag": 2, "snapshot": 1}, 2.5, "snapshot")
    ]


def test_health_shows_the_last_run_and_the_last_success(sql):
    for state in ("succeeded", "failed"):
        run = start(sql)[0]
        beat(sql, run, 5)
        sql.value("select end_maintenance_run(%s, %s, 'broken')", run, state)
    row = sql.row("select * from maintenance_health")
    assert (
        row["task"],
        row["state"],
        row["rows_done"],
        row["rows_total"],
        row["last_success_at"] is not None,
    ) == ("t", "failed", 5, 10, True)


def test_a_kind_or_state_that_nobody_knows_is_refused(sql):
    for statement in (
        "select start_maintenance_run('t', 'magic', 'me')",
        "select end_maintenance_run(%s, 'lost')" % start(sql)[0],
    ):
        assert sql.refused(statement)[0] == "23514"


def test_gates_are_readable_for_a_table_and_without_one(sql):
    found = sql.rows("select gate, known from maintenance_gates('message_queue'::regclass)")
    assert len(found) == 5 and found[3] == ("connections_ratio", True)
    assert len(sql.rows("select * from maintenance_gates()")) == 5


def test_readers_see_and_may_change_nothing(own_clients, any_database):
    sql = own_clients()
    start(sql)
    with any_database.connect(admin=True) as connection:
        connection.execute("set role packhorse_reader")
        for table in (
            "schedules",
            "schedule_runs",
            "maintenance_runs",
            "detached_partitions",
            "schedule_health",
            "maintenance_health",
        ):
            connection.execute(f"select * from {table}")
        for call in (
            "set_schedule('s', 'effect', '* * * * *')",
            "run_schedule_now('s')",
            "cancel_maintenance_run('t')",
            "pause_schedule('s')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"select {call}")


def blocks(sql, statement):
    """How many blocks a statement touches: the clock of a shared machine proves nothing."""
    (plan,) = sql.rows(f"explain (analyze, buffers, format json) {statement}")[0][0]
    return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]


@pytest.mark.parametrize("outcomes", [("done",), ("dead",), ("done", "dead")])
@pytest.mark.slow
def test_health_looks_at_the_last_run_of_each_and_not_at_its_history(own_clients, any_database, outcomes):
    """A schedule of every minute has 43,000 runs in a month; metrics and health asked for all of them every
    few seconds.
    """
    any_database.query("select set_schedule('s' || n, 'effect', '* * * * *') from generate_series(1, 3) n")
    any_database.query(
        "insert into schedule_runs (schedule, planned_at, outcome, triggered_by, message_id, ended_at) select 's' || n %% 3 + 1, now() - n * interval '1 minute', "
        "(%s::text[])[1 + n %% cardinality(%s::text[])], 'schedule', n, now() - n * interval '1 minute' from generate_series(40000, 1, -1) n",
        list(outcomes),
        list(outcomes),
    )
    any_database.query(
        "insert into maintenance_runs (task, kind, triggered_by, state, ended_at) select 't' || case when n > 5 then n % 4 else 4 end, 'job', 'schedule', 'succeeded', now() "
        "from generate_series(1, 40000) n"
    )
    for table in ("schedule_runs", "maintenance_runs"):
        any_database.query(f"vacuum analyze {table}")
    sql = own_clients()
    assert {row[0] for row in sql.rows("select task from maintenance_health")} == {f"t{n}" for n in range(5)}
    assert (
        sql.value(
            "select count(*) from schedule_health where (last_success_at is not null) = %s",
            "done" in outcomes,
        )
        == 3
    )
    assert (
        blocks(sql, "select * from schedule_health") < 150
        and blocks(sql, "select * from maintenance_health") < 150
    )
