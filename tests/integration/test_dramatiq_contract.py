"""What an ordinary dramatiq application relies on, in one file for three houses (SPEC W1): dramatiq's own
Worker on its StubBroker says what is right; our broker under dramatiq's Worker and our runtime must agree."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter

import dramatiq
import pytest
from dramatiq.errors import QueueNotFound
from dramatiq.middleware import Middleware, SkipMessage
from dramatiq.results import ResultFailure, ResultMissing

import packhorse
from packhorse import ConfigError, InvalidArgument, PostgresBroker
from packhorse.worker.errors import UnknownQueue
from packhorse.worker.exits import EXIT_USAGE
from tests.support.harness import HOUSES, House
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.one_database]


@pytest.fixture(params=HOUSES)
def house(request, monkeypatch):
    house = House(
        request.param, None if request.param == "stub" else request.getfixturevalue("database"), monkeypatch
    )
    yield house
    house.stop()


class Calls:
    """What handlers did; append is atomic."""

    def __init__(self) -> None:
        self.seen: list = []

    def __call__(self, *what) -> None:
        self.seen.append(what if len(what) != 1 else what[0])

    @property
    def counts(self) -> Counter:
        return Counter(self.seen)


@pytest.fixture
def calls():
    return Calls()


def test_arguments_arrive_as_they_were_sent(house, calls):
    @dramatiq.actor
    def keep(a, b=2, *, c=3):
        calls(a, b, c)

    house.start()
    keep.send(1)
    keep.send("x", b=[1, {"y": None}], c="ü€")
    keep.send_with_options(args=(True,), kwargs={"c": 1.5})
    house.drained()
    assert sorted(calls.seen, key=str) == sorted(
        [(1, 2, 3), ("x", [1, {"y": None}], "ü€"), (True, 2, 1.5)], key=str
    )


def test_a_decorator_may_pass_arguments_of_its_own(house, calls):
    def with_session(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function("session", *args, **kwargs)

        return wrapper

    @dramatiq.actor(max_retries=0)
    @with_session
    def keep(session, user, *, flag=False):
        calls(session, user, flag)

    house.start()
    keep.send(1)
    keep.send(2, flag=True)
    keep.send(user=3)
    house.drained()
    assert sorted(calls.seen) == [("session", 1, False), ("session", 2, True), ("session", 3, False)]


def test_a_delayed_message_starts_after_its_delay(house, calls):
    started = {}

    @dramatiq.actor
    def note(key):
        started[key] = time.monotonic()

    house.start()
    sent = time.monotonic()
    note.send_with_options(args=("later",), delay=400)
    note.send("now")
    wait_until(lambda: "later" in started)
    # only the lower bound is promised; the order says that nobody waited for the delayed one
    assert started["later"] - sent >= 0.39
    assert started["now"] < started["later"]


def test_a_failure_is_retried_max_retries_times_and_then_dead(house, calls):
    @dramatiq.actor(max_retries=2, min_backoff=10, max_backoff=20)
    def fails():
        calls("ran")
        raise RuntimeError("no")

    house.start()
    fails.send()
    wait_until(lambda: house.dead() == ["fails"])
    assert calls.counts == {"ran": 3}


def test_an_exception_that_cannot_be_printed_is_a_failure_like_any_other(house, calls):
    """Its text was asked for while the outcome was decided; that raised as well, and the message counted as
    done.
    """

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
    def mute():
        calls("ran")
        raise Mute

    house.start()
    mute.send()
    wait_until(lambda: house.dead() == ["mute"])
    assert calls.counts == {"ran": 2}


def test_a_failure_that_passes_is_done(house, calls):
    @dramatiq.actor(max_retries=3, min_backoff=10, max_backoff=20)
    def flaky():
        calls("ran")
        if len(calls.seen) < 3:
            raise RuntimeError("not yet")

    house.start()
    flaky.send()
    wait_until(lambda: len(calls.seen) == 3)
    house.drained()
    assert house.dead() == []


def test_max_retries_of_a_message_beats_that_of_its_actor(house, calls):
    @dramatiq.actor(max_retries=5, min_backoff=10, max_backoff=20)
    def fails():
        calls("ran")
        raise RuntimeError("no")

    house.start()
    fails.send_with_options(max_retries=0)
    wait_until(lambda: house.dead() == ["fails"])
    assert calls.counts == {"ran": 1}


def test_max_retries_none_is_without_end(house, calls):
    @dramatiq.actor(max_retries=None, min_backoff=10, max_backoff=20)
    def endless(key):
        calls(key)
        if calls.counts[key] < 6:
            raise RuntimeError("not yet")

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
    def limited(key):
        endless.fn(key)

    house.start()
    endless.send("actor")
    limited.send_with_options(args=("message",), max_retries=None)
    house.drained()
    assert calls.counts == {"actor": 6, "message": 6} and house.dead() == []


def test_a_message_that_is_over_can_be_sent_again(house, calls):
    """By a hook after its end, or from a list that the application keeps: nothing was sent, and nobody was
    told.
    """

    class Again(Middleware):
        sent = ()

        def _again(self, broker, message, hook):
            if all(other is not message and other != hook for other in self.sent):
                self.sent += (hook, message)
                broker.enqueue(message)

        def before_ack(self, broker, message):
            self._again(broker, message, "before ack")

        def after_ack(self, broker, message):
            self._again(broker, message, "after ack")

        def after_nack(self, broker, message):
            self._again(broker, message, "after nack")

    house.broker.add_middleware(Again())

    @dramatiq.actor
    def work(key, other):
        assert (key, other) == ("k", 2)
        calls("work")

    @dramatiq.actor(max_retries=0)
    def fails():
        calls("fails")
        raise RuntimeError("no")

    house.start()
    work.send("k", other=2)
    wait_until(lambda: calls.counts == {"work": 3})
    fails.send()
    wait_until(lambda: house.dead() == ["fails", "fails"])
    house.drained()
    assert calls.counts == {"work": 3, "fails": 2}


def test_throws_is_never_retried(house, calls):
    @dramatiq.actor(throws=(KeyError, ValueError), max_retries=5, min_backoff=10)
    def throws():
        calls("ran")
        raise ValueError("expected")

    house.start()
    throws.send()
    wait_until(lambda: house.dead() == ["throws"])
    assert calls.counts == {"ran": 1}


def test_retry_when_decides_instead_of_max_retries(house, calls):
    seen = []

    def decide(retries, exception):
        seen.append((retries, type(exception).__name__))
        return retries < 2

    @dramatiq.actor(retry_when=decide, max_retries=0, min_backoff=10, max_backoff=20)
    def fails():
        calls("ran")
        raise LookupError("no")

    house.start()
    fails.send()
    wait_until(lambda: house.dead() == ["fails"])
    assert calls.counts == {"ran": 3}
    assert seen == [(0, "LookupError"), (1, "LookupError"), (2, "LookupError")]


def test_retry_when_decides_instead_of_the_max_retries_of_a_message(house, calls):
    @dramatiq.actor(retry_when=lambda retries, exception: retries < 2, min_backoff=10, max_backoff=20)
    def fails():
        calls("ran")
        raise LookupError("no")

    house.start()
    fails.send_with_options(max_retries=0)
    wait_until(lambda: house.dead() == ["fails"])
    assert calls.counts == {"ran": 3}


def test_retry_with_a_delay_waits_that_long(house, calls):
    times = []

    @dramatiq.actor(max_retries=3, min_backoff=60_000)
    def later():
        times.append(time.monotonic())
        if len(times) == 1:
            raise dramatiq.Retry("again", delay=300)

    house.start()
    later.send()
    wait_until(lambda: len(times) == 2)
    assert times[1] - times[0] >= 0.29
    house.drained()


def test_on_retry_exhausted_is_told_how_often(house, calls):
    @dramatiq.actor
    def buried(message, info):
        calls(message["actor_name"], message["args"], message["kwargs"], info["retries"], info["max_retries"])

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20, on_retry_exhausted="buried")
    def fails(*, key):
        raise RuntimeError("no")

    house.start()
    fails.send(key="k")
    wait_until(lambda: calls.seen)
    house.drained()
    assert [tuple(map(_plain, call)) for call in calls.seen] == [("fails", (), {"key": "k"}, 1, 1)]


def test_callbacks_of_success_and_failure(house, calls):
    @dramatiq.actor
    def good(message, result):
        calls("good", message["actor_name"], result)

    @dramatiq.actor
    def bad(message, error):
        calls("bad", message["actor_name"], error["type"], error["message"])

    @dramatiq.actor(on_success="good", on_failure="bad", max_retries=0)
    def work(fail):
        if fail:
            raise ValueError("oh")
        return 42

    house.start()
    work.send(False)
    work.send(True)
    wait_until(lambda: len(calls.seen) == 2)
    assert sorted(calls.seen) == [("bad", "work", "ValueError", "oh"), ("good", "work", 42)]


def test_callbacks_of_failures_are_given_the_traceback(house, calls):
    @dramatiq.actor
    def told(message, _):
        options = message["options"]
        calls(options["retries"], "oh, how sad" in options["traceback"], options["requeue_timestamp"] > 0)

    @dramatiq.actor(on_failure="told", on_retry_exhausted="told", max_retries=0)
    def work():
        raise ValueError("oh, how sad")

    house.start()
    work.send()
    wait_until(lambda: len(calls.seen) == 2)
    assert calls.counts == {(1, True, True): 2}


def test_a_pipeline_hands_results_on(house, calls):
    house.with_results()

    @dramatiq.actor(store_results=True)
    def add(a, b):
        return a + b

    @dramatiq.actor(store_results=True)
    def last(x=None):
        calls("last", x)
        return x

    house.start()
    pipe = add.message(1, 2) | add.message(10) | last.message()
    assert pipe.run().get_result(block=True, timeout=10_000) == 13
    ignoring = (add.message(1, 2) | last.message_with_options(pipe_ignore=True)).run()
    assert ignoring.get_result(block=True, timeout=10_000) is None
    assert calls.seen == [("last", 13), ("last", None)]


def test_a_group_gives_results_in_order_and_calls_back_once(house, calls):
    house.with_results()

    @dramatiq.actor(store_results=True)
    def square(x):
        return x * x

    @dramatiq.actor
    def finished(name):
        calls("finished", name)

    house.start()
    group = dramatiq.group([square.message(n) for n in range(8)])
    group.add_completion_callback(finished.message("squares"))
    group.run()
    assert list(group.get_results(block=True, timeout=10_000)) == [n * n for n in range(8)]
    wait_until(lambda: calls.seen)
    house.drained()
    assert calls.seen == [("finished", "squares")]


def test_results_of_failures_and_of_messages_that_did_not_run(house):
    house.with_results()

    @dramatiq.actor(store_results=True, max_retries=0)
    def fails():
        raise ValueError("why")

    @dramatiq.actor(store_results=True)
    def nothing():
        return None

    unsent = nothing.message()
    with pytest.raises(ResultMissing):
        unsent.get_result(backend=house.results)
    house.start()
    with pytest.raises(ResultFailure) as caught:
        fails.send().get_result(backend=house.results, block=True, timeout=10_000)
    assert (caught.value.orig_exc_type, caught.value.orig_exc_msg) == ("ValueError", "why")
    assert nothing.send().get_result(backend=house.results, block=True, timeout=10_000) is None


def test_async_actors_run_and_fail_like_others(house, calls):
    house.with_results()

    @dramatiq.actor(store_results=True, max_retries=0)
    async def answer(x):
        if x < 0:
            raise ValueError("negative")
        return x + 1

    house.start()
    assert answer.send(41).get_result(backend=house.results, block=True, timeout=10_000) == 42
    with pytest.raises(ResultFailure):
        answer.send(-1).get_result(backend=house.results, block=True, timeout=10_000)


class Recorder(Middleware):
    """Notes each hook of one message; `skip` names actors whose messages it skips."""

    def __init__(self, name, into, skip=()):
        self.name, self.into, self.skip = name, into, skip

    def _note(self, hook, message, *more):
        self.into.append((message.actor_name, self.name, hook, *more))

    def before_process_message(self, broker, message):
        self._note("before_process", message)
        if message.actor_name in self.skip:
            raise SkipMessage("not this one")

    def after_process_message(self, broker, message, *, result=None, exception=None):
        self._note("after_process", message, result, type(exception).__name__)

    def after_skip_message(self, broker, message):
        self._note("after_skip", message)

    def before_ack(self, broker, message):
        self._note("before_ack", message)

    def after_ack(self, broker, message):
        self._note("after_ack", message)

    def before_nack(self, broker, message):
        self._note("before_nack", message)

    def after_nack(self, broker, message):
        self._note("after_nack", message)


def test_hooks_of_middleware_run_in_dramatiqs_order(house):
    notes = []
    house.broker.add_middleware(Recorder("first", notes), before=type(house.broker.middleware[0]))
    house.broker.add_middleware(Recorder("last", notes, skip=("skipped",)))

    @dramatiq.actor
    def done():
        pass

    @dramatiq.actor
    def skipped():
        raise AssertionError("must not run")

    @dramatiq.actor(max_retries=0)
    def fails():
        raise RuntimeError("no")

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
    def retried():
        retried.fn.count = getattr(retried.fn, "count", 0) + 1
        if retried.fn.count == 1:
            raise RuntimeError("once")

    house.start()
    for actor in (done, skipped, fails, retried):
        actor.send()
    wait_until(lambda: sum(note[2] in ("after_ack", "after_nack") for note in notes) >= 10)
    house.drained()

    def of(name):
        return [note[1:] for note in notes if note[0] == name]

    before = [("first", "before_process"), ("last", "before_process")]
    good = [("last", "after_process", None, "NoneType"), ("first", "after_process", None, "NoneType")]
    bad = [("last", "after_process", None, "RuntimeError"), ("first", "after_process", None, "RuntimeError")]
    ack = [("first", "before_ack"), ("last", "before_ack"), ("last", "after_ack"), ("first", "after_ack")]
    nack = [
        ("first", "before_nack"),
        ("last", "before_nack"),
        ("last", "after_nack"),
        ("first", "after_nack"),
    ]
    assert of("done") == before + good + ack
    assert of("skipped") == [*before, ("last", "after_skip"), ("first", "after_skip"), *ack]
    assert of("fails") == before + bad + nack
    # (a retry is a copy on StubBroker, whose delay queue acks once more; with us it is the same row)
    assert [note for note in of("retried") if "ack" not in note[1]] == before + bad + before + good
    assert of("retried")[:8] == before + bad + ack and of("retried")[-4:] == ack


def test_a_middleware_that_breaks_does_not_break_the_message(house, calls):
    class Broken(Middleware):
        def before_process_message(self, broker, message):
            raise RuntimeError("broken before")

        def after_process_message(self, broker, message, *, result=None, exception=None):
            raise RuntimeError("broken after")

    house.broker.add_middleware(Broken())

    @dramatiq.actor
    def work():
        calls("ran")

    house.start()
    work.send()
    wait_until(lambda: calls.seen)
    house.drained()
    assert calls.counts == {"ran": 1} and house.dead() == []


def test_hooks_of_threads_run_in_each_thread_of_handlers(house, calls):
    """What they open for handlers is there, and what they close is not left behind (django's database
    connections).
    """
    opened = threading.local()

    class PerThread(Middleware):
        def after_worker_thread_boot(self, broker, thread):
            opened.connection = threading.current_thread()
            calls(
                "boot",
                broker is house.broker and thread.broker is broker and thread is threading.current_thread(),
            )

        def before_worker_thread_shutdown(self, broker, thread):
            threading.Event().wait(0.2)  # it takes its time to close something
            calls("shutdown", opened.connection is thread)

        def after_worker_shutdown(self, broker, worker):
            calls("end")

    house.broker.add_middleware(PerThread())

    @dramatiq.actor(max_retries=0)
    def work():
        calls("work", opened.connection is threading.current_thread())

    house.start()
    work.send()
    house.drained()
    house.stop()
    assert calls.counts == {("boot", True): 4, ("work", True): 1, ("shutdown", True): 4, "end": 1}
    assert calls.seen[-1] == "end"


def test_handlers_run_at_the_same_time(house):
    meeting = threading.Barrier(4)

    @dramatiq.actor(max_retries=0)
    def meet():
        meeting.wait(10)

    house.start()
    for _ in range(4):
        meet.send()
    house.drained()
    assert house.dead() == []


def _plain(value):
    return tuple(value) if isinstance(value, list) else value


class Notes(Middleware):
    """What it finds in each attempt's message, and what it writes into it."""

    def __init__(self, calls):
        self.calls = calls

    def before_process_message(self, broker, message):
        options = message.options
        self.calls(
            message.message_timestamp, options.get("tenant"), options.get("tries"), options.get("retries")
        )
        options["tenant"] = "acme"
        options["tries"] = [*options.get("tries", []), len(self.calls.seen)]


