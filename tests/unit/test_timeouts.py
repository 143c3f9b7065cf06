"""A time limit for one operation (worker/calls/timeouts.py, PLATFORM 8). Times are only waited for, never
asserted.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextvars import ContextVar

import pytest

from packhorse.calls import TIMEOUTS_MS, WorkflowError, with_timeout
from packhorse.worker.calls import timeouts
from packhorse.worker.errors import InvalidArgument
from tests.support.waiting import wait_until

tenant: ContextVar[str] = ContextVar("tenant")


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    wait_until(lambda: timeouts._count_left() == 0, 10, "left operations have ended")


async def forever():
    await asyncio.Event().wait()


async def answer():
    await asyncio.sleep(0)
    return 42


def check(raised):
    assert (raised.code, raised.recoverable, raised.retryable) == ("TIMEOUT", True, True)
    assert raised.context == {"timeout_ms": 20, "operation_name": "look up"}


def test_the_classes_are_those_of_the_contract():
    assert TIMEOUTS_MS == {
        "default": 30_000,
        "ai_agent": 120_000,
        "payment": 60_000,
        "media": 300_000,
        "external_api": 30_000,
        "database": 10_000,
    }


@pytest.mark.parametrize(
    "given", ["coroutine function", "coroutine", "future", "function that makes a coroutine"]
)
def test_a_coroutine_that_takes_too_long_is_cancelled(given):
    def operation(function):
        if given == "coroutine function":
            return function
        if given == "function that makes a coroutine":
            return lambda: function()
        return function() if given == "coroutine" else asyncio.ensure_future(function())

    async def run():
        with pytest.raises(WorkflowError) as raised:
            await with_timeout(operation(forever), 20, "look up")
        check(raised.value)
        assert await with_timeout(operation(answer), "database") == 42

    asyncio.run(run())


def test_a_function_that_takes_too_long_is_left_in_its_thread():
    goes_on, ended = threading.Event(), threading.Event()

    def operation():
        goes_on.wait(30)
        ended.set()

    with pytest.raises(WorkflowError) as raised:
        with_timeout(operation, 20, "look up")
    check(raised.value)
    assert not ended.is_set()
    goes_on.set()
    assert ended.wait(30)


def test_a_function_answers_raises_and_sees_the_callers_context():
    tenant.set("a")
    assert with_timeout(
        lambda: (tenant.get(), threading.current_thread() is not threading.main_thread())
    ) == ("a", True)

    def fails():
        raise KeyError("of its own")

    with pytest.raises(KeyError, match="of its own"):
        with_timeout(fails, 5000)


@pytest.mark.parametrize("own", [TimeoutError, asyncio.TimeoutError])
def test_a_timeout_of_the_operation_itself_comes_out_as_it_is(own):
    def fails():
        raise own("mine")

    async def fails_later():
        raise own("mine")

    with pytest.raises(own, match="mine"):
        with_timeout(fails, 5000)
    with pytest.raises(own, match="mine"):
        asyncio.run(with_timeout(fails_later, 5000))


def test_a_cancel_from_outside_stays_a_cancel():
    async def run():
        task = asyncio.ensure_future(with_timeout(forever(), 60_000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


@pytest.mark.parametrize(
    "wrong", [0, -1, float("nan"), float("inf"), 86_400_001, True, None, "ai_agnet", "soon", [1]]
)
def test_what_is_no_timeout_is_refused(wrong):
    with pytest.raises(InvalidArgument) as raised:
        with_timeout(lambda: 1, wrong)
    assert raised.value.field == "timeout_ms"
    if wrong == "ai_agnet":
        assert raised.value.hint == "Did you mean 'ai_agent'?"
    coroutine = forever()
    with pytest.raises(InvalidArgument):
        with_timeout(coroutine, wrong)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED, "nobody could await it any more"


def test_left_operations_have_a_bound(monkeypatch):
    monkeypatch.setattr(timeouts, "MAX_LEFT", 2)
    goes_on = threading.Event()
    for _ in range(2):
        with pytest.raises(WorkflowError, match="took longer"):
            with_timeout(lambda: goes_on.wait(30), 20)
    with pytest.raises(WorkflowError) as refused:
        with_timeout(lambda: 1, 5000, "one more")
    assert refused.value.code == "TOO_MANY_LEFT_OPERATIONS" and refused.value.retryable
    goes_on.set()
    wait_until(lambda: timeouts._count_left() == 0, 10, "they have ended")
    assert with_timeout(lambda: 1, 5000) == 1


def test_a_phone_number_in_the_name_is_masked():
    with pytest.raises(WorkflowError) as raised:
        asyncio.run(with_timeout(forever, 1, "call +250788123456"))
    assert (
        "123456" not in str(raised.value) and raised.value.context["operation_name"] == "call +250788***456"
    )
