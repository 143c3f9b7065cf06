"""RabbitMQ lacks what is needed, or refuses what it has taken before: it is named, nothing is lost, and
what runs goes on when it is right again.
"""

from __future__ import annotations

import pytest

from tests.rabbit.forwarding import Forwarding
from tests.support.accounting import effects
from tests.support.rabbitmq import Node
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def forwarding(database, ledger, vhost, start_daemon):
    forwarding = Forwarding(database, ledger, vhost.url, start_daemon)
    forwarding.forward()
    return forwarding


def running(forwarding):
    relay, workers = forwarding.relay(), forwarding.workers()
    relay.wait_ready()
    effects(forwarding.database, 20, "before")
    forwarding.wait_handled([f"before{n}" for n in range(20)])
    return relay, workers


def test_a_missing_plugin_is_named_with_the_command_that_helps(rabbit_place, database, forwarding):
    bare = Node(rabbit_place, "bare", plugins=())
    try:
        bare.start().wait_ready()
        forwarding.url = bare.url()
        effects(database, 1)
        for command, options in [("relay", ()), ("worker", ("--broker", "amqp"))]:
            actors = "tests.support.forwarded_actors" if command == "worker" else ""
            daemon = forwarding.start(command, actors, options)
            assert daemon.process.wait(30) == 2, daemon.log
            assert "rabbitmq-plugins enable rabbitmq_consistent_hash_exchange" in daemon.log
        assert database.query("select state, attempt from message_queue") == [("pending", 0)]
    finally:
        bare.close()


def test_a_vhost_that_is_deleted_and_made_again_is_declared_again(rabbit, vhost, database, forwarding):
    relay, workers = running(forwarding)
    rabbit.delete_vhost(vhost.name)
    wait_until(lambda: "unavailable" in relay.log, message="the relay says so")
    effects(database, 50)
    assert database.value("select count(*) from message_queue where crashes > 0 or attempt > 1") == 0
    rabbit.add_vhost(vhost.name)
    forwarding.wait_handled([f"m{n}" for n in range(50)])
    assert (relay.process.poll(), workers.process.poll()) == (None, None)
    assert forwarding.duplicates() == set()
    forwarding.stop()


def test_a_password_that_is_changed_is_waited_for(rabbit, vhost, database, forwarding):
    rabbit.do('rabbit_auth_backend_internal:add_user(<<"lender">>, <<"old-word">>, <<"tests">>)')
    rabbit.grant(vhost.name, "lender")
    forwarding.url = rabbit.url(vhost.name, "lender:old-word@")
    relay, workers = running(forwarding)
    rabbit.do('rabbit_auth_backend_internal:change_password(<<"lender">>, <<"new-word">>, <<"tests">>)')
    rabbit.do('rabbit_networking:close_connections(rabbit_networking:connections(), <<"changed">>)')
    wait_until(lambda: "refuses user or password" in relay.log, message="the relay says so")
    wait_until(lambda: "refuses user or password" in workers.log, message="the workers say so")
    effects(database, 50)
    rabbit.do('rabbit_auth_backend_internal:change_password(<<"lender">>, <<"old-word">>, <<"tests">>)')
    forwarding.wait_handled([f"m{n}" for n in range(50)])
    assert (relay.process.poll(), workers.process.poll()) == (None, None)
    assert forwarding.duplicates() == set()
    assert "old-word" not in relay.log + workers.log
    forwarding.stop()