def test_what_middleware_writes_into_the_options_survives_a_retry(house, calls):
    """And the time at which the message was sent is the sender's, in each attempt."""
    found = []

    class Left(Middleware):
        def before_process_message(self, broker, message):
            found.append({name: message.options.get(name) for name in ("traceback", "requeue_timestamp")})

    house.broker.add_middleware(Notes(calls))
    house.broker.add_middleware(Left())

    @dramatiq.actor(max_retries=2, min_backoff=10, max_backoff=20)
    def fails():
        raise RuntimeError("oh, how sad")

    before = int(time.time() * 1000)
    sent = fails.send()
    house.start()
    wait_until(lambda: house.dead() == ["fails"])
    when = sent.message_timestamp
    assert calls.seen == [(when, None, None, None), (when, "acme", [1], 1), (when, "acme", [1, 2], 2)]
    assert found[0] == {"traceback": None, "requeue_timestamp": None}
    for left in found[1:]:
        assert "oh, how sad" in left["traceback"] and "in fails" in left["traceback"]
        # the clock of the database, in another house; the same machine
        assert isinstance(left["requeue_timestamp"], int) and before <= left["requeue_timestamp"] <= int(
            time.time() * 1000
        )


def test_options_that_are_no_json_do_not_keep_a_message_from_its_retry(database, monkeypatch, caplog):
    """dramatiq's encoder would raise, and the message be gone."""
    house = House("runtime", database, monkeypatch)
    seen = []

    class Odd(Middleware):
        def before_process_message(self, broker, message):
            seen.append(dict(message.options))
            message.options |= {"good": 1, "lock": threading.Lock(), "nan": float("nan"), "nul": "\0"}

    house.broker.add_middleware(Odd())

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
    def fails(*, key):
        raise RuntimeError("no")

    fails.send(key=1)
    house.start()
    wait_until(lambda: house.dead() == ["fails"])
    house.stop()
    assert seen[1]["good"] == 1 and not {"lock", "nan", "nul"} & seen[1].keys()
    assert "names=lock, nan, nul" in caplog.text


