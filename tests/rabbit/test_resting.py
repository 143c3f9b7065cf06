"""Parked scopes and what RabbitMQ delivers: it is put off, no attempt spent (SPEC W10)."""

from __future__ import annotations

import pytest

from tests.support.relaying import put, relay
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def works(count, **options):
    return [
        {"message_type": "fails", "payload": {"key": f"w{n}", "times": 0, **options}} for n in range(count)
    ]


def park(database, scope, interval, *, probing=False):
    database.query("select park_scope(%s, %s, p_probing => %s)", scope, interval, probing)


@pytest.mark.parametrize("scope", ["actor:fails", "queue:orders"])
def test_what_rests_waits_on_the_broker_and_in_its_conversation(
    database, ledger, amqp, start_worker, vhost, scope
):
    keyed = [{**item, "conversation_key": "c"} for item in works(2)]
    put(database, [*works(5), *keyed, {"message_type": "works", "payload": {"key": "free"}}])
    relay(amqp)
    park(database, scope, "1 hour")
    start_worker()
    free = scope.startswith("actor")
    wait_until(lambda: vhost.depths().get("packhorse:delay.30s") == 6 - free, 40)
    if free:
        wait_until(lambda: ledger.lines("effect"))
    assert {key for _, key, _ in ledger.lines("start")} == ({"free"} if free else set())


def test_when_its_time_is_over_it_starts_with_its_first_attempt(database, ledger, amqp, start_worker, vhost):
    put(database, [*works(5), *({**item, "conversation_key": "c"} for item in works(8)[5:])])
    relay(amqp)
    park(database, "actor:fails", "6 seconds")
    start_worker()
    wait_until(lambda: len(ledger.lines("effect")) == 8, 40)
    started = [key for _, key, _ in ledger.lines("start")]
    assert sorted(started) == [f"w{n}:1" for n in range(8)]
    assert [key for key in started if key > "w5"] == ["w5:1", "w6:1", "w7:1"]
    wait_until(lambda: vhost.depths() == {})


def test_a_pause_that_one_was_told_holds_the_others_of_its_scope(database, ledger, amqp, start_worker, vhost):
    """Each would be told so itself, for 20 s in all."""
    put(database, [{"message_type": "told", "payload": {"key": f"t{n}"}} for n in range(100)])
    relay(amqp)
    daemon = start_worker(threads=1, amqp_prefetch=4)
    wait_until(lambda: vhost.depths().get("orders", 0) == 0, 40)
    assert len(ledger.lines("start")) < 50
    assert {key.rpartition(":")[2] for _, key, _ in ledger.lines("start")} == {"1"}
    assert database.query("select message_types from scopes where name = 'till'") == [(["told"],)]
    assert daemon.log.count("scope_parked") == 1
    assert database.query("select count(*) from dead_letters") == [(0,)]


@pytest.mark.parametrize("breaker", [False, True])
def test_of_a_probing_scope_one_message_at_a_time_starts(database, ledger, amqp, start_worker, breaker):
    """A success lifts what a failure breaker has parked, and nothing else."""
    put(database, works(4, seconds=0.3))
    relay(amqp)
    database.query("select set_queue('orders', '{\"failure_breaker\": 3}')")
    park(database, "queue:orders", "0 seconds", probing=True)
    if breaker:
        database.query("update scopes set next_park = '2 seconds', failures = 3")
    start_worker(threads=4)
    wait_until(lambda: len(ledger.lines("effect")) == 4, 40)
    alone = 1 if breaker else 4
    assert [event for event, *_ in ledger.lines()][: 2 * alone] == ["start", "effect"] * alone
    parked = "select count(*) from scopes where name = 'queue:orders' and ends_at is not null"
    wait_until(lambda: database.query(parked) == [(0 if breaker else 1,)])
