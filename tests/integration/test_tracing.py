"""Spans from producer to consumer (SPEC O3), on both ways to run the broker, with the real SDK."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys

import dramatiq
import psycopg
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

import packhorse
from packhorse.worker.attempt.middleware.tracing import Tracing
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.observe import tracing
from packhorse.worker.observe.logging import configure
from tests.support.harness import WAYS, House
from tests.support.logs import logging_restored
from tests.support.spans import context_of, linked, text_of, traced
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = pytest.mark.one_database

SECRET = "+250788123456"
user = trace.get_tracer("application")


@pytest.fixture
def spans(monkeypatch):
    yield from traced(monkeypatch)


@pytest.fixture(params=WAYS)
def house(request, database, monkeypatch, spans):
    house = House(request.param, database, monkeypatch, threads=2)
    house.broker.add_middleware(Tracing())
    yield house
    house.stop()


@pytest.fixture
def runtime(database, monkeypatch, spans):
    house = House("runtime", database, monkeypatch, threads=1)
    house.broker.add_middleware(Tracing())
    yield house
    house.stop()


def _stored(database):
    both = (
        "select id, trace_context from message_queue union all select id, trace_context from message_archive"
    )
    return [row[1] for row in database.query(f"select * from ({both}) as b order by id")]


def _traceparent(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def test_a_consumer_links_to_its_producer_and_begins_a_trace_of_its_own(house, spans, database):
    @dramatiq.actor
    def greet(name):
        pass

    with user.start_as_current_span("request") as request:
        greet.send(SECRET)
    house.start()
    house.drained()
    sent, processed = spans.one("send default"), spans.one("process default")
    assert sent.parent.span_id == request.get_span_context().span_id
    assert linked(processed) == [context_of(sent)] and processed.parent is None
    assert (sent.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    (identity,) = [row[0] for row in database.query("select id from all_messages")]
    assert dict(sent.attributes) == {
        "messaging.system": "packhorse",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "default",
        "messaging.message.id": str(identity),
    }
    assert dict(processed.attributes) == {
        "messaging.system": "packhorse",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "default",
        "messaging.message.id": str(identity),
        "packhorse.actor": "greet",
        "packhorse.attempt": 1,
        "packhorse.outcome": "done",
    }
    assert processed.status.status_code is StatusCode.UNSET and not processed.events
    assert SECRET[4:] not in text_of(sent) + text_of(processed)


def test_each_attempt_is_a_trace_linked_to_the_same_producer(house, spans):
    @dramatiq.actor(min_backoff=10, max_backoff=20, max_retries=2)
    def fails():
        raise ValueError("no")

    fails.send()
    house.start()
    house.drained()
    attempts = spans.wait("process default", 3)
    assert [span.attributes["packhorse.attempt"] for span in attempts] == [1, 2, 3]
    assert [span.attributes["packhorse.outcome"] for span in attempts] == ["failed", "failed", "dead"]
    assert {tuple(linked(span)) for span in attempts} == {(context_of(spans.one("send default")),)}
    assert len({span.context.trace_id for span in attempts}) == 3


def test_a_failure_is_a_status_and_an_exception_without_personal_data(house, spans):
    @dramatiq.actor(max_retries=0)
    def fails():
        try:
            raise KeyError(f"cause {SECRET}")
        except KeyError as cause:
            raise ValueError(f"cannot call {SECRET} or jane@example.com, password=hunter2") from cause

    fails.send()
    house.start()
    house.drained()
    span = spans.one("process default")
    assert span.status.status_code is StatusCode.ERROR and span.attributes["error.type"] == "ValueError"
    (event,) = span.events
    assert event.name == "exception" and event.attributes["exception.type"] == "ValueError"
    assert (
        event.attributes["exception.message"] == "cannot call +250788***456 or j***@example.com, password=***"
    )
    assert (
        "KeyError" in event.attributes["exception.stacktrace"]
        and "in fails" in event.attributes["exception.stacktrace"]
    )
    for leak in ("788123456", "jane@", "hunter2"):
        assert leak not in text_of(span), leak


def test_outcomes_that_are_no_failures_are_no_errors(runtime, spans):
    @dramatiq.actor
    def ends(kind):
        if kind == "snooze" and len(spans.all("process default")) == 0:
            raise packhorse.Snooze(0.01)
        if kind == "cancel":
            raise packhorse.Cancel("nobody wants it")

    ends.send("snooze")
    runtime.start()
    runtime.drained()
    ends.send("cancel")
    runtime.drained()
    ended = spans.wait("process default", 3)
    assert [span.attributes["packhorse.outcome"] for span in ended] == ["snooze", "done", "cancelled"]
    assert {span.status.status_code for span in ended} == {StatusCode.UNSET} and not any(
        span.events for span in ended
    )


def test_a_buried_message_and_one_that_middleware_refuses_say_dead(runtime, spans):
    @dramatiq.actor
    def buried():
        raise packhorse.Bury("hopeless")

    @dramatiq.actor(queue_name="second")
    def unwanted():
        raise AssertionError("never runs")

    class Refusing(dramatiq.Middleware):
        def before_process_message(self, broker, message):
            if message.actor_name == "unwanted":
                message.fail()
                raise dramatiq.middleware.SkipMessage("not wanted")

    runtime.broker.add_middleware(Refusing())
    buried.send()
    unwanted.send()
    runtime.start()
    runtime.drained()
    span = spans.one("process default")
    assert (span.attributes["packhorse.outcome"], span.attributes["error.type"], span.status.description) == (
        "dead",
        "Bury",
        "hopeless",
    )
    span = spans.one("process second")
    assert (span.attributes["packhorse.outcome"], span.attributes["error.type"], span.status.description) == (
        "dead",
        "SkipMessage",
        "not wanted",
    )
    assert tracing.active.ids() == {}


def test_the_users_own_spans_and_log_lines_are_inside(house, spans):
    stream = io.StringIO()
    house.broker.add_middleware(dramatiq.middleware.AsyncIO())

    @dramatiq.actor
    def outer():
        logging.getLogger("app").info("in the handler")
        with user.start_as_current_span("own"):
            structlog.get_logger().info("in a span")
        inner.send()

    @dramatiq.actor(queue_name="second")
    async def inner():
        await asyncio.sleep(0)
        with user.start_as_current_span("in a coroutine"):
            pass

    with logging_restored():
        configure(log_format="json", stream=stream)
        house.start()
        outer.send()
        house.drained()
        first, second = spans.one("process default"), spans.one("process second")
        own, coroutine = spans.one("own"), spans.one("in a coroutine")
        logging.getLogger("app").info("outside")
    assert own.parent.span_id == first.context.span_id and coroutine.parent.span_id == second.context.span_id
    sent = spans.one("send second")
    assert sent.parent.span_id == first.context.span_id and linked(second) == [context_of(sent)]
    lines = {line["event"]: line for line in map(json.loads, stream.getvalue().splitlines())}
    assert (lines["in the handler"]["trace_id"], lines["in the handler"]["span_id"]) == (
        f"{first.context.trace_id:032x}",
        f"{first.context.span_id:016x}",
    )
    assert lines["in a span"]["span_id"] == f"{own.context.span_id:016x}"
    assert "trace_id" not in lines["outside"]


def test_the_line_of_a_failed_attempt_names_its_trace(runtime, spans, caplog):
    caplog.set_level(logging.INFO, "packhorse.message")

    @dramatiq.actor(max_retries=0)
    def fails():
        raise ValueError("no")

    runtime.start()
    fails.send()
    failed = "message_failed"  # said once it is written: a moment after nothing lives any more
    wait_until(lambda: any(record.msg.startswith(failed) for record in caplog.records))
    (record,) = [record for record in caplog.records if record.msg.startswith(failed)]
    assert record.args[-1] == f"{spans.one('process default').context.trace_id:032x}"


def test_a_transactional_handler_commits_inside_its_span(runtime, spans, database):
    database.query("create table if not exists effects (key text)")
    database.query("grant all on effects to public")

    @dramatiq.actor(transactional=True, min_backoff=10, max_backoff=20)
    def pays(key):
        with user.start_as_current_span("own"):
            packhorse.current_connection().execute("insert into effects values (%s)", (key,))
        follows.send()
        if packhorse.current_message().attempt == 1:
            raise RuntimeError("before the commit")

    @dramatiq.actor(queue_name="second")
    def follows():
        pass

    pays.send("once")
    runtime.start()
    runtime.drained()
    first, second = spans.wait("process default", 2)
    assert [span.attributes["packhorse.outcome"] for span in (first, second)] == ["failed", "done"]
    sends = spans.all("send second")
    assert [span.parent.span_id for span in sends] == [first.context.span_id, second.context.span_id]
    assert linked(spans.one("process second")) == [context_of(sends[1])], (
        "the first one was rolled back with its transaction"
    )


def test_a_producer_in_sql_is_linked_and_nonsense_is_ignored(runtime, spans, database):
    @dramatiq.actor
    def greet():
        pass

    runtime.start()
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for text in (parent, f"{parent} vendor=1", "'; drop table message_queue; --", "x" * 1000, None):
        database.query(
            "select message_id from enqueue_message(p_queue => 'default', p_message_type => 'greet', p_trace_context => %s)",
            text,
        )
        runtime.drained()
    found = [
        [f"{trace_id:032x}" for trace_id, _ in linked(span)] for span in spans.wait("process default", 5)
    ]
    assert found == [[parent[3:35]], [parent[3:35]], [], [], []]


def test_a_redriven_message_still_links_to_its_producer(runtime, spans, database):
    @dramatiq.actor(max_retries=0)
    def fails():
        raise ValueError("no")

    runtime.start()
    fails.send()
    runtime.drained()
    database.query(
        "select redrive_dead_letters(p_ids => array(select id from dead_letters), p_limit => 1, p_operator => 'me', p_reason => 'test')"
    )
    runtime.drained()
    assert {tuple(linked(span)) for span in spans.wait("process default", 2)} == {
        (context_of(spans.one("send default")),)
    }


def test_a_bulk_enqueue_is_one_span_for_all_its_messages(runtime, spans, database):
    @dramatiq.actor
    def greet():
        pass

    @dramatiq.actor(queue_name="second")
    def other():
        pass

    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    runtime.broker.enqueue_many(
        [greet.message(), greet.message(), greet.message_with_options(trace_context=given)]
    )
    sent = spans.one("send default")
    assert sent.attributes["messaging.batch.message_count"] == 3
    assert _stored(database) == [_traceparent(sent), _traceparent(sent), given]
    runtime.broker.enqueue_many([greet.message(), other.message()])
    assert "messaging.destination.name" not in spans.one("send").attributes
    runtime.broker.enqueue_many([])
    assert len(spans.all()) == 2


def test_a_refused_enqueue_is_an_error_that_quotes_nothing(runtime, spans):
    @dramatiq.actor
    def greet():
        pass

    with pytest.raises(InvalidArgument):
        greet.send(**{SECRET: 1})
    span = spans.one("send default")
    assert span.status.status_code is StatusCode.ERROR and span.attributes["error.type"] == "InvalidArgument"
    assert SECRET[4:] not in text_of(span)
    assert tracing.active.ids() == {}


def test_enqueue_on_the_callers_connection_stores_the_callers_span(spans, database):
    tracing.switch_on()
    with psycopg.connect(database.url) as connection, user.start_as_current_span("request"):
        packhorse.enqueue(connection, "greet", {})
        packhorse.enqueue(connection, "greet", {}, trace_context="mine")

    async def asynchronously():
        async with await psycopg.AsyncConnection.connect(database.url) as connection:
            with user.start_as_current_span("request"):
                await packhorse.enqueue_async(connection, "greet", {})
            await packhorse.enqueue_async(connection, "greet", {})

    asyncio.run(asynchronously())
    first, second = spans.all("request")
    assert _stored(database) == [_traceparent(first), "mine", _traceparent(second), None]


def test_nothing_is_stored_while_this_process_does_not_trace(spans, database, monkeypatch):
    house = House("runtime", database, monkeypatch, threads=1)

    @dramatiq.actor
    def greet():
        pass

    with user.start_as_current_span("request"):
        greet.send()
        house.broker.enqueue_many([greet.message()])
        with psycopg.connect(database.url) as connection:
            packhorse.enqueue(connection, "greet", {})
    house.start()
    house.drained()
    house.stop()
    assert _stored(database) == [None, None, None]
    assert [span.name for span in spans.all()] == ["request"]


def test_the_setting_adds_the_middleware_once_and_in_front(database, monkeypatch, spans):
    for given in (False, True):
        house = House("runtime", database, monkeypatch, threads=1, tracing=True)
        if given:
            house.broker.add_middleware(Tracing())
        dramatiq.actor(lambda: None, actor_name="greet")
        house.start()
        house.stop()
        found = [
            index
            for index, middleware in enumerate(house.broker.middleware)
            if isinstance(middleware, Tracing)
        ]
        assert found == [0]


@pytest.mark.parametrize("command", [["config", "check"], ["worker", "tests.support.actors"]])
@pytest.mark.slow
def test_without_the_package_a_command_ends_with_one_clear_problem(command, database):
    code = f"import sys; sys.modules['opentelemetry'] = None; from packhorse.worker.cli.program import run; sys.exit(run({command!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database.url,
            "PACKHORSE_TRACING": "true",
        },
    )
    assert done.returncode == 2, done.stderr
    said = done.stdout + done.stderr
    assert said.count("packhorse[otel]") == 1 and "PACKHORSE_TRACING" in said and "Traceback" not in said