def test_a_messages_max_backoff_below_its_actors_min_backoff_wins(house, calls):
    @dramatiq.actor(max_retries=1, min_backoff=600_000)
    def fails():
        calls("ran")
        raise RuntimeError("no")

    house.start()
    fails.send_with_options(max_backoff=50)
    wait_until(lambda: house.dead() == ["fails"])
    assert calls.counts == {"ran": 2}


def test_throws_says_that_it_aborts(house, caplog):
    caplog.set_level("INFO", logger="dramatiq.middleware.retries")

    @dramatiq.actor(throws=KeyError)
    def throws():
        raise KeyError("expected")

    house.start()
    sent = throws.send()
    wait_until(lambda: house.dead() == ["throws"])
    assert f"Aborting message {sent.message_id!r}." in caplog.messages


def test_a_delay_beyond_max_age_is_sent_and_skipped_when_it_is_due(house, calls):
    house.broker.add_middleware(Recorder("hooks", calls.seen))

    @dramatiq.actor(max_age=100)
    def late():
        raise AssertionError("must not run")

    house.start()
    late.send_with_options(delay=250)
    wait_until(lambda: house.dead() == ["late"])
    house.drained()
    hooks = [note[2] for note in calls.seen]
    # (StubBroker's delay queue acknowledges what it hands on)
    assert [hook for hook in hooks if "_ack" not in hook] == ["after_skip", "before_nack", "after_nack"]


