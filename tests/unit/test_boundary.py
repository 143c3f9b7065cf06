"""Error boundaries in every shape (worker/calls/boundary.py): SPEC W9, PLATFORM 8. Through a worker:
tests/integration/test_errors.py.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from uuid import UUID

import dramatiq
import pytest
import structlog
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import TimeLimitExceeded

import packhorse
from packhorse.calls import (
    AgentError,
    CircuitOpen,
    MessageProcessingError,
    WorkflowError,
    safe_http_response,
    with_error_boundary,
)
from packhorse.worker.attempt.context import current
from packhorse.worker.attempt.details import details_of, judgement_of
from packhorse.worker.attempt.middleware.retries import Retries
from packhorse.worker.errors import CancelInterrupt, DrainInterrupt, LeaseInterrupt, LeaseLost
from packhorse.worker.observe.logging import configure
from packhorse.worker.states import Verb
from tests.support.logs import logging_restored


@pytest.fixture
def lines():
    """The log lines so far."""
    stream = io.StringIO()
    with logging_restored():
        configure(log_format="json", stream=stream)
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def message():
    """A claimed message, as far as a boundary looks at it."""
    current.message = SimpleNamespace(
        lease_token=77, correlation_id="of-the-message", options={}, attempt=1, id=5
    )  # type: ignore[assignment]
    yield current.message
    current.message = None


def decorated(boundary, body):
    return boundary(body)()


def entered(boundary, body):
    with boundary:
        return body()


def decorated_async(boundary, body):
    async def run():
        await asyncio.sleep(0)
        return body()

    return asyncio.run(boundary(run)())


def entered_async(boundary, body):
    async def run():
        async with boundary:
            await asyncio.sleep(0)
            return body()

    return asyncio.run(run())


SHAPES = [decorated, entered, decorated_async, entered_async]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.__name__)
def shape(request):
    return request.param


def raising(error):
    def body():
        raise error

    return body


def test_success_is_one_line_with_its_duration(shape, lines):
    assert shape(with_error_boundary("charge", correlation_id="c-1"), lambda: 42) == 42
    (line,) = lines()
    assert (line["event"], line["level"], line["operation_name"], line["correlation_id"]) == (
        "operation_done",
        "info",
        "charge",
        "c-1",
    )
    assert line["duration_seconds"] >= 0


ASKED = [
    packhorse.Snooze(1),
    packhorse.Retry(),
    packhorse.Bury("b"),
    packhorse.Cancel(),
    dramatiq.errors.Retry(delay=5),
    LeaseLost("x"),
    packhorse.RetryAfter(5, "openai"),
    CircuitOpen("openai", 5),
]
KINDS = {
    "ours": (WorkflowError("x", "NO_FUNDS"), True, "NO_FUNDS"),
    "ours not retryable": (WorkflowError("x", retryable=False), False, "WORKFLOW_ERROR"),
    "ours not recoverable": (WorkflowError("x", recoverable=False), False, "WORKFLOW_ERROR"),
    "agent": (AgentError("x", agent_type="support"), True, "AGENT_ERROR"),
    "agent not recoverable": (AgentError("x", recoverable=False), False, "AGENT_ERROR"),
    "processing": (MessageProcessingError("x", message_id=1), True, "MESSAGE_PROCESSING_ERROR"),
    "processing not to be retried": (
        MessageProcessingError("x", should_retry=False),
        False,
        "MESSAGE_PROCESSING_ERROR",
    ),
    "of the network": (ConnectionRefusedError("x"), True, None),
    "of anybody": (ValueError("x"), False, None),
    "group": (ExceptionGroup("x", [TimeoutError()]), True, None),
}


@pytest.mark.parametrize(("error", "retryable", "code"), KINDS.values(), ids=KINDS)
def test_an_error_is_said_once_and_raised_again_and_ends_as_it_should(
    shape, lines, message, error, retryable, code
):
    with pytest.raises(type(error)) as raised:
        shape(with_error_boundary("charge"), raising(error))
    assert raised.value is error
    first, *more = lines()
    assert (first["event"], first["level"], first["operation_name"]) == (
        "operation_failed",
        "warning",
        "charge",
    )
    assert (first["code"], first["error_class"], first["retryable"]) == (
        code,
        type(error).__name__,
        retryable,
    )
    assert first["correlation_id"] == "of-the-message" and first["duration_seconds"] >= 0
    assert [line["event"] for line in more] == (["agent_error"] if isinstance(error, AgentError) else [])
    outcome = Retries().decide(None, message, error)
    assert (
        outcome.verb is (Verb.FAIL if retryable else Verb.BURY)
        and (outcome.reason == "rejected") is not retryable
    )
    assert (
        outcome.details is not None
        and outcome.details.code == code
        and outcome.details.context["operation_name"] == "charge"
    )
    assert outcome.details.retryable is (retryable or getattr(error, "retryable", False)), (
        "what it says of itself stays as it was"
    )


@pytest.mark.parametrize(
    "error",
    [
        *ASKED,
        CancelInterrupt(),
        DrainInterrupt(),
        LeaseInterrupt(),
        TimeLimitExceeded(),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_asked_outcomes_and_interrupts_pass_and_are_no_error(lines, message, error):
    for shape in (decorated, entered):
        with pytest.raises(type(error)) as raised:
            shape(with_error_boundary("charge"), raising(error))
        assert raised.value is error
    assert lines() == [] and judgement_of(error) is None


def test_a_cancelled_coroutine_is_no_error(lines):
    async def run():
        task = asyncio.ensure_future(with_error_boundary("waits")(asyncio.Event().wait)())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert lines() == []


def test_without_a_boundary_the_usual_policy_holds(message):
    outcome = Retries().decide(None, message, ValueError("x"))
    assert (outcome.verb, outcome.details) == (Verb.FAIL, None)
    refused = Retries().decide(None, message, WorkflowError("x", recoverable=False))
    assert (refused.verb, refused.reason) == (Verb.BURY, "rejected")


def test_a_boundary_of_another_attempt_says_nothing(message):
    """One exception object, raised again and again."""
    error = ValueError("one for all")
    with pytest.raises(ValueError):
        entered(with_error_boundary("of this attempt", user_id="ada"), raising(error))
    assert Retries().decide(None, message, error).verb is Verb.BURY
    message.lease_token = 78
    outcome = Retries().decide(None, message, error)
    assert (outcome.verb, outcome.details) == (Verb.FAIL, None)
    with pytest.raises(ValueError):
        entered(with_error_boundary("of the next"), raising(error))
    context = Retries().decide(None, message, error).details.context  # type: ignore[union-attr]
    assert context == {"operation_name": "of the next", "correlation_id": "of-the-message"}


def test_retry_when_of_the_actor_comes_before_a_boundary_and_after_what_the_error_says(message):
    actor = SimpleNamespace(options={"retry_when": lambda retries, error: True})
    with pytest.raises(ValueError) as foreign:
        entered(with_error_boundary("x"), raising(ValueError()))
    outcome = Retries().decide(actor, message, foreign.value)
    assert outcome.verb is Verb.FAIL and outcome.details is not None and outcome.details.retryable is True
    assert Retries().decide(actor, message, WorkflowError("x", retryable=False)).verb is Verb.BURY


def test_an_error_of_the_database_keeps_the_judgement_when_it_is_translated(message):
    with pytest.raises(KeyError) as raised:
        entered(with_error_boundary("x"), raising(KeyError()))
    translated = packhorse.StoreError("constraint")
    translated.__cause__ = raised.value
    assert Retries().decide(None, message, translated).verb is Verb.BURY


def test_an_inner_boundary_knows_more_than_an_outer_one(lines, message):
    with (
        pytest.raises(ValueError) as raised,
        with_error_boundary("outer", user_id="ada", step=1),
        with_error_boundary("inner", step=2),
    ):
        raise ValueError
    assert [line["operation_name"] for line in lines()] == ["inner", "outer"]
    context = details_of(raised.value, judgement_of(raised.value)).context  # type: ignore[union-attr]
    assert context == {
        "operation_name": "inner",
        "correlation_id": "of-the-message",
        "step": 2,
        "user_id": "ada",
    }


def test_an_error_that_is_handled_inside_says_nothing_of_the_operation(lines, message):
    with with_error_boundary("outer"), pytest.raises(ValueError):
        entered(with_error_boundary("inner"), raising(ValueError()))
    assert [line["event"] for line in lines()] == ["operation_failed", "operation_done"]


def test_what_an_error_says_itself_wins_over_what_its_boundary_was_given():
    with pytest.raises(AgentError) as raised:
        entered(
            with_error_boundary("x", step=1, agent_type="sales"),
            raising(AgentError("x", context={"step": 2, "phone": "+250788123456"}, agent_type="support")),
        )
    context = details_of(raised.value, judgement_of(raised.value)).context  # type: ignore[union-attr]
    assert (context["step"], context["agent_type"], context["phone"]) == (2, "support", "+250788***456")


def test_lines_and_kept_texts_are_masked(shape, lines, message):
    secret = "+250788123456"
    with pytest.raises(RuntimeError) as raised:
        shape(
            with_error_boundary(
                f"call {secret}",
                user_phone=secret,
                user_id="ada@example.org",
                note=f"to {secret}",
                api_key="k-1",
            ),
            raising(RuntimeError(f"no answer from {secret}")),
        )
    outcome = Retries().decide(None, message, raised.value)
    said = json.dumps(lines()) + outcome.details.as_json() + outcome.error_message + outcome.traceback  # type: ignore[operator,union-attr]
    assert "250788123456" not in said and "ada@" not in said and "k-1" not in said
    (line,) = lines()
    assert (line["user_phone"], line["context"]) == (
        "+250788***456",
        {"note": "to +250788***456", "api_key": "***"},
    )
    assert (
        outcome.error_message == "no answer from +250788***456"
        and "no answer from +250788***456" in outcome.traceback
    )  # type: ignore[operator]


def test_a_long_text_is_masked_whole(message):
    """A log line ends earlier; a traceback does not."""
    with pytest.raises(RuntimeError) as raised:
        entered(with_error_boundary("x"), raising(RuntimeError("+250788123456 " * 2000)))
    outcome = Retries().decide(None, message, raised.value)
    assert "123456" not in outcome.error_message and "123456" not in outcome.traceback  # type: ignore[operator]
    assert len(outcome.traceback) > 25_000  # type: ignore[arg-type]


def test_lines_from_inside_have_the_context_and_those_after_have_not(shape, lines):
    log = structlog.get_logger("app")
    shape(
        with_error_boundary(
            "charge",
            correlation_id="c-1",
            workflow_type="order",
            message_id="wamid.1",
            event="x",
            exc_info=True,
        ),
        lambda: log.info("inside"),
    )
    log.info("after")
    inside, _, after = lines()
    assert (
        inside["operation_name"],
        inside["correlation_id"],
        inside["workflow_type"],
        inside["message_id"],
    ) == ("charge", "c-1", "order", "wamid.1")
    assert inside["event"] == "inside" and inside["context"] == {"event": "x", "exc_info": True}
    assert set(after) == {"event", "level", "logger", "timestamp"}


def test_inside_a_handler_lines_keep_the_id_of_its_message(lines, message):
    with with_error_boundary("charge", message_id="wamid.1"):
        structlog.get_logger("app").info("inside")
    assert "message_id" not in lines()[0], "which is the logging's to add"


def test_the_correlation_id_is_the_messages_else_the_given_else_the_outer_ones_else_a_new_one(message):
    with with_error_boundary("x", correlation_id="given") as operation:
        assert operation.correlation_id == packhorse.correlation_id() == "of-the-message"
    message.correlation_id = None
    with with_error_boundary("x", correlation_id="given") as outer:
        assert outer.correlation_id == packhorse.correlation_id() == "given"
        with with_error_boundary("y") as inner:
            assert inner.correlation_id == "given"
    with with_error_boundary("x") as fresh:
        assert UUID(fresh.correlation_id) and packhorse.correlation_id() == fresh.correlation_id
    assert packhorse.correlation_id() is None


@pytest.mark.parametrize("odd", ["a\r\nSet-Cookie: x", "", "é", "x" * 201, 7])
def test_a_correlation_id_that_cannot_go_into_a_header_is_replaced(odd):
    with with_error_boundary("x", correlation_id=odd) as operation:
        assert UUID(operation.correlation_id)
    assert UUID(safe_http_response(ValueError(), odd).headers["X-Correlation-ID"])


async def wait_in_a_block(boundary):
    async with boundary:
        await asyncio.Event().wait()


def decorated_thread(boundary):
    left = threading.Event()
    try:
        boundary(lambda: left.wait(30))()
    finally:
        left.set()


LATE = {
    "def": decorated_thread,
    "async def": lambda boundary: asyncio.run(boundary(asyncio.Event().wait)()),
    "async with": lambda boundary: asyncio.run(wait_in_a_block(boundary)),
}


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_a_boundary_may_have_a_timeout(late, lines, message):
    with pytest.raises(WorkflowError) as raised:
        late(with_error_boundary("ask", timeout_ms=20, agent_type="support"))
    line = next(line for line in lines() if line["event"] == "operation_failed")
    assert (line["code"], line["error_class"], line["retryable"]) == ("TIMEOUT", "WorkflowError", True)
    outcome = Retries().decide(None, message, raised.value)
    assert outcome.verb is Verb.FAIL and outcome.details is not None
    assert outcome.details.context == {
        "timeout_ms": 20,
        "operation_name": "ask",
        "correlation_id": "of-the-message",
        "agent_type": "support",
    }
    assert packhorse.correlation_id() == "of-the-message"


def test_a_timeout_that_is_not_over_changes_nothing(shape, lines):
    boundary = with_error_boundary("ask", timeout_ms="ai_agent")
    if shape is entered:
        with pytest.raises(TypeError, match="from outside"):
            shape(boundary, lambda: 1)
        return
    assert shape(boundary, lambda: 1) == 1
    with pytest.raises(TimeoutError, match="of its own"):
        shape(boundary, raising(TimeoutError("of its own")))
    assert [line["event"] for line in lines()] == ["operation_done", "operation_failed"]
    with pytest.raises(packhorse.InvalidArgument):
        with_error_boundary("ask", timeout_ms=0)


def test_what_goes_wrong_with_the_line_hides_nothing(shape, message):
    """An application's filter, say, in a process whose logging is not ours."""

    def refuse(record):
        raise RuntimeError("of the filter")

    logger = logging.getLogger("packhorse.calls")
    logger.addFilter(refuse)
    try:
        with pytest.raises(KeyError) as raised:
            shape(with_error_boundary("charge"), raising(KeyError("mine")))
        assert shape(with_error_boundary("charge"), lambda: 1) == 1
    finally:
        logger.removeFilter(refuse)
    assert Retries().decide(None, message, raised.value).verb is Verb.BURY
    assert packhorse.correlation_id() == "of-the-message"


