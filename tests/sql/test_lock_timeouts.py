"""What somebody keeps locked (an open psql session, a dump) holds up itself, and nothing else (FAILURES 21,
64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.sql.client import Sql
from tests.sql.parking import in_background
from tests.support.postgres import Database
from tests.support.waiting import wait_until

WAITING = "select count(*) from pg_locks where not granted and relation = 'message_archive'::regclass"


@contextmanager
def left_open(client: Sql, statement: str, *params: object) -> Iterator[None]:
    """A transaction in which somebody went to lunch."""
    client.rows("begin")
    client.rows(statement, *params)
    try:
        yield
    finally:
        client.rows("rollback")


@pytest.mark.slow
def test_rescue_goes_on_beside_a_conversation_that_somebody_keeps_locked(clients: Callable[..., Sql]) -> None:
    """The successor of a message that ends in the rescue is locked: the message waits, its neighbours do
    not.
    """
    sql = clients()
    outcome, successor, neighbour = (
        sql.enqueue(conversation_key="k"),
        sql.enqueue(conversation_key="k"),
        sql.enqueue(),
    )
    assert {lease.id for lease in sql.claim(10)} == {outcome, neighbour}
    sql.rows("select cancel_message(%s)", outcome)
    sql.rows(
        "update message_queue set lease_expires_at = clock_timestamp() - interval '1 second' where state = 'running'"
    )
    with left_open(clients(), "select from message_queue where id = %s for update", successor):
        assert sql.value("select rescue_expired_messages()") == 1
        assert [sql.state(key) for key in (outcome, successor, neighbour)] == [
            "running",
            "blocked",
            "pending",
        ]
    assert sql.value("select rescue_expired_messages()") == 1
    assert [sql.state(key) for key in (outcome, successor)] == ["cancelled", "pending"]


@pytest.mark.slow
def test_a_hundred_locked_conversations_cost_the_rescue_one_wait(clients: Callable[..., Sql]) -> None:
    sql = clients()
    for place in range(100):
        for _ in range(2):
            sql.enqueue(conversation_key=f"k{place}")
    assert len(sql.claim(100)) == 100
    sql.rows("select cancel_message(id) from message_queue where state = 'running'")
    sql.rows(
        "update message_queue set lease_expires_at = clock_timestamp() - interval '1 second' where state = 'running'"
    )
    sql.rows("update message_queue set state = 'blocked' where state = 'pending'")
    sql.rows("set statement_timeout = '10s'")  # a hundred waits would be fifty seconds
    with left_open(clients(), "select from message_queue where state = 'blocked' for update"):
        assert sql.value("select rescue_expired_messages()") == 0
    assert sql.value("select rescue_expired_messages()") == 100


def test_expiry_goes_on_beside_a_conversation_that_somebody_keeps_locked(clients: Callable[..., Sql]) -> None:
    sql = clients()
    first, successor, neighbour = (
        sql.enqueue(conversation_key="k"),
        sql.enqueue(conversation_key="k"),
        sql.enqueue(),
    )
    sql.rows("update message_queue set state = 'blocked' where id = %s", successor)
    sql.rows("update message_queue set expires_at = clock_timestamp() where id <> %s", successor)
    with left_open(clients(), "select from message_queue where id = %s for update", successor):
        assert sql.value("select expire_messages()") == 1
        assert [sql.state(key) for key in (first, successor, neighbour)] == [
            "pending",
            "blocked",
            "cancelled",
        ]
    assert sql.value("select expire_messages()") == 1
    assert [sql.state(key) for key in (first, successor)] == ["cancelled", "pending"]


def test_expiry_goes_on_beside_a_message_that_somebody_keeps_locked(clients: Callable[..., Sql]) -> None:
    sql = clients()
    locked, free = (sql.enqueue(expires_at="2000-01-01") for _ in range(2))
    with left_open(clients(), "select from message_queue where id = %s for update", locked):
        assert sql.value("select expire_messages()") == 1
    assert [sql.state(key) for key in (locked, free)] == ["pending", "cancelled"]


def test_upkeep_goes_on_beside_an_old_dead_letter_that_somebody_looks_at(clients: Callable[..., Sql]) -> None:
    sql = clients()
    dead = sql.enqueue()
    sql.rows("select bury_message(%s)", dead)
    sql.rows("update dead_letters set dead_at = clock_timestamp() - interval '31 days'")
    sql.rows(
        "insert into message_dedup (queue, dedup_key, message_id, expires_at) values ('q', 'k', 1, clock_timestamp() - interval '1 day')"
    )
    with left_open(clients(), "select from dead_letters for update"):
        assert sql.value("select cleanup_old_messages()") == 1
    assert sql.value("select cleanup_old_messages()") == 1
    assert sql.state(dead) is None


def test_an_open_set_queue_keeps_no_other_queue_from_its_workers(clients: Callable[..., Sql]) -> None:
    sql = clients()
    sql.rows("select declare_queue('limited')")
    sql.set_queue("limited", max_concurrency=5)
    waits, free = sql.enqueue("limited"), sql.enqueue("q")
    claim = "select id from claim_messages(gen_random_uuid(), array['limited', 'q'], 10)"
    with left_open(clients(), "select set_queue('limited', '{\"max_concurrency\": 6}')"):
        assert sql.rows(claim) == [(free,)]
    assert sql.rows(claim) == [(waits,)]


def test_nobody_waits_for_an_archive_that_a_report_keeps(own_clients: Callable[..., Sql]) -> None:
    """While a drop waits for its lock, completions wait behind it: so it does not wait for a transaction that
    lasts.
    """
    owner, report, watcher = own_clients(admin=True), own_clients(), own_clients()
    owner.rows(
        "create table message_archive_20200101 partition of message_archive for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')"
    )
    with left_open(report, "select count(*) from message_archive"):
        work = in_background(owner.value, "select drop_expired_archive_partitions()")
        while not work.done():
            assert watcher.value(WAITING) == 0
        assert work.result() == 0
    assert owner.value("select drop_expired_archive_partitions()") == 1


@pytest.mark.slow
def test_a_partition_that_cannot_be_attached_is_an_error_and_not_an_endless_wait(
    own_clients: Callable[..., Sql],
) -> None:
    """DETACH CONCURRENTLY of somebody holds the same lock for as long as a dump lasts."""
    sql = own_clients()
    with left_open(own_clients(admin=True), "lock table message_archive in share update exclusive mode"):
        assert sql.refused("select ensure_message_archive_partitions(30)")[0] == "55P03"
        assert sql.value("select ensure_message_archive_partitions(7)") == 0, "nothing to make"
    assert sql.value("select ensure_message_archive_partitions(30)") == 23


def test_a_conversation_goes_on_when_its_first_message_is_deleted_by_hand(sql: Sql) -> None:
    first, second, third = (sql.enqueue(conversation_key="k") for _ in range(3))
    others = [sql.enqueue(conversation_key="other") for _ in range(2)]
    assert len(sql.claim(10)) == 2
    sql.rows("delete from message_queue where id = %s", first)
    assert [sql.state(key) for key in (second, third, others[1])] == ["pending", "blocked", "blocked"]
    assert [lease.id for lease in sql.claim(10)] == [second]


def test_a_deletion_by_hand_promotes_also_behind_endings_of_the_same_transaction(
    clients: Callable[..., Sql],
) -> None:
    sql = clients()
    ended = sql.claimed()
    first, second = (sql.enqueue(conversation_key="k") for _ in range(2))
    assert len(sql.claim(10)) == 1
    with sql.connection.transaction():
        sql.complete(ended)
        sql.rows("delete from message_queue where id = %s", first)
    assert sql.state(second) == "pending"


def test_a_worker_that_lies_down_or_hands_over_waits_for_no_row_that_somebody_keeps_locked(
    clients: Callable[..., Sql],
) -> None:
    sql = clients()
    sql.rows("select declare_queue('free'), declare_queue('kept')")
    sql.rows("select attend_queues('{free,kept}', '{}')")
    sql.rows("set statement_timeout = '10s'")
    announced = (
        "select string_agg(queue, ' ' order by queue) from queue_wakeups where wake_until > clock_timestamp()"
    )
    watched = (
        "select string_agg(queue, ' ' order by queue) from queue_wakeups where attended_until is not null"
    )
    with left_open(clients(), "select from queue_wakeups where queue = 'kept' for update"):
        sql.rows("select announce_sleep('{free,kept}'), hand_over_queues('{free,kept}')")
        assert (sql.value(announced), sql.value(watched)) == ("free", "kept")
    sql.rows("select announce_sleep('{free,kept}'), hand_over_queues('{free,kept}')")
    assert (sql.value(announced), sql.value(watched)) == ("free kept", None)


def test_one_whose_deletion_could_not_promote_is_found_later(clients: Callable[..., Sql]) -> None:
    """Under a lasting snapshot nobody sees what was blocked meanwhile."""
    sql = clients()
    first, second = (sql.enqueue(conversation_key="k") for _ in range(2))
    assert len(sql.claim(10)) == 1
    with sql.connection.transaction():
        sql.rows("set transaction isolation level repeatable read")
        sql.rows("delete from message_queue where id = %s", first)
    assert sql.state(second) == "blocked"
    assert sql.value("select promote_stranded_conversations()") == 1
    assert [lease.id for lease in sql.claim(10)] == [second]


def test_a_conversation_behind_a_dead_letter_is_not_stranded(sql: Sql) -> None:
    sql.set_queue(on_dead="block")
    first, second = sql.enqueue(conversation_key="k"), sql.enqueue(conversation_key="k")
    assert len(sql.claim(10)) == 1
    sql.rows("select bury_message(id, lease_token) from message_queue where id = %s", first)
    assert sql.value("select promote_stranded_conversations()") == 0
    assert sql.state(second) == "blocked"


def test_every_stranded_conversation_is_found_whatever_place_the_look_begins_at(sql: Sql) -> None:
    for key in range(30):
        sql.rows(
            "insert into message_queue (queue, message_type, state, conversation_key) values ('q', 'effect', 'blocked', %s)",
            f"k{key}",
        )
    assert sql.value("select promote_stranded_conversations()") == 30


@pytest.mark.slow
def test_abandoned_types_are_found_in_a_backlog_that_is_not_read_as_a_whole(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    """Ten million old messages of a type that is worked on cost no more than forty thousand, also with plans
    for an empty table.
    """
    sql = own_clients()
    any_database.query("alter table message_queue set (autovacuum_enabled = false)")
    any_database.query("analyze message_queue")
    sql.rows("select declare_queue('q'), bury_unknown_types('1 hour'), promote_stranded_conversations()")
    sql.rows(
        "select register_worker(gen_random_uuid(), 'h', 1, 'v', array['q'], array['effect'], 1, '20 seconds')"
    )
    sql.rows(
        "insert into message_queue (queue, message_type, run_at) select 'q', case when n % 30000 = 7 then 'abandoned' else 'effect' end,"
        " clock_timestamp() - interval '2 hours' from generate_series(1, 90000) n"
    )
    read = "select coalesce(idx_tup_fetch, 0) + seq_tup_read from pg_stat_xact_user_tables where relname = 'message_queue'"
    for call, limit in (
        ("bury_unknown_types('1 hour')", 50_000),
        ("promote_stranded_conversations()", 5_000),
    ):
        sql.rows("begin")
        before = sql.value(read)  # what the session has not reported yet of earlier transactions
        sql.rows(f"select {call}")
        assert sql.value(read) - before < limit, call
        sql.rows("commit")
    wait_until(
        lambda: (
            sql.rows("select bury_unknown_types('1 hour')")
            and sql.value("select count(*) from dead_letters") == 3
        )
    )
    assert sql.value("select count(*) from message_queue") == 90_000 - 3
