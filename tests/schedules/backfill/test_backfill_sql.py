"""Backfills as SQL: states, settings, and what is refused by name (SPEC M8)."""

from __future__ import annotations

import pytest

from packhorse.worker.states import State

STATES = ("new", "running", "copied", "verified", "finished", "rolled_back")
FOLLOWS = {
    "new": {"running", "verified"},
    "running": {"running", "copied", "rolled_back"},
    "copied": {"running", "copied", "verified", "rolled_back"},
    "verified": {"running", "copied", "verified", "finished", "rolled_back"},
    "finished": {"rolled_back"},
    "rolled_back": {"running", "rolled_back"},
}


@pytest.mark.parametrize("source", STATES)
def test_a_state_has_these_successors_and_no_other(sql, source):
    for target in STATES:
        sql.rows("delete from backfills")
        sql.rows(
            "insert into backfills (name, source, requested_by, state) values ('b', 'public.t', 'ada', %s)",
            source,
        )
        if target in FOLLOWS[source]:
            assert sql.value("select (move_backfill('b', %s, 'ada', 'why')).state", target) == target
        else:
            assert sql.refused("select move_backfill('b', %s)", target)[0] == "PH005", (source, target)
    acts = sql.rows("select distinct action from operator_actions where operator = 'ada' and reason = 'why'")
    assert {row[0] for row in acts} <= {"run_backfill", "finish_backfill", "roll_back_backfill"}


@pytest.mark.parametrize(
    "call",
    ["pause_backfill('b')", "resume_backfill('b')", "cancel_backfill('b')", "move_backfill('b', 'running')"],
)
def test_a_backfill_that_nobody_has_begun_is_refused_by_name(sql, call):
    assert sql.refused(f"select {call}") == ("PH004", "name")


def test_settings_are_fixed_from_the_first_run_to_the_way_back(sql):
    one, other = '{"source": "a"}', '{"source": "b"}'
    sql.rows("select declare_backfill('b', 'public.a', %s)", one)
    sql.rows("select declare_backfill('b', 'public.b', %s)", other)
    sql.rows("select move_backfill('b', 'running')")
    assert sql.value("select (declare_backfill('b', 'public.b', %s)).state", other) == "running"
    assert sql.refused("select declare_backfill('b', 'public.a', %s)", one)[0] == "PH005"
    assert sql.refused("select declare_backfill('b', 'public.b', '[]')")[0] == "PH001"
    sql.rows("select move_backfill('b', 'rolled_back')")
    assert sql.value("select (declare_backfill('b', 'public.a', %s)).state", one) == "new"


def test_one_message_carries_a_backfill_and_a_finished_one_is_not_started(sql):
    first = sql.value("select start_backfill('b', 'public.t', '{}', 'ada', 'by night')")
    assert sql.value("select start_backfill('b', 'public.t')") == first
    assert sql.rows("select queue, message_type, payload, state from message_queue where id = %s", first) == [
        ("packhorse", "packhorse.maintenance", {"task": "backfill.b"}, State.PENDING)
    ]
    assert (
        sql.value("select pause_backfill('b')") == "paused"
        and sql.value("select pause_backfill('b')") == "nothing"
    )
    assert sql.value("select state from backfill_progress") == "paused"
    assert (
        sql.value("select resume_backfill('b')") == "enqueued"
        and sql.value("select resume_backfill('b')") == "nothing"
    )
    sql.rows("update backfills set state = 'finished'")
    assert sql.refused("select start_backfill('b', 'public.t')")[0] == "PH005"


def test_the_drop_guard_remembers_since_when_the_counters_have_not_moved(sql):
    sql.rows("select declare_backfill('b', 'public.t')")
    first = sql.value("select (note_backfill_look('b', array[1, 0])).quiet_since")
    sql.rows("update backfills set quiet_since = quiet_since - interval '1 day'")
    assert sql.value("select (note_backfill_look('b', array[1, 0])).quiet_since") < first
    for counters in ("array[2, 0]", "array[2, 1]", "array[0, 0]"):
        sql.rows("update backfills set quiet_since = quiet_since - interval '1 day'")
        assert sql.value(f"select (note_backfill_look('b', {counters})).quiet_since") >= first, counters


def test_progress_counts_copied_and_skipped_and_metrics_show_them(sql):
    sql.rows("select declare_backfill('b', 'public.t')")
    sql.rows("select move_backfill('b', 'running')")
    sql.rows("update backfills set source_rows = 100")
    run = sql.value("select run_id from start_maintenance_run('backfill.b', 'backfill', 'ada')")
    sql.rows("select note_backfill_step('b', %s, 20, 5, 25)", run)
    sql.rows("select beat_maintenance_run(%s, 25)", run)
    assert sql.rows(
        "select state, rows_done, rows_total, rows_copied, rows_skipped, done_ratio from backfill_progress"
    ) == [("running", 25, 100, 20, 5, 0.25)]
    sql.rows("update backfills set recent_rows = array[extract(epoch from clock_timestamp()) - 5, 0]")
    rate, left = sql.rows("select rows_per_second, eta_seconds from backfill_progress")[0]
    assert 4 < rate <= 5 and 15 <= left < 19
    found = sql.value("select schedule_statistics(clock_timestamp())")
    assert found["backfill_rows_total"] == [
        {"backfill": "b", "outcome": "copied", "value": 20},
        {"backfill": "b", "outcome": "skipped", "value": 5},
    ]
    assert (
        found["backfill_done_ratio"] == [{"backfill": "b", "value": 0.25}]
        and found["backfill_remaining_seconds"][0]["backfill"] == "b"
    )
    sql.rows("update backfills set recent_rows = array[extract(epoch from clock_timestamp()) - 100, 0]")
    assert sql.rows("select rows_per_second, eta_seconds from backfill_progress") == [(0, None)], (
        "it waits, and nobody knows how long"
    )
