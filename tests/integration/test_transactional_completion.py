"""A transactional handler that has returned is not to blame for what keeps its completion from being written
(SPEC P3, P5).
"""

from __future__ import annotations

import logging

import dramatiq
import pytest

from packhorse import current_connection, current_message
from packhorse.worker.attempt.middleware import retries
from tests.support.harness import House
from tests.support.postgres import Database
from tests.support.waiting import wait_until


@pytest.fixture
def house(database: Database, monkeypatch):
    monkeypatch.setattr(retries, "COMMIT_AGAIN_SECONDS", 0.1)
    database.query("create table effects (attempt integer, key integer unique deferrable initially deferred)")
    database.query("grant all on effects to public")
    house = House("runtime", database, monkeypatch)
    yield house
    house.stop()


def actor_that(first_run, runs, heard):
    """Writes its effect; its first run ends with `first_run`."""

    @dramatiq.actor
    def failed(message, error):
        heard.append(error)

    @dramatiq.actor(transactional=True, max_attempts=1, on_failure="failed")
    def effect():
        runs.append(current_message().attempt)
        current_connection().execute(
            "insert into effects (attempt) values (%s)", (current_message().attempt,)
        )
        if len(runs) == 1:
            first_run()

    return effect


def assert_it_ran_again_as_if_for_the_first_time(database, runs, heard):
    assert database.query("select state, attempt, crashes from all_messages") == [("done", 1, 0)]
    assert runs == [1, 1] and heard == []
    assert database.query("select attempt from effects") == [(1,)]


@pytest.mark.slow
def test_a_row_that_somebody_locks_costs_a_transactional_handler_no_attempt(database, house, caplog):
    """Its effects were rolled back, and its only attempt was spent: a dead letter for somebody else's
    lock.
    """
    runs, heard = [], []
    with database.connect(admin=True) as other:

        def lock():
            other.execute("begin")
            other.execute("select from message_queue for update")

        effect = actor_that(lock, runs, heard)
        with caplog.at_level(logging.WARNING):
            house.start()
            effect.send()
            wait_until(lambda: "outcome_waits" in caplog.text, 10, "the fetcher, too, waits for the lock")
        other.execute("rollback")
        house.drained()
    assert_it_ran_again_as_if_for_the_first_time(database, runs, heard)


def test_a_connection_cut_before_the_commit_costs_a_transactional_handler_no_attempt(database, house):
    runs, heard = [], []
    cut = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'"
    effect = actor_that(lambda: database.query(cut), runs, heard)
    house.start()
    effect.send()
    house.drained()
    assert_it_ran_again_as_if_for_the_first_time(database, runs, heard)


def test_a_commit_that_a_constraint_of_the_handler_refuses_is_its_failure(database, house):
    """Else it would run for ever."""

    @dramatiq.actor(transactional=True, max_attempts=1)
    def twice():
        current_connection().execute("insert into effects (key) values (1), (1)")

    house.start()
    twice.send()
    house.drained()
    assert database.query("select state, error_class from all_messages") == [("dead", "StoreConflict")]
    assert database.query("select count(*) from effects") == [(0,)]
