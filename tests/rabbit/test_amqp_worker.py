"""`packhorse worker --broker amqp`: the same actors, from RabbitMQ."""

from __future__ import annotations

import pytest

from tests.support.harness import quick_settings
from tests.support.relaying import QUEUE, forward, put, relay
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def dead(database):
    return database.query(
        "select message_type, reason, error_class, attempt, payload ->> 'key', id from dead_letters order by id"
    )


def test_relayed_messages_are_handled_and_the_queue_is_empty_afterwards(
    database, ledger, amqp, start_worker, vhost
):
    put(database, [{"message_type": "works", "payload": {"key": f"w{n}"}} for n in range(50)])
    put(database, [{"message_type": "waits", "payload": {"key": f"a{n}"}} for n in range(50)])
    relay(amqp)
    daemon = start_worker()
    wait_until(lambda: len(ledger.lines("effect")) == 100)
    assert max(ledger.counts("effect").values()) == 1
    assert daemon.stop() == 0
    assert vhost.depths() == {}


def test_a_failed_attempt_waits_on_the_broker_and_is_counted(database, ledger, amqp, start_worker, vhost):
    put(database, [{"message_type": "fails", "payload": {"key": "f", "times": 2}}])
    relay(amqp)
    start_worker()
    wait_until(lambda: ledger.lines("effect"))
    assert [key for _, key, _ in ledger.lines("start")] == ["f:1", "f:2", "f:3"]
    wait_until(lambda: vhost.depths() == {})


def test_a_long_backoff_goes_through_the_delays_and_not_through_a_worker(
    database, ledger, amqp, start_worker, vhost
):
    item = {"message_type": "fails", "payload": {"key": "f", "times": 1}}
    put(database, [{**item, "options": {"min_backoff": 3_000, "max_backoff": 3_000}}])
    relay(amqp)
    daemon = start_worker()
    wait_until(lambda: len(ledger.lines("start")) == 1)
    wait_until(lambda: vhost.depths() == {"packhorse:delay.2s": 1})
    assert daemon.stop() == 0
    start_worker()
    wait_until(lambda: ledger.lines("effect"))
    assert [key for _, key, _ in ledger.lines("start")] == ["f:1", "f:2"]


def test_the_last_attempt_makes_a_dead_letter_with_history_and_fingerprint(
    database, ledger, amqp, start_worker, vhost
):
    first, second = put(
        database, [{"message_type": "fails", "payload": {"key": key}} for key in ("f1", "f2")]
    )
    relay(amqp)
    start_worker()
    wait_until(lambda: len(dead(database)) == 2)
    assert dead(database) == [
        ("fails", "failed", "RuntimeError", 3, "f1", first),
        ("fails", "failed", "RuntimeError", 3, "f2", second),
    ]
    assert database.value("select count(distinct fingerprint) from dead_letters") == 1
    (history,) = database.query("select history from dead_letters where id = %s", first)[0]
    assert [(entry["attempt"], entry["event"]) for entry in history] == [
        (1, "retry"),
        (2, "retry"),
        (3, "failed"),
    ]
    assert database.value("select count(*) from all_messages where id = %s", first) == 1, "no longer done"
    wait_until(lambda: vhost.depths() == {})


def test_a_dead_letter_that_is_redriven_is_relayed_again(database, ledger, amqp, start_worker):
    put(database, [{"message_type": "fails", "payload": {"key": "a", "times": 3}}])
    relay(amqp)
    start_worker()
    wait_until(lambda: dead(database))
    database.query("select redrive_dead_letters(array(select id from dead_letters))")
    database.query("update message_queue set payload = payload || '{\"times\": 0}'")
    relay(amqp)
    wait_until(lambda: ledger.lines("effect"))
    assert dead(database) == []


