"""RetryAfter and the failure breaker, on both ways to run the broker (SPEC W10, Q8d)."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq.results import ResultTimeout

import packhorse
from tests.support.harness import House
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.one_database]


@pytest.fixture(params=["dramatiq-worker", "runtime"])
def house(request, database, monkeypatch):
    house = House(request.param, database, monkeypatch, threads=2).with_results()
    yield house
    house.stop()


def states(database):
    return {
        row[0]: row[1:]
        for row in database.query("select payload ->> 'key', state, attempt from all_messages")
    }


def parked(database, scope):
    return database.value("select count(*) from parked_scopes where scope = %s", scope) == 1


def test_one_message_that_is_told_to_wait_lets_the_others_of_its_service_wait(house, database):
    calls = []

    @dramatiq.actor(services=["api"])
    def ask(key):
        calls.append(key)
        if len(calls) == 1:
            raise packhorse.RetryAfter(3600, reason="429")

    @dramatiq.actor
    def other(key):
        calls.append(key)

    house.start()
    ask.send("first")
    wait_until(lambda: parked(database, "api"), 10)
    ask.send("second")
    other.send("third")
    wait_until(lambda: "third" in calls, 10)
    assert calls == ["first", "third"]
    assert database.value("select reason from parked_scopes") == "429"
    database.query("select lift_scope('api')")
    house.drained()
    assert states(database) == {"first": ("done", 1), "second": ("done", 1), "third": ("done", 1)}


def test_what_a_transactional_handler_wrote_is_rolled_back(house, database):
    database.query("create table if not exists public.effects (key text)")
    database.query("grant insert on public.effects to public")
    calls = []

    @dramatiq.actor(transactional=True)
    def ask(key):
        calls.append(key)
        if house.name == "runtime":
            packhorse.current_connection().execute("insert into public.effects (key) values (%s)", (key,))
        if len(calls) == 1:
            raise packhorse.RetryAfter(0.1, "api")

    house.start()
    ask.send("k")
    house.drained()
    assert len(calls) == 2
    if house.name == "runtime":  # dramatiq's Worker knows no transactional handlers
        assert database.value("select count(*) from public.effects") == 1
    assert states(database) == {"k": ("done", 1)}


def test_to_be_told_to_wait_is_no_failure_to_callbacks(house):
    calls, told = [], []

    @dramatiq.actor
    def sad(data, error):
        told.append(error)

    @dramatiq.actor
    def ask(key):
        calls.append(key)
        if len(calls) == 1:
            raise packhorse.RetryAfter(0.1, "api")

    house.start()
    ask.send_with_options(args=("k",), on_failure="sad")
    house.drained()
    assert told == [] and len(calls) == 2


def test_a_last_attempt_that_rests_is_no_failure_to_who_waits_for_the_result(house, database):
    calls = []

    @dramatiq.actor(store_results=True, max_retries=0, failure_breaker=1)
    def ask(key):
        calls.append(key)
        if len(calls) == 1:
            raise ConnectionError("no answer")
        return "well"

    house.start()
    message = ask.send("k")
    wait_until(lambda: parked(database, "actor:ask"), 10)
    with pytest.raises(ResultTimeout):
        message.get_result(backend=house.results, block=True, timeout=300)
    assert message.get_result(backend=house.results, block=True, timeout=20_000) == "well"
    house.drained()
    assert states(database) == {"k": ("done", 1)}
    assert not parked(database, "actor:ask"), "its probe has succeeded"


def test_an_error_that_no_retry_helps_rests_too(house, database):
    calls = []

    @dramatiq.actor(throws=(PermissionError,), failure_breaker=2)
    def ask(key):
        calls.append(key)
        if len(calls) <= 3:
            raise PermissionError("the key is revoked")

    house.start()
    ask.send("first")
    wait_until(lambda: states(database)["first"][0] == "dead", 10)
    ask.send("second")
    house.drained(30)
    assert states(database) == {"first": ("dead", 1), "second": ("done", 1)}


@pytest.mark.parametrize(
    ("seconds", "scope", "error"),
    [
        ("5", None, TypeError),
        (True, None, TypeError),
        (None, None, TypeError),
        (float("nan"), None, ValueError),
        (-0.1, None, ValueError),
        (float("inf"), None, ValueError),
        (1, "", ValueError),
        (1, "x" * 201, ValueError),
        (1, 7, TypeError),
    ],
)
def test_nonsense_is_refused_where_it_stands(seconds, scope, error):
    with pytest.raises(error, match=r"RetryAfter: (seconds|scope) must"):
        packhorse.RetryAfter(seconds, scope)


def test_a_long_pause_counts_as_a_day():
    assert packhorse.RetryAfter(1e300, "x" * 200).seconds == 86_400


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("services", [1]),
        ("services", [""]),
        ("services", ["x" * 201]),
        ("services", 7),
        ("failure_breaker", 0),
        ("failure_breaker", "5"),
        ("failure_breaker", True),
        ("failure_breaker", 10**7),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_when_the_actor_is_declared(house, option, value):
    with pytest.raises(packhorse.InvalidArgument) as refused:
        dramatiq.actor(actor_name="odd", **{option: value})(lambda key: None)
    assert refused.value.field == option
