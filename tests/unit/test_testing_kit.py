"""packhorse.testing without a server (SPEC W12): handlers called as a worker calls them, what is sent,
dramatiq's StubBroker.
"""

from __future__ import annotations

import asyncio
import datetime
import threading

import dramatiq
import pytest
from dramatiq.common import dq_name

import packhorse
from packhorse.testing import (
    FakeAsyncConnection,
    FakeConnection,
    MemorySteps,
    captured,
    fake_message,
    run_actor,
    run_actor_async,
    stub_broker,
)
from packhorse.worker.attempt.context import current
from packhorse.worker.enqueue import capture


@pytest.fixture
def broker(monkeypatch):
    """One without any database."""
    broker = packhorse.PostgresBroker()
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    return broker


# -- handlers ------------------------------------------------------------------------------------------


def test_a_handler_sees_its_message_and_nobody_does_afterwards(broker):
    @packhorse.actor(queue_name="mail")
    def look(a, b=2):
        message = packhorse.current_message()
        return (
            a,
            b,
            message.actor_name,
            message.queue_name,
            message.attempt,
            message.args,
            message.kwargs,
            packhorse.correlation_id(),
        )

    message = fake_message(attempt=3, correlation_id="c1")
    assert run_actor(look, 1, message=message) == (1, 2, "look", "mail", 3, (), {"a": 1}, "c1")
    assert current.message is None and packhorse.correlation_id() is None


def test_arguments_go_through_json(broker):
    @packhorse.actor
    def same(value):
        return value

    assert run_actor(same, (1, {"a": (2,)})) == [1, {"a": [2]}]
    with pytest.raises(packhorse.InvalidArgument, match=r"^payload: cannot be stored as JSON"):
        run_actor(same, object())
    with pytest.raises(
        packhorse.InvalidArgument, match=r"^vlaue: same has no argument of this name\. Did you mean 'value'"
    ):
        run_actor(same, vlaue=1)
    with pytest.raises(packhorse.InvalidArgument, match=r"^value: same needs this argument"):
        run_actor(same)


def test_an_argument_that_is_called_like_ours_goes_by_position(broker):
    @packhorse.actor
    def say(message, now):
        return message, now

    assert run_actor(say, "hello", "today") == ("hello", "today")
    with pytest.raises(packhorse.InvalidArgument, match=r"^message: must be fake_message.* goes by position"):
        run_actor(say, message="hello", now="today")


@pytest.mark.parametrize(
    "outcome",
    [
        packhorse.Snooze(5),
        packhorse.Retry(1),
        packhorse.Bury("no"),
        packhorse.Cancel(),
        packhorse.RetryAfter(3, "openai"),
    ],
)
def test_outcomes_come_out_as_they_are(broker, outcome):
    @packhorse.actor
    def ask():
        raise outcome

    with pytest.raises(type(outcome)) as raised:
        run_actor(ask)
    assert raised.value is outcome


def test_now_sets_the_times_of_the_message(broker):
    @packhorse.actor
    def times():
        message = packhorse.current_message()
        return message.message_timestamp, message.run_at

    noon = datetime.datetime(2030, 1, 31, 12, tzinfo=datetime.UTC)
    assert run_actor(times, now=noon, message=fake_message(age_seconds=60, due_seconds=30)) == (
        int(noon.timestamp() - 60) * 1000,
        "2030-01-31 11:59:30+00:00",
    )
    with pytest.raises(packhorse.InvalidArgument, match=r"^now: must be a datetime with a time zone"):
        run_actor(times, now=datetime.datetime(2030, 1, 31))


def test_coroutines_run_with_and_without_a_loop(broker):
    @packhorse.actor
    async def wait(value: int) -> tuple[int, str | None]:
        await asyncio.sleep(0)
        return value, packhorse.correlation_id()

    @packhorse.actor
    def plain() -> str:
        return threading.current_thread().name

    async def test() -> None:
        with pytest.raises(packhorse.InvalidArgument, match=r"^actor: wait is a coroutine"):
            run_actor(wait, 1)
        assert await run_actor_async(wait, 2, message=fake_message(correlation_id="x")) == (2, "x")
        assert current.message is None
        assert await run_actor_async(plain) != threading.current_thread().name

    assert run_actor(wait, 1) == (1, None)
    asyncio.run(test())


