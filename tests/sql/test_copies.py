"""In a copy that nobody has accepted nothing starts; once it is accepted everything goes on, and the record
says who did that (SPEC O11).
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.sql.client import HOLDER, Sql

COPIED = "update installation set queue_oid = queue_oid::bigint + 1"
REGISTER = "select register_worker(gen_random_uuid(), 'host', 1, '0', '{q}', '{effect}', 1, '1 minute')"
SCHEDULE = "select set_schedule('daily', 'effect', p_cron => '0 7 * * *', p_queue => 'q')"
STARTS = {
    "a claim": "select id from claim_messages(gen_random_uuid(), '{q}')",
    "a claim by its known name": "select id from get_next_queue_message('q')",
    "a lock by hand": "select acquire_message_lock(%(id)s, gen_random_uuid())",
    "the start of a worker": REGISTER,
    "a schedule": "select fire_schedule('daily', clock_timestamp(), null)",
}


@pytest.mark.parametrize("start", STARTS)
def test_nothing_starts_in_a_copy(sql: Sql, start: str) -> None:
    message = sql.enqueue()
    sql.rows(SCHEDULE)
    sql.rows(COPIED)
    statement = STARTS[start] % {"id": message} if "%(" in STARTS[start] else STARTS[start]
    assert sql.refused(statement) == ("PH006", None)
    sql.rows("select accept_copy()")
    assert len(sql.rows(statement)) == 1


def test_what_goes_on_in_a_copy(sql: Sql) -> None:
    running = sql.claimed()
    sql.rows(COPIED)
    assert sql.value("select is_copy()") is True
    assert sql.state(sql.enqueue()) == "pending", "producers"
    assert sql.rows(
        "select complete_messages(array[%s::bigint], array[%s::bigint])", running.id, running.token
    ) == [([running.id],)]


def test_explain_names_the_gate(sql: Sql) -> None:
    message = sql.enqueue()
    gates = "select passed from explain_message(%s) where gate = 'copy'"
    assert sql.rows(gates, message) == []
    sql.rows(COPIED)
    assert sql.rows(gates, message) == [(False,)]


def test_an_accepted_copy_has_what_ran_waiting_with_no_crash_and_no_attempt_spent(sql: Sql) -> None:
    running, waiting = sql.claimed(), sql.enqueue(conversation_key="c")
    sql.rows(REGISTER)
    sql.rows(COPIED)
    assert sql.value("select accept_copy(p_operator => 'ann', p_reason => 'the fire')") is True
    assert sql.rows("select id, state, attempt, crashes, lease_token from message_queue order by id") == [
        (running.id, "pending", 0, 0, None),
        (waiting, "pending", 0, 0, None),
    ]
    assert sql.value("select count(*) from workers") == 0
    assert sql.rows("select action, operator, reason, details ->> 'returned' from operator_actions") == [
        ("accept_copy", "ann", "the fire", "1")
    ]
    assert sorted(lease.id for lease in sql.claim(10)) == [running.id, waiting]
    assert sql.value("select accept_copy()") is False, "no copy any more"


def test_an_accepted_copy_may_be_paused(sql: Sql) -> None:
    message = sql.enqueue()
    sql.rows(SCHEDULE)
    sql.rows(COPIED)
    sql.rows("select accept_copy(p_paused => true)")
    assert (
        sql.claim(10) == []
        and sql.value("select fire_schedule('daily', clock_timestamp(), null)") == "paused"
    )
    sql.rows("select resume_queue('q')")
    assert [lease.id for lease in sql.claim(10)] == [message]


def test_a_copy_that_looks_like_its_original_is_marked(sql: Sql) -> None:
    sql.enqueue()
    assert sql.value("select mark_copy('ann', 'snapshot')") is True
    assert sql.value("select mark_copy()") is False, "it was marked already"
    assert sql.refused("select id from claim_messages(%s, '{q}')", HOLDER) == ("PH006", None)
    assert sql.value("select accept_copy()") is True and len(sql.claim()) == 1
    assert [action for (action,) in sql.rows("select action from operator_actions order by id")] == [
        "mark_copy",
        "accept_copy",
    ]


def test_a_schema_without_its_row_is_no_copy(sql: Sql) -> None:
    """A dump of the schema alone: nothing in it could start twice."""
    sql.rows("reset role")
    sql.enqueue()
    assert sql.value("select is_copy()") is False
    assert sql.refused("delete from installation")[0] == "42501", "nor can a worker make it so"
    assert len(sql.claim(holder=uuid4())) == 1
