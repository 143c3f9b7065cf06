"""Each safeguard of the order and of the fence is cut out once, and the checks must notice (a test that
cannot fail is none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.sql.client import OTHER, Sql
from tests.sql.conftest import make_clients
from tests.sql.conversations import violations
from tests.sql.mutations import break_function
from tests.support.postgres import Database

#: They show that tests notice a fault.
pytestmark = pytest.mark.slow

Clients = Callable[..., Sql]


@pytest.fixture
def twin_clients(database: Database) -> Iterator[Clients]:
    """On the embedded server only: what is cut out here is the same text everywhere."""
    yield from make_clients(database)


def held_conversation(sql: Sql) -> tuple:
    """A running message and one that waits behind it, still pending."""
    lease = sql.claimed(conversation_key="c")
    return lease, sql.enqueue(conversation_key="c")


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_share_lock_on_the_holder_a_wake_up_is_lost(
    twin_clients: Clients, database: Database, broken: bool
) -> None:
    claimer, completer = twin_clients(), twin_clients()
    if broken:
        break_function(
            database,
            "block_waiting_messages",
            "c.state = 'running' limit 1) r))\n    for key share skip locked",
            "c.state = 'running' limit 1) r))",
        )
    lease, _ = held_conversation(completer)
    completer.rows("set lock_timeout = '300ms'")
    with claimer.connection.transaction():
        assert claimer.claim(10, holder=OTHER) == []
        if broken:
            assert completer.complete(lease) == [lease.id]
        else:
            assert (
                completer.refused(
                    "select complete_messages(array[%s::bigint], array[%s::bigint])", lease.id, lease.token
                )[0]
                == "55P03"
            )
    if not broken:
        completer.complete(lease)
    assert bool(violations(claimer)) is broken


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_promotion_a_conversation_waits_for_ever(
    twin_clients: Clients, database: Database, broken: bool
) -> None:
    sql = twin_clients()
    if broken:
        break_function(
            database, "finish_done", "promoted_ids := packhorse.promote_conversations(v_done.keys);", "null;"
        )
    lease, _ = held_conversation(sql)
    assert sql.claim(10) == []
    sql.complete(lease)
    assert bool(violations(sql)) is broken


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_token_a_stale_holder_completes_the_message_of_another(
    twin_clients: Clients, database: Database, broken: bool
) -> None:
    sql = twin_clients()
    if broken:
        break_function(database, "archive_messages", "m.lease_token = any (p_tokens) and ", "")
    stale = sql.claimed()
    sql.crash(stale)
    sql.due_now()
    assert len(sql.claim(1, holder=OTHER)) == 1
    before = sql.snapshot()
    sql.complete(stale)
    assert (sql.snapshot() != before) is broken


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_unique_index_two_messages_of_a_conversation_run(
    twin_clients: Clients, database: Database, broken: bool
) -> None:
    late, first, second = twin_clients(), twin_clients(), twin_clients()
    if broken:
        database.query("drop index message_queue_conversation_running_key")
    second.rows("set lock_timeout = '300ms'")
    with first.connection.transaction():
        with late.connection.transaction():
            late.enqueue(conversation_key="c")
            second.enqueue(conversation_key="c")
            assert len(first.claim(10)) == 1
        if broken:
            assert len(second.claim(10, holder=OTHER)) == 1
        else:
            assert second.refused("select * from claim_messages(%s, '{q}', 10)", OTHER)[0] == "55P03"
    assert bool(violations(first)) is broken


@pytest.mark.parametrize("broken", [False, True])
def test_without_passing_over_stuck_conversations_an_open_transaction_holds_up_the_queue(
    twin_clients: Clients, database: Database, broken: bool
) -> None:
    completer, claimer = twin_clients(), twin_clients()
    if broken:
        break_function(
            database,
            "pick_due_messages",
            "and (m.conversation_key is null or m.conversation_key <> all (v_stuck_keys))",
            "",
        )
    lease, _ = held_conversation(completer)
    with completer.connection.transaction():
        completer.complete(lease)
        claimer.enqueue()
        assert len(claimer.claim(1, holder=OTHER)) == (0 if broken else 1)


@pytest.mark.parametrize("broken", [False, True])
def test_without_the_guard_a_lasting_snapshot_loses_a_wake_up(
    twin_clients: Clients, database: Database, broken: bool
) -> None:
    completer, claimer = twin_clients(), twin_clients()
    if broken:
        break_function(
            database,
            "promote_conversations",
            "current_setting('transaction_isolation') <> 'read committed'",
            "false",
        )
    lease, _ = held_conversation(completer)
    completer.connection.autocommit = False
    completer.rows("set transaction isolation level repeatable read")
    completer.state(lease.id)
    assert claimer.claim(10, holder=OTHER) == []
    call = "select complete_messages(array[%s::bigint], array[%s::bigint])"
    if broken:
        completer.rows(call, lease.id, lease.token)
    else:
        assert completer.refused(call, lease.id, lease.token) == ("PH001", "transaction_isolation")
    completer.connection.commit()
    assert bool(violations(claimer)) is broken
