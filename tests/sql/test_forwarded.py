"""Notes and dead letters of messages that RabbitMQ has; the backoff in Python beside that of SQL."""

from __future__ import annotations

import json

import pytest

from packhorse.worker.amqp.outcomes import QueuePolicy
from tests.sql.test_failure_breaker import set_breaker
from tests.sql.test_scopes import let_it_end

pytest.importorskip("pika")

MESSAGE = {
    "queue": "default",
    "message_type": "t",
    "payload": {"a": 1},
    "options": {},
    "priority": 5,
    "attempt": 3,
    "crashes": 0,
    "conversation_key": "k",
    "history": [{"attempt": 1, "event": "retry"}],
    "age": 60,
}


def bury(sql, message_id, **changes):
    return sql.value(
        "select bury_forwarded_message(%s, %s, 'failed', 'E', 'text 1')",
        message_id,
        json.dumps({**MESSAGE, **changes}),
    )


def test_a_dead_letter_is_made_once_and_what_was_done_is_taken_back(sql):
    message_id = sql.value("select message_id from enqueue_message('default', 't', '{}')")
    sql.rows(
        "select complete_messages(array[id], array[lease_token]) from claim_messages(gen_random_uuid(), array['default'])"
    )
    assert sql.value("select state from all_messages where id = %s", message_id) == "done"
    other = sql.value("select message_id from enqueue_message('default', 't', '{}')")
    sql.rows(
        "select complete_messages(array[id], array[lease_token]) from claim_messages(gen_random_uuid(), array['default'])"
    )
    assert bury(sql, message_id) is True
    assert bury(sql, message_id) is False
    assert sql.rows("select state, conversation_key from all_messages where id = %s", message_id) == [
        ("dead", "k")
    ]
    assert sql.value("select state from all_messages where id = %s", other) == "done"
    history, late = sql.rows("select history, created_at < now() - interval '50 s' from dead_letters")[0]
    assert [entry["event"] for entry in history] == ["retry", "failed"] and late


def test_what_never_was_a_message_gets_an_id(sql):
    assert bury(sql, None) and bury(sql, None)
    assert sql.value("select count(distinct id) from dead_letters") == 2


def test_a_redriven_dead_letter_is_not_over_and_its_notes_are_gone(sql):
    sql.rows("select note_forwarded_crashes(array[7::bigint, 8], 'x')")
    assert bury(sql, 7)
    assert sql.rows(
        "select id, crashes, is_over from forwarded_notes(array[7::bigint, 8, 9]) order by id"
    ) == [(7, 0, True), (8, 1, False)]
    sql.rows("select redrive_dead_letters(array[7::bigint])")
    assert sql.rows("select id from forwarded_notes(array[7::bigint])") == []


def test_attempts_crashes_and_the_end_are_noted_side_by_side(sql):
    sql.rows("select note_forwarded_attempt(5, 2, interval '1 hour', '[{\"attempt\": 2}]')")
    sql.rows("select note_forwarded_crashes(array[5::bigint], 'child 1 ended')")
    sql.rows("select note_forwarded_overdue(5, 3)")
    attempt, crashes, is_over, wait, history = sql.rows(
        "select attempt, crashes, is_over, wait_seconds, history::jsonb from forwarded_notes(array[5::bigint])"
    )[0]
    assert (attempt, crashes, is_over) == (3, 1, False) and 3500 < wait <= 3600
    assert [entry.get("error_class") for entry in history] == [None, "WorkerLost", "TimeLimitExceeded"]
    sql.rows("select note_forwarded_done(array[5::bigint, 5, 6])")
    assert sql.value("select count(*) from forwarded_notes(array[5::bigint, 6]) where is_over") == 2


def test_old_notes_are_forgotten(sql):
    sql.rows("select note_forwarded_done(array[1::bigint, 2])")
    sql.rows("update forwarded_messages set noted_at = noted_at - interval '8 days' where id = 1")
    sql.rows("select cleanup_expired_windows()")
    assert sql.rows("select id from forwarded_messages") == [(2,)]


# -- failure breaker ------------------------------------------------------------------------------------
def fails(sql, message_id=1, text="no answer from 10.0.0.7", probes=(), error_class="ConnectionError"):
    """What becomes of a failure, and how long it waits."""
    return sql.rows(
        "select outcome, wait_seconds from count_forwarded_failure(%s, 'effect', 'q', %s, %s, null, %s)",
        message_id,
        error_class,
        text,
        list(probes),
    )[0]


