"""One gate, one edit: claim, lock by hand and explain ask the same functions (migrations/functions/gates.sql;
SPEC Q8b).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sql.client import HOLDER, Sql

#: Gate -> what keeps a message by it, and the gate as it is when it lets everything pass.
GATES = {
    "run_at": (
        ["update message_queue set run_at = clock_timestamp() + interval '1 hour' where id = {id}"],
        "function packhorse.is_due(p_run_at timestamptz, p_now timestamptz) returns boolean language sql immutable as $$ select true $$",
    ),
    "expires_at": (
        ["update message_queue set expires_at = clock_timestamp() - interval '1 second' where id = {id}"],
        "function packhorse.is_worth_doing(p_expires_at timestamptz, p_now timestamptz) returns boolean language sql immutable as $$ select true $$",
    ),
    "queue": (
        ["select pause_queue('q')"],
        "function packhorse.queue_is_open(p_queue packhorse.queues) returns boolean language sql immutable as $$ select true $$",
    ),
    "conversation": (
        [
            "insert into message_queue (queue, message_type, conversation_key, run_at) values ('q', 'other', 'c', '2020-01-01')",
            "update message_queue set conversation_key = 'c' where id = {id}",
            "update message_queue set id = id + 1000000 where id = {id}",
        ],
        "function packhorse.conversation_holders(p_conversation_key text, p_id bigint) returns table (holder_kind text, holder_id bigint) "
        "language sql stable as $$ select ''::text, 0::bigint where false $$",
    ),
    "max_concurrency": (
        ["select set_queue('q', '{{\"max_concurrency\": 1}}')", "running"],
        "function packhorse.queue_room(p_queue packhorse.queues) returns integer language sql stable as $$ select 1000 $$",
    ),
    "max_concurrency_per_key": (
        [
            "select set_queue('q', '{{\"max_concurrency_per_key\": 1}}')",
            "running",
            "update message_queue set concurrency_key = 'k'",
        ],
        "function packhorse.key_room(p_queue packhorse.queues, p_key text) returns table (room integer) "
        "language sql stable as $$ select 1000 $$",
    ),
    "rate_limit_per_key": (
        [
            'select set_queue(\'q\', \'{{"rate_limit_per_key": 1, "rate_interval_per_key": "1 hour"}}\')',
            "update message_queue set concurrency_key = 'k' where id = {id}",
            "insert into key_rates (queue, key, tokens, refilled_at) values ('q', 'k', 0, clock_timestamp())",
        ],
        "function packhorse.key_tokens(p_queue packhorse.queues, p_key text, p_now timestamptz) "
        "returns table (tokens double precision) language sql stable as $$ select 1000::double precision $$",
    ),
    "rate_limit": (
        [
            'select set_queue(\'q\', \'{{"rate_limit": 1, "rate_interval": "1 hour"}}\')',
            "update queues set rate_tokens = 0 where name = 'q'",
        ],
        "function packhorse.rate_tokens_at(p_queue packhorse.queues, p_now timestamptz) returns double precision language sql immutable as "
        "$$ select 1000::double precision $$",
    ),
}


def explained(sql: Sql, ident: int) -> dict[str, bool]:
    return dict(sql.rows("select gate, passed from explain_message(%s)", ident))


@pytest.mark.parametrize("gate", GATES)
def test_claim_lock_and_explain_change_together_when_a_gate_does(
    own_clients: Callable[..., Sql], gate: str
) -> None:
    """Whoever breaks a gate breaks it for all three: so explain cannot say what the claim does not do."""
    keeps, opened = GATES[gate]
    sql = own_clients(admin=True)
    sql.rows("select declare_queue('q')")
    if "running" in keeps:
        sql.claimed()
    ident = sql.enqueue()
    for statement in keeps:
        if statement != "running":
            sql.rows(statement.format(id=ident))
    ident = sql.value("select id from message_queue where message_type = 'effect' and state = 'pending'")
    claim = "select id from claim_story('{}', '{}', %s, '{q}', 10, p_types => '{effect}') where outcome = 'claimed'"
    lock = "select acquire_message_lock(%s, %s)"

    assert explained(sql, ident)[gate] is False
    with sql.connection.transaction(force_rollback=True):
        assert sql.value(lock, ident, HOLDER) is None
    with sql.connection.transaction(force_rollback=True):
        assert sql.rows(claim, HOLDER) == []

    sql.connection.execute(f"create or replace {opened}".encode(), prepare=False)
    assert explained(sql, ident)[gate] is True
    with sql.connection.transaction(force_rollback=True):
        assert sql.value(lock, ident, HOLDER) is not None
    with sql.connection.transaction(force_rollback=True):
        assert sql.rows(claim, HOLDER) == [(ident,)]
