"""Options beyond dramatiq's, and our outcomes, on both ways to run the broker (SPEC Q5, W1, W1b)."""

from __future__ import annotations

import threading
import time
from uuid import UUID

import dramatiq
import psycopg
import pytest
from dramatiq.middleware import Middleware
from dramatiq.middleware import Retries as StockRetries

import packhorse
from packhorse.worker.errors import WorkflowError
from tests.support.calendar import days_to_another_offset
from tests.support.harness import WAYS, House, quick_settings
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


@pytest.fixture(params=WAYS)
def house(request, database, monkeypatch):
    house = House(request.param, database, monkeypatch, threads=1)
    yield house
    house.stop()


def _states(database):
    return {
        row[0]: row[1:]
        for row in database.query("select payload ->> 'key', state, reason, attempt from all_messages")
    }


def test_priorities_decide_among_waiting_messages(house):
    order = []

    @dramatiq.actor
    def note(key):
        order.append(key)

    @packhorse.actor(priority=2)
    def urgent(key):
        order.append(key)

    for number in range(3):
        note.send_with_options(args=(f"late{number}",), priority=9)
    for number in range(3):
        note.send(f"usual{number}")
    urgent.send("by actor")
    note.send_with_options(args=("first",), priority=1)
    house.start()
    house.drained()
    wanted = ["first", "by actor", "usual0", "usual1", "usual2", "late0", "late1", "late2"]
    if house.name == "runtime":
        assert order == wanted
    else:  # dramatiq's Worker sorts what it has prefetched once more, by the actor's priority
        assert (
            set(order[:2]) == {"first", "by actor"}
            and sorted(order) == sorted(wanted)
            and order[-3:] == wanted[-3:]
        )


def test_outcomes_end_a_message_as_they_say(house):
    tries = []

    @dramatiq.actor(max_retries=5, min_backoff=10, max_backoff=20)
    def ends(key):
        tries.append(key)
        if key == "snooze" and tries.count(key) <= 4:
            raise packhorse.Snooze(0.01, "not yet")
        if key == "cancel":
            raise packhorse.Cancel("nobody wants it")
        if key == "bury":
            raise packhorse.Bury("hopeless")
        if key == "retry" and tries.count(key) == 1:
            raise packhorse.Retry(0.01)

    house.start()
    for key in ("snooze", "cancel", "bury", "retry"):
        ends.send(key)
    house.drained()
    states = _states(house.database)
    assert states["snooze"] == ("done", None, 1), "a snooze spends no attempt"
    assert states["cancel"] == ("cancelled", "nobody wants it", 1)
    assert states["bury"] == ("dead", "buried", 1)
    assert states["retry"] == ("done", None, 2)
    assert tries.count("snooze") == 5 and tries.count("retry") == 2


def test_an_error_that_is_not_retryable_is_dead_at_once(house):
    @dramatiq.actor(max_retries=5)
    def fails(key):
        raise WorkflowError("the account is closed", retryable=False)

    house.start()
    fails.send("k")
    wait_until(lambda: house.dead() == ["fails"])
    assert _states(house.database)["k"] == ("dead", "rejected", 1)


def test_backoff_is_within_min_and_max(house):
    @dramatiq.actor(max_retries=10, min_backoff=40_000, max_backoff=70_000)
    def fails(key):
        raise RuntimeError("no")

    house.start()
    fails.send("k")
    delay = wait_until(
        lambda: [
            row[0]
            for row in house.database.query(
                "select extract(epoch from run_at - clock_timestamp())::float8 from message_queue where state = 'pending' and attempt = 1"
            )
        ]
    )
    assert 30 < delay[0] <= 40
    house.database.query("update message_queue set run_at = clock_timestamp(), attempt = 7")
    delay = wait_until(
        lambda: [
            row[0]
            for row in house.database.query(
                "select extract(epoch from run_at - clock_timestamp())::float8 from message_queue where state = 'pending' and attempt = 8"
            )
        ]
    )
    assert 60 < delay[0] <= 70


