"""Notes and dead letters of messages that RabbitMQ has; the backoff in Python beside that of SQL."""

from __future__ import annotations

import json

import pytest

from packhorse.worker.amqp.outcomes import QueuePolicy

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
    assert bury(sql, message_id) is True
    assert bury(sql, message_id) is False
    assert sql.rows("select state, conversation_key from all_messages where id = %s", message_id) == [
        ("dead", "k")
    ]
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
