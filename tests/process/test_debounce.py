"""Debounced messages beside real workers: no payload is lost or done twice, the order stays, and a handler
learns that it is superseded (SPEC Q7b, P1, P4).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psycopg
import pytest

import packhorse
from tests.support.accounting import quick_backoff, wait_for_end
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

ACTORS = "tests.support.debounced_actors"


def send(database, message_type, payload, **options):
    with psycopg.connect(database.url, autocommit=True) as connection:
        return packhorse.enqueue(connection, message_type, payload, **options)


def test_five_messages_within_the_window_are_one_call(database, ledger, start_daemon):
    start_daemon(database, ledger, ACTORS).wait_ready()
    burst = {"conversation_key": "wa:1", "debounce": 1.5}
    answers = [send(database, "gather", {"n": n}, **burst) for n in range(5)]
    assert {answer.id for answer in answers} == {answers[0].id}
    wait_for_end(database, 20)
    assert ledger.counts("call") == {"5": 1}
    assert [row[1] for row in ledger.lines("handled")] == ["0", "1", "2", "3", "4"]


def test_a_burst_whose_process_is_killed_runs_again_whole_and_takes_nothing_more(
    database, ledger, start_daemon
):
    quick_backoff(database)
    start_daemon(database, ledger, ACTORS).wait_ready()
    burst = {"conversation_key": "wa:1", "debounce": 0.2}
    first = send(database, "gather", {"n": 1}, **burst)
    send(database, "gather", {"n": 2, "kill": True}, **burst)
    wait_until(lambda: ledger.lines("handled"))
    later = send(database, "gather", {"n": 3}, **burst)
    assert later.id != first.id
    wait_for_end(database, 60)
    assert [row[1] for row in ledger.lines("handled")] == ["1", "2", "1", "2", "3"]


@pytest.mark.parametrize("kind", ["thinks", "thinks_async", "thinks_in_a_transaction"])
def test_a_handler_learns_that_a_later_message_is_there(database, ledger, start_daemon, kind):
    start_daemon(database, ledger, ACTORS).wait_ready()
    send(database, kind, {"n": 1, "seconds": 2}, conversation_key="wa:1", debounce=0.1)
    wait_until(lambda: ledger.lines("first"))
    send(database, kind, {"n": 2}, conversation_key="wa:1", debounce=0.1)
    wait_for_end(database, 30)
    assert ledger.counts("answered") == {"2": 1} and not ledger.lines("before")
    assert database.query("select state, reason from message_archive order by id") == [
        ("cancelled", "superseded"),
        ("done", None),
    ]


def test_a_producer_that_keeps_its_transaction_open_delays_and_loses_nothing(database, ledger, start_daemon):
    """It has locked a message that waits behind a running one; the completion of that one waits for the lock,
    half a second at a time.
    """
    daemon = start_daemon(database, ledger, ACTORS).wait_ready()
    send(database, "thinks", {"n": 1, "seconds": 1}, conversation_key="wa:1", debounce=0)
    wait_until(lambda: ledger.lines("first"))
    waiting = send(database, "gather", {"n": 2}, conversation_key="wa:1", debounce=0.05)
    wait_until(
        lambda: database.value("select state from message_queue where id = %s", waiting.id) == "blocked"
    )
    with psycopg.connect(database.url) as connection:
        late = packhorse.enqueue(connection, "gather", {"n": 3}, conversation_key="wa:1", debounce=0.05)
        assert late.id == waiting.id and late.merged
        time.sleep(3)  # nothing to wait for: the handler has ended long before
    wait_for_end(database, 30)
    assert [row[1] for row in ledger.lines("handled")] == ["2", "3"]
    assert len(ledger.lines("first")) == 1, "its handler ran once"
    assert daemon.stop() == 0


def test_no_payload_is_lost_or_done_twice_while_producers_and_workers_are_killed(
    database, ledger, start_daemon
):
    quick_backoff(database)
    with database.connect(admin=True) as admin:
        admin.execute("create table sent (producer text, n integer, kind text)")
        admin.execute("grant all on sent to public")
    daemon = start_daemon(database, ledger, ACTORS, processes=2, threads=2).wait_ready()
    script = [sys.executable, "-m", "tests.support.debouncing_producer", database.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    producers = [subprocess.Popen([*script, f"p{n}"], env=environment, cwd=ROOT) for n in range(3)]
    try:
        wait_until(lambda: database.value("select count(*) from sent") > 60, timeout_seconds=60)
        for child in daemon.children():
            os.kill(child, signal.SIGKILL)
        seen = database.value("select count(*) from sent")
        wait_until(lambda: database.value("select count(*) from sent") > seen + 60, timeout_seconds=60)
    finally:
        for producer in producers:
            producer.kill()
            producer.wait()
    wait_for_end(database, 90)
    assert database.value("select count(*) from dead_letters") == 0
    for name in ("p0", "p1", "p2"):
        sent = database.query("select n, kind from sent where producer = %s order by n", name)
        own = database.query(
            "select (e.value ->> 'n')::integer from message_archive a cross join lateral jsonb_array_elements("
            "coalesce(a.payload -> 'messages', jsonb_build_array(a.payload))) with ordinality e "
            "where a.conversation_key = %s and a.state = 'done' order by a.id, e.ordinality",
            name,
        )
        assert [n for (n,) in own] == [n for n, kind in sent if kind != "shared"], name
        shared = database.query(
            "select (e.value ->> 'n')::integer from message_archive a cross join lateral "
            "jsonb_array_elements(a.payload -> 'messages') with ordinality e "
            "where a.conversation_key is null and e.value ->> 'producer' = %s order by a.id, e.ordinality",
            name,
        )
        assert [n for (n,) in shared] == [n for n, kind in sent if kind == "shared"], name
    # the window begins with the call, the row is made a little later
    gathered = database.query(
        "select jsonb_array_length(payload -> 'messages'), claimed_at >= created_at + interval '0.05 second' "
        "from message_archive where conversation_key is null"
    )
    assert all(waited for _, waited in gathered), "the window is the database's"
    assert max(count for count, _ in gathered) > 1, "they did gather"
