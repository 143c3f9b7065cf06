"""Workers on RabbitMQ when something goes away, or is not as it should be."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from packhorse.worker.amqp.connection import blocking
from packhorse.worker.amqp.topology import UNDELIVERED
from tests.support.harness import quick_settings
from tests.support.postgres import ROLE
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Node
from tests.support.relaying import forward, put, relay
from tests.support.waiting import wait_until

pika = pytest.importorskip("pika")

pytestmark = pytest.mark.slow

ACTORS = "tests.support.relayed_actors"


@pytest.fixture
def start_worker(ledger, vhost, start_daemon, database):
    """It may not come to work."""

    def start(where=None, **settings):
        given = {"amqp_url": vhost.url, "amqp_partitions": 4, "drain_seconds": 5, **settings}
        return start_daemon(where or database, ledger, actors=ACTORS, options=("--broker", "amqp"), **given)

    return start


def reasons(database):
    return database.query("select message_type, reason, error_class from dead_letters order by id")


def test_a_broker_that_was_killed_is_waited_for_and_nothing_is_lost(
    database, ledger, own_rabbit, start_daemon
):
    forward(database)
    settings = quick_settings(database, amqp_url=own_rabbit.url(), amqp_partitions=2)
    given = {"amqp_url": own_rabbit.url(), "amqp_partitions": 2, "threads": 2}
    put(database, [{"message_type": "works", "payload": {"key": f"w{n}", "seconds": 0.1}} for n in range(40)])
    put(
        database,
        [
            {"message_type": "works", "payload": {"key": f"k{n}", "seconds": 0.1}, "conversation_key": "k"}
            for n in range(20)
        ],
    )
    relay(settings)
    daemon = start_daemon(database, ledger, actors=ACTORS, options=("--broker", "amqp"), **given).wait_ready()
    wait_until(lambda: len(ledger.lines("effect")) > 5)
    own_rabbit.kill()
    wait_until(lambda: "service_failed" in daemon.log)
    own_rabbit.start().wait_ready()
    wait_until(lambda: len(ledger.counts("effect")) == 60, 40)
    firsts = list(dict.fromkeys(key for _, key, _ in ledger.lines("effect") if key.startswith("k")))
    assert firsts == [f"k{n}" for n in range(20)]
    again = sum(ledger.counts("effect").values()) - 60
    assert again <= 2 + 1, "what ran when it was killed, at most"
    assert daemon.stop() == 0


def test_a_handler_that_outlasts_the_patience_of_the_broker_is_interrupted_and_handled_again(
    database, ledger, rabbit_place, start_daemon
):
    """consumer_timeout is half an hour; here a second. The broker closes the channel, and with it goes what
    its process has besides.
    """
    node = Node(rabbit_place, "hasty", config="consumer_timeout = 1000\n")
    try:
        url = node.start().wait_ready().url()
        node.do("application:set_env(rabbit, channel_tick_interval, 500)")
        forward(database)
        keyed = {"message_type": "works", "conversation_key": "k"}
        put(database, [{"message_type": "outlasts", "payload": {"key": "o"}, "conversation_key": "k"}])
        put(database, [{**keyed, "payload": {"key": f"k{n}"}} for n in range(5)])
        put(database, [{"message_type": "works", "payload": {"key": f"w{n}"}} for n in range(5)])
        relay(quick_settings(database, amqp_url=url, amqp_partitions=2))
        given = {"amqp_url": url, "amqp_partitions": 2, "threads": 2}
        daemon = start_daemon(database, ledger, actors=ACTORS, options=("--broker", "amqp"), **given)
        wait_until(lambda: len(ledger.counts("effect")) == 11, 60)
        assert [key for _, key, _ in ledger.lines("interrupted")] == ["o:LeaseInterrupt"]
        assert [key for _, key, _ in ledger.lines("start") if key[0] == "o"] == ["o:1", "o:1"]
        order = [key for _, key, _ in ledger.lines("effect") if key[0] in "ok"]
        assert order == ["o", *(f"k{n}" for n in range(5))]
        assert "delivery acknowledgement on channel" in daemon.log, "the reason is named"
        assert daemon.stop() == 0
    finally:
        node.close()


def test_while_postgres_is_away_a_death_waits_and_other_messages_are_handled(
    database, ledger, amqp, start_worker, vhost
):
    proxy = Proxy(database.server.socket_dir)
    try:
        daemon = start_worker(proxy.url(database.name, ROLE)).wait_ready()
        proxy.refuse(True)
        settings = amqp
        put(database, [{"message_type": "dies", "payload": {"key": "d"}}])
        put(database, [{"message_type": "works", "payload": {"key": f"w{n}"}} for n in range(9)])
        relay(settings)
        wait_until(lambda: len(ledger.lines("effect")) == 9)
        assert reasons(database) == []
        proxy.refuse(False)
        wait_until(lambda: reasons(database) == [("dies", "failed", "ValueError")], 30)
        wait_until(lambda: vhost.depths() == {})
        assert daemon.stop() == 0
    finally:
        proxy.close()


def test_a_full_disk_of_the_broker_stops_retries_and_no_handler(
    database, ledger, amqp, start_worker, rabbit, vhost
):
    """It takes the first message that a connection publishes meanwhile, and reads nothing more of it."""
    failing = [{"key": f"f{n}", "times": 1, "seconds": 0.5 * n} for n in range(5)]
    put(database, [{"message_type": "fails", "payload": payload} for payload in failing])
    put(database, [{"message_type": "works", "payload": {"key": f"w{n}"}} for n in range(9)])
    relay(amqp)
    rabbit.disk_alarm(True)
    try:
        daemon = start_worker().wait_ready()
        wait_until(lambda: "amqp_blocked" in daemon.log)
        wait_until(lambda: len([key for key in ledger.counts("effect") if key[0] == "w"]) == 9)
        wait_until(lambda: len(ledger.counts("start")) >= 14 and 4 <= vhost.depths().get("orders", 0) <= 6)
    finally:
        rabbit.disk_alarm(False)
    wait_until(lambda: len(ledger.counts("effect")) == 14)
    assert max(ledger.counts("effect").values()) == 1


def test_a_type_that_nobody_knows_waits_and_becomes_a_dead_letter(
    database, ledger, amqp, start_worker, vhost
):
    put(
        database,
        [{"message_type": "nobody", "payload": {}}, {"message_type": "works", "payload": {"key": "w"}}],
    )
    relay(amqp)
    daemon = start_worker().wait_ready()
    wait_until(lambda: ledger.lines("effect"))
    wait_until(lambda: vhost.depths() == {"packhorse:delay.30s": 1})
    assert "amqp_unknown_type" in daemon.log
    assert daemon.stop() == 0
    put(database, [{"message_type": "nobody", "payload": {}}])
    relay(amqp)
    start_worker(unknown_type_seconds=1).wait_ready()
    put(database, [{"message_type": "nobody", "payload": {}}])
    wait_until(lambda: ("nobody", "unknown_type", None) in reasons(database) or relay_old(database, amqp), 30)


def relay_old(database, amqp):
    """One that was enqueued a while ago."""
    database.query("update message_queue set created_at = created_at - interval '1 minute'")
    relay(amqp)
    return False


def test_what_is_no_message_of_a_relay_becomes_a_dead_letter(database, ledger, amqp, start_worker, vhost):
    put(database, [{"message_type": "works", "payload": {"key": "w"}}])
    relay(amqp)
    with blocking(amqp, "test") as connection:
        channel = connection.channel()
        channel.basic_publish("", "orders", b"\xff\x00 no json", pika.BasicProperties())
        channel.basic_publish("", "orders", b"{}", pika.BasicProperties(message_id="x", headers={"a": 1}))
    start_worker().wait_ready()
    wait_until(lambda: ledger.lines("effect") and len(reasons(database)) == 2)
    assert {row[1:] for row in reasons(database)} == {("undecodable", "UndecodableMessage")}
    wait_until(lambda: vhost.depths() == {})


def test_what_the_broker_gave_up_becomes_a_dead_letter(database, ledger, amqp, start_worker, vhost):
    put(database, [{"message_type": "works", "payload": {"key": "w"}}])
    relay(amqp)
    with blocking(amqp, "test") as connection:
        channel = connection.channel()
        for _ in range(21):
            wait_until(lambda: _given_back(channel))
    wait_until(lambda: vhost.depths() == {UNDELIVERED: 1})
    start_worker().wait_ready()
    wait_until(lambda: reasons(database) == [("works", "quarantined", "WorkerLost")])
    wait_until(lambda: vhost.depths() == {})
    assert not ledger.lines("start")


def _given_back(channel):
    method, _, _ = channel.basic_get("orders")
    if method is not None:
        channel.basic_nack(method.delivery_tag, requeue=True)
    return method is not None


def test_a_transactional_actor_of_a_forwarded_queue_is_refused(database, vhost, ledger, start_daemon):
    forward(database, "default")
    daemon = start_daemon(
        database, ledger, options=("--broker", "amqp"), amqp_url=vhost.url, amqp_partitions=2
    )
    assert daemon.process.wait(30) == 2
    assert "'transactional' is transactional, which needs its message in the same database" in daemon.log


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"amqp_url": "{url}-missing"}, "rabbitmqctl add_vhost"),
        ({"amqp_url": "{wrong}"}, "refuses user or password"),
        ({"amqp_partitions": 5}, "set amqp_partitions to 4"),
    ],
)
def test_what_the_broker_refuses_is_named_and_ends_the_start(amqp, start_worker, rabbit, vhost, change, said):
    relay(amqp)
    urls = {"url": vhost.url, "wrong": rabbit.url(vhost.name, ":".join(["guest", "wrong"]) + "@")}
    given = {
        name: value.format(**urls) if isinstance(value, str) else value for name, value in change.items()
    }
    daemon = start_worker(**given)
    assert daemon.process.wait(30) == 2
    assert said in daemon.log
    assert ":wrong@" not in daemon.log


def test_a_classic_queue_of_the_same_name_is_named(database, start_worker, vhost, amqp):
    with blocking(amqp, "test") as connection:
        connection.channel().queue_declare("orders", durable=True)
    daemon = start_worker()
    assert daemon.process.wait(30) == 2
    assert "rabbitmqctl delete_queue orders" in daemon.log


def test_without_a_forwarded_queue_it_says_so_and_one_that_is_forwarded_later_is_consumed(
    database, ledger, start_worker, vhost
):
    database.query("select declare_queue('orders')")
    daemon = start_worker().wait_ready()
    assert "amqp_nothing_forwarded" in daemon.log
    forward(database)
    put(database, [{"message_type": "works", "payload": {"key": "w"}}])
    relay(quick_settings(database, amqp_url=vhost.url, amqp_partitions=4))
    wait_until(lambda: ledger.lines("effect"), 30)


def test_a_second_signal_interrupts_and_what_was_interrupted_is_handled_by_another(
    database, ledger, amqp, start_worker, vhost
):
    put(
        database,
        [{"message_type": "waits", "payload": {"key": "slow", "seconds": 3}, "conversation_key": "k"}],
    )
    relay(amqp)
    daemon = start_worker(drain_seconds=60).wait_ready()
    wait_until(lambda: ledger.lines("start"))
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: "worker_stopped" in daemon.log or daemon.signal(signal.SIGTERM))
    daemon.process.wait(20)
    start_worker().wait_ready()
    wait_until(lambda: ledger.lines("effect"))


def test_without_pika_the_command_names_the_extra(database):
    code = "import sys; sys.modules['pika'] = None; from packhorse.worker.cli.program import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, "worker", ACTORS, "--broker", "amqp"],
        env={"DATABASE_URL": database.url, "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2 and "packhorse[amqp]" in found.stderr
