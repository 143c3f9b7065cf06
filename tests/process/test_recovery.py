"""P5: a crash costs one crash. What ran beside it runs again beside everything else; what was there at two
crashes runs apart.
"""

from __future__ import annotations

import os
import signal

import pytest

from packhorse.worker.fleet.children import STABLE_SECONDS, Child
from packhorse.worker.runtime.running_ids import RunningIds
from tests.support.accounting import (
    assert_every_message_ended_once,
    effects,
    enqueue,
    quick_backoff,
    wait_for_end,
)
from tests.support.postgres import ROLE
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

APART = """insert into message_queue (queue, message_type, payload, crashes)
    select 'default', %s, %s::jsonb || jsonb_build_object('key', %s || n), 2 from generate_series(1, %s) n"""


def apart(database, message_type: str, prefix: str, count: int, payload: str = "{}") -> None:
    """Messages that were there when two processes died."""
    database.query(APART, message_type, payload, prefix, count)


@pytest.mark.slow
def test_what_ran_in_a_killed_process_runs_again_beside_everything_else(database, ledger, start_daemon):
    daemon = start_daemon(
        database, ledger, processes=2, threads=20, lease_seconds=600, heartbeat_seconds=1
    ).wait_ready(2)
    effects(database, 40, "m", seconds=1.0)
    wait_until(lambda: len(ledger.lines("start")) == 40)
    os.kill(int(ledger.lines("start")[0][2]), signal.SIGKILL)
    others = effects(database, 20, "other")
    wait_for_end(database, 30)
    assert set(assert_every_message_ended_once(database, others).values()) == {"done"}
    assert database.query("select max(crashes), max(attempt) from message_archive") == [(1, 1)]
    assert "isolation_started" not in daemon.log
    again = database.value('select count(*) from message_archive where history @> \'[{"event": "crash"}]\'')
    assert again == len(ledger.lines("start")) - 60, "each start that the crash ended is in the history"
    assert daemon.stop() == 0


@pytest.mark.slow
def test_what_was_there_at_two_crashes_runs_apart_a_few_at_once_in_a_process_that_ends_afterwards(
    database, ledger, start_daemon
):
    daemon = start_daemon(database, ledger, processes=1, threads=4).wait_ready()
    (ordinary,) = daemon.children()
    apart(database, "effect", "apart", 4, '{"seconds": 2}')
    effects(database, 8, "other", seconds=0.3)
    wait_for_end(database, 30)
    pids = {row[1]: int(row[2]) for row in ledger.lines("start")}
    assert {pid for key, pid in pids.items() if key.startswith("other")} == {ordinary}
    (other,) = {pid for key, pid in pids.items() if key.startswith("apart")}
    assert other != ordinary
    assert database.value(
        "select max(claimed_at) < min(finished_at) from (select claimed_at, finished_at from message_archive where crashes = 2 order by claimed_at limit 2) m"
    ), "two of them ran at once"
    wait_until(lambda: daemon.children() == [ordinary], 30, "it ends when it has nothing to do")
    assert "child_exited" not in daemon.log
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_process_with_one_thread_runs_one_apart_at_a_time(database, ledger, start_daemon):
    """Handlers that were written for one thread are not mixed up, least of all where they crashed before."""
    daemon = start_daemon(database, ledger, processes=1, threads=1).wait_ready()
    apart(database, "effect", "apart", 4, '{"seconds": 0.5}')
    wait_for_end(database, 30)
    assert (
        database.value(
            "select count(*) from message_archive a join message_archive b on a.id < b.id and a.claimed_at < b.finished_at and b.claimed_at < a.finished_at"
        )
        == 0
    ), "none ran beside another"
    assert daemon.stop() == 0


@pytest.mark.slow
def test_among_messages_that_run_apart_only_the_one_that_kills_its_process_is_quarantined(
    database, ledger, start_daemon
):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, processes=1, threads=4).wait_ready()
    (ordinary,) = daemon.children()
    apart(database, "poison", "poison", 1)
    apart(database, "effect", "innocent", 5, '{"seconds": 2}')
    wait_for_end(database, 60)
    assert database.query("select message_type, reason, crashes from dead_letters") == [
        ("poison", "quarantined", 3)
    ]
    assert database.query("select count(*), max(crashes) from message_archive where state = 'done'") == [
        (5, 2)
    ]
    assert ordinary in daemon.children()
    assert daemon.stop() == 0


