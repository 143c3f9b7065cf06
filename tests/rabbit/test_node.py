"""The nodes that the other tests of this folder use: what they keep, what they block, that they end."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pika = pytest.importorskip("pika")

pytestmark = pytest.mark.slow


def connect(url):
    return pika.BlockingConnection(pika.URLParameters(url))


def declare(url, queue="durable"):
    connection = connect(url)
    channel = connection.channel()
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    channel.confirm_delivery()
    return connection, channel


def test_vhosts_do_not_see_each_other(rabbit, vhost):
    rabbit.add_vhost("another")
    connection, _ = declare(vhost.url)
    connection.close()
    other = connect(rabbit.url("another"))
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        other.channel().queue_declare("durable", passive=True)
    other.close()
    rabbit.delete_vhost("another")


def test_a_killed_node_has_what_it_confirmed_when_it_is_there_again(own_rabbit):
    _, channel = declare(own_rabbit.url())
    own_rabbit.write_queue_metadata()
    channel.basic_publish("", "durable", b"kept", pika.BasicProperties(delivery_mode=2))
    own_rabbit.kill()
    own_rabbit.start().wait_ready()
    connection = connect(own_rabbit.url())
    assert connection.channel().basic_get("durable", auto_ack=True)[2] == b"kept"
    connection.close()


def test_a_full_disk_blocks_who_publishes(rabbit, vhost):
    connection, channel = declare(vhost.url + "?blocked_connection_timeout=1")
    rabbit.disk_alarm(True)
    try:
        with pytest.raises(pika.exceptions.ConnectionBlockedTimeout):
            channel.basic_publish("", "durable", b"waits")
    finally:
        rabbit.disk_alarm(False)
    connection, channel = declare(vhost.url)
    channel.basic_publish("", "durable", b"goes")
    connection.close()


def test_the_cluster_confirms_and_keeps_while_one_node_is_away(cluster, cluster_vhost):
    """Each time by connections of the moment: a node that hears of the others' return late may pause, too."""
    first, second, _ = cluster.nodes
    url = second.url(cluster_vhost.name)
    for away, back in [
        (first.kill, first.start),
        (first.freeze, first.thaw),
        (lambda: cluster.cut_off(first), lambda: cluster.join_again(first)),
    ]:
        away()
        cluster.wait_away(first)
        connection, channel = declare(url)
        channel.basic_publish("", "durable", b"confirmed")
        connection.close()
        back()
        cluster.wait_whole()
        connection = connect(url)
        assert connection.channel().basic_get("durable", auto_ack=True)[2] == b"confirmed"
        connection.close()


def test_what_the_node_was_asked_is_answered_as_erlang_prints_it(rabbit):
    assert rabbit.ask("1 + 1") == "2"
    assert "badarith" in rabbit.ask("1 / 0")
    with pytest.raises(AssertionError, match="badarith"):
        rabbit.do("1 / 0")


#: A test run in which a node runs and one stands still when it is killed.
ORPHANS = """
import time
from tests.support.rabbitmq import Node, Place
place = Place()
nodes = [Node(place, "running").start(), Node(place, "frozen").start()]
for node in nodes:
    node.wait_ready()
nodes[1].freeze()
print(place._epmd.pid, *[node.pid for node in nodes], flush=True)
time.sleep(600)
"""


def test_no_node_outlives_a_test_run_that_was_killed(rabbit_place):
    run = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 3
    below = [child for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    run.kill()
    run.wait(10)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 10, "epmd and nodes have ended")
    wait_until(lambda: not any(child.is_running() for child in below), 10, "so have their helpers")
