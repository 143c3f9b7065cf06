"""Steps in handlers: a later attempt does not do again what an earlier one has stored (SPEC W3c)."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import dramatiq
import pytest
from dramatiq.middleware import AsyncIO

import packhorse
from packhorse import (
    StepError,
    current_async_connection,
    current_connection,
    current_message,
    step,
    step_async,
)
from packhorse.worker.attempt import step_store
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.broker.postgres import PostgresBroker
from tests.support.harness import House
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.one_database]
KINDS = ["thread", "coroutine"]


@pytest.fixture(params=["dramatiq-worker", "runtime"])
def house(request, database, monkeypatch):
    house = House(request.param, database, monkeypatch, threads=4)
    house.broker.add_middleware(AsyncIO())
    yield house
    house.stop()


@pytest.fixture
def worker(database, monkeypatch):
    """Only our runtime."""
    house = House("runtime", database, monkeypatch, threads=4)
    house.broker.add_middleware(AsyncIO())
    yield house
    house.stop()


def actor(body, kind="thread", **options):
    """An actor whose body gets `run(name, function, *args)`, as a coroutine or in a thread."""
    if kind == "thread":

        def handler():
            return body()

    else:

        async def handler():
            return await body()

    return dramatiq.actor(
        handler, actor_name="handler", **{"max_attempts": 3, "min_backoff": 10, "max_backoff": 20} | options
    )


def stored(database):
    return database.query(
        "select s.name, s.value, s.attempt from all_messages a cross join lateral message_steps(a.id) s order by 1"
    )


ODD = {"bb": 1, "a": [1.0, 1e22, -0.0, 2.50, None, True, "ä\u2028"], "c": {}}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_paid_for_is_not_paid_for_twice(house, database, kind):
    calls, seen = [], []

    def ask(question, *, model):
        calls.append((question, model))
        return ODD

    async def ask_later(question, *, model):
        await asyncio.sleep(0)
        return ask(question, model=model)

    def reply(answer):
        seen.append((repr(answer), type(answer["a"][1])))
        if current_message().attempt < 3:
            raise RuntimeError("the reply failed")

    def in_thread():
        reply(step("answer", ask, "why?", model="m"))

    async def in_coroutine():
        reply(
            await step_async(
                "answer", ask_later if current_message().attempt == 1 else ask, "why?", model="m"
            )
        )

    actor(in_thread if kind == "thread" else in_coroutine, kind).send()
    house.start()
    house.drained()
    assert calls == [("why?", "m")]
    assert len(seen) == 3 and len(set(seen)) == 1, "each attempt has seen the same, the first one too"
    assert stored(database) == [("answer", ODD, 1)]
    assert database.query("select state, attempt from all_messages") == [("done", 3)]


@pytest.mark.parametrize("ends", ["snoozed", "released", "redriven"])
def test_steps_are_kept_however_the_attempt_ended(worker, database, ends):
    calls = []

    def body():
        step("answer", lambda: calls.append(1))
        if len(attempts) == 0:
            attempts.append(1)
            if ends == "snoozed":
                raise packhorse.Snooze(0)
            if ends == "redriven":
                raise packhorse.Bury("as asked")
            database.query(
                "update message_queue set lease_expires_at = clock_timestamp() - interval '1 minute'"
            )
            time.sleep(1.5)

    attempts: list[int] = []
    handler = actor(body)
    handler.send()
    worker.start()
    if ends == "redriven":
        wait_until(lambda: database.value("select count(*) from dead_letters") == 1)
        database.query("select redrive_dead_letters(p_queue => 'default')")
    worker.drained()
    assert calls == [1]


BAD = {
    "not JSON": (lambda: object(), "its result (object) is not JSON"),
    "too large": (lambda: "x" * 262_143, "262145 bytes of JSON, at most 262144"),
    "NUL": (lambda: "\x00", "NUL"),
    "lone surrogate": (lambda: "\ud800", "lone surrogate"),
    "NaN": (lambda: float("nan"), "not JSON"),
    "circle": (lambda: (circle := []).append(circle) or circle, "not JSON"),
    "deep": (lambda: deep(100_000), "not JSON"),
    "number without end": (lambda: 10**5000, "not JSON"),
    "coroutine": (lambda: asyncio.sleep(0), "use `await step_async"),
    "no name": ("", "1 to 100 characters"),
    "long name": ("x" * 101, "1 to 100 characters"),
    "name with NUL": ("\x00", "PostgreSQL cannot store"),
    "name of another type": (5, "int is no name"),
}


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(name, kind) for name in BAD for kind in KINDS if (name, kind) != ("coroutine", "coroutine")],
)
def test_what_cannot_be_stored_is_one_dead_letter_that_says_why(worker, database, bad, kind):
    given, text = BAD[bad]
    name, function = ("answer", given) if callable(given) else (given, lambda: calls.append(1))
    calls: list[int] = []

    def in_thread():
        step(name, function)

    async def in_coroutine():
        await step_async(name, function)

    actor(in_thread if kind == "thread" else in_coroutine, kind).send()
    worker.start()
    worker.drained()
    ((reason, error_class, message, attempt),) = database.query(
        "select reason, error_class, error_message, attempt from dead_letters"
    )
    assert (reason, error_class, attempt) == ("rejected", "StepError", 1) and text in message
    assert stored(database) == [] and calls == [], "a step that cannot be stored for its name is not paid for"


def test_the_hundred_and_first_step_is_not_paid_for(worker, database):
    calls = []

    def body():
        for number in range(101):
            step(f"s{number}", calls.append, number)

    actor(body).send()
    worker.start()
    worker.drained()
    assert len(calls) == 100 and len(stored(database)) == 100
    assert "one too many" in database.value("select error_message from dead_letters")


def test_all_steps_together_are_bounded(worker, database):
    def body():
        for number in range(5):
            step(f"s{number}", lambda: "x" * 262_000)

    actor(body).send()
    worker.start()
    worker.drained()
    assert [name for name, _, _ in stored(database)] == ["s0", "s1", "s2", "s3"]
    assert "1048576" in database.value("select error_message from dead_letters")


def test_one_name_is_used_once_in_an_attempt_and_again_when_its_function_failed(worker, database):
    told = []

    def fails_once():
        if not told:
            told.append("failed")
            raise ValueError("once")
        return 7

    def body():
        with pytest.raises(ValueError):
            step("a", fails_once)
        assert step("a", fails_once) == 7
        step("a", lambda: told.append("another meaning"))

    actor(body).send()
    worker.start()
    worker.drained()
    assert told == ["failed"]
    assert "has used the name already" in database.value("select error_message from dead_letters")
    assert stored(database) == [("a", 7, 1)]


def test_many_coroutines_store_at_once_and_each_gets_its_own(worker, database):
    seen = {}

    async def one(number):
        return await step_async(f"s{number}", asyncio.sleep, 0.001, {"number": number})

    async def body():
        seen.update(enumerate(await asyncio.gather(*(one(number) for number in range(100)))))

    actor(body, "coroutine").send()
    worker.start()
    worker.drained()
    assert seen == {number: {"number": number} for number in range(100)}
    assert len(stored(database)) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_holder_stores_nothing_and_is_told_so(worker, database, kind):
    heard = []

    def lose():
        database.query("update message_queue set lease_token = lease_token + 1000000")
        return 1

    def in_thread():
        try:
            step("answer", lose)
        except BaseException as error:
            heard.append(type(error).__name__)
            raise

    async def in_coroutine():
        try:
            await step_async("answer", lose)
        except BaseException as error:
            heard.append(type(error).__name__)
            raise

    actor(in_thread if kind == "thread" else in_coroutine, kind).send()
    worker.start()
    wait_until(lambda: heard)
    assert heard == ["LeaseLost"]
    assert stored(database) == []


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_transactional_handler_steps_commit_or_roll_back_with_it(worker, database, kind):
    database.query("create table if not exists effects (attempt integer)")
    database.query("grant all on effects to public; delete from effects")
    calls = []

    def write():
        current_connection().execute("insert into effects values (%s)", (current_message().attempt,))
        calls.append(stored(database))
        return len(calls)

    def body():
        step("effect", write)
        current_connection().execute("set local search_path to pg_temp")
        if current_message().attempt == 1:
            raise RuntimeError("after the step")

    async def write_async():
        await current_async_connection().execute(
            "insert into effects values (%s)", (current_message().attempt,)
        )
        calls.append(stored(database))
        return len(calls)

    async def in_coroutine():
        await step_async("effect", write_async)
        await current_async_connection().execute("set local search_path to pg_temp")
        if current_message().attempt == 1:
            raise RuntimeError("after the step")

    actor(body if kind == "thread" else in_coroutine, kind, transactional=True).send()
    worker.start()
    worker.drained()
    assert database.query("select attempt from effects") == [(2,)]
    assert calls == [[], []], "nothing was there when the second attempt began"
    assert stored(database) == [("effect", 2, 2)]
    assert database.query("select state, attempt from all_messages") == [("done", 2)]


def test_a_lease_is_renewed_while_a_transactional_handler_has_stored_a_step(worker, database):
    def body():
        step("first", lambda: 1)
        deadline = time.monotonic() + worker.settings.lease_seconds + 1
        while time.monotonic() < deadline:
            time.sleep(0.05)

    actor(body, transactional=True, time_limit=60_000).send()
    worker.start()
    worker.drained()
    assert database.query("select state, attempt from all_messages") == [("done", 1)]


def test_a_stale_transactional_handler_commits_nothing(worker, database):
    tokens = []

    def body():
        step("answer", lambda: 1)
        if not tokens:
            tokens.append(1)
            database.query(
                "update message_queue set lease_token = lease_token + 1000000, lease_expires_at = clock_timestamp() - interval '1 minute'"
            )

    actor(body, transactional=True).send()
    worker.start()
    worker.drained()
    assert [name for name, _, _ in stored(database)] == ["answer"]
    assert database.value("select crashes from all_messages") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_locked_row_is_waited_for(worker, database, kind):
    """The function has been called and paid for: that somebody looks at the row must not cost its result."""
    locked, free = threading.Event(), threading.Event()

    def hold():
        with database.connect(admin=True) as other, other.transaction():
            other.execute("select from message_queue for update")
            locked.set()
            free.wait(10)

    def ask():
        threading.Thread(target=hold).start()
        assert locked.wait(10)
        threading.Timer(1.0, free.set).start()
        return 42

    def in_thread():
        step("answer", ask)

    async def in_coroutine():
        await step_async("answer", ask)

    actor(in_thread if kind == "thread" else in_coroutine, kind).send()
    worker.start()
    worker.drained()
    assert stored(database) == [("answer", 42, 1)]
    assert database.query("select state, attempt from all_messages") == [("done", 1)]


def test_a_coroutine_that_is_interrupted_while_its_step_is_stored_has_stored_it(worker, database):
    """Its function has come to its end: the next attempt need not pay again."""
    seen = []

    async def body():
        with database.connect(admin=True) as other, other.transaction():
            other.execute("select from message_queue for update")
            storing = asyncio.create_task(step_async("answer", lambda: 42))
            await asyncio.sleep(0.2)
            storing.cancel()
            await asyncio.wait([storing])
        await asyncio.sleep(0.5)
        seen.append(stored(database))

    actor(body, "coroutine").send()
    worker.start()
    worker.drained()
    assert seen == [[("answer", 42, 1)]]


def test_what_postgresql_refuses_keeps_no_neighbour_from_storing(worker, database, monkeypatch):
    """Together they are one statement; alone each is its own."""
    monkeypatch.setattr("packhorse.worker.attempt.steps.has_nul", lambda text: False)
    heard = {}

    async def one(name, value):
        try:
            heard[name] = await step_async(name, lambda: value)
        except Exception as error:
            heard[name] = type(error).__name__

    async def body():
        await asyncio.gather(*(one(f"s{number}", "\x00" if number == 5 else number) for number in range(10)))

    actor(body, "coroutine").send()
    worker.start()
    worker.drained()
    assert heard == {f"s{number}": "StepError" if number == 5 else number for number in range(10)}
    assert len(stored(database)) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_database_that_stays_away_ends_the_step_in_time(worker, database, kind, monkeypatch):
    monkeypatch.setattr(step_store, "STORE_SECONDS", 0.5)
    heard = []

    def away(*_):
        raise packhorse.StoreUnavailable("away")

    def call():
        monkeypatch.setattr("packhorse.worker.store.steps.store", away)
        return 1

    def back():
        monkeypatch.undo()

    def in_thread():
        try:
            step("answer", call)
        except packhorse.StoreUnavailable as error:
            heard.append(str(error))
            back()

    async def in_coroutine():
        try:
            await step_async("answer", call)
        except packhorse.StoreUnavailable as error:
            heard.append(str(error))
            back()

    actor(in_thread if kind == "thread" else in_coroutine, kind).send()
    worker.start()
    wait_until(lambda: heard)
    assert "away" in heard[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_not_there_ends_the_step_in_time(monkeypatch, kind):
    monkeypatch.setattr(step_store, "STORE_SECONDS", 0.3)
    broker = PostgresBroker("postgresql://packhorse@127.0.0.1:1/nowhere")
    message = ClaimedMessage(
        ("claimed", 1, 1, "q", "t", "{}", "{}", 5, 1, None, 0, None, None, None, "", 0.0, 0.0, None), 0.0, 0.0
    )
    with pytest.raises(packhorse.StoreUnavailable):
        if kind == "thread":
            broker.steps.store(message, "answer", "1")
        else:
            asyncio.run(broker.steps.store_async(message, "answer", "1"))
    broker.close()


def test_an_error_that_nobody_expected_reaches_the_coroutines(worker, database, monkeypatch):
    heard = []

    def broken(*_):
        raise ZeroDivisionError("a bug")

    async def body():
        with monkeypatch.context() as patch:
            patch.setattr("packhorse.worker.store.steps.store", broken)
            heard.extend(
                map(
                    type,
                    await asyncio.gather(step_async("a", int), step_async("b", int), return_exceptions=True),
                )
            )
        heard.append(await step_async("a", int))

    actor(body, "coroutine").send()
    worker.start()
    worker.drained()
    assert heard == [ZeroDivisionError, ZeroDivisionError, 0]


def test_a_child_that_a_step_forks_ends_there(worker, database):
    def forks():
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"

    def body():
        step("answer", forks)

    actor(body).send()
    worker.start()
    worker.drained()
    assert stored(database) == [("answer", "parent", 1)]


def test_a_child_has_a_writer_of_its_own(worker, database):
    """The thread that writes for coroutines is its parent's, and not in the child."""

    def body():
        assert asyncio.run(step_async("parent", lambda: 1)) == 1
        pid = os.fork()
        if not pid:
            try:
                asyncio.run(step_async("child", lambda: 2))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert asyncio.run(step_async("parent again", lambda: 3)) == 3

    actor(body).send()
    worker.start()
    worker.drained()
    assert [(name, value) for name, value, _ in stored(database)] == [
        ("child", 2),
        ("parent", 1),
        ("parent again", 3),
    ]