@pytest.mark.slow
def test_explain_names_the_process_that_messages_wait_for(database, ledger, start_daemon):
    (message,) = effects(database, 1, "m")
    database.query("update message_queue set crashes = 2")
    daemon = start_daemon(database, ledger, actors="tests.support.slow_actors").wait_ready()

    def gate() -> tuple:
        return database.query(
            "select passed, detail from explain_message(%s) where gate = 'isolation'", message
        )[0]

    assert gate() == (
        False,
        "it was there when 2 processes died, so it runs apart from all others: a worker starts a process for such messages",
    )
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 1, 70, 75, 76])
def test_an_end_that_nobody_ordered_is_a_crash_whatever_its_exit_code(database, ledger, start_daemon, code):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, threads=4, lease_seconds=600, heartbeat_seconds=1).wait_ready()
    effects(database, 3, "neighbour", seconds=0.5)
    wait_until(lambda: len(ledger.lines("start")) == 3)
    enqueue(database, [{"message_type": "leaves", "payload": {"key": "leaves", "code": code}}])
    wait_for_end(database, 60)
    assert database.query("select message_type, reason, crashes from dead_letters") == [
        ("leaves", "quarantined", 3)
    ]
    assert database.value("select count(*) from message_archive where state = 'done'") == 3
    assert daemon.stop() == 0


def test_a_child_that_lived_for_a_while_is_replaced_at_once_however_often_it_dies():
    child = Child(RunningIds(1))
    child.start_after = 0.0
    for _ in range(5):
        child.ended(STABLE_SECONDS, expected=False)
        assert child.failures == 0
    waits = []
    for _ in range(3):
        child.ended(STABLE_SECONDS / 2, expected=False)
        waits.append(child.failures)
    assert waits == [1, 2, 3]


@pytest.mark.slow
def test_a_stalled_process_that_comes_back_crashed_nothing(database, ledger, start_daemon):
    quick_backoff(database)
    first = start_daemon(database, ledger, threads=1).wait_ready()
    (message,) = effects(database, 1, "m", "sleeper", seconds=6)
    wait_until(lambda: ledger.counts("start")["m0"] == 1)
    (stopped,) = first.children()
    os.kill(stopped, signal.SIGSTOP)
    start_daemon(database, ledger, threads=1).wait_ready()
    wait_until(lambda: ledger.counts("start")["m0"] == 2, 30, "the second daemon rescues it after the lease")
    assert database.value("select crashes from message_queue where id = %s", message) == 1
    os.kill(stopped, signal.SIGCONT)
    wait_until(
        lambda: database.value("select crashes from all_messages where id = %s", message) == 0,
        30,
        "it says that it lives",
    )
    wait_for_end(database)
    events = database.value("select jsonb_path_query_array(history, '$[*].event') from message_archive")
    assert events == ["lease_expired", "crash_withdrawn"]


@pytest.mark.slow
def test_outages_longer_than_the_lease_are_no_crashes(server, database, ledger, start_daemon):
    """The handler cannot be interrupted, so its process ends itself; the parent says so when the database is
    back.
    """
    quick_backoff(database, crash_limit=2)
    proxy = Proxy(server.socket_dir)
    try:
        daemon = start_daemon(
            proxy.url(database.name, ROLE),
            ledger,
            threads=2,
            connect_timeout_seconds=1,
            call_deadline_seconds=1,
        )
        daemon.wait_ready()
        (message,) = effects(database, 1, "m", seconds=9)
        for outage in range(2):
            wait_until(lambda: ledger.counts("start")["m0"] == outage + 1, 40, "it runs")
            proxy.go_deaf()
            wait_until(lambda: daemon.log.count("worker_fenced") == outage + 1, 30, "its lease is over")
            proxy.hear_again()
        wait_until(
            lambda: database.value("select state from all_messages where id = %s", message) == "done", 60
        )
        assert database.value("select crashes from message_archive") == 0
        assert len(ledger.lines("start")) == 3
        started = database.value(
            "select count(*) from message_archive, jsonb_array_elements(history) e where e ->> 'event' in ('release', 'lease_expired')"
        )
        assert started == 2, "each start is in the history"
    finally:
        proxy.close()


@pytest.mark.slow
def test_a_start_whose_completion_was_not_written_is_in_the_history(database, ledger, start_daemon):
    """Its handler was done; the process died before the database knew. It was once given back as if it had
    never started.
    """
    start_daemon(database, ledger, threads=2, lease_seconds=600, heartbeat_seconds=1).wait_ready()
    with database.connect(admin=True) as operator, operator.transaction():
        operator.execute("lock table message_archive in access exclusive mode")
        (message,) = effects(database, 1, "m")
        wait_until(lambda: ledger.counts("effect")["m0"] == 1)
        os.kill(int(ledger.lines("start")[0][2]), signal.SIGKILL)
        wait_until(
            lambda: database.value("select crashes from message_queue where id = %s", message) == 1, 20
        )
    wait_for_end(database, 30)
    ((attempt, entry),) = database.query("select attempt, history -> 0 from message_archive")
    assert (attempt, entry["event"], entry["attempt"]) == (1, "crash", 1)
    assert ledger.counts("effect")["m0"] == 2
