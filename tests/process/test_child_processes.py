"""W10b: processes that handlers start inherit no signal handlers, no sockets and no bookkeeping of ours,
whatever way they end.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.accounting import enqueue, quick_backoff, wait_for_end
from tests.support.waiting import wait_until

ACTORS = "tests.support.forking_actors"
DEFAULT = "default,default,default,default/[]/0/-1/0"


@pytest.fixture
def daemon(database, ledger, start_daemon):
    database.query("create table if not exists effects (key text); grant all on effects to public")
    quick_backoff(database)
    return start_daemon(
        database, ledger, ACTORS, processes=1, threads=4, lease_seconds=60, heartbeat_seconds=1
    ).wait_ready()


def send(database, actor, *rows):
    """One message per (key, argument's name, its value …); ids."""
    return enqueue(
        database,
        [{"message_type": actor, "payload": dict(zip(row[::2], row[1::2], strict=True))} for row in rows],
    )


def seen(ledger):
    return sorted(row[1] for row in ledger.lines("seen"))


def runs(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:4]
    except FileNotFoundError:
        return False


def family(daemon):
    """Every process of the daemon's session that runs, by pid."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == daemon.process.pid and runs(
                stat.parent.name
            ):
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def assert_worked_alone(database, daemon, ledger, messages):
    """Each message ran once and is done; the same process serves the next one; nothing is left behind; the
    stop is a clean one.
    """
    wait_for_end(database, 30)
    assert database.query("select distinct state, attempt, crashes from all_messages") == [("done", 1, 0)], (
        daemon.log
    )
    assert set(ledger.counts("start").values()) == {1} and len(ledger.counts("start")) == messages
    assert "child_exited" not in daemon.log and "threads_missing" not in daemon.log
    wait_until(lambda: len(family(daemon)) == 2, 10, "the parent and one worker process")
    assert daemon.stop() == 0
    wait_until(lambda: not family(daemon))
    assert daemon.log.count("worker_stopped") == 1


@pytest.mark.slow
def test_what_a_handler_starts_has_the_default_signal_handlers(database, ledger, daemon):
    hows = [
        "os_fork",
        "fork",
        "spawn",
        "forkserver",
        "subprocess",
        "preexec",
        "posix_spawn",
        "system",
        "executor",
    ]
    send(database, "looks", *(("key", how, "how", how) for how in hows))
    wait_until(lambda: len(seen(ledger)) == len(hows), 60)
    assert seen(ledger) == sorted(f"{how}-{DEFAULT}" for how in hows)
    wait_for_end(database, 30)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_signal_that_comes_right_after_the_fork_is_not_lost(database, ledger, daemon):
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP] * 10
    send(database, "ends", *(("key", f"m{n}", "number", int(number)) for n, number in enumerate(numbers)))
    wait_until(lambda: len(seen(ledger)) == len(numbers), 90)
    assert seen(ledger) == sorted(f"m{n}-{-number}" for n, number in enumerate(numbers)), daemon.log
    assert daemon.stop() == 0


@pytest.mark.slow
def test_pools_end_with_their_block_and_forgotten_ones_with_their_process(database, ledger, daemon):
    send(database, "pools", *(("key", how, "how", how) for how in ("fork", "spawn", "forkserver")))
    wait_until(lambda: len(seen(ledger)) == 6, 60)
    send(database, "leaves_a_pool", ("key", "kept"))
    wait_for_end(database, 30)
    left = int(ledger.lines("pool")[0][1])
    assert runs(left)
    assert daemon.stop() == 0
    wait_until(lambda: not runs(left))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "thread"])
def test_the_sessions_of_a_killed_process_end_with_it_whoever_it_has_forked(database, ledger, daemon, how):
    """Its open transaction holds no lock against the retry. how=thread: a fork outside the handler, in the
    middle of its transaction.
    """
    database.query("create unique index on effects (key)")
    send(database, "dies_with_a_helper", ("key", "m", "how", how))
    wait_for_end(database, 40)
    helper = int(Path(f"{ledger.path}.helper").read_text())
    try:
        assert runs(helper), "it lives on, without the sessions"
        assert database.query("select state, attempt, crashes from all_messages") == [("done", 1, 1)]
        assert database.query("select key from effects") == [("m",)]
        sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'packhorse listen'"
        wait_until(lambda: database.value(sessions) == 1)
    finally:
        os.kill(helper, signal.SIGKILL)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_children_have_no_sockets_of_ours(database, ledger, daemon):
    """A forked child by closing its copies, a program because they are close-on-exec (nothing here closes
    them).
    """
    send(
        database, "counts_sockets", ("key", "forked", "how", "fork"), ("key", "program", "how", "posix_spawn")
    )
    wait_until(lambda: len(seen(ledger)) == 4)
    assert seen(ledger) == ["forked-0", "own-True", "own-True", "program-0"]
    wait_for_end(database)
    assert daemon.stop() == 0 and "service_failed" not in daemon.log


@pytest.mark.slow
@pytest.mark.parametrize("actor", ["leaves", "leaves_in_transaction", "leaves_in_coroutine"])
def test_a_forked_child_ends_where_it_leaves_the_handler(database, ledger, daemon, actor):
    ways = {"return": 0, "exit": 7, "text": 1, "exception": 1}
    send(database, actor, *(("key", way, "way", way) for way in ways))
    wait_until(lambda: {f"{way}-{code}" for way, code in ways.items()} <= set(seen(ledger)), 40)
    assert_worked_alone(database, daemon, ledger, len(ways))
    assert [row[0] for row in database.query("select key from effects order by 1")] == (
        sorted(ways) if actor == "leaves_in_transaction" else []
    )
    assert {row[1] for row in ledger.lines("hook")} == {row[2] for row in ledger.lines("start")}, (
        "hooks run in the worker process only"
    )
    assert daemon.log.count("forked_child_failed") == 1 and "private words" not in daemon.log
    assert daemon.log.count("farewell") == 1, "what sys.exit was given is printed"
    assert all(daemon.log.count(f"printed before {way} ") <= 1 for way in ways), (
        "what was printed before the fork is written once"
    )
    if actor == "leaves_in_transaction":
        assert {f"{way}-no_transaction" for way in ways} <= set(seen(ledger))


@pytest.mark.slow
def test_a_child_of_a_coroutine_neither_waits_nor_runs_other_coroutines(database, ledger, daemon):
    send(database, "counts", *(("key", f"c{n}") for n in range(3)))
    wait_until(lambda: len(ledger.lines("step")) > 3)
    send(
        database,
        "leaves_in_coroutine",
        ("key", "m", "way", "await"),
        ("key", "n", "way", "return"),
        ("key", "o", "way", "exit"),
    )
    wait_until(lambda: len(seen(ledger)) == 3)
    assert seen(ledger) == ["m-1", "n-0", "o-7"]
    wait_for_end(database, 30)
    assert ledger.counts("step") == {f"c{n}-{step}": 1 for n in range(3) for step in range(20)}, (
        "the parent's loop goes on"
    )
    assert database.query("select distinct state, attempt from all_messages") == [("done", 1)]
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["boot", "worker_boot", "thread_boot", "before_process", "after_process", "before_ack"]
)
def test_a_child_that_a_hook_of_middleware_forks_ends_there(database, ledger, start_daemon, where):
    daemon = start_daemon(
        database,
        ledger,
        ACTORS,
        {"FORK_IN_HOOK": where},
        processes=1,
        threads=1,
        lease_seconds=60,
        heartbeat_seconds=1,
    )
    daemon.wait_ready()
    send(database, "leaves", ("key", "m", "way", "return"))
    wait_until(lambda: f"{where}-0" in seen(ledger) and "m-0" in seen(ledger))
    assert_worked_alone(database, daemon, ledger, 1)
    times = 2 if where == "thread_boot" else 1  # the event loop has a thread, too
    assert ledger.counts("seen") == {f"{where}-0": times, "m-0": 1}
    assert len(ledger.lines("hook")) == 1 and daemon.log.count("worker_started") == 1


@pytest.mark.slow
def test_a_forked_child_enqueues_and_logs(database, ledger, daemon):
    """Its connections and its log lines are its own; no lock that another thread held keeps it from them."""
    send(database, "logs", *(("key", f"l{n}") for n in range(20)))
    send(database, "enqueues_in_child", ("key", "m"))
    wait_until(lambda: len(seen(ledger)) == 22, 40)
    assert seen(ledger) == sorted([*(f"l{n}-0" for n in range(20)), "m-0", "m-child-0"])
    assert all(daemon.log.count(f'from the child of l{n}"') == 1 for n in range(20))
    wait_for_end(database)
    assert daemon.stop() == 0
