"""Q10: many messages a second need no NOTIFY each, for one worker looks by itself; none of them waits for a
poll.
"""

from __future__ import annotations

import signal

import pytest

from tests.support.accounting import effects, wait_for_end
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

#: Far longer than any of these tests waits: what starts in time was not found by polling.
LONG_POLL = 60
SLEEPING = "select coalesce(max(wake_until) > clock_timestamp(), false) from queue_wakeups"
ATTENDED = "select coalesce(max(attended_until) > clock_timestamp(), false) from queue_wakeups"
#: Each in a transaction of its own, as quickly as the server can.
BURST = """
do $$ begin
  for n in 1..%d loop
    perform enqueue_message('default', 'effect', jsonb_build_object('key', '%s' || n));
    commit;
  end loop;
end $$
"""


def heard(connection) -> int:
    return len(list(connection.notifies(timeout=0.2)))


def test_a_burst_of_enqueues_sends_few_notifications_and_the_next_message_starts_at_once(
    database, ledger, start_daemon
):
    daemon = start_daemon(database, ledger, poll_seconds=LONG_POLL).wait_ready()
    wait_until(lambda: database.value(SLEEPING), 20, "it asks for NOTIFY")
    with database.connect(admin=True) as observer:
        observer.execute("listen packhorse_wake")
        for number in range(3):
            database.query(BURST % (1000, f"burst{number}-"))
            wait_for_end(database)
            assert 0 < heard(observer) < 500
            wait_until(lambda: not database.value(ATTENDED), 20, "it sleeps again")
            effects(database, 1, f"after{number}-")
            wait_until(
                lambda number=number: ledger.counts("effect")[f"after{number}-0"] == 1, 15, "the next message"
            )
            heard(observer)
    assert daemon.stop() == 0


def test_who_watches_and_has_no_free_thread_lets_others_have_the_rest(database, ledger, start_daemon):
    daemons = [
        start_daemon(database, ledger, threads=1, poll_seconds=LONG_POLL).wait_ready() for _ in range(2)
    ]
    wait_until(lambda: database.value(SLEEPING), 20, "they ask for NOTIFY")
    database.query(BURST % (500, "burst"))
    effects(database, 2, "slow", seconds=6)
    wait_until(lambda: {"slow0", "slow1"} <= ledger.counts("start").keys(), 15, "both")
    assert not {"slow0", "slow1"} <= ledger.counts("effect").keys(), "they run beside each other"
    wait_for_end(database)
    assert [daemon.stop() for daemon in daemons] == [0, 0]


def test_after_a_transaction_that_was_open_while_somebody_watched_its_message_starts_soon(
    database, ledger, start_daemon
):
    """Its producer saw no need for a NOTIFY; when it commits, nobody watches any more."""
    daemon = start_daemon(database, ledger, poll_seconds=LONG_POLL).wait_ready()
    wait_until(lambda: database.value(SLEEPING), 20, "it asks for NOTIFY")
    with database.connect(admin=True) as producer, producer.transaction():
        for number in range(100):  # until the watch is on while we enqueue; each burst begins one
            database.query(BURST % (300, f"burst{number}-"))
            producer.execute(
                "select enqueue_message('default', 'effect', '{\"key\": \"late\"}', p_dedup_key => 'late')"
            )
            if database.value(ATTENDED):
                break
        wait_until(lambda: not database.value(ATTENDED), 20, "nobody watches")
        producer.execute("select pg_sleep(1)")
    wait_until(lambda: ledger.counts("effect")["late"] == 1, 15, "the late one")
    assert daemon.stop() == 0


def test_when_the_last_listener_is_killed_notify_ends_within_seconds(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, poll_seconds=LONG_POLL).wait_ready()
    wait_until(lambda: database.value(SLEEPING), 20, "it asks for NOTIFY")
    database.query(BURST % (500, "burst"))
    daemon.signal(signal.SIGKILL)
    wait_until(
        lambda: not database.value(SLEEPING) and not database.value(ATTENDED), 15, "nobody asks for NOTIFY"
    )