def test_the_queues_policy_decides_what_an_actor_leaves_open(house):
    @dramatiq.actor
    def fails(key):
        raise RuntimeError("no")

    house.broker.close()
    house.database.query(
        """select set_queue('default', '{"max_attempts": 2, "backoff_initial": "10 milliseconds"}')"""
    )
    house.start()
    fails.send("k")
    wait_until(lambda: house.dead() == ["fails"])
    assert _states(house.database)["k"] == ("dead", "failed", 2)


def test_a_message_past_its_age_is_cancelled_and_never_runs(house):
    ran = []

    @dramatiq.actor(max_age=30)
    def note(key):
        ran.append(key)

    note.send("old")
    time.sleep(0.05)  # the age itself is what is tested
    house.start()
    wait_until(lambda: _states(house.database).get("old", ("",))[0] == "cancelled")
    assert _states(house.database)["old"] == ("cancelled", "expired", 0)
    assert ran == []


def test_an_alias_runs_the_renamed_actor(house):
    ran = []

    @dramatiq.actor(actor_name="new_name", aliases=["old_name"])
    def note(key):
        ran.append((key, packhorse.current_message().actor_name))

    house.start()
    house.database.query("""select enqueue_message('default', 'old_name', '{"key": "a"}')""")
    note.send("b")
    house.drained()
    assert sorted(ran) == [("a", "old_name"), ("b", "new_name")]


def test_an_alias_keeps_the_actors_retry_policy(house):
    """A policy of `throws` and `max_retries` is the actor's, whatever name the message came under."""

    @dramatiq.actor(aliases=["old_throws"], throws=(KeyError,))
    def throws(key):
        raise KeyError(key)

    @dramatiq.actor(aliases=["old_fails"], max_retries=0)
    def fails(key):
        raise RuntimeError(key)

    for name in ("old_throws", "old_fails"):
        house.database.query(
            "select enqueue_message('default', %s, jsonb_build_object('key', %s::text))", name, name
        )
    house.start()
    house.drained()
    assert house.database.query("select message_type, reason, attempt from dead_letters order by 1") == [
        ("old_fails", "failed", 1),
        ("old_throws", "rejected", 1),
    ]


@pytest.mark.parametrize("limit", ['"soon"', "1e999", "-1", "true", "{}"])
@pytest.mark.slow
def test_no_message_switches_its_time_limit_off(database, monkeypatch, limit):
    house = House("runtime", database, monkeypatch, threads=1)

    @dramatiq.actor(time_limit=100)
    def slow(key):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.01)

    house.database.query(
        "select enqueue_message('default', 'slow', '{\"key\": \"a\"}', %s, p_max_attempts => 1)",
        f'{{"time_limit": {limit}}}',
    )
    house.start()
    try:
        house.drained()
    finally:
        house.stop()
    assert house.database.query("select error_class from dead_letters") == [("TimeLimitExceeded",)]


def test_types_that_nobody_here_registers_are_left_to_others(house):
    @dramatiq.actor
    def known(key):
        pass

    house.start()
    house.database.query("""select enqueue_message('default', 'somebody_elses', '{"key": "other"}')""")
    known.send("mine")
    wait_until(lambda: _states(house.database)["mine"][0] == "done")
    assert _states(house.database)["other"] == ("pending", None, 0)


def test_messages_sent_by_a_handler_carry_its_correlation_id(house):
    seen = []

    @dramatiq.actor
    def second(key):
        seen.append(packhorse.correlation_id())

    @dramatiq.actor
    def first(key):
        seen.append(packhorse.correlation_id())
        second.send(key)

    house.start()
    first.send_with_options(args=("k",), correlation_id="corr-7")
    wait_until(lambda: len(seen) == 2)
    assert seen == ["corr-7", "corr-7"]


