"""What a claim says besides its messages: when to look again, and that some wait which run apart (SPEC W2,
P5, Q10).
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.sql.client import Sql


def said(sql: Sql, limit: int = 10, queues: str = "{q}", **arguments: object) -> list[str]:
    """The outcomes of one claim, in order."""
    more = "".join(f", p_{name} => %s" for name in arguments)
    call = f"select outcome from claim_story('{{}}', '{{}}', %s, %s, %s{more})"
    return [row[0] for row in sql.rows(call, uuid4(), queues, limit, *arguments.values())]


def apart(sql: Sql, queue: str = "q", **arguments: object) -> int:
    """A message that was there when two processes died, due now."""
    message_id = sql.enqueue(queue, **arguments)
    sql.rows("update message_queue set crashes = 2 where id = %s", message_id)
    return message_id


OBSTACLES = {
    "a delay": "update message_queue set run_at = clock_timestamp() + interval '1 hour'",
    "its parked actor": "select park_scope('actor:effect', interval '1 hour')",
    "a limit of its key": "select set_queue('q', '{\"max_concurrency_per_key\": 1}'); select enqueue_message('q', 'effect', "
    "p_concurrency_key => 'k', p_priority => 1); select id from claim_messages(gen_random_uuid(), '{q}', 1)",
    "its expiry": "update message_queue set expires_at = clock_timestamp() - interval '1 second'",
}


@pytest.mark.parametrize("obstacle", [None, *OBSTACLES])
def test_one_that_runs_apart_is_told_of_only_when_it_could_start(sql: Sql, obstacle: str | None) -> None:
    apart(sql, concurrency_key="k")
    for statement in OBSTACLES[obstacle].split("; ") if obstacle else []:
        sql.rows(statement)
    assert ("isolated" in said(sql)) is (obstacle is None)


@pytest.mark.parametrize("other", ["of another queue", "that runs", "that does not run apart"])
def test_one_that_cannot_start_apart_is_not_told_of_because_of_another_one(sql: Sql, other: str) -> None:
    sql.rows("select declare_queue('r')")
    if other == "of another queue":
        apart(sql, "r")
    elif other == "that runs":
        apart(sql)
        assert said(sql, isolated=True) == ["claimed"]
    else:
        sql.enqueue(priority=10)
    apart(sql, expires_at="2000-01-01")
    assert "isolated" not in said(sql, limit=0)


def test_who_claims_apart_is_not_told_that_more_wait(sql: Sql) -> None:
    apart(sql), apart(sql)
    assert said(sql, limit=1, isolated=True) == ["claimed"]


@pytest.mark.parametrize(
    ("limit", "isolated", "told"),
    [(10, False, ["next"]), (0, False, []), (10, True, [])],
    ids=["a claim", "a mere completion", "a claim apart"],
)
def test_when_the_next_is_due_is_told_to_who_would_claim_it(
    sql: Sql, limit: int, isolated: bool, told: list[str]
) -> None:
    sql.enqueue(delay="1 hour")
    assert said(sql, limit=limit, isolated=isolated) == told


@pytest.mark.parametrize("crashes", [0, 2])
@pytest.mark.parametrize("change", ["queue = 'r'", "state = 'blocked'", "run_at = '2000-01-01'"])
def test_the_next_is_one_that_only_its_time_keeps_from_starting(sql: Sql, change: str, crashes: int) -> None:
    """One that is due and cannot start would make the worker look again and again."""
    sql.rows("select declare_queue('r')")
    sql.enqueue(delay="1 hour", message_type="other")
    sql.rows(f"update message_queue set crashes = %s, {change}", crashes)
    assert said(sql, types=["effect"]) == []


def test_one_that_was_named_and_runs_elsewhere_is_not_named_again(sql: Sql) -> None:
    assert said(sql, limit=0, first=[sql.claimed().id]) == []


def test_only_a_claim_that_completes_nothing_ends_what_has_expired(sql: Sql) -> None:
    """It is a duty of who is idle."""
    lease, expired = sql.claimed(), sql.enqueue(expires_at="2000-01-01")
    sql.rows(
        "select * from claim_story(%s::bigint[], %s::bigint[], %s, '{q}', 10)",
        [lease.id],
        [lease.token],
        uuid4(),
    )
    assert sql.state(expired) == "pending"
    said(sql)
    assert sql.state(expired) == "cancelled"


@pytest.mark.parametrize("old", ["of another queue", "that runs", "that does not run apart"])
def test_only_one_that_has_waited_itself_comes_before_the_ordinary_ones(sql: Sql, old: str) -> None:
    """For a worker that runs one at a time: claim_messages without p_isolated."""
    sql.rows("select declare_queue('r')")
    ordinary = sql.enqueue(run_at="2000-01-01") if old == "that does not run apart" else sql.enqueue()
    young = apart(sql)
    if old == "of another queue":
        apart(sql, "r", run_at="2000-01-01")
    elif old == "that runs":
        apart(sql, run_at="2000-01-01")
        assert said(sql, limit=1, isolated=True) == ["claimed"]
    assert [lease.id for lease in sql.claim(10)] == [ordinary]
    assert [lease.id for lease in sql.claim(10)] == [young]


def test_a_claim_of_nothing_takes_nothing_that_runs_apart(sql: Sql) -> None:
    apart(sql)
    assert sql.claim(0) == []


def test_who_asks_for_those_that_run_apart_gets_as_many_as_asked_for(sql: Sql) -> None:
    both = [apart(sql), apart(sql)]
    assert [lease.id for lease in sql.claim(10, isolated=True)] == both
