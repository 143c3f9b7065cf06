"""Each message runs in a context of its own (SPEC W3b): what a handler or middleware sets in context
variables, structlog's bound values included, is not there for the next message of its thread, nor in its log
lines."""

from __future__ import annotations

import contextvars
import logging
import threading

import dramatiq
import pytest
import structlog
from dramatiq.middleware import AsyncIO, Middleware

from packhorse import current_connection, current_message
from packhorse.worker.attempt.context import current
from tests.support.harness import House

pytestmark = pytest.mark.one_database

tenant: contextvars.ContextVar[str | None] = contextvars.ContextVar("tenant", default=None)


@pytest.fixture
def house(database, monkeypatch):
    """One handler thread: each message runs where the one before it ran."""
    house = House("runtime", database, monkeypatch, threads=1)
    yield house
    house.stop()


@pytest.mark.parametrize("transactional", [False, True], ids=["plain", "transactional"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["thread", "coroutine"])
@pytest.mark.parametrize("ends", ["returns", pytest.param("raises", marks=pytest.mark.slow)])
def test_context_variables_of_one_message_are_not_those_of_the_next(house, transactional, asynchronous, ends):
    house.broker.add_middleware(AsyncIO())
    seen = []

    def look_and_set():
        seen.append((threading.current_thread().name, tenant.get(), structlog.contextvars.get_contextvars()))
        tenant.set("A")
        structlog.contextvars.bind_contextvars(customer="somebody")
        if ends == "raises":
            raise ValueError("after that")

    async def in_coroutine():
        look_and_set()

    body = in_coroutine if asynchronous else look_and_set
    body.__name__ = "sets"
    actor = dramatiq.actor(body, actor_name="sets", max_attempts=1, transactional=transactional)
    for _ in range(3):
        actor.send()
    house.start()
    house.drained()
    assert len({name for name, _, _ in seen}) == 1, "the same thread"
    assert [rest for _, *rest in seen] == [[None, {}]] * 3


def test_hooks_around_a_handler_share_its_context_and_leave_nothing_behind(house):
    seen = []

    class Binds(Middleware):
        def before_process_message(self, broker, message):
            seen.append(("before", tenant.get()))
            tenant.set("of the hook")

        def after_process_message(self, broker, message, *, result=None, exception=None):
            seen.append(("after", tenant.get()))

    house.broker.add_middleware(Binds())

    @dramatiq.actor
    def handler():
        seen.append(("handler", tenant.get()))
        tenant.set("of the handler")

    handler.send()
    handler.send()
    house.start()
    house.drained()
    assert seen == [("before", None), ("handler", "of the hook"), ("after", "of the handler")] * 2


def test_hooks_around_the_outcome_leave_nothing_behind_either(house):
    """They run where the outcomes of all messages are written."""
    seen = []

    class Binds(Middleware):
        def before_ack(self, broker, message):
            seen.append(tenant.get())
            tenant.set("A")

        after_ack = before_nack = after_nack = before_ack

    house.broker.add_middleware(Binds())

    @dramatiq.actor(max_attempts=1)
    def ends(well):
        if not well:
            raise ValueError("no")

    for well in (True, False, True, False):
        ends.send(well)
    house.start()
    house.drained()
    house.stop()
    assert seen == [None] * 8


def test_what_middleware_sets_for_a_thread_is_there_for_its_messages(house):
    class Boots(Middleware):
        def after_worker_thread_boot(self, broker, thread):
            tenant.set("of the thread")

    house.broker.add_middleware(Boots())
    seen = []

    @dramatiq.actor
    def handler():
        seen.append(tenant.get())
        tenant.set("of the handler")

    handler.send()
    handler.send()
    house.start()
    house.drained()
    assert seen == ["of the thread"] * 2


def test_the_message_and_the_connection_of_a_handler_end_with_it(house, monkeypatch):
    left = []
    finished = house.broker.emit_before

    def at_the_end(signal, *args, **kwargs):
        if signal == "worker_thread_shutdown":  # in the thread, outside of any message
            left.append((current_message(), current.connection, current.place))
        finished(signal, *args, **kwargs)

    monkeypatch.setattr(house.broker, "emit_before", at_the_end)

    @dramatiq.actor(transactional=True)
    def handler():
        assert current_message() is not None and current_connection() is not None

    handler.send()
    house.start()
    house.drained()
    house.stop()
    assert left == [(None, None, None)]


def test_log_lines_of_the_next_message_do_not_name_the_customer_of_the_one_before(house, caplog):
    """structlog's bound values, as its own processor merges them into a line."""
    lines = []

    class Keeps(logging.Handler):
        def emit(self, record):
            lines.append(
                structlog.contextvars.merge_contextvars(None, "info", {"event": record.getMessage()})
            )

    log = logging.getLogger("their.app")
    log.addHandler(Keeps())
    log.setLevel("INFO")

    @dramatiq.actor
    def first():
        structlog.contextvars.bind_contextvars(customer="of the first message")
        log.info("first")

    @dramatiq.actor
    def second():
        log.info("second")

    first.send()
    second.send()
    house.start()
    house.drained()
    assert lines == [{"event": "first", "customer": "of the first message"}, {"event": "second"}]
