"""P3: a handler's effects in the same database and the completion of its message are one transaction."""

from __future__ import annotations

import random

import pytest

from tests.support.accounting import (
    assert_every_message_ended_once,
    effects,
    enqueue,
    quick_backoff,
    wait_for_end,
)
from tests.support.postgres import ROLE
from tests.support.waiting import wait_until


@pytest.fixture
def table(database):
    """Effects in the same database: without a unique constraint, so that a second one would stand there."""
    database.query(
        "create table effects (key text not null); grant select, insert on effects to packhorse_worker"
    )
    return database


@pytest.mark.slow
def test_effects_in_the_same_database_happen_exactly_once_under_kills(table, ledger, start_daemon):
    quick_backoff(table, crash_limit=1000)
    daemon = start_daemon(table, ledger, processes=2, threads=4).wait_ready(2)
    ids = []
    chance = random.Random(3)
    for number in range(6):
        # before they are there: on a busy machine they may have started when this goes on
        before = len(ledger.lines("start"))
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
    assert sorted(table.query("select key, count(*) from effects group by key")) == sorted(
        (f"m{n}", 1) for n in range(20)
    )
    assert table.query("select distinct state, attempt from all_messages") == [("done", 2)]
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["idle", "slow"])
def test_a_limit_that_a_transaction_hits_each_time_spends_attempts(database, ledger, start_daemon, kind):
    """It once ran for ever: a cut connection was nobody's fault."""
    quick_backoff(database)
    database.query(
        f"alter role {ROLE} in database {database.name} set idle_in_transaction_session_timeout = '1s'"
    )
    database.query(
        "create table slow_commits (id int); grant all on slow_commits to public;"
        " create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(4); return null; end';"
        " create constraint trigger slow after insert on slow_commits deferrable initially deferred for each row execute function slow()"
    )
    daemon = start_daemon(database, ledger, threads=2, call_deadline_seconds=2, lease_seconds=20).wait_ready()
    enqueue(database, [{"message_type": "ends_late", "payload": {"key": kind, "kind": kind}}])
    wait_for_end(database, 60)
    assert database.query("select state, attempt from all_messages") == [("dead", 2)]
    assert ledger.counts("start")[kind] == 2
    assert daemon.stop() == 0
