"""Claim: which messages, in which order, with what lease; what is refused (SPEC P2, P5, Q5, W1b)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from packhorse.worker.store import messages as store
from tests.sql.client import HOLDER, OTHER, Sql
from tests.support.postgres import Database


def test_a_claim_leases_the_message_and_counts_the_attempt(sql: Sql) -> None:
    message_id = sql.enqueue()
    lease = sql.claim_one()
    row = sql.live(message_id)
    assert (row["state"], row["attempt"], row["lease_holder"], row["lease_token"]) == (
        "running",
        1,
        HOLDER,
        lease.token,
    )
    assert sql.value("select lease_expires_at - claimed_at = interval '5 minutes' from message_queue")


def test_a_claimed_message_is_claimed_by_nobody_else(sql: Sql) -> None:
    sql.claimed()
    assert sql.claim(holder=OTHER) == []


def test_nothing_due_is_an_empty_answer(sql: Sql) -> None:
    assert sql.claim(10) == []


def test_tokens_grow_with_every_claim(sql: Sql) -> None:
    first = sql.claimed()
    sql.fail(first)
    sql.due_now()
    assert sql.claim_one().token > first.token


def test_messages_come_by_priority_then_run_at_then_id(sql: Sql) -> None:
    late = sql.enqueue(run_at="2020-01-02")
    early = sql.enqueue(run_at="2020-01-01")
    first = sql.enqueue(priority=1)
    last = sql.enqueue(priority=10, run_at="2019-01-01")
    same = [sql.enqueue(run_at="2020-01-03") for _ in range(3)]
    expected = [first, early, late, *same, last]
    with sql.connection.transaction(force_rollback=True):
        assert [lease.id for lease in sql.claim(10)] == expected
    rows, _ = store.complete_and_claim(sql.connection, [], [], HOLDER, ["q"], 10, "30 seconds", None)  # type: ignore[arg-type]
    assert [row[1] for row in rows] == expected


def test_every_priority_is_in_its_place(sql: Sql) -> None:
    ids = {priority: sql.enqueue(priority=priority) for priority in (3, 10, 1, 7, 5, 2, 9, 4, 8, 6)}
    assert [lease.id for lease in sql.claim(20)] == [ids[priority] for priority in range(1, 11)]


@pytest.mark.parametrize("column", ["created_at", "run_at"])
def test_a_row_with_an_infinite_time_does_not_end_the_claims_of_its_queue(sql: Sql, column: str) -> None:
    """Before PostgreSQL 17 an infinite time cannot be subtracted, and the worker asks for ages."""
    for at in ("-infinity", "infinity"):
        sql.rows(f"insert into message_queue (queue, message_type, {column}) values ('q', 'effect', '{at}')")
    rows = [
        row
        for _ in range(2)
        for row in store.complete_and_claim(sql.connection, [], [], HOLDER, ["q"], 10, "30 seconds", None)[0]
    ]  # type: ignore[arg-type]
    assert len(rows) == (2 if column == "created_at" else 1)
    assert all(abs(age) < 1e12 for row in rows for age in row[15:17])


def test_a_delayed_message_waits_for_its_time(sql: Sql) -> None:
    message_id = sql.enqueue(delay="1 hour")
    assert sql.claim() == []
    sql.due_now()
    assert sql.claim_one().id == message_id


def test_a_claim_takes_no_more_than_its_limit(sql: Sql) -> None:
    for _ in range(5):
        sql.enqueue()
    assert [len(sql.claim(2)) for _ in range(3)] == [2, 2, 1]
    assert sql.claim(0) == []


def test_a_worker_claims_only_its_types(sql: Sql) -> None:
    sql.enqueue(message_type="foreign")
    mine = sql.enqueue(message_type="mine")
    assert [lease.id for lease in sql.claim(10, types=["mine"])] == [mine]
    assert sql.claim(10, types=[]) == []
    assert [lease.type for lease in sql.claim(10)] == ["foreign"]


def test_queues_are_served_in_the_order_of_preference(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    low, high = sql.enqueue("q", priority=1), sql.enqueue("r", priority=10)
    rows = sql.rows("select id from claim_messages(%s, '{r,q}', 1)", HOLDER)
    assert rows == [(high,)]
    assert sql.rows("select id from claim_messages(%s, '{r,q}', 1)", HOLDER) == [(low,)]


def test_an_expired_message_is_not_claimed(sql: Sql) -> None:
    sql.enqueue(expires_at="2020-01-01")
    assert sql.claim() == []


def test_a_cursor_skips_what_is_older_and_null_looks_from_the_start(sql: Sql) -> None:
    old = sql.enqueue(run_at="2020-01-01")
    new = sql.enqueue(run_at="2020-01-03")
    cursor = [None] * 4 + ["2020-01-02"] + [None] * 5
    assert sql.rows(
        "select id from claim_messages(%s, '{q}', 10, p_cursor => %s::timestamptz[])", HOLDER, cursor
    ) == [(new,)]
    assert [lease.id for lease in sql.claim(10)] == [old]


def test_a_claim_may_look_at_a_slice(sql: Sql) -> None:
    """From p_cursor up to, not including, p_until, per queue and priority: what lies there is found, nothing
    else.
    """
    sql.rows("select declare_queue('r')")
    sql.enqueue(run_at="2020-01-01")
    inside = sql.enqueue(run_at="2020-01-02")
    sql.enqueue(run_at="2020-01-03")
    sql.enqueue(run_at="2020-01-02", priority=4)
    sql.enqueue("r", run_at="2020-01-02")
    since = ["2020-01-02"] * 20
    until = ["2020-01-01"] * 4 + ["2020-01-03"] + ["2020-01-01"] * 5 + ["-infinity"] * 10
    assert sql.rows(
        "select id from claim_story('{}', '{}', %s, '{q,r}', 10, p_cursor => %s::timestamptz[], "
        "p_until => %s::timestamptz[]) where outcome = 'claimed'",
        HOLDER,
        since,
        until,
    ) == [(inside,)]


def test_each_queue_has_ten_places_of_its_own_in_the_cursor(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    sql.enqueue("q", run_at="2020-01-01")
    found = sql.enqueue("r", run_at="2020-01-01")
    cursor = ["2021-01-01"] * 10 + ["2019-01-01"] * 10
    assert sql.rows(
        "select id from claim_messages(%s, '{q,r}', 10, p_cursor => %s::timestamptz[])", HOLDER, cursor
    ) == [(found,)]


CALL = "select id from claim_messages({holder}, {queues}, {limit}, {lease})"
GOOD = {"holder": f"'{HOLDER}'::uuid", "queues": "'{q}'", "limit": "1", "lease": "'1 minute'"}
REFUSED = [
    ("limit", "-1", "PH001", "limit"),
    ("limit", "10001", "PH001", "limit"),
    ("limit", "null", "PH001", "limit"),
    ("lease", "'0'", "PH001", "lease"),
    ("lease", "'-1 minute'", "PH001", "lease"),
    ("lease", "'2 days'", "PH001", "lease"),
    ("lease", "null", "PH001", "lease"),
    ("holder", "null", "PH001", "holder"),
    ("queues", "null", "PH001", "queues"),
    ("queues", "'{nope}'", "PH002", "queue"),
    ("queues", "array[null]::text[]", "PH002", "queue"),
]


@pytest.mark.parametrize(
    ("argument", "value", "state", "column"),
    REFUSED,
    ids=[f"{name}={value}" for name, value, _, _ in REFUSED],
)
def test_an_absurd_claim_is_refused_by_name(
    sql: Sql, argument: str, value: str, state: str, column: str
) -> None:
    sql.enqueue()
    assert sql.refused(CALL.format(**GOOD | {argument: value})) == (state, column)


def crashed_twice(sql: Sql, **arguments: object) -> int:
    """A message that was there when two processes died."""
    message_id = sql.enqueue(**arguments)
    for _ in range(2):  # after one crash it runs beside everything else
        sql.crash(sql.claim_one())
        sql.due_now()
    assert sql.live(message_id)["crashes"] == 2
    return message_id


def test_after_two_crashes_a_message_is_claimed_after_the_others_and_alone(sql: Sql) -> None:
    apart = crashed_twice(sql)
    others = [sql.enqueue() for _ in range(3)]
    assert [lease.id for lease in sql.claim(10)] == others
    sql.enqueue(delay="1 hour")
    assert [lease.id for lease in sql.claim(10)] == [apart]


def test_a_batch_says_that_messages_wait_that_run_apart(sql: Sql) -> None:
    crashed_twice(sql)
    call = "select outcome from claim_story('{}', '{}', %s, '{q}', 10, p_types => %s::text[])"
    assert sql.rows(call, uuid4(), None) == [("isolated",)]
    assert sql.rows(call, uuid4(), ["other"]) == []


@pytest.mark.parametrize("obstacle", ["paused", "conversation", "expired", "concurrency", "rate"])
def test_a_batch_is_silent_about_one_that_runs_apart_and_cannot_start(sql: Sql, obstacle: str) -> None:
    crashed_twice(sql, conversation_key="c")
    if obstacle == "paused":
        sql.rows("select pause_queue('q')")
    elif obstacle == "expired":
        sql.rows("update message_queue set expires_at = clock_timestamp() - interval '1 second'")
    elif obstacle == "concurrency":
        sql.set_queue(max_concurrency=1)
        sql.claimed()
    elif obstacle == "rate":
        sql.set_queue(rate_limit=1, rate_interval="1 hour")
        sql.claimed()
    else:
        sql.rows(
            "insert into message_queue (id, queue, message_type, conversation_key) overriding system value values (0, 'q', 'effect', 'c')"
        )
        sql.claim_one()
    sql.due_now()
    assert ("isolated",) not in sql.rows(
        "select outcome from claim_story('{}', '{}', %s, '{q}', 10)", uuid4()
    )


def test_for_a_worker_in_sql_a_backlog_does_not_starve_one_that_runs_apart(sql: Sql) -> None:
    apart = crashed_twice(sql)
    for _ in range(20):
        sql.enqueue()
    sql.rows("update message_queue set run_at = clock_timestamp() - interval '10 seconds' where crashes > 0")
    assert [lease.id for lease in sql.claim(10)] == [apart], "due for longer than five seconds"


ROWS_THAT_NOBODY_CAN_LEASE = {
    "an attempt at the end of its range": "update message_queue set attempt = 2147483647 where id = {id}",
    "a constraint": "alter table message_queue add constraint mine check (attempt < 1 or id <> {id}) not valid",
    "a trigger": "create trigger mine before update on message_queue for each row when (old.id = {id}) execute function refuse()",
}


@pytest.mark.parametrize("reason", ROWS_THAT_NOBODY_CAN_LEASE)
def test_one_row_that_cannot_be_leased_is_one_dead_letter(
    own_clients: Callable[..., Sql], any_database: Database, reason: str
) -> None:
    """It once failed every claim that met it: the whole worker stood still."""
    sql = own_clients()
    if reason == "a trigger":
        any_database.query(
            "create function refuse() returns trigger language plpgsql as $$begin raise 'not this one'; end$$"
        )
    ids = [sql.enqueue(conversation_key=key) for key in ("a", "b", "c")]
    behind = sql.enqueue(conversation_key="b")
    any_database.query(ROWS_THAT_NOBODY_CAN_LEASE[reason].format(id=ids[1]))
    assert [lease.id for lease in sql.claim(10)] == [ids[0], ids[2]]
    assert (sql.dead(ids[1])["reason"], sql.dead(ids[1])["error_class"]) == ("rejected", "UnclaimableMessage")
    assert [lease.id for lease in sql.claim(10)] == [behind], "and its conversation goes on"


def test_a_claim_that_is_refused_for_every_row_fails_and_buries_nothing(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    """A right that the role does not have is no fault of a message."""
    sql = own_clients()
    ids = [sql.enqueue() for _ in range(3)]
    any_database.query("revoke usage on sequence message_lease_token_seq from packhorse_worker")
    assert sql.refused("select * from claim_messages(gen_random_uuid(), '{q}', 10)")[0] == "42501"
    assert [sql.state(message_id) for message_id in ids] == ["pending"] * 3


def test_a_completion_that_came_too_late_is_told_in_the_same_call(sql: Sql) -> None:
    lost, kept = sql.claimed(), sql.claimed()
    sql.crash(lost)
    sql.rows("update message_queue set run_at = '2100-01-01' where id = %s", lost.id)
    waiting = sql.enqueue()
    rows = sql.rows(
        "select outcome, id, lease_token from claim_story(%s::bigint[], %s::bigint[], %s, '{q}', 10) where outcome <> 'next'",
        [lost.id, kept.id],
        [lost.token, kept.token],
        OTHER,
    )
    assert rows[0] == ("lost", lost.id, None)
    assert [row[:2] for row in rows[1:]] == [("claimed", waiting)]
    assert (sql.state(lost.id), sql.state(kept.id)) == ("pending", "done")


def test_complete_and_claim_goes_on_with_the_next_message_of_the_conversation(sql: Sql) -> None:
    first = sql.claimed(conversation_key="c")
    second = sql.enqueue(conversation_key="c")
    assert sql.claim(10) == [] and sql.state(second) == "blocked"
    cursor = ["2999-01-01"] * 10
    rows = sql.rows(
        "select outcome, id from claim_story(%s::bigint[], %s::bigint[], %s, '{q}', 10, p_cursor => %s::timestamptz[])",
        [first.id],
        [first.token],
        OTHER,
        cursor,
    )
    assert rows == [("claimed", second)]


def test_a_conversation_that_went_on_without_room_is_named_and_claimed_by_its_id(sql: Sql) -> None:
    first = sql.claimed(conversation_key="c")
    second = sql.enqueue(conversation_key="c")
    assert sql.claim(10) == [] and sql.state(second) == "blocked"
    statement = "select outcome, id from claim_story(%s::bigint[], %s::bigint[], %s, '{q}', %s, p_cursor => %s::timestamptz[], p_first => %s::bigint[])"
    cursor = ["2999-01-01"] * 10
    assert sql.rows(statement, [first.id], [first.token], OTHER, 0, cursor, []) == [("promoted", second)]
    assert sql.rows(statement, [], [], OTHER, 10, cursor, []) == []
    assert sql.rows(statement, [], [], OTHER, 10, cursor, [second]) == [("claimed", second)]


@pytest.mark.parametrize("change", ["queue = 'r'", "message_type = 'other'", "run_at = '2999-01-01'"])
def test_a_conversation_that_goes_on_elsewhere_or_later_is_not_named(sql: Sql, change: str) -> None:
    """Who cannot take it would pass its id with every claim until it is done."""
    sql.rows("select declare_queue('r')")
    first = sql.claimed(conversation_key="c")
    second = sql.enqueue(conversation_key="c")
    assert sql.claim(10) == [] and sql.state(second) == "blocked"
    sql.rows(f"update message_queue set {change} where id = %s", second)
    statement = (
        "select outcome from claim_story(%s::bigint[], %s::bigint[], %s, '{q}', 0, p_types => '{effect}')"
    )
    assert sql.rows(statement, [first.id], [first.token], OTHER) == []
    assert sql.state(second) == "pending"


@pytest.mark.parametrize(
    "before", [{"priority": 1}, {"run_at": "2000-01-01"}], ids=["a better priority", "an older one"]
)
def test_a_conversation_that_goes_on_takes_its_place_among_the_others(sql: Sql, before: dict) -> None:
    """Served first, a few conversations with a backlog would starve everything else for as long as it
    lasts.
    """
    first = sql.claimed(conversation_key="c")
    second = sql.enqueue(conversation_key="c")
    assert sql.claim(10) == [] and sql.state(second) == "blocked"
    after = sql.enqueue()
    urgent = sql.enqueue(**before)
    call = "select outcome, id from claim_story(%s::bigint[], %s::bigint[], %s, '{q}', %s, p_first => %s::bigint[])"
    assert sql.rows(call, [first.id], [first.token], OTHER, 1, []) == [
        ("claimed", urgent),
        ("promoted", second),
    ]
    assert sql.rows(call, [], [], OTHER, 1, [second]) == [("claimed", second)]
    assert sql.rows(call, [], [], OTHER, 1, []) == [("claimed", after)]


def next_start(sql: Sql, limit: int = 10) -> list[tuple]:
    return sql.rows(
        "select outcome, run_at > clock_timestamp() + interval '50 minutes' from claim_story('{}', '{}', %s, '{q}', %s) where outcome <> 'claimed'",
        HOLDER,
        limit,
    )


def test_an_empty_claim_says_when_the_next_message_will_be_due(sql: Sql) -> None:
    sql.enqueue()
    sql.enqueue(delay="1 hour", priority=10)
    sql.enqueue(delay="2 hours", priority=1)
    assert next_start(sql) == [], "who claimed something does not look"
    assert next_start(sql) == [("next", True)]


def test_one_message_is_claimed_when_a_later_one_of_its_conversation_is_met_first(sql: Sql) -> None:
    first = sql.enqueue(conversation_key="talk", priority=5)
    later = sql.enqueue(conversation_key="talk", priority=1)
    assert [lease.id for lease in sql.claim(1)] == [first]
    assert sql.state(later) == "blocked"
    assert sql.claim(1) == []


def test_a_claim_that_did_not_get_past_waiting_conversations_asks_for_another_one(sql: Sql) -> None:
    """A worker that took it for an empty queue would sleep until its poll, and again after each thousand of
    them.
    """
    sql.rows("select declare_queue('q')")
    # the first one of each conversation waits for its retry
    for due in "interval '1 hour'", "interval '-1 hour'":
        sql.rows(
            "insert into message_queue (queue, message_type, conversation_key, run_at) "
            f"select 'q', 'effect', 'c' || n, clock_timestamp() + {due} from generate_series(1, 2000) n"
        )
    free = sql.enqueue()
    for _ in range(20):
        rows = sql.rows(
            "select outcome, id, run_at <= clock_timestamp() from claim_story('{}', '{}', %s, '{q}', 4)",
            HOLDER,
        )
        if rows != [("next", None, True)]:
            break
    assert [row[:2] for row in rows] == [("claimed", free)]


@pytest.mark.parametrize("waiting", ["pending", "blocked"])
def test_an_expired_message_holds_its_conversation_up_until_a_claim_finds_nothing(
    sql: Sql, waiting: str
) -> None:
    """Heartbeats expire messages too, but so seldom that the next one waited for half a minute with all
    workers idle.
    """
    expired = sql.enqueue(conversation_key="c", expires_at="2999-01-01", delay="1 hour")
    second = sql.enqueue(conversation_key="c")
    if waiting == "blocked":
        assert sql.claim(10) == []
    assert sql.state(second) == waiting
    sql.rows(
        "update message_queue set expires_at = clock_timestamp(), run_at = clock_timestamp() where id = %s",
        expired,
    )
    assert sql.claim(10) == []
    assert sql.state(expired) == "cancelled"
    assert [lease.id for lease in sql.claim(10)] == [second]


def test_the_next_message_may_be_one_that_runs_apart(sql: Sql) -> None:
    crashed_twice(sql)
    sql.rows("update message_queue set run_at = clock_timestamp() + interval '1 hour'")
    assert next_start(sql) == [("next", True)]


def test_nothing_delayed_is_no_next_start(sql: Sql) -> None:
    assert next_start(sql) == []
