"""Every edge of states.TRANSITIONS is one function of the SQL API, and no function knows another edge (STYLE
2.5).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packhorse.worker.states import TRANSITIONS, State
from tests.sql.client import Lease, Sql

#: What the message looked like when the verb is tried: its id, and the token of its last (or current) lease.
Subject = tuple[int, int]

KEY = "c"


def first_of_conversation(sql: Sql) -> Subject:
    return sql.enqueue(conversation_key=KEY, expires_at="2999-01-01"), 0


def running(sql: Sql) -> Subject:
    subject = first_of_conversation(sql)
    lease = sql.claim_one()
    assert lease.id == subject[0]
    return lease.id, lease.token


def blocked(sql: Sql) -> Subject:
    sql.claimed(conversation_key=KEY)
    subject = first_of_conversation(sql)
    assert sql.claim(10) == []
    return subject


def done(sql: Sql) -> Subject:
    message_id, token = running(sql)
    sql.rows("select complete_messages(array[%s::bigint], array[%s::bigint])", message_id, token)
    return message_id, token


def cancelled(sql: Sql) -> Subject:
    message_id, token = running(sql)
    sql.rows("select cancel_message(%s, p_token => %s)", message_id, token)
    return message_id, token


def dead(sql: Sql) -> Subject:
    message_id, token = running(sql)
    sql.rows("select bury_message(%s, %s)", message_id, token)
    return message_id, token


ARRANGE: dict[State, Callable[[Sql], Subject]] = {
    State.PENDING: first_of_conversation,
    State.BLOCKED: blocked,
    State.RUNNING: running,
    State.DONE: done,
    State.CANCELLED: cancelled,
    State.DEAD: dead,
}


def claim(sql: Sql, subject: Subject) -> None:
    sql.claim(10)


def block(sql: Sql, subject: Subject) -> None:
    """An earlier message of the conversation appears and is met by a claim; for others than pending it
    changes nothing.
    """
    sql.rows(
        "insert into message_queue (id, queue, message_type, conversation_key, run_at) "
        "values (0, 'q', 'effect', %s, clock_timestamp() + interval '1 hour')",
        KEY,
    )
    sql.claim(10)


def promote(sql: Sql, subject: Subject) -> None:
    """The message before this one leaves the conversation."""
    sql.rows(
        "select finish_cancelled(array(select id from message_queue where conversation_key = %s and id < %s and state = 'running'), "
        "array(select lease_token from message_queue where conversation_key = %s and id < %s and state = 'running'), 'over')",
        KEY,
        subject[0],
        KEY,
        subject[0],
    )


def cancel(sql: Sql, subject: Subject) -> None:
    """By an operator; a running message is ended by its holder, who is told."""
    if sql.value("select cancel_message(%s)", subject[0]) == "requested":
        sql.rows("select cancel_message(%s, p_token => %s)", *subject)


def expire(sql: Sql, subject: Subject) -> None:
    sql.rows("update message_queue set expires_at = '2020-01-01' where id = %s", subject[0])
    sql.rows("select expire_messages()")


def bury(sql: Sql, subject: Subject) -> None:
    sql.rows("select bury_message(%s), bury_message(%s, %s)", subject[0], *subject)


def complete(sql: Sql, subject: Subject) -> None:
    sql.rows("select complete_messages(array[%s::bigint], array[%s::bigint])", *subject)


def retry(sql: Sql, subject: Subject) -> None:
    sql.rows("select fail_message(%s, %s, 'E', 'm')", *subject)


def snooze(sql: Sql, subject: Subject) -> None:
    sql.rows("select snooze_message(%s, %s, '1 minute')", *subject)


def park(sql: Sql, subject: Subject) -> None:
    sql.rows("select park_message(%s, %s, '1 minute', 'api')", *subject)


def release(sql: Sql, subject: Subject) -> None:
    sql.rows("select release_message(%s, %s)", *subject)


def rescue(sql: Sql, subject: Subject) -> None:
    sql.rows(
        "update message_queue set lease_expires_at = clock_timestamp() - interval '1 second' where id = %s and state = 'running'",
        subject[0],
    )
    sql.rows("select rescue_expired_messages()")


def redrive(sql: Sql, subject: Subject) -> None:
    sql.rows("select redrive_dead_letters(array[%s::bigint])", subject[0])


VERBS: dict[str, Callable[[Sql, Subject], None]] = {
    verb.__name__: verb
    for verb in (
        claim,
        block,
        promote,
        cancel,
        expire,
        bury,
        complete,
        retry,
        snooze,
        park,
        release,
        rescue,
        redrive,
    )
}


def test_every_verb_of_the_table_is_tried_here() -> None:
    assert set(VERBS) == {verb for edges in TRANSITIONS.values() for verb in edges}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", State)
def test_a_verb_does_what_the_table_says_and_otherwise_nothing(sql: Sql, state: State, verb: str) -> None:
    subject = ARRANGE[state](sql)
    assert sql.state(subject[0]) == state
    VERBS[verb](sql, subject)
    assert sql.state(subject[0]) == TRANSITIONS[state].get(verb, state)


def test_exhausted_attempts_and_crashes_are_the_edge_bury(sql: Sql) -> None:
    sql.set_queue(max_attempts=1, crash_limit=1)
    failed: Lease = sql.claimed()
    assert sql.fail(failed) == "dead"
    crashed = sql.claimed()
    sql.crash(crashed)
    assert [sql.state(lease.id) for lease in (failed, crashed)] == [State.DEAD] * 2
