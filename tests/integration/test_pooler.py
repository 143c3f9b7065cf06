"""Q10: everything works through a real PgBouncer in transaction mode: no LISTEN, no prepared statements, no
session state.
"""

from __future__ import annotations

import os
import signal

import dramatiq
import psycopg
import pytest

import packhorse
from packhorse import PostgresBroker
from packhorse.worker.broker.backends import PostgresRateLimiterBackend, PostgresResultBackend
from packhorse.worker.config import load_settings
from tests.support.accounting import (
    assert_effects_fit,
    assert_every_message_ended_once,
    effects,
    enqueue,
    quick_backoff,
    wait_for_end,
)
from tests.support.pgbouncer import PROGRAM, PgBouncer
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)"
    ),
]


@pytest.fixture
def bouncer(server, tmp_path):
    bouncer = PgBouncer(server, tmp_path)
    yield bouncer
    bouncer.close()


@pytest.fixture
def broker(bouncer, database, monkeypatch):
    broker = PostgresBroker(settings=load_settings({}, database_url=bouncer.url(database.name), pooler=True))
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    yield broker
    broker.close()


def test_a_daemon_works_through_the_pooler(database, bouncer, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(
        bouncer.url(database.name), ledger, pooler="true", processes=2, threads=4, poll_seconds=0.2
    ).wait_ready(2)
    ids = effects(database, 300, "m")
    ids += enqueue(
        database,
        [
            {
                "message_type": "outcome",
                "payload": {"key": f"o{n}", "kind": kind},
                "conversation_key": f"c{n % 3}",
            }
            for n, kind in enumerate(["good", "retried", "dead", "cancelled"] * 5)
        ],
    )
    ids += effects(database, 2, "long", "sleeper", seconds=6)  # the heartbeat goes through the pooler too
    wait_until(lambda: len(ledger.lines("effect")) > 20)
    os.kill(daemon.children()[0], signal.SIGKILL)
    wait_for_end(database, 60)
    assert_every_message_ended_once(database, ids)
    assert_effects_fit(database, ledger)
    assert (
        database.value(
            "select count(*) from pg_stat_activity where datname = current_database() and query like 'listen%%'"
        )
        == 0
    )
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log and "service_failed" not in daemon.log


def test_a_direct_connection_for_listen_wakes_workers_behind_the_pooler(
    database, bouncer, ledger, start_daemon
):
    daemon = start_daemon(
        bouncer.url(database.name), ledger, pooler="true", listen_url=database.url, poll_seconds=60
    ).wait_ready()
    wait_until(
        lambda: database.value(
            "select coalesce(bool_or(wake_until > clock_timestamp()), false) from queue_wakeups"
        )
    )
    for number in range(3):
        effects(database, 1, f"m{number}-")
        wait_until(lambda number=number: ledger.counts("effect")[f"m{number}-0"] == 1, 10)
    assert daemon.stop() == 0


def test_producers_results_and_limiters_work_through_the_pooler(database, bouncer, broker):
    @dramatiq.actor
    def note(key):
        pass

    for number in range(30):  # more often than psycopg's threshold for prepared statements
        note.send_with_options(args=(f"k{number}",), conversation_key="c", dedup_key=f"d{number}")
    assert broker.enqueue_many(note.message(f"b{n}") for n in range(50)) == 50
    assert database.value("select count(*) from message_queue") == 80
    results, limits = PostgresResultBackend(broker=broker), PostgresRateLimiterBackend(broker=broker)
    for number in range(10):
        message = note.message("x")
        results.store_result(message, number, 60_000)
        assert results.get_result(message) == number
        assert limits.add(f"l{number}", 1, 60_000)


def test_a_callers_transaction_through_the_pooler(database, bouncer):
    with psycopg.connect(bouncer.url(database.name), prepare_threshold=None) as connection:
        for number in range(10):
            packhorse.enqueue(connection, "note", {"n": number})
        connection.commit()
        packhorse.enqueue(connection, "note", {"n": -1})
        connection.rollback()
    assert sorted(
        row[0] for row in database.query("select (payload ->> 'n')::int from message_queue")
    ) == list(range(10))


def test_transactional_handlers_work_through_the_pooler(database, bouncer, ledger, start_daemon):
    database.query(
        "create table effects (key text not null); grant select, insert on effects to packhorse_worker"
    )
    quick_backoff(database)
    daemon = start_daemon(
        bouncer.url(database.name), ledger, pooler="true", threads=8, poll_seconds=0.2
    ).wait_ready()
    effects(database, 60, "m", "transactional")
    effects(database, 10, "f", "transactional", fail=True)
    wait_for_end(database, 40)
    assert database.query("select count(*), count(distinct key) from effects") == [(70, 70)]
    assert daemon.stop() == 0
