"""Q2: workers that speak only SQL and the daemon share one queue; every message runs exactly once."""

from __future__ import annotations

import threading

import psycopg
import pytest

from tests.support.accounting import (
    assert_every_message_ended_once,
    effects,
    enqueue,
    quick_backoff,
    wait_for_end,
)
from tests.support.notes import note
from tests.support.waiting import wait_until


class SqlWorker(threading.Thread):
    """get_next_queue_message, some work, complete_messages or fail_message: nothing else, in any language."""

    def __init__(self, database, name):
        super().__init__(name=name, daemon=True)
        self._url = database.url
        self._stop_it = threading.Event()
        self.done = self.failed = 0
        self.error: BaseException | None = None

    def run(self):
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                while not self._stop_it.is_set():
                    row = connection.execute(
                        "select id, lease_token, payload, attempt from packhorse.get_next_queue_message('default')"
                    ).fetchone()
                    if row is None:
                        self._stop_it.wait(0.01)
                        continue
                    self._work(connection, *row)
        except BaseException as error:  # shown by the test
            self.error = error

    def _work(self, connection, ident, token, payload, attempt):
        if payload.get("kind") == "retried" and attempt == 1:
            answer = connection.execute(
                "select packhorse.fail_message(%s, %s, 'Error', 'the first attempt fails')", (ident, token)
            ).fetchone()
            assert answer == ("retry",)
            self.failed += 1
            return
        note("effect", payload["key"])
        assert connection.execute(
            "select packhorse.complete_messages(array[%s::bigint], array[%s::bigint])", (ident, token)
        ).fetchone() == ([ident],)
        self.done += 1

    def stop(self):
        self._stop_it.set()
        self.join(20)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("conversations", [False, True], ids=["plain", "conversations"])
@pytest.mark.slow
def test_sql_workers_and_the_daemon_share_one_queue(
    database, ledger, start_daemon, monkeypatch, conversations
):
    monkeypatch.setenv("LEDGER", str(ledger.path))
    quick_backoff(database)
    count = 200 if conversations else 600
    items = [
        {
            "message_type": "outcome",
            "payload": {"key": f"m{n}", "kind": "retried" if n % 9 == 0 else "good"},
            **({"conversation_key": f"c{n % 20}"} if conversations else {}),
        }
        for n in range(count)
    ]
    workers = [SqlWorker(database, f"sql{n}") for n in range(2)]
    daemon = start_daemon(database, ledger, threads=2, batch_size=4).wait_ready()
    ids = enqueue(database, items[: count // 2])
    for worker in workers:
        worker.start()
    ids += enqueue(database, items[count // 2 :])
    wait_for_end(database, 40)
    for worker in workers:
        worker.stop()
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert ledger.counts("effect") == {f"m{n}": 1 for n in range(count)}
    pids = {str(pid) for pid in daemon.children()}
    by_daemon = sum(line[2] in pids for line in ledger.lines("effect"))
    assert by_daemon > 0 and all(worker.done > 0 for worker in workers), "all of them took part"
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_sql_workers_lost_message_is_rescued_after_its_lease(database, ledger, start_daemon):
    quick_backoff(database)
    (ident,) = effects(database, 1)
    with database.connect() as connection:
        row = connection.execute(
            "select id, lease_token from packhorse.get_next_queue_message('default', p_lease => '1 second')"
        ).fetchone()
        assert row[0] == ident
        daemon = start_daemon(database, ledger).wait_ready()
        wait_until(lambda: ledger.counts("effect")["m0"] == 1, 20)
        wait_for_end(database, 10)
        assert connection.execute(
            "select packhorse.complete_messages(array[%s::bigint], array[%s::bigint])", row
        ).fetchone() == ([],), "the late one is told"
        assert connection.execute(
            "select packhorse.fail_message(%s, %s, 'Error', 'late')", row
        ).fetchone() == ("lost",)
    assert assert_every_message_ended_once(database, [ident]) == {ident: "done"}
    assert daemon.stop() == 0