def test_one_boundary_may_be_entered_many_times_at_once(lines):
    boundary = with_error_boundary("shared")
    together = threading.Barrier(8)

    def run(number):
        with boundary as outer:
            together.wait(10)
            with boundary as inner:
                assert (inner.outer, outer.outer) == (outer, None)
        return outer.correlation_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(run, range(8)))) == 8

    async def many():
        async def one():
            async with boundary as operation:
                await asyncio.sleep(0)
                assert packhorse.correlation_id() == operation.correlation_id
                return operation.correlation_id

        return await asyncio.gather(*(one() for _ in range(100)))

    assert len(set(asyncio.run(many()))) == 100
    assert {line["event"] for line in lines()} <= {"operation_done", "repeats_suppressed"}


def test_what_is_decorated_keeps_its_name_and_signature():
    @with_error_boundary("x")
    async def fetch(url: str, *, tries: int = 3) -> str:
        """Gets it."""
        return url

    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Gets it.")
    import inspect

    assert inspect.iscoroutinefunction(fetch) and list(inspect.signature(fetch).parameters) == [
        "url",
        "tries",
    ]


def test_what_cannot_be_decorated_is_refused():
    broker = StubBroker()

    @dramatiq.actor(broker=broker)
    def actor():
        pass

    def rows():
        yield 1

    async def later():
        yield 1

    with pytest.raises(TypeError, match=re.escape("below @dramatiq.actor")):
        with_error_boundary("x")(actor)
    for function in (rows, later):
        with pytest.raises(TypeError, match="generator"):
            with_error_boundary("x")(function)