def test_hooks_of_delays_are_called(house, calls):
    class Delays(Middleware):
        def after_declare_delay_queue(self, broker, queue_name):
            calls("declared", queue_name)

        def before_delay_message(self, broker, message):
            calls(message.actor_name, message.message_id)

    house.broker.add_middleware(Delays())

    @dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
    def fails():
        raise RuntimeError("no")

    @dramatiq.actor
    def works():
        pass

    house.start()
    failing, later = fails.send(), works.send_with_options(delay=20)
    works.send()
    wait_until(lambda: house.dead() == ["fails"])
    house.drained()
    assert calls.counts == {
        ("declared", "default.DQ"): 1,
        ("fails", failing.message_id): 1,
        ("works", later.message_id): 1,
    }


def test_an_unknown_queue_is_dramatiqs_queue_not_found(house):
    @dramatiq.actor
    def work():
        pass

    lost = work.message().copy(queue_name="nobodys")
    with pytest.raises(QueueNotFound, match="nobodys"):
        house.broker.enqueue(lost)
    if house.name != "stub":
        with pytest.raises(QueueNotFound, match="nobodys") as caught:
            house.broker.enqueue_many([work.message(), lost])
        with pytest.raises(UnknownQueue), house.broker.pool.connection() as connection:
            house.broker.enqueue_on(connection, lost)
        assert isinstance(caught.value, UnknownQueue) and caught.value.sqlstate == "PH002"