def test_what_a_handler_enqueues_inherits_the_correlation_id_that_the_database_made(house):
    seen = []

    @dramatiq.actor
    def second(key):
        seen.append((key, packhorse.correlation_id()))

    @dramatiq.actor
    def first(key):
        seen.append((key, packhorse.correlation_id()))
        second.send("sent")
        house.broker.enqueue_many([second.message("bulk"), second.message("bulk")])
        with psycopg.connect(house.database.url) as connection:
            packhorse.enqueue(connection, "second", {"key": "enqueued"})
            packhorse.enqueue_payloads(connection, "second", [{"key": "payload"}])

    house.start()
    first.send("first")
    second.send("apart")
    house.broker.enqueue_many([second.message("apart"), second.message("apart")])
    house.broker.enqueue_many(
        [second.message_with_options(args=("apart",), priority=priority) for priority in (4, 6)]
    )
    wait_until(lambda: len(seen) == 11)
    by_key = {key: {made for name, made in seen if name == key} for key, _ in seen}
    inherited = by_key["first"]
    assert len({str(UUID(made)) for made in inherited}) == 1
    assert by_key["sent"] == by_key["bulk"] == by_key["enqueued"] == by_key["payload"] == inherited
    assert len({UUID(made) for made in by_key["apart"] - inherited}) == 3, "one per call"


def test_a_dedup_key_makes_the_second_send_a_no_op(house):
    ran = []

    @dramatiq.actor
    def note(key):
        ran.append(key)

    for key in ("one", "two"):
        note.send_with_options(args=(key,), dedup_key="same")
    house.start()
    house.drained()
    assert ran == ["one"]


def test_a_conversation_stays_in_order_through_bulk_and_single_enqueues(house):
    ran = []

    @dramatiq.actor
    def say(number):
        ran.append(number)

    assert (
        house.broker.enqueue_many(
            say.message_with_options(args=(n,), conversation_key="c") for n in range(30)
        )
        == 30
    )
    for number in range(30, 40):
        say.send_with_options(args=(number,), conversation_key="c")
    house.start()
    house.drained()
    assert ran == list(range(40))


def test_a_transactional_handlers_sends_commit_with_it(house):
    ran = []

    @dramatiq.actor
    def note(key):
        ran.append(key)

    @dramatiq.actor(transactional=True, max_retries=0)
    def parent(fail):
        note.send("fail" if fail else "good")
        if fail:
            raise RuntimeError("after the send")

    if house.name == "dramatiq-worker":
        pytest.skip("transactions of handlers belong to our runtime")
    house.start()
    parent.send(True)
    parent.send(False)
    house.drained()
    assert ran == ["good"]


def test_a_transactional_handler_sends_to_each_broker_what_is_its(server, database, monkeypatch):
    """What was for another database went into that of the handler's transaction, where no worker took it."""
    elsewhere = server.create_database()
    house = House("runtime", database, monkeypatch)
    here, there = (
        packhorse.PostgresBroker(settings=quick_settings(place)) for place in (database, elsewhere)
    )

    @dramatiq.actor(broker=there)
    def away(number):
        pass

    @dramatiq.actor(broker=here, actor_name="kept", queue_name="kept")
    def kept(number):
        pass

    @dramatiq.actor(transactional=True, max_retries=0)
    def parent():
        away.send(1)
        there.enqueue_many([away.message(2)])
        kept.send(3)  # the same database by another broker: it goes with the transaction
        raise RuntimeError("after the sends")

    house.start()
    parent.send()
    wait_until(lambda: house.dead() == ["parent"])
    house.stop()
    assert elsewhere.query("select message_type, payload from message_queue order by id") == [
        ("away", {"number": 1}),
        ("away", {"number": 2}),
    ]
    assert database.query("select state from all_messages") == [("dead",)]
    for broker in (here, there):
        broker.close()
    elsewhere.drop()


def test_a_message_that_is_sent_again_keeps_its_columns(house):
    kept = []

    class Keep(Middleware):
        def after_ack(self, broker, message):
            kept.append(message)

    house.broker.add_middleware(Keep())

    @dramatiq.actor
    def say(number):
        pass

    house.start()
    say.send_with_options(
        args=(1,), priority=2, conversation_key="conv", correlation_id="corr", max_attempts=7
    )
    wait_until(lambda: kept)
    house.stop()
    house.broker.enqueue(kept[0])
    columns = "message_type, payload, priority, conversation_key, correlation_id, max_attempts, options ->> 'message_id'"
    (again,) = house.database.query(f"select {columns} from message_queue")
    assert again == ("say", {"number": 1}, 2, "conv", "corr", 7, kept[0].message_id)