def test_steps_are_done_once_per_message(broker):
    calls = []

    @packhorse.actor
    def pays():
        first = packhorse.step("pay", lambda: calls.append("pay") or ("receipt", len(calls)))
        if packhorse.current_message().attempt == 1:
            raise ConnectionError
        return first

    steps = MemorySteps()
    with pytest.raises(ConnectionError):
        run_actor(pays, steps=steps)
    assert run_actor(pays, steps=steps, message=fake_message(attempt=2)) == ["receipt", 1]
    assert (calls, steps.values, steps.reused) == (["pay"], {"pay": ["receipt", 1]}, 1)
    run_actor(pays, message=fake_message(attempt=2))
    assert calls == ["pay", "pay"], "a call without steps= begins anew"


def test_coroutines_have_steps_and_bounds_hold(broker):
    @packhorse.actor
    async def pays(size: int) -> list[str]:
        return [await packhorse.step_async(f"part {number}", lambda: "x" * size) for number in range(6)]

    steps = MemorySteps()
    assert run_actor(pays, 1, steps=steps) == ["x"] * 6 and len(steps.values) == 6
    with pytest.raises(packhorse.StepError, match="at most 1048576 bytes"):
        run_actor(pays, 200_000)


def test_steps_of_a_transaction_that_fails_are_gone(broker):
    @packhorse.actor(transactional=True)
    def pays(fail):
        packhorse.step("pay", lambda: 1)
        if fail:
            raise ConnectionError

    steps = MemorySteps()
    with pytest.raises(ConnectionError):
        run_actor(pays, True, steps=steps, connection=FakeConnection())
    assert steps.values == {}
    run_actor(pays, False, steps=steps, connection=FakeConnection())
    assert steps.values == {"pay": 1}


def test_a_transactional_handler_writes_to_a_fake(broker):
    @packhorse.actor(transactional=True)
    def move():
        connection = packhorse.current_connection()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("select 1")
            rows = list(cursor)
        return (
            rows,
            connection.execute("update t set a = %s", (2,)).rowcount,
            connection.execute("select 3").fetchone(),
        )

    fake = FakeConnection([(1,)], [])
    assert run_actor(move, connection=fake) == ([(1,)], 0, None)
    assert fake.executed == [("select 1", None), ("update t set a = %s", (2,)), ("select 3", None)]
    with pytest.raises(packhorse.WorkerError, match="no transaction here"):
        packhorse.current_connection()


def test_a_transactional_coroutine_writes_to_a_fake(broker):
    @packhorse.actor(transactional=True)
    async def move():
        connection = packhorse.current_async_connection()
        async with connection.transaction():
            return await (await connection.execute("select 1")).fetchall()

    assert run_actor(move, connection=FakeAsyncConnection([(1,), (2,)])) == [(1,), (2,)]


def test_a_connection_is_asked_for_where_it_is_needed_and_refused_elsewhere(broker):
    @packhorse.actor(transactional=True)
    def moves():
        pass

    @packhorse.actor
    def looks():
        pass

    with pytest.raises(
        packhorse.InvalidArgument, match=r"^connection: moves is transactional: it needs one.*FakeConnection"
    ):
        run_actor(moves)
    with pytest.raises(packhorse.InvalidArgument, match=r"^connection: looks is not transactional"):
        run_actor(looks, connection=FakeConnection())
    with pytest.raises(packhorse.InvalidArgument, match=r"^connection: str is no connection"):
        run_actor(moves, connection="postgresql://")
    with pytest.raises(packhorse.InvalidArgument, match=r"^actor: .*is no actor"):
        run_actor(len, [])


# -- what is sent --------------------------------------------------------------------------------------


