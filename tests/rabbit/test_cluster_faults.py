"""A relay and workers on a cluster under load, while something happens to its nodes: nothing is
lost, what is handled twice was in flight then, and conversations stay in order.
"""

from __future__ import annotations

import pytest

from tests.rabbit.forwarding import Forwarding, Producer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def forwarding(database, ledger, cluster_vhost, start_daemon):
    forwarding = Forwarding(database, ledger, cluster_vhost.url, start_daemon)
    forwarding.forward(crash_limit=100)
    return forwarding


@pytest.fixture
def producer(database):
    producer = Producer(database, conversations=5, seconds=0.002)
    yield producer
    producer.stop()


def begin(forwarding, producer):
    """A relay, two worker processes, a backlog and load."""
    for _ in range(40):
        producer.commit()
    relay, workers = forwarding.relay(), forwarding.workers(processes=2)
    relay.wait_ready()
    producer.start()
    forwarding.progress(100)
    return relay, workers


def assert_all_is_well(forwarding, keys):
    forwarding.wait_handled(keys)
    assert forwarding.dead() == set()
    forwarding.stop()
    forwarding.assert_first_handlings_in_order()
    assert forwarding.unexplained() == set()


def test_nodes_are_killed_one_after_the_other(cluster, forwarding, producer):
    begin(forwarding, producer)
    for node in cluster.nodes:
        with forwarding.fault():
            node.kill()
            cluster.wait_away(node)
            forwarding.progress(200)
        with forwarding.fault():
            node.start()
            cluster.wait_whole()
    assert_all_is_well(forwarding, producer.stop())


def of_the_relay(cluster):
    """The node that the relay is connected to."""
    return next(node for node in cluster.nodes if node.serves("packhorse-relay"))


def test_the_node_of_the_relay_stands_still_for_longer_than_the_others_wait(cluster, forwarding, producer):
    begin(forwarding, producer)
    with forwarding.fault():
        node = of_the_relay(cluster)
        node.freeze()
        cluster.wait_away(node)
        forwarding.progress(300)
        node.thaw()
        cluster.wait_whole()
        forwarding.progress(50)
    assert_all_is_well(forwarding, producer.stop())


def test_the_node_of_the_relay_hears_no_other(cluster, forwarding, producer):
    begin(forwarding, producer)
    with forwarding.fault():
        node = of_the_relay(cluster)
        cluster.cut_off(node)
        cluster.wait_away(node)
        forwarding.progress(300)
        cluster.join_again(node)
        cluster.wait_whole()
        forwarding.progress(50)
    assert_all_is_well(forwarding, producer.stop())


def test_the_whole_cluster_loses_its_power(cluster, forwarding, producer):
    relay, workers = begin(forwarding, producer)
    for node in cluster.nodes:
        node.write_queue_metadata()
    with forwarding.fault():
        for node in cluster.nodes:
            node.kill()
        keys = producer.stop()
        wait_until(lambda: "unavailable" in relay.log, 30, "the relay has noticed")
        for node in cluster.nodes:
            node.start()
        cluster.wait_whole()
        forwarding.wait_handled(keys)
    assert relay.process.poll() is None
    assert workers.process.poll() is None
    assert_all_is_well(forwarding, keys)
