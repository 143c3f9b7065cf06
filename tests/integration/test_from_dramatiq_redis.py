"""Each line of docs/from-dramatiq-redis.md (SPEC W1)."""

from __future__ import annotations

import re
from pathlib import Path

import dramatiq
import pytest
from dramatiq.encoder import JSONEncoder
from dramatiq.middleware import Middleware
from dramatiq.results import ResultFailure

from packhorse import InvalidArgument, PostgresBroker
from packhorse.worker.config import Settings
from packhorse.worker.store.json_text import MAX_PAYLOAD_BYTES
from tests.support.harness import House
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "from-dramatiq-redis.md").read_text()
FILES = ("test_from_dramatiq_redis.py", "test_dramatiq_contract.py", "test_broker_options.py")
TOO_LONG = "x" * MAX_PAYLOAD_BYTES


@pytest.fixture
def house(database, monkeypatch):
    house = House("runtime", database, monkeypatch)
    yield house
    house.stop()


def test_every_line_of_the_page_names_a_test_that_exists():
    known = {
        name
        for file in FILES
        for name in re.findall(r"^def (test_\w+)", (HERE / file).read_text(), re.MULTILINE)
    }
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and "shown by" not in line]
    assert (
        len(lines) > 25
        and [line for line in lines if not set(re.findall(r"`(test_\w+)` \|$", line)) & known] == []
    )
    assert set(re.findall(r"`(test_\w+)`", PAGE)) <= known


def test_defaults_are_as_the_page_says(database):
    assert Settings().time_limit_seconds == 30
    found = database.query(
        "select max_attempts, backoff_initial::text, backoff_max::text from queues where name = 'default'"
    )
    assert found in ([], [(3, "00:00:01", "00:00:30")])


def test_arguments_arrive_by_name(house):
    seen = []

    class Look(Middleware):
        def before_process_message(self, broker, message):
            seen.append((message.args, message.kwargs))

    house.broker.add_middleware(Look())

    @dramatiq.actor
    def keep(a, b):
        pass

    house.start()
    keep.send(1, b=2)
    house.drained()
    assert seen == [((), {"a": 1, "b": 2})]


def test_hooks_that_have_no_occasion_here_are_not_called(house):
    called = []

    class Hooks(Middleware):
        @property
        def forks(self):
            called.append("forks")
            return []

        def before_enqueue(self, broker, message, delay):
            called.append("before_enqueue")

        def after_enqueue(self, broker, message, delay):
            called.append("after_enqueue")

        def before_delay_message(self, broker, message):
            called.append("before_delay_message")

        def after_consumer_thread_boot(self, broker, thread):
            called.append("consumer")

    house.broker.add_middleware(Hooks())

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
    def fails():
        raise RuntimeError("no")

    house.start()
    fails.send()
    wait_until(lambda: house.dead() == ["fails"])
    assert called == ["before_enqueue", "after_enqueue", "before_delay_message"]


def test_the_option_eta_is_refused_by_name(house):
    @dramatiq.actor
    def keep():
        pass

    with pytest.raises(InvalidArgument, match="'run_at'"):
        house.broker.enqueue(keep.message().copy(options={"eta": 2**42}))


def test_what_jsonb_changes(house):
    seen = {}

    @dramatiq.actor
    def keep(name, value):
        seen[name] = value

    house.start()
    sent = {
        "order": {"z": 1, "long": 2, "a": 3},
        "large": 1e22,
        "nought": -0.0,
        "one": 1.0,
        "tenth": 0.1,
        "small": 1e-7,
        "digits": 10**400,
    }
    for name, value in sent.items():
        keep.send(name, value)
    house.drained()
    assert list(seen["order"]) == ["a", "z", "long"] and seen["order"] == sent["order"]
    assert seen["large"] == 10**22 and type(seen["large"]) is int
    assert str(seen["nought"]) == "0.0"
    for name in ("one", "tenth", "small", "digits"):
        assert seen[name] == sent[name] and type(seen[name]) is type(sent[name])


@pytest.mark.parametrize(
    ("arguments", "field", "options"),
    [
        ((float("nan"),), "payload", {}),
        ((float("inf"),), "payload", {}),
        (("a\0b",), "payload", {}),
        (("\ud800",), "payload", {}),
        ((TOO_LONG,), "payload", {}),
        ((1,), "options", {"note": TOO_LONG}),
        ((1, 2), "args", {}),
        ((), "value", {}),
        ((1,), "other", {"kwargs": {"other": 2}}),
        ((1,), "conversation_kye", {"conversation_kye": "c"}),
        ((1,), "delay", {"delay": -1}),
        ((1,), "delay", {"delay": 11 * 366 * 86_400_000}),
        ((1,), "max_retries", {"max_retries": "many"}),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "backslashreplace").decode(),
)
def test_what_send_refuses_that_redis_takes(database, monkeypatch, arguments, field, options):
    broker = PostgresBroker(database.url)
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)

    @dramatiq.actor
    def keep(value):
        pass

    given = dict(options)
    kwargs, delay = given.pop("kwargs", {}), given.pop("delay", None)
    assert JSONEncoder().encode(keep.message_with_options(args=arguments, kwargs=kwargs, **given).asdict())
    with pytest.raises(InvalidArgument) as caught:
        keep.send_with_options(args=arguments, kwargs=kwargs, delay=delay, **given)
    assert caught.value.field == field
    assert database.value("select count(*) from message_queue") == 0
    broker.close()


@pytest.mark.parametrize(
    "options",
    [{"actor_name": "my actor"}, {"actor_name": "ä"}, {"actor_name": "x" * 101}, {"queue_name": "q" * 101}],
)
def test_names_that_are_refused(database, monkeypatch, options):
    broker = PostgresBroker(database.url)
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    with pytest.raises(ValueError if "actor_name" in options else InvalidArgument):

        @dramatiq.actor(**options)
        def keep():
            pass

        keep.send()
    broker.close()


def test_what_results_refuse(house):
    house.with_results()
    values = {
        "nan": float("nan"),
        "infinity": float("inf"),
        "nul": "a\0b",
        "half": "\ud800",
        "long": TOO_LONG,
        "set": {1},
    }

    @dramatiq.actor(store_results=True, max_retries=5)
    def give(name):
        return values[name]

    house.start()
    sent = [give.send(name) for name in values]
    for message in sent:
        with pytest.raises(ResultFailure):
            message.get_result(backend=house.results, block=True, timeout=10_000)
    house.drained()
    assert house.database.query("select reason, attempt, error_class from dead_letters") == [
        ("rejected", 1, "InvalidArgument")
    ] * len(values)
