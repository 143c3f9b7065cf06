"""What keeps a message from starting keeps it from every way of being chosen: by its place, by its id
(p_first), apart (SPEC P4, P5, Q8).
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.sql.client import Sql

CLAIM = """
select id from claim_story('{}', '{}', %s, '{q}', 10, p_types => '{effect}', p_first => %s, p_cursor => %s, p_isolated => %s)
where outcome = 'claimed'
"""
OBSTACLES = {
    "its expiry": "update message_queue set expires_at = clock_timestamp() - interval '1 second' where id = %(id)s",
    "another queue": "update message_queue set queue = 'r' where id = %(id)s",
    "another type": "update message_queue set message_type = 'other' where id = %(id)s",
    "a delay": "update message_queue set run_at = clock_timestamp() + interval '1 hour' where id = %(id)s",
    "a pause": "select pause_queue('q')",
    "an earlier one of its conversation": "insert into message_queue (id, queue, message_type, conversation_key, run_at) "
    "overriding system value values (-1, 'q', 'effect', 'c', clock_timestamp() + interval '1 hour')",
    "a running one of its conversation": "insert into message_queue (id, queue, message_type, conversation_key, run_at) "
    "overriding system value values (-1, 'q', 'effect', 'c', '1999-01-01'); select id from claim_messages(gen_random_uuid(), '{q}', 1, p_types => '{effect}') order by id limit 1",
    "a dead letter that holds its conversation": "select set_queue('q', '{\"on_dead\": \"block\"}'); insert into message_queue (id, queue, "
    "message_type, conversation_key, run_at) overriding system value values (-1, 'q', 'effect', 'c', '1999-01-01'); "
    "select bury_message(c.id, c.lease_token) from claim_messages(gen_random_uuid(), '{q}', 1, p_types => '{effect}') c",
    "its parked actor": "select park_scope('actor:effect', interval '1 hour')",
    "its parked queue": "select park_scope('queue:q', interval '1 hour')",
    "a service that its type has asked to rest": "select park_scope('api', interval '1 hour', p_types => '{effect}')",
    "a probe that runs": "select enqueue_message('q', 'probe'); select park_scope('api', interval '0', p_types => '{effect,probe}', p_probing => true); "
    "select id from claim_messages(gen_random_uuid(), '{q}', 1, p_types => '{probe}')",
    "a rate of its key": 'select set_queue(\'q\', \'{"rate_limit_per_key": 1, "rate_interval_per_key": "1 hour"}\'); '
    "insert into message_queue (id, queue, message_type, concurrency_key, run_at) overriding system value values "
    "(-1, 'q', 'effect', 'k', '1999-01-01'); select id from claim_messages(gen_random_uuid(), '{q}', 1, p_types => '{effect}')",
    "a limit of its key": "select set_queue('q', '{\"max_concurrency_per_key\": 1}'); insert into message_queue (id, queue, message_type, "
    "concurrency_key, run_at) overriding system value values (-1, 'q', 'effect', 'k', '1999-01-01'); "
    "select id from claim_messages(gen_random_uuid(), '{q}', 1, p_types => '{effect}') order by id limit 1",
}
WAYS = {"by its place": (False, False), "by its id": (True, False), "apart": (False, True)}


def chosen(sql: Sql, message: int, way: str) -> list[int]:
    first, isolated = WAYS[way]
    cursor = ["2999-01-01"] * 10 if first else None  # by its place nobody would see it
    return [row[0] for row in sql.rows(CLAIM, uuid4(), [message] if first else [], cursor, isolated)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_may_not_start_is_not_claimed(sql: Sql, obstacle: str, way: str) -> None:
    sql.rows("select declare_queue('r')")
    message = sql.enqueue(conversation_key="c", concurrency_key="k", run_at="2000-01-01")
    for statement in OBSTACLES[obstacle].split("; "):
        sql.rows(statement % {"id": message} if "%(" in statement else statement)
    if way == "apart":
        sql.rows("update message_queue set crashes = 2 where id = %s", message)
    assert chosen(sql, message, way) == []


@pytest.mark.parametrize("way", WAYS)
def test_without_an_obstacle_it_is(sql: Sql, way: str) -> None:
    message = sql.enqueue(conversation_key="c", concurrency_key="k", run_at="2000-01-01")
    if way == "apart":
        sql.rows("update message_queue set crashes = 2 where id = %s", message)
    assert chosen(sql, message, way) == [message]


@pytest.mark.parametrize("way", WAYS)
def test_one_that_runs_takes_nobodys_place(sql: Sql, way: str) -> None:
    """What a claim chooses and cannot lease is a place less for those that wait."""
    running = sql.claimed()
    waiting = sql.enqueue()
    if way == "apart":
        sql.rows("update message_queue set crashes = 2")
    first, isolated = WAYS[way]
    assert sql.rows(
        "select id from claim_story('{}', '{}', %s, '{q}', 1, p_first => %s, p_isolated => %s) where outcome = 'claimed'",
        uuid4(),
        [running.id] if first else [],
        isolated,
    ) == [(waiting,)]


@pytest.mark.parametrize(("way", "crashes"), [("by its place", 2), ("by its id", 2), ("apart", 1)])
def test_who_runs_apart_and_who_does_not_are_claimed_by_different_ways(
    sql: Sql, way: str, crashes: int
) -> None:
    message = sql.enqueue(run_at="2000-01-01")
    sql.rows("update message_queue set crashes = %s", crashes)
    assert chosen(sql, message, way) == []


@pytest.mark.parametrize("way", WAYS)
def test_one_that_somebody_keeps_locked_is_passed_over(clients: Callable[..., Sql], way: str) -> None:
    sql, somebody = clients(), clients()
    locked, free = sql.enqueue(), sql.enqueue()
    if way == "apart":
        sql.rows("update message_queue set crashes = 2")
    first, isolated = WAYS[way]
    with somebody.connection.transaction():
        somebody.rows("select from message_queue where id = %s for update", locked)
        assert sql.rows(
            "select id from claim_story('{}', '{}', %s, '{q}', 10, p_first => %s, p_isolated => %s) where outcome = 'claimed'",
            uuid4(),
            [locked] if first else [],
            isolated,
        ) == [(free,)]


def test_behind_the_cursor_only_those_that_are_named_are_found(sql: Sql) -> None:
    sql.enqueue(run_at="2000-01-01")
    assert chosen(sql, named := sql.enqueue(run_at="2000-01-02"), "by its id") == [named]


def test_a_limit_per_key_holds_also_for_those_that_are_named(sql: Sql) -> None:
    sql.set_queue(max_concurrency_per_key=1)
    named = [sql.enqueue(concurrency_key="k") for _ in range(3)]
    claim = "select id from claim_story('{}', '{}', %s, '{q}', 10, p_first => %s) where outcome = 'claimed'"
    assert sql.rows(claim, uuid4(), named) == [(named[0],)]


@pytest.mark.parametrize("key", ["a", None])
def test_a_claim_that_passes_over_waiting_ones_finds_all_that_its_keys_leave_room_for(
    sql: Sql, key: str | None
) -> None:
    """It looks again behind them; what it has chosen by then is neither chosen twice nor in anybody's way."""
    sql.set_queue(max_concurrency_per_key=1)
    sql.claimed(conversation_key="c")
    first = sql.enqueue(concurrency_key=key)
    sql.enqueue(conversation_key="c")
    second = sql.enqueue(concurrency_key="b")
    assert [lease.id for lease in sql.claim(2)] == [first, second]