@pytest.mark.parametrize("name", HOUSES)
def test_actors_without_a_priority_go_before_those_with_a_larger_number(name, request, monkeypatch, calls):
    house = House(
        name, None if name == "stub" else request.getfixturevalue("database"), monkeypatch, threads=1
    )

    @dramatiq.actor(priority=10)
    def last():
        calls("last")

    @dramatiq.actor
    def usual():
        calls("first")

    @dramatiq.actor(priority=0)
    def nought():
        calls("first")

    monkeypatch.setattr("dramatiq.worker.QUEUE_PREFETCH", 9 if name == "stub" else 0)
    if name == "stub":  # dramatiq sorts what a worker has in memory
        (thread,) = house.start()._worker.workers
        thread.pause()
        thread.paused_event.wait()
    for _ in range(3):
        for actor in (last, usual, nought):
            actor.send()
    if name == "stub":
        wait_until(lambda: house._worker.work_queue.qsize() == 9)
        thread.resume()
    else:
        house.start()
    house.drained()
    house.stop()
    assert calls.seen == ["first"] * 6 + ["last"] * 3


@pytest.mark.parametrize("priority", [1, 5, -1, 11])
def test_a_priority_that_would_turn_dramatiqs_order_round_is_refused_by_name(database, monkeypatch, priority):
    house = House("runtime", database, monkeypatch)
    with pytest.raises(InvalidArgument, match=r"^priority: "):

        @dramatiq.actor(priority=priority)
        def work():
            pass

    assert house.broker.actors == {}
    if priority > 0 and priority <= 10:

        @packhorse.actor(priority=priority)
        def ours():
            pass

        assert house.broker.actors["ours"].priority == priority
    house.stop()