@pytest.fixture
def charge(broker):
    @packhorse.actor(queue_name="payments", priority=2, max_age=60_000)
    def charge(order_id, amount=1):
        return order_id

    return charge


def test_what_actors_send_is_a_list(charge):
    with captured() as sent:
        charge.send(7, amount=2)
        charge.send_with_options(
            args=(8,), delay=1500, conversation_key="k", dedup_key="d", max_retries=4, pipe_ignore=True
        )
        asyncio.run(charge.send_async(9))
    assert [(m.id, m.payload) for m in sent] == [
        (1, {"order_id": 7, "amount": 2}),
        (2, {"order_id": 8}),
        (3, {"order_id": 9}),
    ]
    second = sent.of(charge)[1]
    assert (second.queue, second.message_type, second.priority, second.delay, second.conversation_key, second.dedup_key, second.max_attempts) == (
        "payments", "charge", 2, 1.5, "k", "d", 5,
    )  # fmt: skip
    assert second.options == {"max_retries": 4, "pipe_ignore": True} and second.expires_in == 60.0


def test_pipelines_groups_and_bulk_are_sent_too(broker, charge):
    with captured() as sent:
        (charge.message(1) | charge.message()).run()
        dramatiq.group([charge.message(2), charge.message(3)]).run()
        assert broker.enqueue_many(charge.message(number) for number in (4, 5)) == 2
    assert [message.payload.get("order_id") for message in sent] == [1, 2, 3, 4, 5]
    assert sent[0].options["pipe_target"]["actor_name"] == "charge"


def test_enqueue_is_sent_without_a_connection(broker):
    with captured() as sent:
        assert (
            packhorse.enqueue(
                None, "print", {"a": (1,)}, queue="printer", priority=1, delay=3, dedup_key="d", my_option=1
            ).id
            == 1
        )
        assert asyncio.run(packhorse.enqueue_async(None, "print")).id == 2
        assert packhorse.enqueue_payloads(None, "print", [{"a": 1}, {"a": 2}], correlation_id="c") == 2
        assert asyncio.run(packhorse.enqueue_payloads_async(None, "print", [])) == 0
    first = sent[0]
    assert (first.queue, first.payload, first.priority, first.delay, first.dedup_key, first.options) == (
        "printer", {"a": [1]}, 1, 3.0, "d", {"my_option": 1},
    )  # fmt: skip
    assert [(m.payload, m.correlation_id) for m in sent[2:]] == [({"a": 1}, "c"), ({"a": 2}, "c")]


def test_what_is_refused_is_refused_here(broker, charge):
    with captured() as sent:
        for send in (
            lambda: charge.send(),
            lambda: charge.send(1, amuont=2),
            lambda: charge.send_with_options(args=(1,), conversation_kye="k"),
            lambda: charge.send(object()),
            lambda: broker.enqueue_many(
                [charge.message(1), charge.message_with_options(args=(1,), dedup_key="d")]
            ),
            lambda: packhorse.enqueue(None, "print", {}, priority=11),
            lambda: packhorse.enqueue_payloads(None, "print", [{}], dedup_key="d"),
        ):
            with pytest.raises(packhorse.InvalidArgument):
                send()
        sent.none()


def test_threads_send_into_the_same_list_and_captures_nest(charge):
    with captured() as outer:
        with captured() as inner:
            thread = threading.Thread(target=charge.send, args=(1,))
            thread.start()
            thread.join()
        charge.send(2)
    assert (inner.one().payload, outer.one().payload) == ({"order_id": 1}, {"order_id": 2})
    assert capture.active is None
    with pytest.raises(packhorse.ConfigError, match="database_url"):
        charge.send(3)


def test_an_assertion_says_what_was_sent(charge):
    with captured() as sent:
        charge.send(7)
        charge.send(8)
    with pytest.raises(
        AssertionError,
        match=r"expected one message of 'charge', found 2; sent:\n  1: charge \{\"order_id\": 7\} on payments\n  2: ",
    ):
        sent.one(charge)
    with pytest.raises(AssertionError, match="expected no message of 'charge', found 2"):
        sent.none(charge)
    sent.none("refund")
    with pytest.raises(packhorse.InvalidArgument, match="neither an actor"):
        sent.of(charge.fn)