class Frozen(Exception):
    """Takes no attributes, and has no text."""

    def __setattr__(self, name, value):
        raise AttributeError(name)

    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


@pytest.mark.parametrize("shape", [decorated, entered])  # asyncio.run itself asks for the text
def test_an_exception_that_takes_nothing_comes_through_all_the_same(shape, lines, message):
    with pytest.raises(Frozen) as raised:
        shape(with_error_boundary("x"), raising(Frozen()))
    assert lines()[0]["error_class"] == "Frozen"
    assert Retries().decide(None, message, raised.value).verb is Verb.BURY


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (WorkflowError("call +250788123456", recoverable=False), 400, "call +250788***456"),
        (WorkflowError("try later", retryable=False), 500, "try later"),
        (AgentError("x" * 600), 500, "x" * 500),
        (ValueError("secret of a library"), 500, "internal error"),
        (KeyboardInterrupt(), 500, "internal error"),
    ],
)
def test_a_web_handler_answers_without_the_text_of_others(error, status, text):
    answer = safe_http_response(error, "c-1")
    assert answer == (status, {"error": text, "correlationId": "c-1"}, {"X-Correlation-ID": "c-1"})


def test_a_web_handler_answers_with_the_correlation_id_of_the_boundary():
    with (
        pytest.raises(ValueError) as raised,
        with_error_boundary("webhook", correlation_id="from-the-request") as operation,
    ):
        assert safe_http_response(ValueError()).headers["X-Correlation-ID"] == operation.correlation_id
        raise ValueError
    assert safe_http_response(raised.value).body["correlationId"] == "from-the-request"
    assert UUID(safe_http_response(ValueError()).body["correlationId"])
