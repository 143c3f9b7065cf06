"""P3: a handler's effects in the same database and the completion of its message are one transaction."""

from __future__ import annotations

import random

import pytest

from tests.support.accounting import assert_every_message_ended_once, effects, quick_backoff, wait_for_end
from tests.support.waiting import wait_until


@pytest.fixture
def table(database):
    """Effects in the same database: without a unique constraint, so that a second one would stand there."""
    database.query("create table effects (key text not null); grant select, insert on effects to packhorse_worker")
    return database


@pytest.mark.slow
def test_effects_in_the_same_database_happen_exactly_once_under_kills(table, ledger, start_daemon):
    quick_backoff(table, crash_limit=1000)
    daemon = start_daemon(table, ledger, processes=2, threads=4).wait_ready(2)
    ids = []
    chance = random.Random(3)
    for number in range(6):
        before = len(ledger.lines("start"))  # before they are there: on a busy machine they may have started when this goes on
        ids += effects(table, 80, f"r{number}-", "transactional")
        ids += effects(table, 10, f"f{number}-", "transactional", fail=True)
        wait_until(lambda before=before: len(ledger.lines("start")) > before + 20, 30)
        daemon.kill_child(chance)
    wait_for_end(table)
    states = assert_every_message_ended_once(table, ids)
    assert set(states.values()) == {"done"}
    assert table.value("select count(*) from effects") == len(ids)
    assert table.value("select count(distinct key) from effects") == len(ids)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_failed_attempt_leaves_no_effect_behind(table, ledger, start_daemon):
    quick_backoff(table)
    daemon = start_daemon(table, ledger).wait_ready()
    effects(table, 20, "m", "transactional", fail=True)
    wait_for_end(table, 30)
    assert ledger.counts("start") == {f"m{n}": 2 for n in range(20)}
    assert sorted(table.query("select key, count(*) from effects group by key")) == sorted((f"m{n}", 1) for n in range(20))
    assert table.query("select distinct state, attempt from all_messages") == [("done", 2)]
    assert daemon.stop() == 0