def test_a_handler_sends_with_its_correlation_id(charge, broker):
    @packhorse.actor
    def relays():
        charge.send(1)

    @packhorse.actor(transactional=True)
    async def relays_later():
        await charge.send_async(2)

    with captured() as sent:
        run_actor(relays, message=fake_message(correlation_id="call 5"))
        run_actor(
            relays_later, message=fake_message(correlation_id="call 6"), connection=FakeAsyncConnection()
        )
    assert [message.correlation_id for message in sent] == ["call 5", "call 6"]


# -- StubBroker ----------------------------------------------------------------------------------------


@pytest.fixture
def stub(monkeypatch):
    stub = stub_broker()
    monkeypatch.setattr("dramatiq.broker.global_broker", stub)
    worker = dramatiq.Worker(stub, worker_timeout=20, worker_threads=2)
    worker.start()
    yield stub
    worker.stop()


def test_our_actor_options_are_taken_and_dramatiqs_worker_runs_them(stub):
    seen = []

    @packhorse.actor(
        transactional=True,
        services=["openai"],
        max_in_flight=3,
        time_limit_class="payment",
        aliases=["old"],
        failure_breaker=5,
        max_attempts=2,
    )
    def handle(a):
        message = packhorse.current_message()
        seen.append((a, message.conversation_key, packhorse.correlation_id(), message.attempt))
        follow.send()

    @packhorse.actor
    async def follow():
        seen.append(packhorse.correlation_id())

    handle.send_with_options(
        args=((1,),), conversation_key="k", correlation_id="c", dedup_key="d", priority=1
    )
    stub.join("default", timeout=5000)
    assert seen == [([1], "k", "c", 1), "c"]
    asyncio.run(handle.send_async(2))
    stub.join("default", timeout=5000)
    assert seen[2][0] == 2 and current.message is None


def test_the_stub_refuses_what_our_broker_refuses(stub):
    @packhorse.actor
    def handle(a):
        pass

    for send in (
        lambda: handle.send(),
        lambda: handle.send(object()),
        lambda: handle.send_with_options(args=(1,), conversation_kye="k"),
    ):
        with pytest.raises(packhorse.InvalidArgument):
            send()
    with pytest.raises(packhorse.InvalidArgument, match="max_in_flight"):
        packhorse.actor(actor_name="other", max_in_flight=0)(lambda: None)
    with pytest.raises(ValueError, match="srevices"):
        packhorse.actor(actor_name="other", srevices=[])(lambda: None)
    assert stub.queues["default"].empty()


def test_outcomes_end_a_message_of_the_stub_as_in_a_worker(stub):
    calls = []

    @packhorse.actor(max_attempts=2)
    def handle(how):
        calls.append((how, packhorse.current_message().attempt, packhorse.step("pay", lambda: len(calls))))
        first = [call[0] for call in calls].count(how) == 1
        if how == "cancel":
            raise packhorse.Cancel
        if how == "bury":
            raise packhorse.Bury("no")
        if how == "snooze" and first:
            raise packhorse.Snooze(0)
        if how in ("retry", "dies"):
            raise packhorse.Retry(0) if how == "dies" or first else None

    for how in ("cancel", "snooze", "dies", "bury"):
        handle.send(how)
    stub.join("default", timeout=5000, fail_fast=False)
    assert [attempt for how, attempt, _ in calls if how == "cancel"] == [1]
    assert [attempt for how, attempt, _ in calls if how == "snooze"] == [1, 1], "no attempt is spent"
    assert [attempt for how, attempt, _ in calls if how == "dies"] == [1, 2]
    assert len({step for how, _, step in calls if how == "dies"}) == 1, "a retry has its steps"
    assert sorted(
        message.args[0] if message.args else message.kwargs["how"] for message in stub.dead_letters
    ) == ["bury", "dies"]
    assert stub.queues[dq_name("default")].empty()