def test_the_url_of_a_broker_may_be_called_url(database):
    broker = PostgresBroker(url=database.url)
    assert broker.url == PostgresBroker(database.url).url == database.url
    with pytest.raises(InvalidArgument, match="url"):
        PostgresBroker(database.url, url="postgresql://elsewhere/db")


class Large:
    """Something that a handler holds in a local variable."""


@pytest.mark.parametrize(
    "kind",
    ["thread", "coroutine", "awaited", "transactional", "transactional coroutine", "interrupted coroutine"],
)
@pytest.mark.parametrize("retries", [0, 1])
def test_the_exception_of_a_failed_handler_is_freed_at_once(database, monkeypatch, kind, retries):
    """With its traceback, all frames and what is in them: with the garbage collector only, they add up while
    everything fails.
    """
    house = House("runtime", database, monkeypatch)
    alive = weakref.WeakSet()
    options = {"max_retries": retries, "min_backoff": 600_000, "transactional": "transactional" in kind}

    def fail():
        large = Large()
        alive.add(large)
        raise RuntimeError("no")

    if kind.endswith("thread") or kind == "transactional":

        @dramatiq.actor(**options)
        def fails():
            fail()

    elif kind == "awaited":

        @dramatiq.actor(**options)
        async def fails():
            async def inner():
                await asyncio.sleep(0)
                fail()

            await asyncio.create_task(inner())

    elif kind == "interrupted coroutine":

        @dramatiq.actor(**options, time_limit=50)
        async def fails():
            large = Large()
            alive.add(large)
            await asyncio.sleep(60)

    else:

        @dramatiq.actor(**options)
        async def fails():
            await asyncio.sleep(0)
            fail()

    house.start()
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            fails.send()
        failed = "select count(*) = 5 from all_messages where state = 'dead' or (state = 'pending' and attempt = 1)"
        wait_until(lambda: database.value(failed))
        wait_until(lambda: not alive, 5, "freed")
    finally:
        gc.enable()
        house.stop()


