"""A relay and workers on RabbitMQ under load, killed at random times and at the worst one; a full disk.
Nothing is lost, what is handled twice was in a killed process, and conversations stay in order.
"""

from __future__ import annotations

import random

import pytest

from tests.rabbit.forwarding import Forwarding, Producer
from tests.support.accounting import effects, enqueue, live
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture
def forwarding(database, ledger, vhost, start_daemon):
    forwarding = Forwarding(database, ledger, vhost.url, start_daemon)
    forwarding.forward(crash_limit=100)
    return forwarding


@pytest.fixture
def producer(database):
    producer = Producer(database, conversations=10, seconds=0.001)
    yield producer
    producer.stop()


def test_a_relay_is_killed_again_and_again(forwarding, producer):
    chance = random.Random(17)
    relays = [forwarding.relay(processes=1).wait_ready() for _ in range(2)]
    forwarding.workers()
    producer.start()
    for _ in range(8):
        forwarding.progress(chance.randrange(20, 150))
        with forwarding.fault():
            chance.choice(relays).kill_child(chance)
    forwarding.wait_handled(producer.stop())
    assert forwarding.dead() == set()
    forwarding.stop()
    forwarding.assert_first_handlings_in_order()
    assert forwarding.duplicates() == set(), "one worker process knows what it has handled by its id"


#: A completion waits while somebody else has this lock.
HELD = """
create function testing.wait_before_completion() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(4711);
  return new;
end
$$;
create trigger wait_before_completion before insert on packhorse.message_archive
  for each row execute function testing.wait_before_completion();
"""
WAITS = "select exists (select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted)"


def test_a_relay_is_killed_after_the_confirm_and_before_the_completion(database, forwarding):
    database.query(HELD)
    workers = forwarding.workers()
    talks = [
        {"message_type": "talk", "conversation_key": "c0", "payload": {"conversation": "c0", "number": n}}
        for n in range(3)
    ]
    with database.session() as holder:
        holder.execute("select pg_advisory_lock(4711)")
        relay = forwarding.relay().wait_ready()
        effects(database, 20)
        enqueue(database, talks)
        wait_until(lambda: database.value(WAITS), message="a completion waits")
        relay.kill_group()
        wait_until(lambda: forwarding.effects() >= 1, message="what was confirmed is handled")
        assert database.value("select count(*) from message_queue") == 23
        # else the server would finish what a dead client has asked for
        database.query("select pg_terminate_backend(pid) from pg_locks where objid = 4711 and not granted")
        holder.execute("select pg_advisory_unlock(4711)")
    forwarding.relay()
    forwarding.wait_handled([f"m{n}" for n in range(20)] + [f"c0:{n}" for n in range(3)])
    wait_until(lambda: workers.log.count("message_repeated") >= 20, message="the copies have arrived")
    forwarding.stop()
    forwarding.assert_first_handlings_in_order()
    assert forwarding.duplicates() == set()
    assert forwarding.dead() == set()


def test_workers_are_killed_again_and_again(database, forwarding, producer):
    chance = random.Random(23)
    forwarding.relay()
    for _ in range(60):  # so that each partition has many of each conversation
        producer.commit()
    wait_until(lambda: live(database) == 0, message="all of it is on RabbitMQ")
    workers = forwarding.workers(processes=2)
    producer.start()
    killed = set()
    for _ in range(6):
        forwarding.progress(chance.randrange(50, 150))
        killed |= set(workers.children())  # which one it is, is left to chance
        with forwarding.fault():
            workers.kill_child(chance)
    forwarding.wait_handled(producer.stop())
    assert forwarding.dead() == set()
    forwarding.stop()
    forwarding.assert_first_handlings_in_order()
    first = {}
    for event, key, pid in forwarding.ledger.lines():
        if event == "start":
            first.setdefault(key, int(pid))
    assert {first[key] for key in forwarding.duplicates()} <= killed
    assert forwarding.unexplained() == set()


def test_a_full_disk_keeps_messages_in_postgres(rabbit, database, forwarding, producer):
    relay, workers = forwarding.relay(), forwarding.workers()
    producer.start()
    forwarding.progress(50)
    rabbit.disk_alarm(True)
    try:
        wait_until(lambda: "amqp_blocked" in relay.log, message="the relay says that it is blocked")
        handled = forwarding.effects()
        before = producer.batches
        wait_until(lambda: producer.batches > before + 10, message="producers go on")
        assert database.value("select count(*) from message_queue") >= 200
        assert database.value("select count(*) from message_queue where attempt > 1 or crashes > 0") == 0
    finally:
        rabbit.disk_alarm(False)
    wait_until(lambda: forwarding.effects() > handled + 100, message="it goes on")
    forwarding.wait_handled(producer.stop())
    assert relay.log.count("amqp_blocked") == 1
    assert workers.process.poll() is None
    assert database.value("select max(attempt) from message_archive") == 1
    forwarding.stop()
    forwarding.assert_first_handlings_in_order()
    assert forwarding.duplicates() == set()
