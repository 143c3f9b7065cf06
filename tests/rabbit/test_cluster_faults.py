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


def stands_still(cluster, forwarding, node):
    node.freeze()
    cluster.wait_away(node)
    forwarding.progress(300)


def comes_to(cluster, node):
    node.thaw()


def hears_nobody(cluster, forwarding, node):
    """It is the minority, so it pauses: it closes its clients' connections and takes no others."""
    cluster.cut_off(node)
    cluster.wait_away(node)
    wait_until(lambda: node.has_paused, 60, f"{node.name} pauses")
    forwarding.progress(300)


def hears_one_of_two(cluster, forwarding, node):
    """A partial partition: nodes pause one after the other, all of them perhaps, until it is over."""
    cluster.cut_off(node, cluster.nodes[cluster.nodes.index(node) - 1])
    wait_until(lambda: any(one.has_paused for one in cluster.nodes), 60, "somebody pauses")


def hears_again(cluster, node):
    cluster.join_again(node)


FAULTS = [(stands_still, comes_to), (hears_nobody, hears_again), (hears_one_of_two, hears_again)]


@pytest.mark.parametrize("who", ["relay", "worker"])
@pytest.mark.parametrize(("happens", "ends"), FAULTS, ids=[begin.__name__ for begin, _ in FAULTS])
def test_a_node_that_goes_away_from_its_clients_costs_them_a_connection_and_no_process(
    cluster, forwarding, producer, who, happens, ends
):
    relay, workers = begin(forwarding, producer)
    processes = [*relay.children(), *workers.children()]
    node = next(node for node in cluster.nodes if node.serves(f"packhorse-{who}"))
    with forwarding.fault():
        happens(cluster, forwarding, node)
        ends(cluster, node)
        cluster.wait_whole()
        forwarding.progress(50)
    assert [*relay.children(), *workers.children()] == processes
    if happens is not hears_one_of_two:  # there another node may pause
        lost = {"relay": ("relay_unavailable", relay), "worker": ("service_failed", workers)}
        assert lost[who][0] in lost[who][1].log
    assert_all_is_well(forwarding, producer.stop())
    assert forwarding.database.value("select coalesce(max(crashes), 0) from forwarded_messages") == 0


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
