"""Order under load: producers with short and long transactions, claimers with every outcome, on few
conversations (SPEC P1, P4).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.sql.client import Lease, Sql
from tests.sql.conftest import old_enough_for_rescue
from tests.sql.conversations import violations
from tests.sql.mutations import break_function
from tests.sql.parking import in_background
from tests.support.postgres import Database

CONVERSATIONS = ["c0", "c1", "c2"]
SECONDS = 90.0  # far more than it needs; a conversation that hangs would use it up


@dataclass
class Record:
    """What the threads saw; each list is appended to by several threads and read when they have ended."""

    # (producer, conversation) -> ids in the order of commit
    sent: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    starts: list[tuple[int, int]] = field(default_factory=list)  # (token, message id) of every claim
    ended: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    deadlocks: list[str] = field(default_factory=list)


def produce(sql: Sql, record: Record, number: int, count: int, seed: int) -> None:
    """Send `count` messages in transactions of one to three; some stay open while others commit."""
    chance = random.Random(seed)
    while count > 0:
        batch: list[tuple[str, int]] = []
        with sql.connection.transaction():
            for _ in range(min(count, chance.choice([1, 1, 2, 3]))):
                key = chance.choice(CONVERSATIONS)
                batch.append(
                    (key, sql.enqueue(conversation_key=key, max_attempts=2, priority=chance.choice([1, 5])))
                )
                if chance.random() < 0.2:
                    sql.rows("select pg_sleep(0.01)")  # a long transaction: ids behind it commit before it
        for key, message_id in batch:
            record.sent.setdefault((number, key), []).append(message_id)
        count -= len(batch)


def finish(sql: Sql, lease: Lease, chance: random.Random) -> bool:
    """End the lease in one of all ways; True when the message came to its end."""
    way = chance.choice(["complete"] * 6 + ["fail", "snooze", "release", "bury", "cancel", "crash"])
    call = {
        "complete": "cardinality(complete_messages(array[{id}::bigint], array[{token}::bigint]))",
        "fail": "fail_message({id}, {token}, 'E', 'm', p_delay => '0')",
        "snooze": "snooze_message({id}, {token}, '5 milliseconds')",
        "release": "release_message({id}, {token})",
        "bury": "bury_message({id}, {token})",
        "cancel": "cancel_message({id}, p_token => {token})",
        "crash": "recover_worker((select lease_holder from message_queue where id = {id}), null)",
    }[way]
    with sql.connection.transaction():
        answer = sql.value("select " + call.format(id=lease.id, token=lease.token))
        if chance.random() < 0.2:
            # a transactional handler: its completion stays open for a moment
            sql.rows("select pg_sleep(0.003)")
    return answer == {"complete": 1, "fail": "dead", "bury": True, "cancel": "cancelled"}.get(
        way, "another time"
    )


def work(sql: Sql, record: Record, total: int, over: threading.Event, seed: int) -> None:
    """Claim and finish until all messages have ended; a deadlock (StoreConflict) is tried again, as the
    daemon does.
    """
    chance = random.Random(seed)
    while not over.is_set():
        limit, isolated = chance.choice([1, 3, 10]), chance.choice([None, None, True])
        for lease in again(record, lambda: sql.claim(limit, holder=uuid4(), isolated=isolated)):
            record.starts.append((lease.token, lease.id))
            if again(record, lambda: finish(sql, lease, chance)):
                record.ended.append(lease.id)
        record.problems += violations_of_running(sql)
        if len(record.ended) >= total:
            over.set()


def again(record: Record, call: Callable[[], Any]) -> Any:
    """The answer of `call`, repeated after a deadlock."""
    while True:
        try:
            return call()
        except psycopg.errors.DeadlockDetected as error:
            record.deadlocks.append(error.diag.message_detail or "")


def violations_of_running(sql: Sql) -> list[str]:
    return [text for text in violations(sql) if text.endswith("run")]


def run_load(database: Database, total: int, workers: int, producers: int, seed: int) -> Record:
    record, over = Record(), threading.Event()
    clients = [Sql(database.connect()) for _ in range(workers + producers)]
    stop = threading.Timer(SECONDS, over.set)
    stop.start()
    try:
        clients[0].rows("select declare_queue('q')")
        clients[0].set_queue(crash_limit=100, backoff_initial="0", backoff_max="0")
        threads = [
            in_background(produce, clients[number], record, number, total // producers, seed + number)
            for number in range(producers)
        ]
        threads += [
            in_background(work, client, record, total, over, seed + 100 + number)
            for number, client in enumerate(clients[producers:])
        ]
        for thread in threads:
            thread.result(SECONDS + 10)
    finally:
        stop.cancel()
        for client in clients:
            client.connection.close()
    return record


def out_of_order(record: Record) -> Iterator[str]:
    """Pairs of one producer and one conversation that started in another order than they were committed."""
    first_start: dict[int, int] = {}
    for token, message_id in sorted(record.starts):
        first_start.setdefault(message_id, token)
    for (producer, key), ids in record.sent.items():
        started = [message_id for message_id in ids if message_id in first_start]
        for before, after in zip(started, started[1:], strict=False):
            if first_start[before] > first_start[after]:
                yield f"producer {producer}, {key}: {after} started before {before}"


def check(database: Database, record: Record, total: int) -> list[str]:
    sql = Sql(database.connect())
    found = record.problems + record.deadlocks + violations(sql) + list(out_of_order(record))
    left = sql.rows("select id, state from message_queue")
    ends = sql.value("select count(*) from all_messages where state in ('done', 'dead', 'cancelled')")
    ids = {message_id for sent in record.sent.values() for message_id in sent}
    if left or ends != total or sorted(record.ended) != sorted(ids):
        found.append(f"{len(left)} left, {ends} ended, {len(record.ended)} seen to end, of {total}")
    sql.connection.close()
    return found


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.slow
def test_conversations_keep_their_order_under_load_and_nobody_is_left_waiting(
    any_database: Database, seed: int
) -> None:
    total = 120
    assert check(any_database, run_load(any_database, total, workers=5, producers=3, seed=seed), total) == []


@pytest.mark.slow
@pytest.mark.oldest_and_newest
@pytest.mark.parametrize("seed", range(10, 13))
def test_conversations_keep_their_order_under_a_longer_load(any_database: Database, seed: int) -> None:
    total = 600
    assert check(any_database, run_load(any_database, total, workers=8, producers=4, seed=seed), total) == []


def test_the_check_under_load_notices_a_claim_that_ignores_earlier_messages(any_database: Database) -> None:
    """The mutation: a claim that does not look at who holds the conversation; the unique index alone keeps no
    order.
    """
    old_enough_for_rescue(any_database)
    with any_database.connect() as connection:
        sql = Sql(connection)
        sql.rows("select declare_queue('q')")
        break_function(
            any_database,
            "pick_due_messages",
            "or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)) as free",
            "or true as free",
        )
        ids = [sql.enqueue(conversation_key="c", priority=priority) for priority in (5, 1)]
        record = Record(sent={(0, "c"): ids})
        while leases := sql.claim(1):
            record.starts += [(lease.token, lease.id) for lease in leases]
            sql.complete(*leases)
    assert list(out_of_order(record)) == [f"producer 0, c: {ids[1]} started before {ids[0]}"]


@pytest.mark.slow
def test_many_conversations_and_batches_do_not_deadlock(any_database: Database) -> None:
    """Batches complete and claim across thirty conversations at once; every call comes back without a
    conflict.
    """
    with any_database.connect() as connection:
        sql = Sql(connection)
        sql.rows("select declare_queue('q')")
        for number in range(600):
            sql.enqueue(conversation_key=f"k{number % 30}")

    def drain(worker: Sql) -> int:
        done: list[tuple[int, int]] = []
        total = idle = 0
        while idle < 20:
            rows = worker.rows(
                "select id, lease_token from claim_story(%s::bigint[], %s::bigint[], %s, '{q}', 20) where outcome = 'claimed'",
                [id for id, _ in done],
                [token for _, token in done],
                uuid4(),
            )
            total += len(done)
            done = [(row[0], row[1]) for row in rows]
            idle = 0 if done else idle + 1
            if not done:
                worker.rows("select pg_sleep(0.01)")
        return total

    workers: list[Callable] = [Sql(any_database.connect()) for _ in range(4)]
    totals = [future.result(60) for future in [in_background(drain, worker) for worker in workers]]
    for worker in workers:
        worker.connection.close()
    assert sum(totals) == 600
