"""The timetable's SQL functions on every server: the unique row decides, whoever asks (SPEC M1, P7)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.sql.mutations import break_function
from tests.support.postgres import Database

PAST = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def make(sql, name="s", **arguments):
    """set_schedule, with the newest decided time in the past."""
    values = {"message_type": "effect", "queue": "q", "cron": "0 * * * *", **arguments}
    if "every" in values:
        del values["cron"]
    named = ", ".join(f"p_{key} => %s" for key in values)
    answer = sql.value(f"select set_schedule(%s, {named})", name, *values.values())
    sql.rows("update schedules set last_planned_at = %s where name = %s", PAST, name)
    return answer


def fire(sql, planned, name="s", **arguments):
    named = "".join(f", p_{key} => %s" for key in arguments)
    return sql.value(
        f"select fire_schedule(%s, %s, %s{named})", name, planned, planned + HOUR, *arguments.values()
    )


def runs(sql, columns="planned_at, outcome"):
    return sql.rows(f"select {columns} from schedule_runs order by id")


# -- the unique row decides ----------------------------------------------------------------------
def test_a_planned_time_fires_once_however_often_it_is_asked_for(sql):
    make(sql)
    assert [fire(sql, PAST + HOUR) for _ in range(3)] == ["enqueued", "taken", "taken"]
    assert runs(sql) == [(PAST + HOUR, "enqueued")]
    assert sql.value("select count(*) from message_queue") == 1


def test_an_earlier_time_than_the_last_decided_one_never_fires(sql):
    make(sql)
    assert fire(sql, PAST + 2 * HOUR) == "enqueued"
    assert fire(sql, PAST + HOUR) == "taken"


def test_a_time_whose_row_is_there_is_taken_though_the_timetable_was_set_back(sql):
    make(sql)
    fire(sql, PAST + HOUR)
    sql.rows("update schedules set last_planned_at = %s", PAST)
    assert fire(sql, PAST + HOUR) == "taken"
    assert sql.value("select count(*) from message_queue") == 1
    assert sql.value("select last_planned_at from schedules") == PAST + HOUR  # and it goes on


@pytest.mark.parametrize("broken", [None, "watermark", "unique", "both"])
def test_the_watermark_and_the_unique_row_each_hold_alone_and_both_missing_is_noticed(
    own_clients, any_database: Database, broken
):
    sql = own_clients()
    make(sql)
    if broken in ("watermark", "both"):
        break_function(any_database, "fire_schedule", "v_schedule.last_planned_at >= p_planned_at", "false")
    if broken in ("unique", "both"):
        any_database.query("alter table schedule_runs drop constraint schedule_runs_planned_key")
        break_function(
            any_database,
            "fire_schedule",
            "on conflict on constraint schedule_runs_planned_key do nothing",
            "",
        )
    answers = [fire(client, PAST + HOUR, overlap) for client, overlap in ((sql, "s"), (own_clients(), "s"))]
    assert (answers.count("enqueued") == 2) is (broken == "both") or answers[1] == "overlapped"
    assert (sql.value("select count(*) from schedule_runs") == 2) is (broken == "both")


def test_without_the_watermark_a_later_decision_is_undone_by_a_slow_scheduler(
    own_clients, any_database: Database
):
    sql = own_clients()
    make(sql)
    break_function(any_database, "fire_schedule", "v_schedule.last_planned_at >= p_planned_at", "false")
    fire(sql, PAST + 2 * HOUR)
    fire(sql, PAST + HOUR)  # computed long ago
    # what the intact function forbids
    assert sql.value("select last_planned_at from schedules") < PAST + 2 * HOUR


def test_two_schedulers_at_the_same_moment_fire_once(own_clients):
    first, second = own_clients(), own_clients()
    make(first)
    second.rows("set lock_timeout = '200ms'")
    with first.connection.transaction():
        assert fire(first, PAST + HOUR) == "enqueued"
        with pytest.raises(psycopg.errors.LockNotAvailable):  # it waits for the first one's answer
            fire(second, PAST + HOUR)
    assert fire(second, PAST + HOUR) == "taken"


def test_a_crash_between_row_and_message_leaves_neither(own_clients):
    sql = own_clients()
    make(sql)
    with sql.connection.transaction(force_rollback=True):
        assert fire(sql, PAST + HOUR) == "enqueued"
    assert runs(sql) == [] and sql.value("select count(*) from message_queue") == 0
    assert fire(sql, PAST + HOUR) == "enqueued"


def test_the_message_carries_what_was_declared(sql):
    make(sql, payload=psycopg.types.json.Jsonb({"a": 1}), priority=2, max_attempts=7, overlap="wait")
    fire(sql, PAST + HOUR)
    live = sql.live(sql.value("select message_id from schedule_runs"))
    assert (live["queue"], live["message_type"], live["payload"], live["priority"], live["max_attempts"]) == (
        "q",
        "effect",
        {"a": 1},
        2,
        7,
    )
    assert live["conversation_key"] == "schedule:s"
    assert live["options"]["schedule"] == "s"
    assert live["correlation_id"] == "schedule:s:2026-01-01T01:00:00Z"


# -- overlap, jitter, missed ---------------------------------------------------------------------
def test_overlap_skip_records_and_does_not_run_while_the_previous_run_lives(sql):
    make(sql, overlap="skip")
    fire(sql, PAST + HOUR)
    assert fire(sql, PAST + 2 * HOUR) == "overlapped"
    sql.complete(sql.claim_one())
    assert fire(sql, PAST + 3 * HOUR) == "enqueued"  # finished or not: the message is over
    assert [outcome for _, outcome in runs(sql)] == ["enqueued", "overlapped", "enqueued"]


def test_overlap_skip_sees_a_run_that_was_asked_for_by_hand(sql):
    make(sql, overlap="skip")
    sql.value("select run_schedule_now('s', 'ada')")
    assert fire(sql, PAST + HOUR) == "overlapped"


def test_overlap_wait_runs_one_after_the_other(sql):
    make(sql, overlap="wait")
    assert [fire(sql, PAST + n * HOUR) for n in (1, 2)] == ["enqueued", "enqueued"]
    first = sql.claim(5)
    assert len(first) == 1
    sql.complete(*first)
    assert len(sql.claim(5)) == 1


def test_overlap_allow_runs_both(sql):
    make(sql, overlap="allow")
    assert [fire(sql, PAST + n * HOUR) for n in (1, 2)] == ["enqueued", "enqueued"]
    assert len(sql.claim(5)) == 2


def test_jitter_delays_by_a_share_of_itself_and_never_more(sql):
    make(sql, jitter=timedelta(hours=10), overlap="allow")
    for hours, share in ((1, 0.0), (2, 0.5), (3, 1.0), (4, 7.0), (5, -3.0)):
        fire(sql, PAST + hours * HOUR, jitter=share)
    delays = [
        round(row[0] / 3600)
        for row in sql.rows(
            "select extract(epoch from m.run_at - m.created_at)::float8 from message_queue m join schedule_runs r on r.message_id = m.id order by r.id"
        )
    ]
    assert delays == [0, 5, 10, 10, 0]


def test_a_missed_time_is_recorded_and_not_run(sql):
    make(sql)
    assert fire(sql, PAST + HOUR, missed=True, missed_count=4) == "missed"
    assert runs(sql, "outcome, missed_count, message_id") == [("missed", 4, None)]


# -- pause, resume, run now, remove --------------------------------------------------------------
def test_a_paused_schedule_does_not_fire_and_resume_does_not_make_up(sql):
    make(sql)
    assert sql.value("select pause_schedule('s', 'ada')") is True
    assert sql.value("select pause_schedule('s', 'ada')") is False
    assert fire(sql, PAST + HOUR) == "paused"
    assert sql.value("select resume_schedule('s', 'ada')") is True
    assert sql.value("select resume_schedule('s', 'ada')") is False
    assert fire(sql, PAST + HOUR) == "taken"
    assert sql.value("select last_planned_at > clock_timestamp() - interval '1 minute' from schedules")
    assert sql.rows("select action, operator from operator_actions order by id") == [
        ("pause_schedule", "ada"),
        ("resume_schedule", "ada"),
    ]


def test_run_now_runs_beside_the_timetable_even_paused_and_is_recorded(sql):
    make(sql)
    sql.value("select pause_schedule('s', 'ada')")
    message = sql.value("select run_schedule_now('s', 'ada', 'because')")
    assert runs(sql, "outcome, triggered_by, message_id") == [("enqueued", "ada", message)]
    assert sql.value("select last_planned_at from schedules") == PAST
    assert sql.rows(
        "select operator, reason, message_id from operator_actions where action = 'run_schedule'"
    ) == [("ada", "because", message)]


def test_a_name_that_nobody_has_is_refused_with_a_near_miss(sql):
    make(sql, "daily-report")
    for call in (
        "pause_schedule('daily')",
        "resume_schedule('daily')",
        "run_schedule_now('daily')",
        "require_schedule('DAILY-report')",
    ):
        assert sql.refused(f"select {call}") == ("PH001", "schedule")
    try:
        with sql.connection.transaction():
            sql.rows("select pause_schedule('daily')")
    except psycopg.Error as error:
        assert "daily-report" in (error.diag.message_hint or "")


def test_a_removed_schedule_fires_no_more_and_keeps_its_history(sql):
    make(sql)
    fire(sql, PAST + HOUR)
    assert sql.value("select remove_schedule('s')") is True
    assert sql.value("select remove_schedule('s')") is False
    assert fire(sql, PAST + 2 * HOUR) == "gone"
    assert len(runs(sql)) == 1


# -- making and changing -------------------------------------------------------------------------
def test_set_schedule_says_created_changed_or_unchanged_and_keeps_pauses(sql):
    assert make(sql) == "created"
    sql.value("select pause_schedule('s', 'ada')")
    assert make(sql) == "unchanged"
    assert make(sql, priority=3) == "changed"
    assert sql.value("select paused_by from schedules") == "ada"


def test_another_payload_does_not_move_the_timetable_and_another_trigger_starts_it_anew(sql):
    make(sql)
    sql.value("select set_schedule('s', 'other', '0 * * * *', p_queue => 'q')")
    assert sql.rows("select last_planned_at, next_planned_at from schedules") == [(PAST, None)]
    sql.value("select set_schedule('s', 'other', '5 * * * *', p_queue => 'q')")
    assert sql.value("select last_planned_at > clock_timestamp() - interval '1 minute' from schedules")
    assert fire(sql, PAST + HOUR) == "taken"  # by the old trigger, of a scheduler that has not noticed


@pytest.mark.parametrize(
    ("arguments", "column"),
    [
        ({"name": "a b"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"cron": None}, "cron"),
        ({"cron": "* * *"}, "cron"),
        ({"every": timedelta(0), "cron": None}, "every"),
        ({"every": timedelta(days=4000), "cron": None}, "every"),
        ({"time_zone": "Africa/Kigaly"}, "time_zone"),
        ({"time_zone": None}, "time_zone"),
        ({"missed": "never"}, "missed"),
        ({"missed_limit": 0}, "missed_limit"),
        ({"missed_limit": 1001}, "missed_limit"),
        ({"overlap": "maybe"}, "overlap"),
        ({"missed": "all"}, "overlap"),
        ({"jitter": timedelta(days=2)}, "jitter"),
        ({"jitter": timedelta(-1)}, "jitter"),
        ({"source": "me"}, "source"),
        ({"priority": 11}, "priority"),
        ({"message_type": "a b"}, "message_type"),
        ({"payload": psycopg.types.json.Jsonb([])}, "payload"),
        ({"max_attempts": 0}, "max_attempts"),
    ],
)
def test_every_bad_argument_is_refused_by_name(sql, arguments, column):
    values = {"message_type": "effect", "queue": "q", "cron": "0 * * * *", **arguments}
    name = values.pop("name", "s")
    named = ", ".join(f"p_{key} => %s" for key in values)
    assert sql.refused(f"select set_schedule(%s, {named})", name, *values.values()) == ("PH001", column)


def test_an_unknown_queue_is_refused_when_a_schedule_is_made(sql):
    assert sql.refused("select set_schedule('s', 'effect', '* * * * *', p_queue => 'nope')")[0] == "PH002"


# -- how runs end --------------------------------------------------------------------------------
def finished(sql, limit=200):
    return sql.value("select finish_schedule_runs(%s)", limit)


def test_ends_are_written_into_the_history_done_dead_and_cancelled(sql):
    make(sql, overlap="allow")
    for hours in (1, 2, 3, 4):
        fire(sql, PAST + hours * HOUR)
    done, dead, cancelled, _ = [
        row[0] for row in sql.rows("select message_id from schedule_runs order by id")
    ]
    lease = sql.claim_one()
    assert lease.id == done
    sql.complete(lease)
    sql.value("select bury_message(%s, null, 'failed', 'ValueError', 'broken')", dead)
    sql.rows("select cancel_message(%s, 'ada')", cancelled)
    assert finished(sql) == 3
    assert finished(sql) == 0
    found = runs(sql, "outcome, started_at is not null, ended_at is not null, error")
    assert found == [
        ("done", True, True, None),
        ("dead", False, True, "ValueError: broken"),
        ("cancelled", False, True, None),
        ("enqueued", False, False, None),
    ]


def test_many_runs_that_wait_do_not_hide_one_that_ended(sql):
    make(sql, overlap="allow")
    for hours in range(1, 6):
        fire(sql, PAST + hours * HOUR)
    newest = sql.value("select max(message_id) from schedule_runs")
    sql.rows("select cancel_message(%s, 'ada')", newest)
    assert finished(sql, limit=2) == 1
    assert runs(sql)[-1][1] == "cancelled"


def test_a_run_of_a_queue_that_keeps_nothing_does_not_stay_open_for_ever(sql):
    sql.set_queue(keep_done="0")
    make(sql)
    fire(sql, PAST + HOUR)
    sql.complete(sql.claim_one())
    assert finished(sql) == 1
    assert runs(sql, "outcome, ended_at is not null") == [("untraced", True)]


def test_health_shows_trigger_last_run_lag_and_problem(sql):
    make(sql)
    fire(sql, PAST + HOUR)
    sql.rows("select plan_schedule('s', %s, clock_timestamp() - interval '90 seconds', null)", PAST + HOUR)
    row = sql.row("select * from schedule_health")
    assert (row["name"], row["trigger"], row["paused"], row["last_outcome"]) == (
        "s",
        "0 * * * *",
        False,
        "enqueued",
    )
    assert 89 < row["lag_seconds"] < 600
    sql.rows("select plan_schedule('s', %s, null, 'no such day')", PAST + HOUR)
    assert sql.value("select problem from schedule_health") == "no such day"
    sql.rows("select plan_schedule('s', %s, null, 'stale')", PAST)  # of a scheduler that looked before
    assert sql.value("select problem from schedule_health") == "no such day"


def test_a_time_that_could_not_be_enqueued_is_recorded_and_passed(sql):
    make(sql)
    sql_next = PAST + 2 * HOUR
    assert sql.value("select fail_schedule_run('s', %s, %s, 'no queue')", PAST + HOUR, sql_next) is True
    assert sql.value("select fail_schedule_run('s', %s, %s, 'no queue')", PAST + HOUR, sql_next) is False
    assert runs(sql, "outcome, error") == [("failed", "no queue")]
    assert sql.rows("select last_planned_at, next_planned_at, problem from schedules") == [
        (PAST + HOUR, sql_next, "no queue")
    ]
    assert fire(sql, sql_next) == "enqueued"
    assert sql.value("select problem from schedules") is None
