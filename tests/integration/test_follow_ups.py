"""What follows a message is sent at least once: the next stage of its pipeline, its success callback (SPEC
P1, P3, W1).
"""

from __future__ import annotations

import dramatiq
import pytest

import packhorse
from packhorse.worker.attempt.middleware import follow_ups
from tests.support.accounting import quick_backoff
from tests.support.databases import emptied
from tests.support.harness import WAYS, House


@pytest.fixture
def database(one_database):
    database = emptied(one_database)
    database.query("drop table if exists effects")
    database.query(
        "create table effects (key text not null); grant select, insert on effects to packhorse_worker"
    )
    quick_backoff(database)
    return database


@pytest.fixture(params=WAYS)
def house(request, database, monkeypatch):
    monkeypatch.setattr(follow_ups, "AGAIN_SECONDS", 0.1)
    house = House(request.param, database, monkeypatch)
    yield house
    house.stop()


@pytest.mark.parametrize("kind", ["pipeline", "callback", "both"])
@pytest.mark.slow
def test_a_connection_cut_after_the_handler_ends_no_chain(house, database, kind):
    """A failover: the idle connection on which the next message would go out is gone."""
    seen = []

    @dramatiq.actor
    def first():
        seen.append("first")
        if len(seen) == 1:
            database.query(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'packhorse enqueue'"
            )
        return "result"

    @dramatiq.actor
    def second(*given):
        seen.append(given[-1])

    message = first.message_with_options(
        max_attempts=1, **{} if kind == "pipeline" else {"on_success": "second"}
    )
    house.broker.enqueue(message) if kind == "callback" else (message | second.message()).run()
    house.start().drained()
    assert seen == ["first", "first", *["result"] * (2 if kind == "both" else 1)], (
        "nothing is sent by an attempt that did not send all"
    )
    assert house.dead() == []


NOWHERE = dramatiq.Message(queue_name="nowhere", actor_name="nobody", args=(), kwargs={}, options={})


def test_what_can_never_be_sent_is_a_failure(house, database):
    @dramatiq.actor
    def first():
        pass

    (first.message_with_options(max_attempts=2) | NOWHERE).run()
    house.start().drained()
    assert database.query("select reason, error_class, attempt from dead_letters") == [
        ("failed", "UnknownQueue", 2)
    ]


def test_the_next_stage_of_a_transactional_handler_commits_with_its_effects(database, monkeypatch):
    house = House("runtime", database, monkeypatch)
    seen = []

    @dramatiq.actor(transactional=True)
    def first(key):
        packhorse.current_connection().execute("insert into effects (key) values (%s)", (key,))
        return key

    @dramatiq.actor
    def second(key):
        seen.append((key, database.query("select key from effects")))

    (first.message("good") | second.message()).run()
    (first.message_with_options(args=("bad",), max_attempts=1) | NOWHERE).run()
    try:
        house.start().drained()
    finally:
        house.stop()
    assert seen == [("good", [("good",)])]
    assert database.query("select payload -> 'key', error_class from dead_letters") == [
        ("bad", "UnknownQueue")
    ]


def test_a_snooze_is_no_failure_to_callbacks(house):
    told = []

    @dramatiq.actor
    def sad(message, error):
        told.append(error["type"])

    @dramatiq.actor(max_retries=0)
    def act(kind):
        if kind == "snooze" and not told:
            told.append("snoozed")
            raise packhorse.Snooze(0.05)
        if kind == "fail":
            raise ValueError

    act.send_with_options(args=("snooze",), on_failure="sad")
    house.start().drained()
    assert told == ["snoozed"]
    act.send_with_options(args=("fail",), on_failure="sad")
    house.drained()
    assert told == ["snoozed", "ValueError"]
