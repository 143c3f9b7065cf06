"""`async def` actors in the runtime's event loop (SPEC W3): what a thread's handler has, a coroutine has."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import time

import dramatiq
import pytest
from dramatiq.middleware import Middleware

import packhorse
from packhorse.worker.errors import CancelInterrupt, WorkerError
from tests.support.harness import House
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


@pytest.fixture
def house(database, monkeypatch):
    house = House(
        "runtime", database, monkeypatch, drain_seconds=1, threads=2, coroutines=300, async_connections=2
    )
    yield house
    house.stop()


def states(house):
    return sorted(row[0] for row in house.database.query("select state from all_messages"))


def test_hundreds_wait_at_once_with_nothing_switched_on(house):
    running = 0
    all_there = asyncio.Event()

    @dramatiq.actor(max_retries=0)
    async def waits():
        nonlocal running
        running += 1
        if running == 250:
            all_there.set()
        await all_there.wait()

    house.broker.enqueue_many([waits.message() for _ in range(250)])
    house.start()
    house.drained(60)
    assert running == 250


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_on_either_loop(house, monkeypatch, loop):
    """uvloop is taken when it is there."""
    if loop == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    seen = []

    @packhorse.actor(time_limit=200, max_retries=0)
    async def slow():
        await asyncio.sleep(60)

    @packhorse.actor(transactional=True)
    async def writes():
        await (await packhorse.current_async_connection().execute("select 1")).fetchone()
        seen.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    house.start()
    slow.send()
    writes.send()
    wait_until(lambda: states(house) == ["dead", "done"])
    assert seen == [loop]


def test_no_more_than_its_limits_run_at_once(house):
    most = {"few": 0, "threads": 0, "transactional": 0}
    running = dict.fromkeys(most, 0)
    lock = threading.Lock()

    def begin(name):
        with lock:
            running[name] += 1
            most[name] = max(most[name], running[name])

    def end(name):
        with lock:
            running[name] -= 1

    @packhorse.actor(max_in_flight=3)
    async def few():
        begin("few")
        await asyncio.sleep(0.05)
        end("few")

    @packhorse.actor(max_in_flight=1)
    def in_threads():
        begin("threads")
        time.sleep(0.02)
        end("threads")

    @packhorse.actor(transactional=True)
    async def transactional():
        begin("transactional")
        await asyncio.sleep(0.05)
        end("transactional")

    house.start()
    for actor in (few, in_threads, transactional):
        for _ in range(20):
            actor.send()
    held = []
    wait_until(
        lambda: (
            held.append(house.database.value("select count(*) from message_queue where state = 'running'"))
            or (not sum(running.values()) and house.database.value("select count(*) from message_queue") == 0)
        ),
        20,
    )
    assert most == {"few": 3, "threads": 1, "transactional": 2}
    assert max(held) <= 3 + 1 + 2, "what could not start was left to others"


def test_a_flood_of_one_kind_starves_neither_the_other_nor_other_queues(house):
    started = threading.Event()
    ran = []

    @dramatiq.actor
    async def flood():
        started.set()
        await asyncio.sleep(60)

    @dramatiq.actor
    def threaded():
        ran.append("threaded")

    @dramatiq.actor(queue_name="other")
    def elsewhere():
        ran.append("elsewhere")

    house.broker.enqueue_many([flood.message() for _ in range(1000)])
    house.start()
    assert started.wait(10)
    threaded.send()
    elsewhere.send()
    wait_until(lambda: sorted(ran) == ["elsewhere", "threaded"], 20)
    wait_until(
        lambda: house.database.value("select count(*) from message_queue where state = 'running'") == 300, 10
    )


def test_its_message_its_context_and_its_correlation_id(house):
    left = contextvars.ContextVar("left", default=None)
    seen = []

    @dramatiq.actor
    def downstream():
        seen.append(packhorse.correlation_id())

    @dramatiq.actor
    async def handler(name):
        before = left.get()
        left.set(name)
        await asyncio.sleep(0.05)

        async def child():
            return packhorse.current_message().kwargs["name"]

        seen.append(
            (
                name,
                before,
                left.get(),
                packhorse.current_message().kwargs["name"],
                await asyncio.create_task(child()),
            )
        )
        await downstream.send_async()

    house.start()
    for name in "ab":
        handler.send_with_options(kwargs={"name": name}, correlation_id=f"c-{name}")
    house.drained()
    assert sorted(map(str, seen)) == sorted(
        map(str, [("a", None, "a", "a", "a"), ("b", None, "b", "b", "b"), "c-a", "c-b"])
    )


OUTCOMES = {
    "snooze": (lambda: packhorse.Snooze(3600), "pending", 0),
    "retry": (lambda: packhorse.Retry(3600), "pending", 1),
    "bury": (lambda: packhorse.Bury("no"), "dead", 1),
    "cancel": (lambda: packhorse.Cancel("no"), "cancelled", 1),
    "fails": (lambda: ValueError("no"), "dead", 1),
    "exits": (lambda: SystemExit(3), "dead", 1),
    "group": (lambda: BaseExceptionGroup("many", [ValueError("a"), KeyboardInterrupt()]), "dead", 1),
}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_outcomes(house, kind):
    make, state, attempt = OUTCOMES[kind]

    @dramatiq.actor(max_retries=0 if kind != "retry" else 5)
    async def ends():
        await asyncio.sleep(0)
        raise make()

    house.start()
    ends.send()
    wait_until(lambda: house.database.query("select state, attempt from all_messages") == [(state, attempt)])


def test_a_soft_limit_is_an_exception_inside_it(house):
    met = []

    @dramatiq.actor(time_limit=200, max_retries=0)
    async def slow():
        try:
            await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))
        except dramatiq.middleware.TimeLimitExceeded as error:
            met.append(isinstance(error, asyncio.CancelledError))
            raise

    @dramatiq.actor(time_limit=200, max_retries=0)
    async def group():
        async with asyncio.TaskGroup() as tasks:  # which wraps what is not exactly a CancelledError
            tasks.create_task(asyncio.sleep(60))
            await asyncio.sleep(60)

    @dramatiq.actor(time_limit=200, max_retries=0)
    async def tidies():
        try:
            await asyncio.sleep(60)
        except dramatiq.middleware.TimeLimitExceeded:
            await asyncio.sleep(0.01)  # and is done all the same

    house.start()
    slow.send()
    tidies.send()
    group.send()
    wait_until(lambda: states(house) == ["dead", "dead", "done"])
    assert met == [True]
    assert house.database.query("select distinct error_class from dead_letters") == [("TimeLimitExceeded",)]


def test_one_that_swallows_its_interrupts_is_not_resumed_and_ends_no_process(house):
    turns = []
    neighbour_ended = threading.Event()

    @dramatiq.actor(time_limit=100, hard_time_limit=200, max_retries=0)
    async def stubborn():
        while True:
            try:
                turns.append(time.monotonic())
                await asyncio.sleep(0.02)
            except BaseException:
                pass

    @dramatiq.actor
    async def neighbour():
        await asyncio.sleep(2)
        neighbour_ended.set()

    house.start()
    neighbour.send()
    stubborn.send()
    wait_until(
        lambda: (
            house.database.query("select error_class, attempt from dead_letters")
            == [("HardTimeLimitExceeded", 1)]
        ),
        10,
    )
    last = turns[-1]
    assert neighbour_ended.wait(10)
    assert turns[-1] == last, "it ran on"
    assert house._worker.exit_code == 0


def test_a_cancelled_message_ends_with_what_it_waits_for(house):
    started, ended = threading.Event(), []

    @dramatiq.actor
    async def waits():
        try:
            async with asyncio.timeout(60):
                started.set()
                await asyncio.sleep(60)
        except CancelInterrupt:
            ended.append("cancelled")
            raise

    house.start()
    waits.send()
    assert started.wait(10)
    house.database.query("select cancel_message(id) from message_queue")
    wait_until(lambda: states(house) == ["cancelled"])
    assert ended == ["cancelled"]


def test_hooks_of_others_run_in_a_thread_in_order_and_ours_on_the_loop(house):
    calls = []

    class Slow(Middleware):
        def before_process_message(self, broker, message):
            time.sleep(0.05)
            calls.append(("before", threading.current_thread().name.startswith("packhorse-helper")))
            mark.set("by a hook")

        def after_process_message(self, broker, message, *, result=None, exception=None):
            calls.append(("after", threading.current_thread().name.startswith("packhorse-helper")))

    class OnLoop(Middleware):
        runs_on_loop = True

        def before_process_message(self, broker, message):
            calls.append(("on loop", threading.current_thread().name == "packhorse-event-loop"))

    mark = contextvars.ContextVar("mark", default="")
    house.broker.add_middleware(Slow())
    house.broker.add_middleware(OnLoop())

    @dramatiq.actor
    async def handler():
        calls.append(mark.get())

    house.start()
    handler.send()
    house.drained()
    assert calls == [("before", True), ("on loop", True), "by a hook", ("after", True)]


def test_handlers_that_keep_the_threads_of_the_loop_keep_none_of_ours(house):
    """asyncio.to_thread has a few threads; sends and transactions do not wait for them."""
    go, sent, written = threading.Event(), [], []

    @dramatiq.actor
    def follows():
        sent.append(1)

    @dramatiq.actor
    async def keeps():
        await asyncio.to_thread(go.wait, 60)

    @dramatiq.actor
    async def sends():
        await follows.send_async()

    @packhorse.actor(transactional=True)
    async def writes():
        written.append(packhorse.current_async_connection())

    house.broker.enqueue_many([keeps.message() for _ in range(100)])
    house.start()
    wait_until(
        lambda: house.database.value("select count(*) from message_queue where state = 'running'") == 100, 20
    )
    sends.send()
    writes.send()
    wait_until(lambda: sent and written, 20)
    go.set()
    house.drained(30)


def test_results_pipelines_groups_and_callbacks(house):
    house.with_results()
    seen = []

    @dramatiq.actor(store_results=True)
    async def add(a, b):
        await asyncio.sleep(0.01)
        return a + b

    @dramatiq.actor
    async def collects(_data=None, result=None):
        seen.append(result)

    house.start()
    assert (add.message(1, 2) | add.message(3)).run().get_result(block=True, timeout=10_000) == 6
    group = dramatiq.group([add.message(n, n) for n in range(3)])
    assert list(group.run().get_results(block=True, timeout=10_000)) == [0, 2, 4]
    add.send_with_options(args=(20, 22), on_success=collects)
    wait_until(lambda: seen == [42])


def test_the_effects_of_a_transactional_coroutine_commit_with_its_completion(house):
    house.database.query("drop table if exists effects; create table effects (name text)")
    house.database.query("grant all on effects to public")
    sent = []

    @dramatiq.actor
    def follows(name):
        sent.append(name)

    @packhorse.actor(transactional=True, max_retries=0)
    async def books(name, fails):
        connection = packhorse.current_async_connection()
        await connection.execute("insert into public.effects values (%s)", (name,))
        await connection.execute("set local role none")
        await connection.execute("create temporary table left_behind ()")
        await follows.send_async(name)
        with pytest.raises(WorkerError, match="send_async"):
            follows.send(name)
        with pytest.raises(WorkerError, match="current_async_connection"):
            packhorse.current_connection()
        if fails:
            raise ValueError("rolled back")

    house.start()
    for name, fails in (("kept", False), ("lost", True), ("kept too", False)):
        books.send(name, fails)
    wait_until(lambda: sorted(states(house)) == ["dead", "done", "done", "done", "done"])
    assert sorted(row[0] for row in house.database.query("select name from effects")) == ["kept", "kept too"]
    assert sorted(sent) == ["kept", "kept too"]


def test_a_transactional_coroutine_that_is_interrupted_rolls_back(house):
    house.database.query("drop table if exists effects; create table effects (name text)")
    house.database.query("grant all on effects to public")

    @packhorse.actor(transactional=True, max_retries=0, time_limit=300)
    async def sleeps():
        connection = packhorse.current_async_connection()
        await connection.execute("insert into public.effects values ('gone')")
        await connection.execute("select pg_sleep(60)")

    house.start()
    sleeps.send()
    wait_until(lambda: states(house) == ["dead"], 20)
    assert house.database.value("select count(*) from effects") == 0
    assert house.database.value("select error_class from dead_letters") == "TimeLimitExceeded"


def test_the_bad_limit_is_named(house):
    for most in (0, -1, 2.5, "3", True, 10**9):
        with pytest.raises(packhorse.InvalidArgument, match="max_in_flight"):

            @dramatiq.actor(actor_name=f"bad-{most}", max_in_flight=most)
            async def bad():
                pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_that_a_coroutine_forks_runs_nothing_else(house):
    ran = []

    @dramatiq.actor
    async def forks():
        if os.fork() == 0:
            await asyncio.sleep(0.01)  # it cannot
        await asyncio.sleep(0.2)
        ran.append(os.getpid())

    house.start()
    forks.send()
    house.drained()
    assert ran == [os.getpid()]
    assert house.database.query("select state, attempt from all_messages") == [("done", 1)]
