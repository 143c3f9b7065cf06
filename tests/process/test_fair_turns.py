"""No message, queue or process holds up others for longer than its own work (SPEC P1, P5, Q8, W5)."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable

import pytest

from tests.support.postgres import ROLE, Database, Server
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

pytestmark = pytest.mark.slow

Start = Callable[..., Daemon]


ENQUEUE = (
    "select enqueue_message(%s, %s, %s::text::jsonb, %s::text::jsonb, p_priority => %s, p_max_attempts => %s)"
)


def put(
    database: Database,
    key: str,
    actor: str = "effect",
    *,
    queue: str = "default",
    seconds: float | None = None,
    options: str = "{}",
    priority: int = 5,
    max_attempts: int | None = None,
) -> None:
    payload = {"key": key} | ({} if seconds is None else {"seconds": seconds})
    database.query(ENQUEUE, queue, actor, json.dumps(payload), options, priority, max_attempts)


def started(ledger: Ledger) -> list[str]:
    return [line[1] for line in ledger.lines("start")]


@pytest.mark.parametrize("how", ["options", "snooze"])
def test_an_ending_that_cannot_be_written_stops_no_process(
    database: Database, ledger: Ledger, start_daemon: Start, how: str
) -> None:
    """What any producer may write into options, what any handler may give as a reason."""
    database.query("select declare_queue('default')")
    start_daemon(database, ledger, threads=2).wait_ready()
    if how == "options":
        put(database, "bad", "fails", options='{"on_retry_exhausted": ["x"]}', max_attempts=1)
    else:
        put(database, "bad", "snoozes_badly")
    wait_until(lambda: "bad" in started(ledger), 20, "the bad one ran")
    for number in range(5):
        put(database, f"innocent{number}")
    wait_until(
        lambda: database.value("select count(*) from message_archive") == 5, 20, "the innocent ones are done"
    )
    if how == "options":
        assert database.query("select error_message from dead_letters") == [("attempt 1 of bad fails",)]
    else:
        wait_until(
            lambda: database.value("select count(*) from message_queue where state = 'pending'") == 1,
            10,
            "snoozed",
        )


def test_a_queue_with_a_backlog_starves_no_other(
    database: Database, ledger: Ledger, start_daemon: Start
) -> None:
    database.query("select declare_queue('a_bulk'), declare_queue('z_urgent'), declare_queue('default')")
    for number in range(100):
        put(database, f"a{number}", queue="a_bulk", seconds=0.05)
    start_daemon(database, ledger, threads=2, queues="a_bulk,default,z_urgent").wait_ready()
    wait_until(lambda: len(started(ledger)) >= 6, 20, "running")
    put(database, "urgent", queue="z_urgent", priority=1)
    wait_until(lambda: "urgent" in started(ledger), 30, "urgent")
    assert started(ledger).index("urgent") < 40


def test_a_drain_hands_back_at_once_what_never_started(
    database: Database, ledger: Ledger, start_daemon: Start
) -> None:
    database.query("select declare_queue('default')")
    put(database, "slow", seconds=8.0)
    database.query(
        "select enqueue_message('default', 'effect', jsonb_build_object('key', n::text)) from generate_series(1, 200) n"
    )
    # one thread, and a backlog that was claimed while handlers were quick: many wait behind the slow one
    put_first = "update message_queue set run_at = run_at - interval '1 hour' where (payload ->> 'key') ~ '^[0-9]$|^[0-9][0-9]$'"
    database.query(put_first)
    daemon = start_daemon(database, ledger, threads=1, hold_seconds=60)
    wait_until(lambda: "slow" in started(ledger), 20, "slow")
    daemon.signal(signal.SIGTERM)
    wait_until(
        lambda: database.value("select count(*) from message_queue where state = 'running'") == 1,
        5,
        "only the slow one is held",
    )
    assert daemon.process.poll() is None


def test_a_sleeper_asks_for_notify_again_before_its_request_is_over(
    database: Database, ledger: Ledger, start_daemon: Start
) -> None:
    database.query("select declare_queue('default')")
    start_daemon(database, ledger, threads=2, poll_seconds=60).wait_ready()
    asleep = "select coalesce(max(wake_until) > clock_timestamp(), false) from queue_wakeups where queue = 'default'"
    wait_until(lambda: database.value(asleep), 20, "it asks for NOTIFY")
    database.query("update queue_wakeups set wake_until = clock_timestamp()")
    wait_until(lambda: database.value(asleep), 20, "it asks again, though it has not looked meanwhile")
    put(database, "later")
    wait_until(lambda: "later" in ledger.counts("effect"), 20, "woken")


class Cutting(Proxy):
    """Cuts the first three connections over which the answer of a claim comes."""

    cuts = 0

    def _forward(self, source: socket.socket) -> None:
        if self.cuts < 3:
            try:
                data = source.recv(1 << 16, socket.MSG_PEEK)
            except OSError:
                data = b""
            if b"innocent" in data:  # its payload
                self.cuts += 1
                self._drop_all()
                return
        super()._forward(source)


def test_a_claim_whose_answer_is_lost_is_no_crash(
    server: Server, database: Database, ledger: Ledger, start_daemon: Start
) -> None:
    """Three times the connection breaks after the claim has committed: the message never started, nothing is
    held against it.
    """
    database.query("select declare_queue('default')")
    proxy = Cutting(server.socket_dir)
    try:
        start_daemon(proxy.url(database.name, ROLE), ledger, threads=2, lease_seconds=20).wait_ready()
        put(database, "innocent")
        began = time.monotonic()
        wait_until(lambda: database.value("select count(*) from message_archive") == 1, 60, "done")
    finally:
        proxy.close()
    assert proxy.cuts == 3 and time.monotonic() - began < 60
    assert database.query("select attempt, crashes from message_archive") == [(1, 0)]
    assert started(ledger) == ["innocent"]
