"""P1: an enqueue that committed ends in exactly one of done, dead, cancelled, whatever is killed or cut in
between.
"""

from __future__ import annotations

import os
import random
import signal
import threading

import pytest

from tests.support.accounting import (
    assert_effects_fit,
    assert_every_message_ended_once,
    effects,
    enqueue,
    quick_backoff,
    wait_for_end,
)
from tests.support.postgres import ROLE
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

KINDS = ["good"] * 16 + ["retried", "retried", "dead", "cancelled"]


def _mixed(count, prefix):
    """Messages of every outcome; each tenth also belongs to one of a few conversations."""
    return [
        {
            "message_type": "outcome",
            "payload": {"key": f"{prefix}{n}", "kind": KINDS[n % len(KINDS)]},
            **({"conversation_key": f"c{n % 7}"} if n % 10 == 0 else {}),
        }
        for n in range(count)
    ]


class Producer(threading.Thread):
    """Commits batches until told to stop; keeps the ids of those whose commit was confirmed."""

    def __init__(self, database, prefix, batch=25):
        super().__init__(name=f"producer-{prefix}", daemon=True)
        self.ids: list[int] = []
        self._database, self._prefix, self._batch = database, prefix, batch
        self._stop_it = threading.Event()
        self.unconfirmed = 0

    def run(self):
        number = 0
        while not self._stop_it.wait(0.03):
            number += 1
            try:
                self.ids += enqueue(self._database, _mixed(self._batch, f"{self._prefix}{number}-"))
            except Exception:  # the database is being killed: an answer that never came promises nothing
                self.unconfirmed += 1

    def stop(self):
        self._stop_it.set()
        self.join(30)
        assert not self.is_alive()
        return self.ids


def _expected_states(database, states):
    """Endings are those that the handlers asked for, unless a crash limit was reached."""
    wanted = {"good": {"done"}, "retried": {"done"}, "dead": {"dead"}, "cancelled": {"cancelled"}}
    for key, kind, reason in database.query(
        "select id, payload ->> 'kind', reason from all_messages where message_type = 'outcome'"
    ):
        assert states[key] in wanted[kind] or reason == "quarantined", (key, kind, states[key], reason)


def test_no_message_is_lost_when_children_are_killed_under_load(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, processes=2, threads=4).wait_ready(2)
    producers = [Producer(database, name) for name in "ab"]
    for producer in producers:
        producer.start()
    chance = random.Random(7)
    for _ in range(5):
        before = len(ledger.lines("effect"))
        wait_until(lambda before=before: len(ledger.lines("effect")) > before + 100, 30)
        daemon.kill_child(chance)
    ids = [key for producer in producers for key in producer.stop()]
    assert len(ids) >= 500
    wait_for_end(database)
    states = assert_every_message_ended_once(database, ids)
    _expected_states(database, states)
    assert_effects_fit(database, ledger)
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_no_message_is_lost_when_a_whole_host_dies(database, ledger, start_daemon):
    quick_backoff(database)
    first = start_daemon(database, ledger, processes=2, threads=4).wait_ready(2)
    second = start_daemon(database, ledger, processes=1, threads=4).wait_ready()
    ids = enqueue(database, _mixed(600, "m")) + effects(database, 40, "slow", seconds=0.05)
    wait_until(lambda: len(ledger.lines("effect")) > 60)
    first.kill_group()
    wait_for_end(database)
    _expected_states(database, assert_every_message_ended_once(database, ids))
    assert_effects_fit(database, ledger)
    assert second.stop() == 0


def test_no_message_is_lost_when_workers_are_stopped_beyond_their_lease(database, ledger, start_daemon):
    quick_backoff(database)
    first = start_daemon(database, ledger, processes=1, threads=4).wait_ready()
    second = start_daemon(database, ledger, processes=1, threads=4).wait_ready()
    producer = Producer(database, "p", batch=10)
    producer.start()
    for _ in range(2):
        before = len(ledger.lines("effect"))
        wait_until(lambda before=before: len(ledger.lines("effect")) > before + 50, 30)
        victims = first.children()
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
        # beyond the lease: whatever it held has been given to somebody else, or is about to be
        wait_until(
            lambda: (
                not database.value(
                    "select exists (select from message_queue where lease_expires_at < clock_timestamp())"
                )
            ),
            20,
        )
        threading.Event().wait(5)  # the lease itself (4 s) is what is tested
        for pid in victims:
            os.kill(pid, signal.SIGCONT)
    ids = producer.stop()
    wait_for_end(database)
    _expected_states(database, assert_every_message_ended_once(database, ids))
    assert_effects_fit(database, ledger)
    assert first.stop() == 0 and second.stop() == 0


def test_no_message_is_lost_when_postgres_is_killed_and_restarted(own_server, ledger, start_daemon):
    database = own_server.create_database()
    quick_backoff(database)
    daemon = start_daemon(database, ledger, processes=2, threads=4).wait_ready(2)
    producer = Producer(database, "p")
    producer.start()
    for _ in range(2):
        before = len(ledger.lines("effect"))
        wait_until(lambda before=before: len(ledger.lines("effect")) > before + 100, 30)
        own_server.kill()
        own_server.start()
    before = len(ledger.lines("effect"))
    wait_until(lambda: len(ledger.lines("effect")) > before + 100, 30)
    ids = producer.stop()
    wait_for_end(database)
    _expected_states(database, assert_every_message_ended_once(database, ids))
    assert_effects_fit(database, ledger)
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_no_message_is_lost_when_connections_are_cut(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, processes=2, threads=4).wait_ready(2)
    producer = Producer(database, "p")
    producer.start()
    for _ in range(8):
        before = len(ledger.lines("effect"))
        wait_until(lambda before=before: len(ledger.lines("effect")) > before + 40, 30)
        database.query(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name like 'packhorse%%' and pid <> pg_backend_pid()"
        )
    ids = producer.stop()
    wait_for_end(database)
    _expected_states(database, assert_every_message_ended_once(database, ids))
    assert_effects_fit(database, ledger)
    # a cut is not a crash: nobody's process died, so nothing ran twice but what was in flight at a cut
    assert database.value("select count(*) from all_messages where crashes > 0") == 0
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_no_message_is_lost_when_connections_hang(server, database, ledger, start_daemon):
    proxy = Proxy(server.socket_dir)
    try:
        quick_backoff(database)
        daemon = start_daemon(
            proxy.url(database.name, ROLE),
            ledger,
            threads=4,
            call_deadline_seconds=1,
            connect_timeout_seconds=2,
        ).wait_ready()
        producer = Producer(database, "p", batch=10)
        producer.start()
        for _ in range(2):
            before = len(ledger.lines("effect"))
            wait_until(lambda before=before: len(ledger.lines("effect")) > before + 50, 30)
            failures = daemon.log.count("service_failed")
            proxy.go_deaf()
            # our own deadline ends the call: the server says nothing at all
            wait_until(lambda failures=failures: daemon.log.count("service_failed") > failures, 20)
            proxy.hear_again()
        ids = producer.stop()
        wait_for_end(database)
        _expected_states(database, assert_every_message_ended_once(database, ids))
        assert_effects_fit(database, ledger)
        assert daemon.stop() == 0
    finally:
        proxy.close()
