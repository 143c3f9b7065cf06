"""`packhorse relay` between a real Postgres and a real RabbitMQ."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from packhorse.worker.amqp.envelope import RelayedMessage
from packhorse.worker.amqp.topology import ForwardedQueue
from tests.rabbit.conftest import Vhost
from tests.support.http import free_port, metric
from tests.support.postgres import Database
from tests.support.rabbitmq import Node, Place
from tests.support.waiting import wait_until
from tests.support.workers import Daemon

pytestmark = pytest.mark.slow
PARTITIONS = 4
Start = Callable[..., Daemon]


@pytest.fixture
def start(database: Database, vhost: Vhost) -> Iterator[Start]:
    """Start a daemon on the database and on the virtual host, or another url; a relay by itself."""
    running: list[Daemon] = []

    def begin(command: str = "relay", actors: str = "", url: str = vhost.url, **settings: Any) -> Daemon:
        settings = {"amqp_url": url, "amqp_partitions": PARTITIONS, **settings}
        running.append(Daemon(database, command=command, actors=actors, **settings))
        return running[-1]

    yield begin
    for daemon in running:
        daemon.close()


def forward(database: Database, *queues: str, to: str | None = "amqp") -> None:
    for queue in queues or ("orders",):
        database.query("select declare_queue(%s)", queue)
        database.query("select set_queue(%s, %s)", queue, json.dumps({"forward": to}))


def put(
    database: Database, count: int = 1, queue: str = "orders", keys: int = 0, **payload: Any
) -> list[int]:
    """Commit messages, over so many conversations; their ids."""
    items = [
        {
            "queue": queue,
            "message_type": "effect",
            "payload": payload or {"n": n},
            **({"conversation_key": f"k{n % keys}"} if keys else {}),
        }
        for n in range(count)
    ]
    return [
        row[0] for row in database.query("select message_id from enqueue_messages(%s)", json.dumps(items))
    ]


def taken(url: str, queue: str = "orders") -> list[RelayedMessage]:
    """What is on RabbitMQ of a queue, taken from there: partitions in order, messages in order."""
    found: list[RelayedMessage] = []

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        found.append(RelayedMessage(body, properties, time.monotonic()))
        channel.basic_ack(method.delivery_tag)

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for name in (queue, *ForwardedQueue(queue, PARTITIONS).partition_names):
            channel.basic_consume(name, on_message)
        count = -1
        while count < len(
            found
        ):  # until nothing has come for a while: a quorum queue does not say that it is empty
            count = len(found)
            for _ in range(10):
                connection.process_data_events(0.05)
        channel.close()
    return found


def archived(database: Database) -> int:
    return int(database.query("select count(*) from message_archive")[0][0])


def all_done(database: Database, count: int) -> bool:
    ((done, live),) = database.query(
        "select (select count(*) from message_archive where state = 'done'), (select count(*) from message_queue)"
    )
    return bool(done == count and live == 0)


def test_what_is_forwarded_is_published_and_done(database: Database, vhost: Vhost, start: Start) -> None:
    forward(database)
    ids = put(database, 300, keys=3) + put(database, 300) + put(database, 1, name="ü")
    start()
    wait_until(lambda: all_done(database, len(ids)), 20, "all are done")
    messages = taken(vhost.url)
    assert sorted(message.id for message in messages) == ids
    last = next(message for message in messages if message.id == ids[-1])
    last.decode()
    assert (last.kwargs, last.queue_name, last.attempt) == ({"name": "ü"}, "orders", 1)


def test_conversations_arrive_in_their_order(database: Database, vhost: Vhost, start: Start) -> None:
    forward(database)
    start(processes=2)
    start()
    ids: list[int] = []
    for _ in range(5):
        ids += put(database, 200, keys=20)
    wait_until(lambda: all_done(database, len(ids)), 40, "all are done")
    arrived: dict[str | None, list[int]] = defaultdict(list)
    for message in taken(vhost.url):
        arrived[message.conversation_key].append(message.id)
    assert len(arrived) == 20
    for key, found in arrived.items():
        assert found == sorted(found), key


def test_a_relay_ends_in_good_order(database: Database, vhost: Vhost, start: Start) -> None:
    forward(database)
    relay = start().wait_ready()
    ids = put(database, 2000)
    assert relay.stop() == 0
    published = taken(vhost.url)
    rows = database.query("select id, attempt, crashes, state from message_queue")
    assert {message.id for message in published} | {row[0] for row in rows} == set(ids)
    assert len(published) + len(rows) == len(ids), "none is here and there"
    assert {row[1:] for row in rows} <= {(0, 0, "pending")}


def test_killed_at_any_time_a_relay_loses_nothing(database: Database, vhost: Vhost, start: Start) -> None:
    forward(database)
    relay = start().wait_ready()
    chance, ids = random.Random(17), []
    for turn in range(8):
        ids += put(database, 400, keys=10) + put(database, 400)
        before = archived(database)
        wait_until(lambda before=before: archived(database) > before, 40, "it is at work")
        time.sleep(chance.uniform(0.0, 0.05))  # so that it is killed at different points of its work
        if turn % 2:
            relay.kill_group()
            relay = start()
        else:
            relay.kill_child(chance)
        wait_until(relay.children, 20, "there is one again")
    wait_until(lambda: all_done(database, len(ids)), 60, "all are done")
    arrived = taken(vhost.url)
    assert {message.id for message in arrived} == set(ids)
    crashes = database.query("select count(*) from dead_letters")[0][0]
    assert crashes == 0
    firsts: dict[str, list[int]] = defaultdict(list)
    for message in arrived:
        key = message.conversation_key  # those without one have no order: others overtake what is rescued
        if key is not None and message.id not in firsts[key]:
            firsts[key].append(message.id)
    assert len(firsts) == 10
    assert all(found == sorted(found) for found in firsts.values()), "first arrivals are in order"
    again = sum(count - 1 for count in Counter(message.id for message in arrived).values())
    print(f"{again} of {len(ids)} arrived twice")


# -- a broker in trouble --------------------------------------------------------------------------------
def nothing_spent(database: Database) -> bool:
    return database.query(
        "select coalesce(max(attempt), 0), coalesce(max(crashes), 0) from message_queue where state = 'pending'"
    ) == [(0, 0)]


def test_while_the_broker_is_away_messages_wait_in_postgres(
    database: Database, own_rabbit: Node, start: Start
) -> None:
    forward(database)
    relay = start(url=own_rabbit.url()).wait_ready()
    ids = put(database, 50)
    wait_until(lambda: all_done(database, 50), 20, "published")
    own_rabbit.write_queue_metadata()
    own_rabbit.kill()
    ids += put(database, 500)
    wait_until(lambda: "relay_unavailable" in relay.log, 20, "said")
    wait_until(
        lambda: database.query("select count(*) from message_queue where state = 'running'") == [(0,)],
        20,
        "given back",
    )
    assert nothing_spent(database)
    own_rabbit.start().wait_ready()
    wait_until(lambda: all_done(database, len(ids)), 40, "published")
    assert {message.id for message in taken(own_rabbit.url())} == set(ids)
    assert relay.log.count("relay_unavailable") <= 3, relay.log
    assert "relay_recovered" in relay.log


def test_a_relay_starts_before_its_broker(database: Database, own_rabbit: Node, start: Start) -> None:
    forward(database)
    own_rabbit.kill()
    put(database, 10)
    relay = start(url=own_rabbit.url()).wait_ready()
    wait_until(lambda: "relay_unavailable" in relay.log, 20, "said")
    own_rabbit.start().wait_ready()
    wait_until(lambda: all_done(database, 10), 40, "published")


def test_while_the_disk_of_the_broker_is_full_nothing_is_claimed(
    database: Database, own_rabbit: Node, start: Start
) -> None:
    forward(database)
    relay = start(url=own_rabbit.url()).wait_ready()
    own_rabbit.disk_alarm(True)
    ids = put(database, 1500)
    wait_until(lambda: "amqp_blocked" in relay.log, 20, "said")
    own_rabbit.disk_alarm(False)
    wait_until(lambda: all_done(database, len(ids)), 40, "published")
    assert {message.id for message in taken(own_rabbit.url())} == set(ids)
    assert database.query("select count(*) from message_archive where attempt <> 1") == [(0,)]


def test_a_full_queue_is_tried_again_and_others_go_on(database: Database, vhost: Vhost, start: Start) -> None:
    forward(database, "full", "orders")
    relay = start().wait_ready()
    vhost.node.do(
        f'rabbit_policy:set(<<"{vhost.name}">>, <<"full">>, <<"^full$">>, [{{<<"max-length">>, 5}}], 1, <<"queues">>, <<"tests">>)'
    )
    full = put(database, 600, "full")  # it refuses a little late
    wait_until(lambda: "relay_refused" in relay.log, 20, "said")
    put(database, 30)
    wait_until(lambda: len(taken(vhost.url)) or all_done(database, 630), 20, "others go on")
    arrived: set[int] = set()

    def emptied() -> bool:
        arrived.update(message.id for message in taken(vhost.url, "full"))
        return arrived >= set(full)

    wait_until(emptied, 60, "all of the full queue arrive, as there is room")
    wait_until(lambda: all_done(database, 630), 20, "all are done")
    assert relay.log.count("relay_refused queue=full") + relay.log.count('"queue": "full"') >= 1
    assert database.query("select count(*) from dead_letters") == [(0,)]


def test_a_message_over_the_limit_of_the_broker_is_a_dead_letter_and_alone_in_that(
    database: Database, rabbit_place: Place, start: Start
) -> None:
    node = Node(rabbit_place, "small", config="max_message_size = 20000\n")
    try:
        url = node.start().wait_ready().url()
        forward(database)
        ids = put(database, 100)
        large = put(database, 1, text="x" * 30_000) + put(database, 1, keys=1, text="x" * 30_000)
        ids += put(database, 100) + put(database, 3, keys=1)
        start(url=url)
        wait_until(lambda: all_done(database, len(ids)), 40, "all others are published")
        assert {message.id for message in taken(url)} == set(ids)
        letters = database.query(
            "select id, reason, error_class, error_message from dead_letters order by id"
        )
        assert [row[0] for row in letters] == large
        assert {row[1:3] for row in letters} == {("rejected", "RefusedByBroker")}
        assert all("larger than" in row[3] for row in letters)
    finally:
        node.close()


def test_a_queue_that_somebody_has_deleted_is_declared_again(
    database: Database, vhost: Vhost, start: Start
) -> None:
    forward(database)
    relay = start().wait_ready()
    put(database, 10)
    wait_until(lambda: all_done(database, 10), 20, "published")
    with pika.BlockingConnection(pika.URLParameters(vhost.url)) as connection:
        connection.channel().queue_delete("orders")
    ids = put(database, 50)
    wait_until(lambda: all_done(database, 60), 30, "published")
    assert {message.id for message in taken(vhost.url)} == set(ids)
    assert "relay_refused" in relay.log


def test_a_relay_shows_what_rabbitmq_has_and_who_consumes_it(
    database: Database, own_rabbit: Node, start: Start
) -> None:
    forward(database)
    port, url = free_port(), own_rabbit.url()
    start(url=url, metrics_port=port, fleet_seconds=1)
    put(database, 7)
    put(database, 6, keys=3)

    def shown() -> tuple[float | None, float | None]:
        return tuple(metric(port, f"amqp_{name}", queue="orders") for name in ("messages", "consumers"))  # type: ignore[return-value]

    wait_until(lambda: shown() == (13, 0), 60, "nobody consumes")
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        parts = ["orders", *ForwardedQueue("orders", PARTITIONS).partition_names]
        for name in parts[:-1]:
            channel.basic_consume(name, lambda *_: None)
        wait_until(
            lambda: connection.process_data_events(0.1) or shown()[0] in range(13), 60, "some are taken"
        )
        assert shown()[1] == 0, "of one partition there is no consumer"
        channel.basic_consume(parts[-1], lambda *_: None)
        wait_until(lambda: connection.process_data_events(0.1) or shown()[1] == 1, 60, "of each there is one")
    own_rabbit.kill()
    wait_until(lambda: shown() == (None, None), 60, "nobody knows")


# -- which queues --------------------------------------------------------------------------------------
def test_the_setting_takes_a_queue_to_the_relay_and_back_without_a_restart(
    database: Database, vhost: Vhost, start: Start, tmp_path: Any
) -> None:
    relay = start().wait_ready()
    worker = start(
        "worker", "tests.support.actors", extra={"LEDGER": str(tmp_path / "ledger")}, queues="default"
    ).wait_ready()
    put(database, 10, "default", key="k")
    wait_until(lambda: all_done(database, 10), 20, "run by the worker")
    assert database.query("select count(*) from workers where forward = 'amqp'") == [(1,)]
    forward(database, "default")
    ids = put(database, 10, "default", key="k")
    wait_until(lambda: all_done(database, 20), 20, "published")
    assert {message.id for message in taken(vhost.url, "default")} == set(ids)
    forward(database, "default", to=None)
    put(database, 10, "default", key="k")
    wait_until(lambda: all_done(database, 30), 20, "run by the worker again")
    assert taken(vhost.url, "default") == []
    assert (relay.process.poll(), worker.process.poll()) == (None, None)


def test_a_queue_that_the_broker_refuses_keeps_no_other_one_waiting(
    database: Database, vhost: Vhost, start: Start
) -> None:
    with pika.BlockingConnection(pika.URLParameters(vhost.url)) as connection:
        connection.channel().queue_declare("bad", durable=True)
    forward(database, "bad", "orders")
    (stays,) = put(database, 1, "bad")
    put(database, 10)
    relay = start().wait_ready()
    wait_until(lambda: database.query("select count(*) from message_archive") == [(10,)], 20, "published")
    assert database.query("select id, state, attempt from message_queue") == [(stays, "pending", 0)]
    assert "relay_queue_refused" in relay.log
    assert relay.process.poll() is None


@pytest.mark.parametrize("url", ["credentials", "vhost", "classic queue"])
def test_what_can_never_work_ends_the_start_with_a_sentence(
    database: Database, vhost: Vhost, start: Start, url: str
) -> None:
    forward(database)
    if url == "classic queue":
        with pika.BlockingConnection(pika.URLParameters(vhost.url)) as connection:
            connection.channel().queue_declare("orders", durable=True)
    chosen = {
        "credentials": vhost.node.url(vhost.name, "nobody:wrong@"),
        "vhost": vhost.node.url("missing"),
        "classic queue": vhost.url,
    }[url]
    relay = start(url=chosen)
    assert relay.process.wait(30) == 2, relay.log
    assert "config_error" in relay.log
    assert "rabbitmqctl" in relay.log
    assert "wrong" not in relay.log.replace("wrong@", "") or "nobody:wrong" not in relay.log


def test_an_ordinary_worker_asks_no_more_for_a_backlog_that_is_forwarded(
    database: Database, start: Start, tmp_path: Any
) -> None:
    """As often as while there is nothing at all: about twenty commits a second with these quick settings."""
    forward(database, "default")
    worker = start(
        "worker", "tests.support.actors", extra={"LEDGER": str(tmp_path / "ledger")}, queues="default"
    ).wait_ready()

    def made_in_four_seconds() -> int:
        time.sleep(1)  # sessions tell their statistics a second later
        before = commits()
        time.sleep(4)  # how often it asks by itself is what is measured
        return commits() - before

    def commits() -> int:
        database.query("select pg_stat_clear_snapshot()")
        return int(
            database.query("select xact_commit from pg_stat_database where datname = current_database()")[0][
                0
            ]
        )

    alone = made_in_four_seconds()
    put(database, 1000, "default")
    database.query(
        "select enqueue_message('default', 'effect', p_delay => n * interval '20 milliseconds') from generate_series(1, 400) n"
    )
    database.query("update message_queue set crashes = 2 where id = (select min(id) from message_queue)")
    assert made_in_four_seconds() < 1.5 * alone
    assert "isolation_started" not in worker.log, "for what runs apart"


def test_stop_twice_waits_for_no_confirm(database: Database, own_rabbit: Node, start: Start) -> None:
    forward(database)
    relay = start(url=own_rabbit.url(), drain_seconds=60).wait_ready()
    put(database, 1)
    wait_until(lambda: all_done(database, 1), 20, "it is connected")
    own_rabbit.freeze()
    ids = put(database, 10)
    wait_until(
        lambda: database.query("select count(*) from message_queue where state = 'running'") == [(10,)],
        20,
        "published",
    )
    relay.signal(signal.SIGTERM)
    state = "select state from workers where forward = 'amqp'"
    wait_until(lambda: database.query(state) == [("draining",)], 20, "it waits for confirms")
    relay.signal(signal.SIGTERM)
    relay.process.wait(40)
    own_rabbit.thaw()
    rows = database.query("select id, state, attempt, crashes from message_queue")
    assert sorted(rows) == [(message_id, "pending", 0, 0) for message_id in ids]