@pytest.mark.parametrize("keyed", [False, True])
def test_what_a_handler_asks_for_is_done(database, ledger, amqp, start_worker, vhost, keyed):
    put(
        database,
        [
            {"message_type": "asks", "payload": {"key": outcome, "outcome": outcome}}
            | ({"conversation_key": outcome} if keyed else {})
            for outcome in ("snooze", "retry", "bury", "cancel")
        ],
    )
    relay(amqp)
    start_worker()
    wait_until(lambda: len(ledger.lines("effect")) == 2 and dead(database))
    starts = sorted(key for _, key, _ in ledger.lines("start"))
    assert starts == ["bury:1", "cancel:1", "retry:1", "retry:2", "snooze:1", "snooze:1"]
    assert [row[:3] for row in dead(database)] == [("asks", "buried", "Bury")]
    wait_until(lambda: vhost.depths() == {})


def test_a_conversation_is_handled_in_order_also_around_a_retry(database, ledger, amqp, start_worker):
    items = []
    for conversation in range(6):
        for number in range(5):
            key = f"c{conversation}.{number}"
            failing = {"message_type": "fails", "payload": {"key": key, "times": 1}}
            quick = {"message_type": "works", "payload": {"key": key}}
            items.append({**(failing if number == 2 else quick), "conversation_key": f"c{conversation}"})
    put(database, items)
    relay(amqp)
    start_worker(processes=2)
    wait_until(lambda: len(ledger.lines("effect")) == 30)
    for conversation in range(6):
        order = [key for _, key, _ in ledger.lines("effect") if key.startswith(f"c{conversation}.")]
        assert order == [f"c{conversation}.{number}" for number in range(5)]
    assert len(ledger.lines("start")) == 36


def test_a_retry_that_waits_holds_its_conversation_and_no_other_of_its_partition(
    database, ledger, vhost, start_worker
):
    forward(database, backoff_initial="60 seconds", backoff_max="60 seconds")
    settings = quick_settings(database, amqp_url=vhost.url, amqp_partitions=1)
    held = {"message_type": "works", "payload": {"key": "held"}, "conversation_key": "slow"}
    fails = {"message_type": "fails", "payload": {"key": "slow"}, "conversation_key": "slow"}
    put(database, [{**fails, "options": {"min_backoff": 60_000, "max_backoff": 60_000}}, held])
    put(
        database,
        [
            {"message_type": "works", "payload": {"key": f"o{n}"}, "conversation_key": f"o{n}"}
            for n in range(9)
        ],
    )
    relay(settings)
    daemon = start_worker(amqp_partitions=1)
    wait_until(lambda: len(ledger.lines("effect")) == 9)
    assert "held" not in ledger.counts("start")
    wait_until(lambda: database.query("select id from forwarded_messages"))
    daemon.kill_group()
    start_worker(amqp_partitions=1)
    wait_until(lambda: vhost.depths() == {"orders:p00": 2})
    assert database.query("select attempt, next_at > now() from forwarded_messages") == [(1, True)]
    assert [key for _, key, _ in ledger.lines("start") if key.startswith("slow")] == ["slow:1"]


def test_a_message_that_kills_its_process_is_quarantined_and_what_ran_beside_it_is_done(
    database, ledger, amqp, start_worker, vhost
):
    put(database, [{"message_type": "kills", "payload": {"key": "poison"}}])
    put(database, [{"message_type": "works", "payload": {"key": f"w{n}", "seconds": 0.2}} for n in range(20)])
    relay(amqp)
    start_worker(processes=2, threads=4)
    wait_until(lambda: dead(database) and len(ledger.counts("effect")) == 20, 40)
    assert [row[:3] for row in dead(database)] == [("kills", "quarantined", "WorkerLost")]
    wait_until(lambda: vhost.depths() == {})
    relay(amqp)
    wait_until(lambda: ledger.counts("gave_up")["poison"] == 1)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("way", ["snooze", "retry"])
