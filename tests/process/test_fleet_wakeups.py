"""Q10: of many sleepers few look for a message, and none waits for a poll because of that."""

from __future__ import annotations

import pytest

from tests.support.accounting import effects, wait_for_end
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

#: Far longer than any of these tests waits: what starts in time was not found by polling.
LONG_POLL = 300
PROCESSES = 8
SLEEPING = "select coalesce(max(wake_until) > clock_timestamp(), false) from queue_wakeups"
#: Every one has beaten since the last one came: it knows how many they are, and which one is before it.
KNOWN = """select count(*) = %s and min(last_seen_at) > max(started_at) + interval '10 milliseconds' from workers
  where state = 'running'"""
CLAIMS = """select coalesce(sum(calls), 0)::bigint from pg_stat_user_functions
  where funcname = 'complete_and_claim_messages'"""


@pytest.fixture
def fleet(database, ledger, start_daemon):
    """A daemon of many processes that can each run one message, all asleep; claims are counted."""
    database.query(f"alter database {database.name} set track_functions = 'pl'")
    daemon = start_daemon(database, ledger, processes=PROCESSES, threads=1, poll_seconds=LONG_POLL)
    daemon.wait_ready()
    wait_until(lambda: database.value(KNOWN, PROCESSES), 60, "they know each other")
    wait_until(lambda: database.value(SLEEPING), 20, "they ask for NOTIFY")
    yield daemon
    assert daemon.stop() == 0


def test_messages_that_come_one_by_one_start_at_once_and_not_all_look(database, ledger, fleet):
    before = database.value(CLAIMS)
    for number in range(20):
        effects(database, 1, f"m{number}-")
        wait_until(lambda number=number: ledger.counts("effect")[f"m{number}-0"] == 1, 15, "it starts")
    assert len({line[2] for line in ledger.lines("effect")}) > 2, "not always the same one"
    assert database.value(CLAIMS) - before < 5 * 20, "one looks, and completes; of eight"


def test_many_at_once_spread_over_the_fleet(database, ledger, fleet):
    database.query(
        "select enqueue_payloads('default', 'effect', (select jsonb_agg(jsonb_build_object('key', n, 'seconds', 1)) "
        "from generate_series(1, 40) n))"
    )
    wait_for_end(database)
    assert len({line[2] for line in ledger.lines("effect")}) > PROCESSES / 2


def test_who_has_no_thread_free_passes_on_what_it_hears(database, ledger, fleet):
    effects(database, 2, "busy", seconds=60)
    wait_until(lambda: len(ledger.counts("start")) == 2, 15, "two are busy")
    for number in range(20):
        effects(database, 1, f"m{number}-")
        wait_until(
            lambda number=number: ledger.counts("effect")[f"m{number}-0"] == 1, 15, "another one runs it"
        )
    database.query("select cancel_message(id) from message_queue")