def test_the_errors_are_recorded_under_dramatiqs_own_retries(house):
    """A list of middleware written for another broker."""
    house.broker.middleware[:] = [StockRetries(max_retries=1, min_backoff=10, max_backoff=20)]

    @dramatiq.actor
    def fails():
        raise LookupError("not here")

    house.start()
    fails.send()
    wait_until(lambda: house.dead() == ["fails"])
    ((error_class, message, traceback, history),) = house.database.query(
        "select error_class, error_message, traceback, history from dead_letters"
    )
    assert (error_class, message) == ("LookupError", "not here") and 'LookupError("not here")' in traceback
    assert [(entry["error_class"], entry["error_message"]) for entry in history] == [
        ("LookupError", "not here")
    ] * 2


def test_a_delay_of_a_bulk_is_as_long_when_the_clock_changes_meanwhile(database, monkeypatch):
    monkeypatch.setenv("PGTZ", "Europe/Berlin")
    house = House("dramatiq-worker", database, monkeypatch)

    @dramatiq.actor
    def say():
        pass

    days = days_to_another_offset("Europe/Berlin", 1)
    house.broker.enqueue_many([say.message_with_options(delay=days * 86_400_000)])
    house.stop()
    late = "select extract(epoch from run_at - created_at) - %s * 86400.0 from message_queue"
    assert -60 < database.value(late, days) < 60


def test_a_middleware_that_breaks_does_not_break_a_bulk_enqueue(house, caplog):
    class Broken(Middleware):
        def before_enqueue(self, broker, message, delay):
            raise RuntimeError("broken before")

        def after_enqueue(self, broker, message, delay):
            raise RuntimeError("broken after")

    house.broker.add_middleware(broken := Broken())

    @dramatiq.actor
    def say():
        pass

    say.send()
    assert house.broker.enqueue_many([say.message(), say.message()]) == 2
    assert house.database.value("select count(*) from message_queue") == 3
    assert caplog.text.count(f"of {broken!r}") == 6


def test_a_message_is_there_for_sql_as_its_keyword_arguments(house):
    @dramatiq.actor
    def note(a, b="x", *, c=None):
        pass

    note.send_with_options(
        args=(1,),
        kwargs={"c": [2]},
        conversation_key="conv",
        correlation_id="corr",
        max_retries=6,
        delay=60_000,
    )
    row = house.database.query(
        "select message_type, queue, payload, conversation_key, correlation_id, max_attempts, run_at > clock_timestamp() + interval '50 seconds'"
        " from message_queue"
    )
    assert row == [("note", "default", {"a": 1, "c": [2]}, "conv", "corr", 7, True)]


def test_join_and_flush_work_on_the_database(house):
    @dramatiq.actor
    def note(key):
        pass

    note.send_with_options(args=("k",), delay=60_000)
    with pytest.raises(dramatiq.errors.QueueJoinTimeout):
        house.broker.join("default", timeout=50)
    house.broker.flush_all()
    house.broker.join("default", timeout=5000)
    assert _states(house.database)["k"] == ("cancelled", "flushed", 0)


def test_a_slow_handler_does_not_hold_up_what_waits_behind_it(database, monkeypatch):
    """W2: nothing claimed waits for a slow message while another thread is free, nor for ever when none
    is.
    """
    house = House("runtime", database, monkeypatch, threads=2, hold_seconds=0.2)
    let_go = threading.Event()
    done = []

    @dramatiq.actor
    def slow():
        let_go.wait(20)

    @dramatiq.actor
    def quick(n):
        done.append(n)

    try:
        house.start()
        slow.send()
        for n in range(50):
            quick.send(n)
        wait_until(lambda: len(done) == 50)
        assert not let_go.is_set()
        slow.send()
        wait_until(lambda: database.value("select count(*) from message_queue where state = 'running'") == 2)
        for n in range(50, 60):
            quick.send(n)
        # every thread is taken: what cannot start here is free for other workers, its attempt unspent
        wait_until(
            lambda: (
                database.value(
                    "select count(*) from message_queue where message_type = 'quick' and state = 'pending' and attempt = 0"
                )
                == 10
            )
        )
        let_go.set()
        wait_until(lambda: len(done) == 60)
    finally:
        let_go.set()
        house.stop()