def test_the_thread_for_coroutines_ends_with_its_broker_and_starts_again_when_it_is_needed(worker, database):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "packhorse-steps"]

    def body():
        asyncio.run(step_async("first", lambda: 1))
        assert len(threads()) == 1
        worker.broker.close()
        wait_until(lambda: not threads())
        asyncio.run(step_async("second", lambda: 2))

    actor(body).send()
    worker.start()
    worker.drained()
    assert [name for name, _, _ in stored(database)] == ["first", "second"]
    assert len(threads()) == 1
    worker.stop()
    wait_until(lambda: not threads())


@pytest.mark.parametrize("odd", ["[1]", '{"answer": 5}', '{"answer": {"value": 1e5000}}'])
def test_steps_that_nobody_can_read_are_one_dead_letter(worker, database, odd):
    database.query("select enqueue_message('default', 'handler')")
    database.query("update message_queue set steps = %s::jsonb", odd)
    actor(lambda: step("answer", lambda: 1))
    worker.start()
    worker.drained()
    ((reason, text),) = database.query("select reason, error_message from dead_letters")
    assert reason == "rejected" and "cannot be read" in text


def test_what_a_worker_in_sql_has_stored_a_handler_in_python_reuses(worker, database):
    seen = []
    database.query("select enqueue_message('default', 'handler')")
    ((message_id, token),) = database.query("select id, lease_token from get_next_queue_message('default')")
    database.query(
        "select store_message_step(%s, %s, 'answer', %s::jsonb)", message_id, token, '{"by": "sql"}'
    )
    database.query("select release_message(%s, %s)", message_id, token)

    def body():
        seen.append(step("answer", lambda: seen.append("called")))

    actor(body)
    worker.start()
    worker.drained()
    assert seen == [{"by": "sql"}]


def test_a_message_that_is_sent_on_as_another_one_has_no_steps(worker, database):
    """Only its own row has them: a copy with another id is another message."""
    told = []

    @dramatiq.actor
    def gave_up(data, info):
        told.append(current_message().stored_steps)

    def body():
        step("answer", lambda: 1)
        raise RuntimeError("fails")

    actor(body, max_attempts=1, on_retry_exhausted="gave_up").send()
    worker.start()
    worker.drained()
    assert told == [None]
    assert database.value("select steps -> 'answer' -> 'value' from dead_letters") == 1


def test_outside_a_message_the_function_is_called_and_looks_the_same():
    assert step("answer", lambda: (1, {"b": 2})) == [1, {"b": 2}]
    assert asyncio.run(step_async("answer", asyncio.sleep, 0, (1,))) == [1]
    with pytest.raises(StepError):
        step("answer", object)