@pytest.mark.parametrize("keyed", [False, True])
def test_crashes_are_counted_through_whatever_happens_between_them(
    database, ledger, amqp, start_worker, vhost, way, keyed, processes
):
    """Snoozed, retried, or put off because its scope rests: that is another message for RabbitMQ."""
    item = {"message_type": "kills_and_waits", "payload": {"key": "poison", "way": way}}
    put(database, [item | ({"conversation_key": "c"} if keyed else {})])
    relay(amqp)
    start_worker(processes=processes)
    wait_until(lambda: len(ledger.lines("kill")) == 2, 40)
    database.query("select park_scope('actor:kills_and_waits', '3 seconds')")
    wait_until(lambda: dead(database), 60)
    assert [row[:3] for row in dead(database)] == [("kills_and_waits", "quarantined", "WorkerLost")]
    assert len(ledger.lines("kill")) == 3
    assert database.query("select crashes from dead_letters") == [(3,)]
    (history,) = database.query("select history from dead_letters")[0]
    assert [entry["event"] for entry in history].count("crash") == 3
    wait_until(lambda: vhost.depths() == {})


def test_a_handler_that_ignores_its_limit_costs_an_attempt_and_then_its_message(
    database, ledger, amqp, start_worker, vhost
):
    put(database, [{"message_type": "hangs", "payload": {"key": "h"}}])
    relay(amqp)
    start_worker()
    wait_until(lambda: dead(database), 40)
    assert [row[:3] for row in dead(database)] == [("hangs", "failed", "TimeLimitExceeded")]
    assert len(ledger.lines("start")) == 2
    wait_until(lambda: vhost.depths() == {})


def test_a_copy_of_a_message_that_is_done_is_not_run(database, ledger, amqp, start_worker, vhost):
    put(database, [{"message_type": "works", "payload": {"key": f"w{n}"}} for n in range(10)])
    put(
        database,
        [{"message_type": "works", "payload": {"key": f"k{n}"}, "conversation_key": "k"} for n in range(10)],
    )
    relay(amqp, copies=2)
    daemon = start_worker()
    wait_until(lambda: len(ledger.lines("effect")) == 20 and vhost.depths() == {})
    assert daemon.log.count("message_repeated") == 20


def test_a_drain_finishes_what_runs_and_gives_the_rest_to_others(database, ledger, amqp, start_worker, vhost):
    put(database, [{"message_type": "works", "payload": {"key": f"w{n}", "seconds": 0.5}} for n in range(12)])
    put(
        database,
        [
            {"message_type": "works", "payload": {"key": f"k{n}", "seconds": 0.5}, "conversation_key": "k"}
            for n in range(4)
        ],
    )
    relay(amqp)
    first = start_worker(threads=2)
    wait_until(lambda: ledger.lines("start"))
    assert first.stop() == 0
    assert ledger.counts("start") == ledger.counts("effect"), "nothing was interrupted"
    assert len(ledger.lines("effect")) < 16
    start_worker(threads=8)
    wait_until(lambda: len(ledger.counts("effect")) == 16)
    assert max(ledger.counts("effect").values()) == 1
    assert [key for _, key, _ in ledger.lines("effect") if key.startswith("k")] == ["k0", "k1", "k2", "k3"]


def test_a_handler_sends_through_the_outbox_and_the_correlation_goes_along(
    database, ledger, amqp, start_worker
):
    put(database, [{"message_type": "sends", "payload": {"key": "s"}, "correlation_id": "abc"}])
    relay(amqp)
    start_worker()
    wait_until(lambda: ledger.lines("effect"))
    assert [key for _, key, _ in ledger.lines("correlation")] == ["abc"]
    assert database.query("select queue, correlation_id from message_queue") == [(QUEUE, "abc")]
    relay(amqp)
    wait_until(lambda: "s-sent" in ledger.counts("effect"))


def test_the_callback_of_a_death_commits_with_it(database, ledger, amqp, start_worker):
    put(database, [{"message_type": "dies", "payload": {"key": "d"}}])
    relay(amqp)
    start_worker()
    wait_until(lambda: dead(database))
    relay(amqp)
    wait_until(lambda: ledger.lines("gave_up"))


def test_a_step_is_refused_before_it_is_paid_for(database, ledger, amqp, start_worker):
    put(database, [{"message_type": "steps", "payload": {"key": "s"}}])
    relay(amqp)
    start_worker()
    wait_until(lambda: dead(database))
    assert dead(database)[0][1:4] == ("rejected", "StepError", 1)
    assert not ledger.lines("paid")
