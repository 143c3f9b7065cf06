"""One attempt: what is started at all, which hooks run, what an exception means; in this thread, without a
database (SPEC W1).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, SkipMessage

from packhorse.worker.attempt.context import current
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.errors import CancelInterrupt, LeaseInterrupt, Snooze
from packhorse.worker.runtime.executor import LEASE_MARGIN_SECONDS, Executor
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.slots import ThreadSlot
from packhorse.worker.states import Verb
from tests.support.claimed import claimed


class Notes(Middleware):
    """Writes down which of its hooks was called, and with what; raises what it is told to raise."""

    def __init__(self, name: str, notes: list[str], **raises: BaseException) -> None:
        self.name, self.notes, self.raises = name, notes, raises

    def _note(self, hook: str, more: str = "") -> None:
        self.notes.append(f"{self.name} {hook}{more}")
        if hook in self.raises:
            raise self.raises[hook]

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._note("before")

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        self._note("after", f" {exception!r}" if exception else f" {result}")

    def after_skip_message(self, broker: Any, message: Any) -> None:
        self._note("skip")


Run = Callable[..., ClaimedMessage]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def run(notes: list[str]) -> Run:
    """Run one attempt of a handler beside these middlewares."""

    def started(
        handler: Callable[..., Any], *middleware: Middleware, message: ClaimedMessage | None = None
    ) -> ClaimedMessage:
        actor = dramatiq.actor(handler, broker=StubBroker(middleware=[]), actor_name="effect")
        broker: Any = SimpleNamespace(middleware=list(middleware), steps=None, get_actor=lambda name: actor)
        executor, slot = Executor(broker), ThreadSlot(0, RunningIds(1))
        message, now = message or claimed(), time.monotonic()
        assert executor.may_start(message, now)
        copy_context().run(executor.run, slot, message, now)  # as in a pool: the next test has no message
        assert slot.message is None, "the slot is left whatever happens"
        return message

    return started


def executor() -> Executor:
    return Executor(SimpleNamespace(middleware=[]))  # type: ignore[arg-type]


def test_one_that_somebody_else_owns_by_now_is_not_started() -> None:
    message = claimed()
    message.lost = True
    assert not executor().may_start(message, time.monotonic())
    assert message.outcome is None, "there is nothing to write"


def test_one_whose_lease_is_nearly_over_goes_back_unstarted() -> None:
    message = claimed()
    assert not executor().may_start(message, message.lease_until - LEASE_MARGIN_SECONDS + 0.01)
    assert message.outcome is not None and message.outcome.verb is Verb.RELEASE and not message.failed
    again = claimed()
    assert executor().may_start(again, again.lease_until - LEASE_MARGIN_SECONDS)


@pytest.mark.parametrize("columns", [{"payload": "[1]"}, {"payload": "{"}, {"options": "[]"}])
def test_one_that_cannot_be_decoded_is_buried_and_not_started(columns: dict[str, str]) -> None:
    message = claimed(**columns)  # type: ignore[arg-type]
    assert not executor().may_start(message, time.monotonic())
    assert message.outcome is not None and (message.outcome.verb, message.outcome.reason) == (
        Verb.BURY,
        "undecodable",
    )
    assert message.failed and not message.started_at


def test_hooks_run_in_order_and_back_around_the_handler(run: Run, notes: list[str]) -> None:
    message = run(
        lambda key: notes.append(f"handler {key} {current.message is not None}") or 7,
        Notes("a", notes),
        Notes("b", notes),
        message=claimed(payload='{"key": "k"}'),
    )
    assert notes == ["a before", "b before", "handler k True", "b after 7", "a after 7"]
    assert message.outcome is None and not message.failed


def test_a_hook_that_breaks_stops_neither_the_handler_nor_the_others(run: Run, notes: list[str]) -> None:
    broken = Notes("a", notes, before=ValueError("a bug"), after=ValueError("another"))
    message = run(lambda: notes.append("handler"), broken, Notes("b", notes))
    assert notes == ["a before", "b before", "handler", "b after None", "a after None"]
    assert message.outcome is None and not message.failed


def test_a_hook_may_skip_the_message(run: Run, notes: list[str]) -> None:
    message = run(
        lambda: notes.append("handler"), Notes("a", notes, before=SkipMessage("no")), Notes("b", notes)
    )
    assert notes == ["a before", "b skip", "a skip"]
    assert message.outcome is None and not message.failed, "it is done"


def test_one_that_a_hook_has_failed_is_not_handled(run: Run, notes: list[str]) -> None:
    class Refuses(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            message.fail()

    message = run(lambda: notes.append("handler"), Refuses(), Notes("b", notes))
    assert notes == ["b before", "b after None"] and message.failed


def test_hooks_are_told_what_the_handler_raised_and_without_a_policy_nothing_else_is_made_of_it(
    run: Run, notes: list[str]
) -> None:
    def handler() -> None:
        raise ValueError("broken")

    message = run(handler, Notes("a", notes))
    assert notes == ["a before", "a after ValueError('broken')"]
    assert message.outcome is None and not message.failed, "as with dramatiq's Worker without Retries"


@pytest.mark.parametrize(
    ("raised", "verb"), [(Snooze(5), Verb.SNOOZE), (CancelInterrupt(), Verb.CANCEL)], ids=["snooze", "cancel"]
)
def test_without_a_policy_what_a_handler_asks_for_is_done_all_the_same(
    run: Run, raised: BaseException, verb: Verb
) -> None:
    def handler() -> None:
        raise raised

    message = run(handler)
    assert message.outcome is not None and message.outcome.verb is verb and not message.failed


def test_a_coroutine_that_ended_late_was_interrupted_and_did_not_fail(run: Run, notes: list[str]) -> None:
    """dramatiq says a RuntimeError then, whose cause is the interrupt."""

    def handler() -> None:
        raise RuntimeError("too late") from LeaseInterrupt("gone")

    run(handler, Notes("a", notes))
    assert notes[-1].startswith("a after LeaseInterrupt(")


def test_an_error_of_the_handlers_own_with_such_a_cause_stays_what_it_is(run: Run, notes: list[str]) -> None:
    class Own(RuntimeError): ...

    def handler() -> None:
        raise Own("mine") from LeaseInterrupt("gone")

    run(handler, Notes("a", notes))
    assert notes[-1].startswith("a after Own(")


def test_what_follows_a_commit_changes_the_outcome_no_more(run: Run) -> None:
    def handler() -> None:
        assert current.message is not None
        current.message.move(AttemptStage.COMMITTED)  # what a transactional completion does
        raise ValueError("after the commit")

    assert run(handler).outcome is None
