"""W4: a coroutine that blocks its event loop past its hard limit. dramatiq's AsyncIO then waits for the loop
at the stop, for ever.
"""

from __future__ import annotations

import pytest

from tests.support.accounting import effects, enqueue
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

ACTORS = """
import time

import dramatiq
from dramatiq.middleware import AsyncIO

from tests.support.notes import note
from packhorse import PostgresBroker

broker = PostgresBroker()
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="default", actor_name="effect")
def effect(key):
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="blocking", time_limit=300, hard_time_limit=300)
async def blocking(key):
    note("start", key)
    time.sleep(3600)
"""


@pytest.mark.slow
def test_its_process_is_replaced_and_nobody_runs_it_twice(database, ledger, start_daemon, tmp_path):
    (tmp_path / "async_actors.py").write_text(ACTORS)
    paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    daemon = start_daemon(database, ledger, "async_actors", paths, threads=2, lease_seconds=4).wait_ready()
    (stuck,) = daemon.children()
    enqueue(database, [{"message_type": "blocking", "payload": {"key": "s0"}, "max_attempts": 1}])
    wait_until(lambda: database.query("select state from all_messages") == [("dead",)], 30)
    assert stuck not in daemon.children(), "its process was gone before"
    effects(database, 1, "m")
    wait_until(lambda: ledger.counts("effect")["m0"] == 1)
    assert ledger.counts("start") == {"s0": 1}
    assert daemon.stop() == 0
