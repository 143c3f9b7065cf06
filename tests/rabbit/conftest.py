"""RabbitMQ for the tests of this folder: one node for the whole session, and in it a fresh vhost per test."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.harness import quick_settings
from tests.support.rabbitmq import PROGRAM, Cluster, Node, Place
from tests.support.relaying import forward

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Vhost:
    """A virtual host of one test. A URL without credentials means `guest`, who may do everything."""

    node: Node
    name: str
    cluster: Cluster | None = None  # its URL then has all nodes of it

    @property
    def url(self) -> str:
        return (self.cluster or self.node).url(self.name)

    def depths(self) -> dict[str, int]:
        """Messages by quorum queue, ready and delivered; without the empty ones."""
        listed = self.node.ask(
            f'[{{N, M}} || Q <- rabbit_amqqueue:list(<<"{self.name}">>), {{resource, _, _, N}} <- [amqqueue:get_name(Q)], '
            "{ok, {_, M}, _} <- [ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_total/1)], M > 0]"
        )
        return {name: int(count) for name, count in re.findall(r'\{<<"([^"]+)">>,\s*(\d+)\}', listed)}


@pytest.fixture(scope="session")
def rabbit_place() -> Iterator[Place]:
    if PROGRAM is None:
        pytest.skip("RabbitMQ is not installed (Debian: apt-get install rabbitmq-server)")
    place = Place()
    yield place
    place.close()


@pytest.fixture(scope="session")
def rabbit(rabbit_place: Place) -> Iterator[Node]:
    """One node, shared by the session: do not stop it, and take its alarms back (see own_rabbit)."""
    node = Node(rabbit_place)
    try:
        yield node.start().wait_ready()
    finally:
        node.close()


@pytest.fixture
def own_rabbit(rabbit_place: Place) -> Iterator[Node]:
    """A node for one test that stops, kills or freezes it."""
    node = Node(rabbit_place, f"own{next(_numbers)}")
    try:
        yield node.start().wait_ready()
    finally:
        node.close()


@pytest.fixture
def vhost(rabbit: Node) -> Iterator[Vhost]:
    """A fresh virtual host on the shared node."""
    vhost = Vhost(rabbit, f"test{next(_numbers)}")
    rabbit.add_vhost(vhost.name)
    yield vhost
    rabbit.delete_vhost(vhost.name)


@pytest.fixture(scope="session")
def running_cluster(rabbit_place: Place) -> Iterator[Cluster]:
    cluster = Cluster(rabbit_place)
    try:
        yield cluster.start()
    finally:
        cluster.close()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """Three nodes, shared by the session. A test may do anything to one and leaves them as it likes: they are
    whole again after it.
    """
    yield running_cluster
    for node in running_cluster.nodes:
        node.revive()
    for node in running_cluster.nodes:
        running_cluster.join_again(node)
    running_cluster.wait_whole()


@pytest.fixture
def cluster_vhost(cluster: Cluster) -> Iterator[Vhost]:
    """A fresh virtual host of the cluster; its URL names all three nodes."""
    vhost = Vhost(cluster.nodes[0], f"test{next(_numbers)}", cluster)
    cluster.nodes[0].add_vhost(vhost.name)
    yield vhost


# -- workers on the shared node --------------------------------------------------------------------
@pytest.fixture
def amqp(database, vhost):
    """Settings of a relay, with a forwarded queue."""
    forward(database)
    return quick_settings(database, amqp_url=vhost.url, amqp_partitions=4)


@pytest.fixture
def start_worker(database, ledger, vhost, start_daemon):
    def start(where=None, **settings):
        given = {"amqp_url": vhost.url, "amqp_partitions": 4, "drain_seconds": 5, **settings}
        return start_daemon(
            where or database,
            ledger,
            actors="tests.support.relayed_actors",
            options=("--broker", "amqp"),
            **given,
        ).wait_ready()

    return start
