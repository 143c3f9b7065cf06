"""What do fair share and limits per key cost a claim, and what does a backlog that waits on a full key cost
the others?

One session claims and completes, as the fetcher of a worker does; then one whole worker process drains. All
forms of a queue take turns in each round. `of plain` is the ratio to the ordinary queue of the same round.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from statistics import median
from uuid import uuid4

import psycopg

from benchmarks.harness.config import Settings
from benchmarks.metrics.base import Case, Number
from benchmarks.systems.base import System
from benchmarks.systems.packhorse import ACTOR, QUEUE, Adapter

CASES = [Case("fairness/claims"), Case("fairness/worker")]
BATCHES = {1: 1_000, 20: 10_000, 100: 30_000}
ROUNDS = 5
WAITING = 50_000
TENANTS, MANY = 20, 1_000
WORKER_MESSAGES = 50_000
OFF = {"fair_share": False, "max_concurrency_per_key": None, "rate_limit_per_key": None}
#: Form -> settings, column of the key, how many keys, whether WAITING messages wait on a full one.
FORMS: dict[str, tuple[dict[str, object], str | None, int, bool]] = {
    "plain": ({}, None, 0, False),
    f"fair share, {TENANTS} tenants": ({"fair_share": True}, "fairness_key", TENANTS, False),
    f"fair share, {MANY:,} tenants": ({"fair_share": True}, "fairness_key", MANY, False),
    "fair share, no tenants": ({"fair_share": True}, None, 0, False),
    "concurrency per key": ({"max_concurrency_per_key": 1000}, "concurrency_key", TENANTS, False),
    "concurrency per key, one full": ({"max_concurrency_per_key": 1000}, "concurrency_key", TENANTS, True),
    "rate per key": ({"rate_limit_per_key": 10**6}, "concurrency_key", TENANTS, False),
    "rate per key, one full": ({"rate_limit_per_key": 10**6}, "concurrency_key", TENANTS, True),
}
FILL = """
insert into packhorse.message_queue (queue, message_type, payload, options, {column})
select %s, %s, %s, '{{}}', {key} from generate_series(1, %s) n
"""
CLAIM = """
select id, lease_token from packhorse.complete_and_claim_messages(%s::bigint[], %s::bigint[], %s, array[%s], %s)
where hints is null
"""


def measure(system: System, case: Case, settings: Settings) -> Iterator[Number]:
    """Only Packhorse lists the cases."""
    assert isinstance(system, Adapter), "the settings are Packhorse's"
    if case.key == "fairness/claims":
        yield from claims(system, settings)
    else:
        yield from worker(system, settings)


def claims(system: Adapter, settings: Settings) -> Iterator[Number]:
    """Messages a second by one session, by batch and form; the median of the rounds."""
    for batch, count in BATCHES.items():
        rates: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(ROUNDS):
            for form in FORMS:
                with psycopg.connect(system.store_url(), autocommit=True) as connection:
                    prepare(connection, form, count)
                    rates[form].append(loop(connection, batch, count))
        yield from numbers(f"batch={batch}", rates)


def worker(system: Adapter, settings: Settings) -> Iterator[Number]:
    """Messages a second by one worker process with no-op handlers, from the first to the last that ends."""
    rates: dict[str, list[float]] = {form: [] for form in FORMS}
    workers = system.start(1)
    try:
        system.warm_up(workers)
        with psycopg.connect(system.store_url(), autocommit=True) as connection:
            for _ in range(ROUNDS):
                for form in FORMS:
                    connection.execute("select packhorse.pause_queue(%s)", (QUEUE,))
                    prepare(connection, form, WORKER_MESSAGES)
                    connection.execute("select packhorse.resume_queue(%s)", (QUEUE,))
                    began = time.monotonic()
                    while left(connection):
                        workers.check()
                        time.sleep(0.02)  # a look at the index is cheap beside what is measured
                    rates[form].append(WORKER_MESSAGES / (time.monotonic() - began))
    finally:
        workers.stop()
    yield from numbers("worker", rates)


def numbers(label: str, rates: dict[str, list[float]]) -> Iterator[Number]:
    """The rates, and each form beside the plain queue of its round."""
    for form, found in rates.items():
        yield Number("fairness", f"{label} {form}", 1, median(found), "messages/s")
        if form != "plain":
            ratio = median(one / plain for one, plain in zip(found, rates["plain"], strict=True))
            yield Number("fairness", f"{label} {form}, of plain", 1, ratio, "")


def prepare(connection: psycopg.Connection, form: str, count: int) -> None:
    """An empty table, the queue as the form says, what waits on a full key, and `count` messages."""
    changes, column, keys, full = FORMS[form]
    queue, actor, payload = QUEUE, ACTOR, json.dumps({"number": 1})
    connection.execute("truncate packhorse.message_queue, packhorse.message_archive, packhorse.key_rates")
    connection.execute("select packhorse.set_queue(%s, %s)", (queue, json.dumps({**OFF, **changes})))
    fill = FILL.format(column="concurrency_key", key="'full'")
    if full:
        connection.execute(fill, (queue, actor, payload, WAITING))
        if "rate_limit_per_key" in changes:
            connection.execute(
                "insert into packhorse.key_rates values (%s, 'full', -2e9, clock_timestamp())", (queue,)
            )
        else:
            connection.execute(
                "update packhorse.message_queue set state = 'running', lease_token = id, "
                "lease_expires_at = 'infinity' where id in (select id from packhorse.message_queue order by id limit 1000)"
            )
    key = "null" if column is None else f"'key ' || n %% {keys}"
    connection.execute(FILL.format(column=column or "fairness_key", key=key), (queue, actor, payload, count))
    connection.execute("vacuum analyze packhorse.message_queue")


def loop(connection: psycopg.Connection, batch: int, count: int) -> float:
    """Claim and complete until `count` are done; messages a second."""
    holder, ids, tokens, done = uuid4(), [], [], 0
    began = time.monotonic()
    while done < count:
        rows = connection.execute(CLAIM, (ids, tokens, holder, QUEUE, batch)).fetchall()
        if not rows:
            raise RuntimeError(f"nothing to claim after {done} of {count}")
        ids, tokens = [row[0] for row in rows], [row[1] for row in rows]
        done += len(rows)
    return done / (time.monotonic() - began)


def left(connection: psycopg.Connection) -> bool:
    """Is there a message that does not belong to the full key?"""
    found = connection.execute(
        "select exists (select from packhorse.message_queue where concurrency_key is distinct from 'full')"
    ).fetchone()
    assert found is not None
    return bool(found[0])