def test_an_unusable_setting_ends_dramatiqs_own_command(tmp_path):
    """Its consumers met a ConfigError, and were started again every three seconds."""
    (tmp_path / "its_actors.py").write_text(
        "import dramatiq, packhorse\n\ndramatiq.set_broker(packhorse.PostgresBroker())\n\n@dramatiq.actor\ndef work():\n    pass\n"
    )
    command = [sys.executable, "-m", "dramatiq", "its_actors", "-p", "1", "-t", "1", "--path", str(tmp_path)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "PACKHORSE_THREDS": "3",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == EXIT_USAGE, ended.stderr
    assert (
        "PACKHORSE_THREDS: no setting 'threds'; did you mean 'threads'?" in ended.stderr
        and "Traceback" not in ended.stderr
    )


def test_an_unusable_setting_ends_the_start_of_dramatiqs_worker(monkeypatch):
    monkeypatch.setenv("PACKHORSE_THREDS", "3")
    with pytest.raises(ConfigError, match="threds"):
        dramatiq.Worker(PostgresBroker()).start()


@pytest.mark.parametrize("name", ["dramatiq-worker", "runtime"])
def test_a_quiet_worker_takes_nothing_until_it_is_resumed(name, request, monkeypatch, calls, database):
    house = House(name, database, monkeypatch)

    @dramatiq.actor
    def work(number):
        calls(number)

    house.start()
    try:
        ask = "select ask_worker(id, %s, 'ann') from workers where 'work' = any (message_types)"
        wait_until(lambda: database.query(ask, "quiet") != [], message="it is registered")
        wait_until(lambda: database.value("select state from workers") == "quiet")
        for number in range(20):
            work.send(number)
        now = database.value("select clock_timestamp()")
        wait_until(
            lambda: database.value("select last_seen_at > %s + interval '1 second' from workers", now),
            message="two beats, and polls between them",
        )
        assert (
            calls.seen == [] and database.value("select count(*) from message_queue where attempt > 0") == 0
        )
        assert database.query(ask, "resume") == [("asked",)]
        house.drained()
        assert sorted(calls.seen) == list(range(20))
    finally:
        house.stop()
