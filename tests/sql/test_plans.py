"""Hot statements touch rows in proportion to the batch, never to the backlog: fresh, stale and no statistics
(SPEC Q7, STYLE 2.4).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sql.client import HOLDER, OTHER, Lease, Sql
from tests.sql.plans import Plan, Statement, explain, prepare, run_plan, statement_of
from tests.support.postgres import Database

BATCH = 20
STATISTICS = ["fresh", "none", "stale"]
#: Rows in the table, and what the planner knows of them.
CASES = (
    [pytest.param(0, "none", id="0")]
    + [
        pytest.param(
            10_000,
            statistics,
            id=f"10000-{statistics}",
            marks=[pytest.mark.slow] if statistics == "none" else [],
        )
        for statistics in STATISTICS
    ]
    + [
        pytest.param(
            250_000,
            statistics,
            id=f"250000-{statistics}",
            marks=[pytest.mark.slow, pytest.mark.oldest_and_newest],
        )
        for statistics in ("fresh", "stale")
    ]
)
PICK: dict[str, object] = {
    "p_queue": "q",
    "p_types": None,
    "p_held": None,
    "p_since": None,
    "p_until": None,
    "p_forward": None,
    "p_now": "now",
    "v_want": BATCH,
    "v_picked": [],
    "v_stuck_keys": [],
}


def fill(database: Database, queue: str, count: int, columns: str = "", values: str = "") -> None:
    """`count` due messages; autovacuum keeps its hands off, so that statistics are what the test says."""
    database.query(
        "insert into message_queue (queue, message_type, run_at"
        + columns
        + ") select '"
        + queue
        + "', 'effect', "
        f"clock_timestamp() - interval '1 hour' + n * interval '1 millisecond'{values} from generate_series(1, {count}) n"
    )


def make_backlog(database: Database, count: int, statistics: str) -> None:
    database.query("alter table message_queue set (autovacuum_enabled = false)")
    database.query("select declare_queue('q')")
    if statistics == "stale":  # measured while the table was empty
        database.query("analyze message_queue")
    fill(database, "q", count)
    if statistics == "fresh":
        database.query("vacuum analyze message_queue")


def pick(sql: Sql) -> Statement:
    return statement_of(
        sql,
        "pick_due_messages",
        "select array_agg(d.id) filter (where d.free)",
        called_by="complete_and_claim_messages",
    )


def done(sql: Sql) -> Statement:
    return statement_of(sql, "archive_messages", "with done as (", called_by="complete_messages")


def beat(sql: Sql) -> Statement:
    return statement_of(sql, "beat_worker", "with held as (")


def next_in_conversation(sql: Sql) -> Statement:
    return statement_of(
        sql, "promote_conversations", "select m.id into v_id", called_by="complete_and_claim_messages"
    )


def next_due(sql: Sql) -> Statement:
    return statement_of(sql, "next_due_at", "select min(d.run_at)", called_by="complete_and_claim_messages")


def rescue(sql: Sql) -> Statement:
    return statement_of(sql, "rescue_expired_messages", "select m.id from message_queue m", ");\n  return")


def isolated(sql: Sql) -> Statement:
    return statement_of(
        sql,
        "pick_isolated_messages",
        "select m.id from message_queue m\n    where",
        ");",
        called_by="complete_and_claim_messages",
    )


def promoted(sql: Sql) -> Statement:
    return statement_of(
        sql, "pick_promoted_messages", "select m.id from", ");", called_by="complete_and_claim_messages"
    )


def who_goes_on(sql: Sql) -> Statement:
    return statement_of(
        sql, "promote_conversations", "select k.key", "\n  loop", called_by="complete_and_claim_messages"
    )


def who_runs(sql: Sql) -> Statement:
    return statement_of(
        sql,
        "block_waiting_messages",
        "select h.id from message_queue h\n    where",
        ");\n  with",
        called_by="complete_and_claim_messages",
    )


def block(sql: Sql) -> Statement:
    return statement_of(
        sql, "block_waiting_messages", "with waiting as (", called_by="complete_and_claim_messages"
    )


def behind(sql: Sql) -> Statement:
    return statement_of(sql, "waiting_behind", "select b.id", ");", called_by="complete_and_claim_messages")


def allowance(sql: Sql) -> Statement:
    return statement_of(
        sql,
        "queue_room",
        "select count(*) from message_queue r where",
        ")::integer",
        called_by="complete_and_claim_messages",
    )


def isolated_wait(sql: Sql) -> Statement:
    return statement_of(
        sql,
        "claim_hints",
        "select from message_queue m where m.queue = any (p_queues)",
        ")\n      and",
        called_by="complete_and_claim_messages",
    )


def expired(sql: Sql) -> Statement:
    return statement_of(
        sql,
        "claim_hints",
        "select from message_queue m where m.expires_at",
        ") then",
        called_by="complete_and_claim_messages",
    )


def refused(sql: Sql) -> Statement:
    return statement_of(sql, "complete_refused_messages", "select from message_queue m where", ") then")


def ring(sql: Sql) -> Statement:
    return statement_of(
        sql, "ring_is_empty", "select from message_queue m", ");", called_by="complete_and_claim_messages"
    )


def next_of_conversations(sql: Sql) -> Statement:
    return statement_of(sql, "next_of_conversations", "select n.id", ");")


def assert_proportional(plan: Plan, index: str, limit: int = 3 * BATCH) -> None:
    """Few rows whatever the size, found through the named index (or one of several)."""
    assert plan.touched <= limit, plan.text
    assert set(index.split("|")) & plan.indexes and not plan.sequential, plan.text


#: By id: both keep one entry per running message.
BY_ID = "message_queue_pkey|message_queue_running_idx"


@pytest.mark.parametrize(("size", "statistics"), CASES)
def test_hot_statements_touch_their_batch_and_not_the_backlog(
    own_clients: Callable[..., Sql], any_database: Database, size: int, statistics: str
) -> None:
    make_backlog(any_database, size, statistics)
    sql = own_clients()
    for generic in (True, False):
        for variant in ({}, {"p_types": ["effect"]}, {"p_held": ["ask"]}, {"p_since": ["2020-01-01"] * 10}):
            assert_proportional(
                run_plan(sql, pick(sql), PICK | variant, generic=generic), "message_queue_claim_idx"
            )
        behind = {"p_since": ["2020-01-01"] * 10, "p_until": ["2020-01-02"] * 10}
        assert_proportional(
            run_plan(sql, pick(sql), PICK | behind, generic=generic), "message_queue_claim_idx", limit=10
        )
    leases = sql.claim(BATCH)
    values = {
        "p_ids": [lease.id for lease in leases],
        "p_tokens": [lease.token for lease in leases],
        "p_lease": "1 minute",
        "v_unkept": [],
    }
    assert_proportional(run_plan(sql, done(sql), values), BY_ID)
    assert_proportional(run_plan(sql, beat(sql), values), BY_ID)
    sql.rows(
        "update message_queue set lease_expires_at = clock_timestamp() - interval '1 second' where state = 'running'"
    )
    assert_proportional(run_plan(sql, rescue(sql), {"p_limit": 500}), "message_queue_running_idx")


#: Statement, its index, and the rows it may touch when one message runs; `done` takes that one away, so it is
#: the last.
GROWN = [
    (pick, "message_queue_claim_idx", 3 * BATCH),
    (ring, "message_queue_turn_idx", 1),
    (next_due, "message_queue_claim_idx", 11),
    (beat, BY_ID, 2),
    (rescue, "message_queue_running_idx", 2),
    (next_in_conversation, "message_queue_conversation_blocked_idx", 2),
    (who_goes_on, "message_queue_conversation_blocked_idx", 3),
    (next_of_conversations, "message_queue_conversation_pending_idx", 3),
    (isolated, "message_queue_isolated_idx", 2),
    (isolated_wait, "message_queue_isolated_idx", 2),
    (promoted, BY_ID, 3),
    (who_runs, "message_queue_conversation_running_key", 6),
    (block, BY_ID, 6),
    (behind, BY_ID, 6),
    (allowance, "message_queue_running_idx", 2),
    (expired, "message_queue_expires_idx", 2),
    (refused, "message_queue_refused_idx", 2),
    (done, BY_ID, 2),
]


@pytest.mark.slow
def test_plans_that_were_made_on_an_empty_table_still_fit_when_it_has_grown(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    """A worker starts on an empty queue and keeps its plans; nobody has analysed the table since. Then it has
    a backlog, and as many messages that are blocked in as many conversations: promotion once read all of
    these for each completion."""
    make_backlog(any_database, 0, "stale")
    sql, other = own_clients(), own_clients()
    values = PICK | {
        "p_ids": [1],
        "p_tokens": [1],
        "p_lease": "1 minute",
        "v_unkept": [],
        "p_limit": 500,
        "p_key_limit": None,
        "p_keys": ["c1", "c2"],
        "v_running": [],
        "v_key": "c1",
        "p_queues": ["q"],
        "v_now": "now",
    }
    sql.rows("set plan_cache_mode = force_generic_plan")
    for of, _, _ in GROWN:
        prepare(sql, of(sql), of.__name__)
        explain(sql, of(sql), of.__name__, values)
    lease = other.claimed(conversation_key="c1")
    fill(any_database, "q", 20_000)
    fill(any_database, "q", 20_000, ", conversation_key, state", ", 'c' || n, 'blocked'")
    wrong = []
    for of, index, limit in GROWN:
        plan = explain(sql, of(sql), of.__name__, values | {"p_ids": [lease.id], "p_tokens": [lease.token]})
        if plan.touched > limit or plan.sequential or not set(index.split("|")) & plan.indexes:
            wrong.append((of.__name__, plan.touched, plan.sequential, plan.indexes))
    assert wrong == []


@pytest.mark.parametrize("statistics", ["fresh", pytest.param("stale", marks=pytest.mark.slow)])
def test_the_backlog_of_one_queue_is_not_touched_by_the_claim_of_another(
    own_clients: Callable[..., Sql], any_database: Database, statistics: str
) -> None:
    make_backlog(any_database, 20_000, statistics)
    any_database.query("select declare_queue('r')")
    fill(any_database, "r", 5)
    sql = own_clients()
    plan = run_plan(sql, pick(sql), PICK | {"p_queue": "r"})
    assert_proportional(plan, "message_queue_claim_idx", limit=5)


def test_delayed_messages_are_not_touched(own_clients: Callable[..., Sql], any_database: Database) -> None:
    make_backlog(any_database, 20_000, "fresh")
    any_database.query("update message_queue set run_at = clock_timestamp() + interval '1 day'")
    any_database.query("vacuum analyze message_queue")
    sql = own_clients()
    assert_proportional(run_plan(sql, pick(sql), PICK), "message_queue_claim_idx", limit=0)
    assert_proportional(
        run_plan(sql, next_due(sql), {"p_queues": ["q"], "p_forward": None, "p_now": "now"}),
        "message_queue_claim_idx",
        limit=11,
    )


@pytest.mark.parametrize(
    "size", [10_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.oldest_and_newest])]
)
@pytest.mark.parametrize("statistics", ["fresh", "none"])
def test_blocked_messages_of_one_conversation_are_not_touched(
    own_clients: Callable[..., Sql], any_database: Database, size: int, statistics: str
) -> None:
    """However many wait in a conversation: others are claimed, and its own next one promoted, without a look
    at them.
    """
    sql = own_clients()
    any_database.query("alter table message_queue set (autovacuum_enabled = false)")
    running = sql.claimed(conversation_key="big")
    fill(any_database, "q", size, ", conversation_key, state", ", 'big', 'blocked'")
    others = [sql.enqueue(conversation_key=f"small{number}") for number in range(BATCH)]
    if statistics == "fresh":
        any_database.query("vacuum analyze message_queue")
    plan = run_plan(sql, pick(sql), PICK)
    assert_proportional(plan, "message_queue_claim_idx", limit=5 * BATCH)
    assert_proportional(
        run_plan(sql, next_in_conversation(sql), {"v_key": "big"}),
        "message_queue_conversation_blocked_idx",
        limit=3,
    )
    values = {"p_ids": [running.id], "p_tokens": [running.token], "v_unkept": []}
    assert_proportional(run_plan(sql, done(sql), values), BY_ID, limit=3)
    assert sorted(lease.id for lease in sql.claim(100, holder=OTHER)) == others


def test_a_claim_that_meets_a_waiting_conversation_ends_soon_and_the_next_ones_find_the_others(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    """Pending messages behind a running one are blocked in bounded steps; no claim walks all of them at
    once.
    """
    sql = own_clients()
    sql.claimed(conversation_key="big", priority=1)
    fill(any_database, "q", 3_000, ", conversation_key", ", 'big'")
    other = sql.enqueue(priority=6)
    claimed: list[int] = []
    for _ in range(400):
        claimed += [lease.id for lease in sql.claim(10, holder=OTHER)]
        if claimed:
            break
    assert claimed == [other]


def test_the_plan_check_notices_a_missing_index(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    """The mutation: without the claim index the same check fails."""
    make_backlog(any_database, 10_000, "fresh")
    any_database.query("drop index message_queue_claim_idx")
    sql = own_clients()
    plan = run_plan(sql, pick(sql), PICK)
    assert "message_queue_claim_idx" not in plan.indexes and plan.touched > 3 * BATCH


def test_a_heartbeat_is_a_hot_update(own_clients: Callable[..., Sql], any_database: Database) -> None:
    """Extending leases writes no index entry (lease_expires_at has no index)."""
    sql = own_clients()
    lease = sql.claimed()
    for _ in range(10):
        sql.rows(
            "select * from beat_worker(%s, array[%s::bigint], array[%s::bigint], '1 minute')",
            HOLDER,
            lease.id,
            lease.token,
        )
    sql.connection.close()  # a backend reports its counts when it ends
    from tests.support.waiting import wait_until

    counts = wait_until(
        lambda: [
            row
            for row in any_database.query(
                "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'message_queue'"
            )
            if row[0] >= 11
        ]
    )
    updated, hot = counts[0]
    assert hot >= 10 and updated == 11


def test_what_runs_elsewhere_costs_a_claim_of_conversations_nothing(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    """A plan made while nothing runs once took the index of running messages, empty then, for every
    conversation's look.
    """
    make_backlog(any_database, 0, "stale")
    any_database.query("select declare_queue('r')")
    any_database.query(
        "insert into message_queue (queue, message_type, conversation_key)"
        " select q, 'effect', q || n from generate_series(1, 1000) n, unnest(array['q', 'r']) q"
    )
    any_database.query("vacuum analyze message_queue")
    sql, other = own_clients(), own_clients()
    prepare(sql, pick(sql), "conversations")
    explain(sql, pick(sql), "conversations", PICK)
    assert len(other.claim(1000, "r")) == 1000
    plan = explain(sql, pick(sql), "conversations", PICK)
    assert (
        "message_queue_conversation_running_key" in plan.indexes
        and "message_queue_running_idx" not in plan.indexes
    ), plan.text
    assert plan.touched <= 6 * BATCH, plan.text


def test_what_is_claimed_and_done_is_not_looked_at_again_before_a_vacuum(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    """A scan marks the index entries of dead rows, and the next one passes over them. It does not for rows
    that one transaction locked and a part of it updated: their xmax is a multixact.
    """
    make_backlog(any_database, 0, "none")
    any_database.query(  # not in the order of the pages, so that one claim prunes little of many
        "insert into message_queue (queue, message_type, run_at) select 'q', 'effect', "
        "clock_timestamp() - n * 7919 % 2000 * interval '1 second' from generate_series(1, 2000) n"
    )
    any_database.query("vacuum analyze message_queue")
    sql, looking = own_clients(), own_clients()
    leases: list[Lease] = []
    for _ in range(100):
        sql.complete(*leases)
        leases = sql.claim(10)
    run_plan(looking, pick(looking), PICK)
    assert run_plan(looking, pick(looking), PICK | {"v_want": 1}).buffers < 50
