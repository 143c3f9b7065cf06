"""The health checks on the queue's own tables: healthy, warning and failing data; what is absent; bounds
(SPEC O1).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from packhorse.worker.observe.duties import DUTIES
from tests.sql.client import HOLDER, Sql
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

NAMES = [
    "stuck_workflows",
    "queue_health",
    "dead_letters",
    "agent_performance",
    "conversation_state",
    "processing_latency",
    "error_rate",
    "top_errors",
    "workflow_completion",
    "agent_sessions",
    "circuit_breakers",
    "stale_locks",
    "dedup_effectiveness",
    "system_summary",
]
ABSENT = ["stuck_workflows", "agent_performance", "workflow_completion", "agent_sessions", "circuit_breakers"]


class Check(NamedTuple):
    """What one check says."""

    status: str
    summary: str
    details: dict[str, Any]


def check(sql: Sql, name: str, **thresholds: Any) -> Check:
    """One check, with thresholds by their names without "p_"."""
    arguments = ", ".join(f"p_{key} => %s" for key in thresholds)
    return Check(
        *sql.rows(f"select status, summary, details from health_{name}({arguments})", *thresholds.values())[0]
    )


def end(
    sql: Sql, count: int = 1, *, ran: str = "1 second", error: str | None = None, message_type: str = "effect"
) -> None:
    """Messages that were done just now."""
    sql.rows(
        "insert into message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, error, created_at, claimed_at, "
        "finished_at) select n, 'q', %s, '{}', '{}', 5, 'done', 1, 0, jsonb_build_object('class', %s::text), clock_timestamp() - interval '1 hour', "
        "clock_timestamp() - %s::interval, clock_timestamp() from generate_series(1, %s) n",
        message_type,
        error,
        ran,
        count,
    )
    if error is None:
        sql.rows("update message_archive set error = null where error ->> 'class' is null")


def die(
    sql: Sql, count: int = 1, *, ago: str = "1 second", error: str = "ValueError", first_id: int = 1_000_000
) -> None:
    """Messages that were given up."""
    sql.rows(
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, fingerprint, attempt, crashes, "
        "created_at, dead_at) select %s + n, 'q', 'effect', '{}', '{}', 5, 'failed', %s, 'call 250788000456', 'f', 3, 0, clock_timestamp(), "
        "clock_timestamp() - %s::interval from generate_series(1, %s) n",
        first_id,
        error,
        ago,
        count,
    )


def late(sql: Sql, by: str) -> None:
    sql.enqueue()
    sql.rows("update message_queue set run_at = clock_timestamp() - %s::interval", by)


def test_all_checks_come_in_their_order_and_an_empty_queue_is_healthy(sql: Sql) -> None:
    found = {row[0]: row[1] for row in sql.rows("select check_name, status from health_checks()")}
    assert list(found) == NAMES
    assert found == {name: "absent" if name in ABSENT else "ok" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_one_check_can_be_asked_for_and_says_a_sentence(sql: Sql, name: str) -> None:
    (row,) = sql.rows("select check_name, status, summary, details from health_checks(%s)", name)
    assert row[0] == name and row[2] and isinstance(row[3], dict)


def test_a_check_that_does_not_exist_is_refused(sql: Sql) -> None:
    assert sql.refused("select * from health_checks('queue_helth')") == ("PH001", "check")


def test_a_check_that_cannot_look_is_a_failed_one_and_the_others_go_on(any_database: Database) -> None:
    any_database.query("alter table dead_letters rename column error_class to class_of_error")
    found = {
        row[0]: row[1:]
        for row in any_database.query("select check_name, status, summary from health_checks()", admin=False)
    }
    assert found["dead_letters"][0] == "fail" and "cannot be checked" in found["dead_letters"][1]
    assert found["queue_health"][0] == "ok" and len(found) == len(NAMES)


def test_a_value_that_a_check_cannot_read_fails_that_check_alone_and_is_not_shown(
    any_database: Database,
) -> None:
    any_database.query("drop function packhorse.health_stale_locks")
    any_database.query("""create function packhorse.health_stale_locks() returns table (status text, summary text, details jsonb)
        language plpgsql as $$ begin return query select 'ok', 'soon after lunch'::timestamptz::text, null::jsonb; end $$""")
    found = {row[0]: row[1:] for row in any_database.query("select * from health_checks()")}
    assert len(found) == 14
    assert found["stale_locks"] == ("fail", "cannot be checked: error 22007", {"sqlstate": "22007"})


def test_a_check_without_the_right_to_look_is_a_failed_one(any_database: Database) -> None:
    any_database.query("revoke select on conversation_locks from packhorse_worker")
    found = {
        row[0]: row[1:]
        for row in any_database.query(
            "select check_name, status, details ->> 'sqlstate' from health_checks()", admin=False
        )
    }
    assert found["stale_locks"] == ("fail", "42501") and found["dedup_effectiveness"][0] == "ok"


def test_a_table_of_somebody_else_with_a_name_of_the_platform_is_absent(any_database: Database) -> None:
    any_database.query("create table workflow_states (id integer)")
    assert any_database.value("select status from health_checks('stuck_workflows')") == "absent"


@pytest.mark.parametrize(("by", "expected"), [("5 seconds", "ok"), ("2 minutes", "warn"), ("1 hour", "fail")])
def test_a_queue_is_judged_by_its_oldest_due_message(sql: Sql, by: str, expected: str) -> None:
    late(sql, by)
    found = check(sql, "queue_health")
    assert found.status == expected
    assert found.details["queues"][0]["queue"] == (
        "q" if expected != "ok" else found.details["queues"][0]["queue"]
    )
    assert ("no live worker" in found.summary) is (expected != "ok")


@pytest.mark.parametrize(("due", "expected"), [(99, "ok"), (100, "warn")])
def test_a_hundred_due_messages_are_a_warning_however_young(sql: Sql, due: int, expected: str) -> None:
    for _ in range(due):
        sql.enqueue()
    assert check(sql, "queue_health").status == expected
    assert check(sql, "queue_health", warn_due=1000).status == "ok"


def test_thresholds_are_arguments(sql: Sql) -> None:
    late(sql, "2 minutes")
    assert check(sql, "queue_health", warn_after="1 hour", fail_after="2 hours").status == "ok"
    assert check(sql, "queue_health", warn_after="1 second", fail_after="1 minute").status == "fail"


def test_a_paused_queue_with_due_messages_is_a_warning_however_late(sql: Sql) -> None:
    late(sql, "1 day")
    sql.rows("select pause_queue('q')")
    found = check(sql, "queue_health")
    assert found.status == "warn" and "paused" in found.summary


def test_a_scope_that_rests_is_named_and_is_a_warning_when_it_rests_for_long(sql: Sql) -> None:
    sql.rows("select park_scope('api', interval '1 hour')")
    found = check(sql, "queue_health")
    assert (
        found.status == "ok"
        and "1 scope(s) parked: api" in found.summary
        and found.details["parked"] == ["api"]
    )
    assert check(sql, "queue_health", warn_after="0").status == "warn"
    sql.rows("select lift_scope('api')")
    assert "parked" not in check(sql, "queue_health").summary


def test_a_queue_knows_its_live_workers(sql: Sql) -> None:
    late(sql, "2 minutes")
    sql.rows("select register_worker(%s, 'h', 1, '1', '{q}', '{effect}', 4, interval '20 seconds')", HOLDER)
    assert "no live worker" not in check(sql, "queue_health").summary
    sql.rows("update workers set last_seen_at = clock_timestamp() - interval '1 minute'")
    assert "no live worker" in check(sql, "queue_health").summary


@pytest.mark.parametrize(("count", "expected"), [(0, "ok"), (1, "warn"), (100, "fail")])
def test_dead_letters_of_the_last_hour_are_counted_by_cause(sql: Sql, count: int, expected: str) -> None:
    die(sql, count)
    die(sql, 5, ago="2 hours", first_id=2_000_000)
    found = check(sql, "dead_letters")
    assert (found.status, found.details["recent"], found.details["kept"]) == (expected, count, count + 5)
    assert sum(cause["count"] for cause in found.details["causes"]) == count
    assert "2507" not in json.dumps(found), "errors may quote people"


@pytest.mark.parametrize(("count", "expected"), [(9, "ok"), (10, "warn")])
def test_ten_dead_letters_of_a_day_are_a_warning_too(sql: Sql, count: int, expected: str) -> None:
    die(sql, count, ago="20 hours")
    die(sql, 5, ago="25 hours", first_id=2_000_000)
    found = check(sql, "dead_letters")
    assert (found.status, found.details["recent"], found.details["last_day"]) == (expected, 0, count)


def test_dead_letters_tell_how_many_had_no_attempt_left_and_the_newest(sql: Sql) -> None:
    die(sql, 2, ago="30 minutes")
    die(sql, 1, ago="5 minutes", first_id=2_000_000)
    sql.rows("update dead_letters set max_attempts = case when id > 2000000 then 5 else 3 end")
    found = check(sql, "dead_letters").details
    assert found["exhausted"] == 2
    assert (
        found["newest_at"]
        == sql.value("select to_jsonb(max(dead_at)) from dead_letters")
        > found["oldest_at"]
    )


def test_a_queue_is_told_by_state_with_retries_and_age(sql: Sql) -> None:
    for attempt in (0, 2, 4):
        sql.enqueue()
        sql.rows(
            "update message_queue set attempt = %s, created_at = now() - interval '1 hour' where id = (select max(id) from message_queue)",
            attempt,
        )
    sql.enqueue()
    sql.rows(
        "update message_queue set state = 'blocked', conversation_key = 'c' where id = (select max(id) from message_queue)"
    )
    states = {row["state"]: row for row in check(sql, "queue_health").details["states"]}
    assert {
        name: (row["messages"], row["retries_mean"], row["retries_most"]) for name, row in states.items()
    } == {"pending": (3, 1.33, 3), "blocked": (1, 0, 0)}
    assert 3599 < states["pending"]["oldest_seconds"] < 3700


def test_a_dead_letter_that_will_soon_be_removed_is_a_warning(sql: Sql) -> None:
    die(sql, ago="25 days")
    found = check(sql, "dead_letters")
    assert found.status == "warn" and "30 days" in found.summary


def test_a_count_that_reached_its_limit_says_at_least(sql: Sql) -> None:
    die(sql, 7)
    found = check(sql, "dead_letters", limit=5)
    assert found.summary.startswith("at least 5 in the last") and found.details["kept_is_limit"] is True
    assert found.details["recent_is_limit"] is True
    assert check(sql, "dead_letters", limit=8).details["recent_is_limit"] is False


def test_an_hour_whose_dead_letters_were_not_all_counted_says_so(sql: Sql) -> None:
    die(sql, 7, ago="90 minutes")
    die(sql, 5, first_id=2_000_000)
    found = check(sql, "error_rate", limit=10)
    assert [(hour["dead"], hour["estimated"]) for hour in found.details["hours"][:3]] == [
        (5, False),
        (5, True),
        (None, True),
    ]
    assert found.summary.startswith("5 of 5 messages")
    found = check(sql, "error_rate", limit=4, least=3)
    assert found.status == "fail" and found.summary.startswith("at least 4 of at least 4 messages")
    assert found.details["hours"][1]["dead"] is None and found.details["hours"][1]["ratio"] is None


@pytest.mark.parametrize(("by", "expected"), [("-1 hour", "warn"), ("1 second", "warn"), ("1 hour", "fail")])
def test_messages_of_a_queue_that_nobody_declared_are_seen(sql: Sql, by: str, expected: str) -> None:
    sql.rows(
        "insert into message_queue (queue, message_type, run_at) values ('nowhere', 'effect', clock_timestamp() - %s::interval)",
        by,
    )
    sql.enqueue()
    found = check(sql, "queue_health")
    assert (
        found.status == expected
        and "worst is nowhere" in found.summary
        and "nobody has declared it" in found.summary
    )
    assert {row["queue"]: row["declared"] for row in found.details["queues"]}["nowhere"] is False


@pytest.mark.parametrize(
    ("age", "expected"), [("1 second", "ok"), ("10 minutes", "warn"), ("3 hours", "fail")]
)
def test_waiting_conversations_are_judged_by_the_longest_wait(sql: Sql, age: str, expected: str) -> None:
    for key in ("c1", "c2"):
        sql.claimed(conversation_key=key)
        for _ in range(3):
            sql.enqueue(conversation_key=key)
    sql.rows(
        "update message_queue set state = 'blocked', run_at = clock_timestamp() - %s::interval where state = 'pending'",
        age,
    )
    sql.rows("update message_queue set created_at = run_at")
    found = check(sql, "conversation_state")
    assert (found.status, found.details["waiting"]) == (expected, 2)
    assert {row["holder_kind"] for row in found.details["oldest"]} == {"running"}
    assert "c1" not in json.dumps(found), "a key may be a phone number"


def test_dead_letters_that_hold_a_conversation_are_counted(sql: Sql) -> None:
    die(sql)
    sql.rows("update dead_letters set conversation_key = 'c', blocks_conversation = true")
    assert (
        check(sql, "conversation_state").details["dead_holders"]
        == check(sql, "dead_letters").details["blocking"]
        == 1
    )


@pytest.mark.parametrize(
    ("ran", "expected"), [("1 second", "ok"), ("1 minute", "warn"), ("10 minutes", "fail")]
)
def test_handlers_are_judged_by_their_p95(sql: Sql, ran: str, expected: str) -> None:
    end(sql, 90, message_type="quick")
    end(sql, 10, ran=ran, message_type="slow")
    found = check(sql, "processing_latency")
    assert (found.status, found.details["messages"], found.details["whole"]) == (expected, 100, True)
    assert found.details["slowest_types"][0]["message_type"] == "slow" or expected == "ok"
    assert round(found.details["run_seconds"]["p50"]) == 1 and set(found.details["run_seconds"]) == {
        "p50",
        "p95",
        "p99",
        "max",
    }
    assert found.details["wait_seconds"]["p50"] > 2900


@pytest.mark.parametrize(("dead", "expected"), [(1, "ok"), (10, "warn"), (12, "fail"), (60, "fail")])
def test_the_error_rate_of_the_last_hour_is_judged(sql: Sql, dead: int, expected: str) -> None:
    end(sql, 95)
    end(sql, 5, error="TimeoutError")
    die(sql, dead)
    die(sql, 7, ago="5 hours 30 minutes", first_id=2_000_000)
    found = check(sql, "error_rate")
    hours = found.details["hours"]
    assert found.status == expected and len(hours) == 24
    assert (hours[0]["done"], hours[0]["retried"], hours[0]["dead"], hours[0]["estimated"]) == (
        100,
        5,
        dead,
        False,
    )
    assert (hours[5]["dead"], hours[5]["ratio"]) == (7, 1)


def test_an_hour_with_few_ends_is_not_judged(sql: Sql) -> None:
    die(sql, 5)
    assert check(sql, "error_rate").status == "ok"
    assert check(sql, "error_rate", least=5).status == "fail"


def test_latency_is_told_by_hour(sql: Sql) -> None:
    end(sql, 3, ran="2 seconds")
    end(sql, 4, ran="1 hour")  # not of the last hour: its end is put back
    sql.rows(
        "update message_archive set finished_at = finished_at - interval '150 minutes', claimed_at = claimed_at - interval '150 minutes' "
        "where claimed_at < clock_timestamp() - interval '30 minutes' and finished_at - interval '150 minutes' "
        ">= date_trunc('day', clock_timestamp() at time zone 'UTC') at time zone 'UTC'"
    )
    moved = sql.value(
        "select count(*) from message_archive where finished_at < clock_timestamp() - interval '2 hours'"
    )
    found = check(sql, "processing_latency")
    assert found.status == ("ok" if moved else "fail") and found.details["messages"] == 7 - moved
    hours = [(row["messages"], round(row["max"])) for row in found.details["hours"]]
    assert hours == ([(3, 2), (4, 3600)] if moved else [(7, 3600)])


def test_errors_tell_when_they_were_first_and_last_seen(sql: Sql) -> None:
    die(sql, 1, ago="40 minutes")
    die(sql, 1, ago="10 minutes", first_id=2_000_000)
    (error,) = check(sql, "top_errors").details["errors"]
    assert [error["first_at"], error["last_at"]] == sql.value(
        "select to_jsonb(array_agg(dead_at order by dead_at)) from dead_letters"
    )


def test_the_summary_has_five_numbers_at_a_glance(sql: Sql) -> None:
    sql.enqueue()
    end(sql, 9)
    die(sql, 1)
    die(sql, 2, ago="2 hours", first_id=2_000_000)
    found = check(sql, "system_summary")
    assert found.details["glance"] == {
        "pending": 1,
        "stuck_workflows": None,
        "dead_letters": 3,
        "active_sessions": None,
        "error_ratio": 0.1,
    }
    assert found.summary.endswith("; 1 due, 3 dead letter(s), 10.0 % errors")


@pytest.mark.parametrize(("count", "expected"), [(1, "ok"), (10, "warn"), (1000, "fail")])
def test_the_most_frequent_error_is_judged(sql: Sql, count: int, expected: str) -> None:
    die(sql, count)
    end(sql, 3, error="TimeoutError")
    die(sql, 2000, ago="2 hours", first_id=2_000_000, error="OldError")
    found = check(sql, "top_errors")
    counts = {row["error_class"]: (row["count"], row["dead"]) for row in found.details["errors"]}
    assert found.status == expected and counts == {"ValueError": (count, count), "TimeoutError": (3, 0)}
    assert "2507" not in json.dumps(found)


@pytest.mark.parametrize(
    ("over", "expected"), [("-10 seconds", "ok"), ("1 minute", "warn"), ("10 minutes", "fail")]
)
def test_leases_that_are_over_mean_that_rescue_does_not_come_by(sql: Sql, over: str, expected: str) -> None:
    lease = sql.claimed()
    sql.rows("update message_queue set lease_expires_at = clock_timestamp() - %s::interval", over)
    found = check(sql, "stale_locks")
    assert (found.status, found.details["leases"]) == (expected, 1)
    assert [row["message_id"] for row in found.details["oldest"]] == ([] if expected == "ok" else [lease.id])


def test_conversation_locks_that_are_over_are_counted_and_hinder_nobody(sql: Sql) -> None:
    sql.rows(
        "insert into conversation_locks (conversation_key, holder, expires_at) values ('c', 'ann', clock_timestamp() - interval '1 day')"
    )
    found = check(sql, "stale_locks")
    assert (found.status, found.details["conversation_locks_over"]) == ("ok", 1)


@pytest.mark.parametrize(("lost", "expected"), [(0, "ok"), (10, "warn"), (60, "fail")])
def test_webhooks_that_were_never_marked_processed_are_found(sql: Sql, lost: int, expected: str) -> None:
    sql.rows(
        "insert into processed_messages (external_id, first_seen_at, processed_at, processing_ms) select n::text, clock_timestamp() - interval '30 minutes', "
        "case when n > %s then clock_timestamp() end, 40 from generate_series(1, 100) n",
        lost,
    )
    sql.rows("select is_new_message('now')")
    found = check(sql, "dedup_effectiveness")
    assert (found.status, found.details["unprocessed"], found.details["webhooks"]) == (expected, lost, 101)


def test_dedup_windows_that_nobody_cleans_up_are_a_warning(sql: Sql) -> None:
    sql.enqueue(dedup_key="k")
    assert check(sql, "dedup_effectiveness").status == "ok"
    sql.rows("update message_dedup set expires_at = clock_timestamp() - interval '2 hours'")
    assert check(sql, "dedup_effectiveness").status == "warn"


def test_the_system_summary_judges_connections_partitions_schedules_and_workers(sql: Sql) -> None:
    found = check(sql, "system_summary")
    assert (
        found.status == "ok"
        and found.details["archive_runway_seconds"] > 5 * 86400
        and found.details["connections"] >= 1
    )
    assert check(sql, "system_summary", warn_connections=0, fail_connections=0).status == "fail"
    assert check(sql, "system_summary", warn_runway="30 days").status == "warn"
    sql.rows("select set_schedule('s', 'effect', p_every => interval '1 hour', p_queue => 'q')")
    sql.rows("update schedules set next_planned_at = clock_timestamp() - interval '1 hour' where name = 's'")
    assert "1 late schedule" in check(sql, "system_summary").summary
    sql.rows("update schedules set paused_at = clock_timestamp(), paused_by = 'ann'")
    sql.rows(
        "insert into maintenance_runs (task, kind, state, triggered_by, ended_at) values ('t', 'job', 'failed', 'ann', clock_timestamp())"
    )
    assert "1 failed maintenance task" in check(sql, "system_summary").summary
    sql.rows("delete from maintenance_runs")
    sql.rows("select register_worker(%s, 'h', 1, '1', '{q}', '{effect}', 4, interval '20 seconds')", HOLDER)
    assert check(sql, "system_summary").status == "ok"
    sql.rows("update workers set last_seen_at = clock_timestamp() - interval '1 minute'")
    assert (check(sql, "system_summary").status, check(sql, "system_summary").details["silent_workers"]) == (
        "warn",
        1,
    )


@pytest.mark.parametrize(
    ("table", "name", "words"),
    [
        ("schedules", "system_summary", "somebody keeps it locked"),
        ("dead_letters", "dead_letters", "error 55P03"),
    ],
)
def test_a_table_that_somebody_keeps_locked_is_a_failure_and_the_others_go_on(
    any_database: Database, table: str, name: str, words: str
) -> None:
    with any_database.connect(admin=True) as other, other.transaction():
        other.execute(f"lock table {table}")
        found = {
            row[0]: row[1:]
            for row in any_database.query("select check_name, status, summary from health_checks()")
        }
    assert found[name][0] == "fail" and words in found[name][1]
    assert found["stale_locks"][0] == "ok" and len(found) == len(NAMES)


def problems_of(sql: Sql, *problems: str, silent: str = "0 seconds") -> Check:
    """The summary with one worker that says this and has been silent for so long."""
    sql.rows("delete from workers")
    sql.rows(
        "select register_worker(%s, 'host-1', 4711, '1', '{q}', '{effect}', 4, interval '20 seconds', p_problems => %s::text[])",
        HOLDER,
        list(problems),
    )
    sql.rows("update workers set last_seen_at = clock_timestamp() - %s::interval", silent)
    return check(sql, "system_summary")


@pytest.mark.parametrize("duty", [duty.name for duty in DUTIES])
def test_the_system_summary_says_what_a_worker_cannot_do(sql: Sql, duty: str) -> None:
    vital = next(known.vital for known in DUTIES if known.name == duty)
    found = problems_of(sql, f"{duty} has failed for 31 s (42501)")
    assert found.status == ("fail" if vital else "warn")
    assert f"; host-1 pid 4711: {duty} has failed for 31 s (42501)" in found.summary
    assert [(row["problem"], row["vital"]) for row in found.details["worker_problems"]] == [
        (f"{duty} has failed for 31 s (42501)", vital)
    ]


def test_the_worst_that_a_worker_cannot_do_comes_first(sql: Sql) -> None:
    found = problems_of(
        sql,
        "expire has failed for 40 s (42501)",
        "rescue has failed for 31 s (42501)",
        "claim has failed for 12 s (57014)",
    )
    assert found.status == "fail" and "claim has failed for 12 s (57014) and 2 more" in found.summary
    assert problems_of(sql).details["worker_problems"] == [] and problems_of(sql).status == "ok"


def test_a_silent_worker_is_a_warning_and_one_that_holds_leases_a_failure(sql: Sql) -> None:
    assert problems_of(sql, silent="14 seconds").status == "ok"
    found = problems_of(sql, silent="16 seconds")
    assert found.status == "warn" and "host-1 pid 4711: silent for 16 s" in found.summary
    sql.enqueue()
    sql.claim()
    assert problems_of(sql, silent="16 seconds").status == "fail"


def test_a_reader_reads_what_a_worker_reads(any_database: Database) -> None:
    """A table whose policy hides its rows from the reader would be green: every check has something to say
    here.
    """
    with any_database.connect(admin=True) as connection:
        sql = Sql(connection)
        sql.rows("select declare_queue('q')")
        for _ in range(60):
            sql.enqueue()
        sql.claim(limit=30)
        sql.rows(
            "update message_queue set created_at = created_at - interval '1 hour', run_at = run_at - interval '1 hour', lease_expires_at = lease_expires_at - interval '1 hour'"
        )
        sql.rows(
            "update message_queue set conversation_key = 'c', state = 'blocked' where id = (select max(id) from message_queue)"
        )
        sql.rows("select bury_message(id, lease_token) from message_queue where state = 'running' limit 25")
        sql.rows(
            "insert into processed_messages (external_id, first_seen_at) values ('w', clock_timestamp() - interval '30 minutes')"
        )
        problems_of(sql, "claim has failed for 31 s (42501)")
        sql.rows("select set_schedule('s', 'effect', p_every => interval '1 hour', p_queue => 'q')")
        sql.rows(
            "update schedules set next_planned_at = clock_timestamp() - interval '1 hour' where name = 's'"
        )
        sql.rows(
            "insert into maintenance_runs (task, kind, state, triggered_by, ended_at) values ('t', 'job', 'failed', 'ann', clock_timestamp())"
        )
        found = {}
        for role in ("packhorse_worker", "packhorse_reader"):
            connection.execute(f"set role {role}")
            found[role] = {
                row[0]: row[1:]
                for row in connection.execute(
                    "select check_name, status, details from health_checks()"
                ).fetchall()
            }
            connection.execute("reset role")
    looked = {name for name, (status, _) in found["packhorse_worker"].items() if status in ("warn", "fail")}
    assert looked >= {
        "queue_health",
        "dead_letters",
        "conversation_state",
        "error_rate",
        "top_errors",
        "stale_locks",
        "dedup_effectiveness",
        "system_summary",
    }
    assert {name: status for name, (status, _) in found["packhorse_reader"].items()} == {
        name: status for name, (status, _) in found["packhorse_worker"].items()
    }
    counts = [
        {
            key: value
            for key, value in found[role]["system_summary"][1].items()
            if "worker" in key or "late" in key or "failed" in key
        }
        for role in found
    ]
    assert (
        counts[0] == counts[1] and counts[0]["late_schedules"] == counts[0]["failed_maintenance_tasks"] == 1
    )


def test_an_archive_with_a_gap_is_a_failure_however_many_days_lie_behind_it(any_database: Database) -> None:
    any_database.query(
        "do $$ begin execute format('drop table message_archive_%s', to_char((now() at time zone 'UTC') + interval '1 day', 'YYYYMMDD')); end $$"
    )
    ((status, runway),) = any_database.query(
        "select status, (details ->> 'archive_runway_seconds')::float8 from health_checks('system_summary')"
    )
    assert status == "fail" and 0 < runway <= 86400


def test_a_reader_may_ask_and_a_producer_may_not(any_database: Database) -> None:
    with any_database.connect(admin=True) as connection:
        connection.execute("set role packhorse_reader")
        found = connection.execute("select check_name, status, summary from health_checks()").fetchall()
        assert [row for row in found if row[1] == "fail"] == [] and len(found) == len(NAMES)
        connection.execute("set role packhorse_producer")
        assert Sql(connection).refused("select * from health_checks()")[0] == "42501"


@pytest.mark.slow
@pytest.mark.oldest_and_newest
def test_every_check_reads_a_bounded_part_of_a_million_rows(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    """Blocks touched, for the clock of a shared machine proves nothing."""
    for table in (
        "message_queue",
        "message_archive_" + str(any_database.value("select to_char(now() at time zone 'UTC', 'YYYYMMDD')")),
    ):
        any_database.query(f"alter table {table} set (autovacuum_enabled = false)")
    any_database.query(
        "insert into message_queue (queue, message_type, run_at) select 'q', 'effect', now() - n * interval '1 ms' from generate_series(1, 600000) n"
    )
    any_database.query(
        "insert into message_queue (queue, message_type, state, conversation_key) select 'q', 'effect', 'blocked', 'c' || n % 1000 "
        "from generate_series(1, 400000) n"
    )
    any_database.query(
        "insert into message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at, claimed_at, finished_at) "
        "select n, 'q', 'effect', '{}', '{}', 5, 'done', 1, 0, now(), now(), now() from generate_series(1, 1000000) n"
    )
    any_database.query("vacuum analyze message_queue")
    any_database.query("vacuum analyze message_archive")
    any_database.query(
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, fingerprint, attempt, crashes, created_at) "
        "select n, 'q', 'effect', '{}', '{}', 5, 'failed', 'E', 'f', 3, 0, now() from generate_series(1, 200000) n"
    )
    sql = own_clients()
    touched = {}
    for name in NAMES:
        (plan,) = sql.rows(f"explain (analyze, buffers, format json) select * from health_checks('{name}')")[
            0
        ][0]
        touched[name] = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    archive_blocks = any_database.value(
        "select sum(pg_relation_size(relid)) / 8192 from pg_partition_tree('message_archive')"
    )
    assert archive_blocks > 12_000
    assert {name: blocks for name, blocks in touched.items() if blocks > 25_000} == {}, touched
    latency = check(sql, "processing_latency", blocks=1000)
    assert latency.details["whole"] is False and 50_000 < latency.details["messages"] < 120_000
    rate = check(sql, "error_rate", blocks=1000).details["hours"][0]
    assert rate["estimated"] is True and 800_000 < rate["done"] < 1_200_000