@pytest.mark.parametrize("scope", ["actor:effect", "queue:q"])
def test_failures_in_a_row_park_their_scope_and_a_success_between_them_starts_over(sql, scope):
    set_breaker(sql, 3 if scope[0] == "a" else None)
    sql.set_queue(failure_breaker=3 if scope[0] == "q" else None)
    assert [fails(sql) for _ in range(2)] == [(None, None)] * 2
    sql.rows("select note_forwarded_success(%s)", [scope])
    assert [fails(sql)[0] for _ in range(4)] == [None, None, "parked", "snooze"]
    assert sql.rows("select name, queue, message_types from scopes where ends_at is not null") == [
        (scope, "q", []) if scope[0] == "q" else (scope, None, ["effect"])
    ]
    assert fails(sql)[1] == pytest.approx(1, abs=0.1)
    assert fails(sql, error_class="ValueError") == (None, None), "another cause fails as usual"


def test_without_a_breaker_nothing_is_counted(sql):
    set_breaker(sql, None)
    assert [fails(sql) for _ in range(5)] == [(None, None)] * 5
    assert sql.rows("select name from scopes") == []


def test_a_probe_that_fails_parks_again_and_only_the_first_of_several(sql):
    set_breaker(sql, 1)
    assert fails(sql)[0] == "parked"
    assert fails(sql, 2, probes=["actor:effect"])[0] == "snooze", "its time is not over"
    let_it_end(sql, "actor:effect")
    assert fails(sql, 3)[0] == "snooze", "one of those that were in flight"
    outcome, seconds = fails(sql, 4, probes=["actor:effect"])
    assert (outcome, seconds) == ("parked", pytest.approx(2, abs=0.2))
    assert fails(sql, 5, probes=["actor:effect"])[0] == "snooze", "the probe of another process"
    assert sql.rows("select probe_id, next_park::text from scopes") == [(None, "00:00:04")]


def test_only_what_a_breaker_has_parked_and_nobody_probes_gets_a_probe(sql):
    set_breaker(sql, 5)
    sql.rows(
        "insert into scopes (name, parked_until, ends_at, probing, next_park, probe_id) values"
        " ('actor:effect', now() - interval '1 s', 'infinity', true, null, null),"
        " ('queue:q', now() - interval '1 s', 'infinity', true, '2 seconds', 99)"
    )
    assert fails(sql, 7, probes=["actor:effect", "queue:q"]) == (None, None)
    assert sql.rows("select name, probe_id from scopes order by name") == [
        ("actor:effect", None),
        ("queue:q", 99),
    ]


def test_a_failure_waits_for_its_own_breakers_and_for_nothing_else(sql):
    """What somebody has parked may be lifted before its time: that is looked at again and again."""
    set_breaker(sql, 1)
    sql.rows(
        "insert into scopes (name, parked_until, ends_at, next_park) values"
        " ('actor:other', now() + interval '1 hour', now() + interval '1 hour', '2 seconds'),"
        " ('queue:q', now() + interval '1 hour', now() + interval '1 hour', null)"
    )
    assert fails(sql) == ("parked", pytest.approx(1, abs=0.1))


def test_a_success_is_one_of_its_own_scopes(sql):
    set_breaker(sql, 3)
    fails(sql)
    sql.rows("insert into scopes (name, failures, fingerprint) values ('actor:other', 2, 'f')")
    sql.rows("select note_forwarded_success(array['actor:effect'])")
    assert sql.rows("select name, failures from scopes order by name") == [
        ("actor:effect", 0),
        ("actor:other", 2),
    ]


def test_a_success_lifts_nothing_that_is_parked(sql):
    set_breaker(sql, 1)
    assert fails(sql)[0] == "parked"
    sql.rows("select note_forwarded_success(array['actor:effect'])")
    assert sql.rows("select failures, ends_at is not null from scopes") == [(1, True)]


@pytest.mark.parametrize("attempt", [1, 2, 3, 5, 9, 60, 5000, 1_000_000])
@pytest.mark.parametrize(
    ("initial", "multiplier", "longest"),
    [(1, 2, 30), (0, 2, 30), (5, 1, 3600), (0.02, 1.5, 0.2), (10, 3, 5), (1, 1000, 86400)],
)
def test_the_backoff_in_python_is_that_of_sql(sql, attempt, initial, multiplier, longest):
    theirs = sql.value(
        "select extract(epoch from message_backoff(%s, make_interval(secs => %s), %s, make_interval(secs => %s)))::float8",
        attempt,
        initial,
        multiplier,
        longest,
    )
    policy = QueuePolicy(initial=initial, multiplier=multiplier, longest=longest)
    assert policy.backoff(attempt, None, None) == pytest.approx(theirs, rel=1e-6, abs=1e-6)
