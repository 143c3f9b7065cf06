"""Parked scopes and what RabbitMQ delivers: it is put off, no attempt spent (SPEC W10)."""

from __future__ import annotations

import pytest

from tests.support.postgres import ROLE
from tests.support.proxy import Proxy
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


# -- failures that are counted ---------------------------------------------------------------------------
def starts(ledger):
    return [key for _, key, _ in ledger.lines("start")]


@pytest.mark.parametrize("keyed", [False, True])
def test_what_fails_in_a_row_rests_without_an_attempt_spent_and_goes_on_by_itself(
    database, ledger, amqp, start_worker, vhost, keyed
):
    down = ledger.path.with_name(ledger.path.name + ".down")
    down.touch()
    items = [
        {"message_type": "calls", "payload": {"key": f"c{n}"}}
        | ({"conversation_key": f"k{n}"} if keyed else {})
        for n in range(8)
    ]
    put(database, items)
    relay(amqp)
    daemon = start_worker(processes=2, threads=2)
    wait_until(lambda: "failure_breaker_parked" in daemon.log, 40)
    longer = "select next_park >= '8 seconds' from scopes"
    wait_until(lambda: database.query(longer) == [(True,)], 60, "probes fail, and park for longer")
    assert database.query("select count(*) from dead_letters") == [(0,)]
    assert database.query("select failures, next_park is not null from scopes") == [(3, True)]
    down.unlink()
    wait_until(lambda: len(ledger.lines("effect")) == 8, 90, "it goes on")
    wait_until(lambda: database.query("select failures, ends_at from scopes") == [(0, None)], 20, "lifted")
    spent = {key: int(attempt) - 1 for key, attempt in (key.split(":") for key in starts(ledger))}
    assert sum(spent.values()) == 2, "of the two failures before it was parked"
    assert database.query("select count(*) from dead_letters") == [(0,)]
    wait_until(lambda: vhost.depths() == {})


def test_a_success_between_failures_starts_the_count_over(database, ledger, amqp, start_worker):
    database.query("select set_queue('orders', '{\"failure_breaker\": 3}')")
    daemon = start_worker()
    for turn in range(3):
        put(database, [{"message_type": "fails", "payload": {"key": f"f{turn}", "times": 2}}])
        relay(amqp)
        wait_until(lambda turn=turn: len(ledger.lines("effect")) == turn + 1, 40)
        wait_until(lambda: database.query("select failures from scopes") == [(0,)], 20, "it is counted")
    assert len(starts(ledger)) == 9
    assert "failure_breaker_parked" not in daemon.log


def test_while_postgres_is_away_a_failure_waits_to_be_counted(database, ledger, amqp, start_worker, vhost):
    down = ledger.path.with_name(ledger.path.name + ".down")
    down.touch()
    proxy = Proxy(database.server.socket_dir)
    try:
        daemon = start_worker(proxy.url(database.name, ROLE))
        proxy.refuse(True)
        put(database, [{"message_type": "calls", "payload": {"key": "c"}}])
        put(database, [{"message_type": "works", "payload": {"key": f"w{n}"}} for n in range(9)])
        relay(amqp)
        wait_until(lambda: len(ledger.lines("effect")) == 9, 40, "what needs no Postgres goes on")
        assert len(starts(ledger)) == 10
        assert vhost.depths() == {"orders": 1}
        down.unlink()
        proxy.refuse(False)
        wait_until(lambda: ledger.counts("effect").get("c") == 1, 40)
        assert starts(ledger)[-1] == "c:2"
        assert daemon.stop() == 0
    finally:
        proxy.close()
