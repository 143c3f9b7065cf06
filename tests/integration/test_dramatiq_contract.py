"""What an ordinary dramatiq application relies on, in one file for three houses (SPEC W1): dramatiq's own
Worker on its StubBroker says what is right; our broker under dramatiq's Worker and our runtime must agree."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter

import dramatiq
import pytest
from dramatiq.middleware import Middleware, SkipMessage
from dramatiq.results import ResultFailure, ResultMissing

from tests.support.harness import HOUSES, House
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


@pytest.fixture(params=HOUSES)
def house(request, monkeypatch):
    house = House(request.param, None if request.param == "stub" else request.getfixturevalue("database"), monkeypatch)
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
    assert sorted(calls.seen, key=str) == sorted([(1, 2, 3), ("x", [1, {"y": None}], "ü€"), (True, 2, 1.5)], key=str)


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
    """Its text was asked for while the outcome was decided; that raised as well, and the message counted as done."""

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
    """By a hook after its end, or from a list that the application keeps: nothing was sent, and nobody was told."""

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
    nack = [("first", "before_nack"), ("last", "before_nack"), ("last", "after_nack"), ("first", "after_nack")]
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
    """What they open for handlers is there, and what they close is not left behind (django's database connections)."""
    opened = threading.local()

    class PerThread(Middleware):
        def after_worker_thread_boot(self, broker, thread):
            opened.connection = threading.current_thread()
            calls("boot", broker is house.broker and thread.broker is broker and thread is threading.current_thread())

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
