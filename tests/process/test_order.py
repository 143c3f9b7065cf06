"""P4: messages of one conversation run one at a time and in order, also under kills and with several
daemons.
"""

from __future__ import annotations

import random

import pytest

from tests.support.accounting import assert_every_message_ended_once, enqueue, quick_backoff, wait_for_end
from tests.support.waiting import wait_until


def _talk(conversations, numbers, seconds=0.0):
    return [
        {
            "message_type": "talk",
            "conversation_key": f"c{c}",
            "payload": {"conversation": f"c{c}", "number": n, "seconds": seconds},
        }
        for n in numbers
        for c in range(conversations)
    ]


def assert_in_order(ledger, conversations, count):
    """Per conversation: n+1 starts only after n had its effect; every number had one; a repeat repeats the
    same number.
    """
    current = dict.fromkeys((f"c{c}" for c in range(conversations)), -1)
    finished = dict.fromkeys(current, True)
    for event, key, _ in ledger.lines():
        conversation, number = key.split(":")
        if event == "start" and int(number) != current[conversation]:
            assert finished[conversation], f"{key} started before {current[conversation]} had ended"
            assert int(number) == current[conversation] + 1, f"{key} started after {current[conversation]}"
            current[conversation], finished[conversation] = int(number), False
        elif event == "effect":
            assert int(number) == current[conversation], (
                f"{key} had its effect while {current[conversation]} was running"
            )
            finished[conversation] = True
    assert set(current.values()) == {count - 1} and all(finished.values())


@pytest.mark.slow
def test_conversations_run_in_order_across_two_daemons(database, ledger, start_daemon):
    daemons = [start_daemon(database, ledger, threads=4).wait_ready() for _ in range(2)]
    ids = enqueue(database, _talk(8, range(20), seconds=0.002))
    wait_for_end(database, 30)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert_in_order(ledger, 8, 20)
    assert [daemon.stop() for daemon in daemons] == [0, 0]


@pytest.mark.slow
def test_conversations_stay_in_order_when_workers_are_killed(database, ledger, start_daemon):
    quick_backoff(database, crash_limit=1000)
    daemons = [start_daemon(database, ledger, processes=2, threads=4).wait_ready(2) for _ in range(2)]
    chance = random.Random(11)
    ids = []
    for round_number in range(6):
        ids += enqueue(database, _talk(12, range(round_number * 8, round_number * 8 + 8), seconds=0.003))
        before = len(ledger.lines("effect"))
        wait_until(lambda before=before: len(ledger.lines("effect")) > before + 30, 30)
        chance.choice(daemons).kill_child(chance)
    wait_for_end(database)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert_in_order(ledger, 12, 48)
    assert [daemon.stop() for daemon in daemons] == [0, 0]


@pytest.mark.slow
def test_a_retry_holds_its_conversation_and_no_other(database, ledger, start_daemon):
    database.query("""select set_queue('default', '{"backoff_initial": "1 second"}')""")
    daemon = start_daemon(database, ledger, threads=4).wait_ready()
    enqueue(
        database,
        [
            {
                "message_type": "outcome",
                "conversation_key": "a",
                "payload": {"key": "a0", "kind": "retried"},
                "options": {"min_backoff": 700, "max_backoff": 700},
            },
            {"message_type": "outcome", "conversation_key": "a", "payload": {"key": "a1", "kind": "good"}},
            {"message_type": "outcome", "conversation_key": "b", "payload": {"key": "b0", "kind": "good"}},
            {"message_type": "outcome", "conversation_key": "b", "payload": {"key": "b1", "kind": "good"}},
        ],
    )
    wait_for_end(database, 20)
    order = [key for _, key, _ in ledger.lines("effect")]
    assert order.index("a0") < order.index("a1") and order.index("b0") < order.index("b1")
    assert order.index("b1") < order.index("a0"), "the other conversation waited for the retry"
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_death_releases_its_conversation(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, threads=4).wait_ready()
    enqueue(
        database,
        [
            {"message_type": "outcome", "conversation_key": "a", "payload": {"key": f"a{n}", "kind": kind}}
            for n, kind in enumerate(["dead", "cancelled", "good"])
        ],
    )
    wait_for_end(database, 20)
    assert [key for _, key, _ in ledger.lines("start")] == ["a0", "a1", "a2"]
    assert ledger.counts("effect") == {"a2": 1}
    assert daemon.stop() == 0
