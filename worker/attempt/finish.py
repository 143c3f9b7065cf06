"""From the outcome of a message to one verb in the database; the same for the runtime and for dramatiq's Worker."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dramatiq

from packhorse.worker.attempt.messages import ClaimedMessage, Outcome, clean, failure
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.store import messages
from packhorse.worker.store.options import MAX_DELAY_SECONDS

logger = logging.getLogger("packhorse.finish")

#: What is written when what should be written cannot be stored (FAILURES 13): plain ASCII, cannot fail.
UNSTORABLE = "the error could not be stored"
MAX_ATTEMPTS = 1_000_000


def finish(connection: DeadlineConnection, message: ClaimedMessage, broker: Any) -> str:
    """Write the outcome of one message, in its own transaction (or the caller's).

    Returns done, retry, snooze, release, cancelled, dead or lost. Lost is a normal answer: somebody else
    owns the message now. Raises StoreError through the lending block when the database does not answer.
    """
    outcome = message.outcome
    if outcome is None and message.failed:
        # rejected by middleware (for example max_age): dramatiq's nack without an exception of the handler
        exception = message._exception
        outcome = Outcome("bury", "rejected") if exception is None else dataclasses.replace(failure(exception), verb="bury", reason="rejected")
    if outcome is None:
        return "done" if messages.complete(connection, [message.id], [message.lease_token]) else "lost"
    reason = clean(outcome.reason, 1000) if outcome.reason else outcome.reason
    match outcome.verb:
        case "fail":
            return _fail(connection, message, outcome, broker)
        case "bury":
            with _together(connection, outcome):
                answer = (
                    "dead"
                    if messages.bury(
                        connection,
                        message.id,
                        message.lease_token,
                        outcome.reason or "buried",
                        outcome.error_class,
                        outcome.error_message,
                        outcome.traceback,
                        outcome.frame,
                    )
                    else "lost"
                )
                if answer == "dead" and outcome.on_exhausted:
                    _send_exhausted(connection, message, outcome, broker)
            return answer
        case "retry":
            moved = messages.retry(
                connection,
                message.id,
                message.lease_token,
                _storable(outcome.delay_seconds) or 0.0,
                outcome.error_class or "Retry",
                outcome.error_message or reason or "",
            )
            return "retry" if moved else "lost"
        case "snooze":
            delay = _storable(outcome.delay_seconds) or 0.0
            return "snooze" if messages.snooze(connection, message.id, message.lease_token, delay, reason) else "lost"
        case "cancel":
            return "cancelled" if messages.cancel_held(connection, message.id, message.lease_token, reason) else "lost"
        case "release":
            why = reason if message.started else None
            return "release" if messages.release(connection, [message.id], [message.lease_token], why) else "lost"
        case "uncommitted":
            delay = _storable(outcome.delay_seconds) or 0.0
            return messages.return_uncommitted(connection, message.id, message.lease_token, delay, reason or "", bounded=outcome.bounded)
        case verb:
            raise AssertionError(f"unknown outcome {verb}")


def _fail(connection: DeadlineConnection, message: ClaimedMessage, outcome: Outcome, broker: Any) -> str:
    with _together(connection, outcome):
        answer = messages.fail(
            connection,
            message.id,
            message.lease_token,
            outcome.error_class or "Error",
            outcome.error_message or "",
            outcome.traceback,
            outcome.frame,
            None if outcome.max_attempts is None else int(max(0, min(outcome.max_attempts, MAX_ATTEMPTS))),
            _storable(outcome.delay_seconds),
            _storable(outcome.backoff_initial),
            _storable(outcome.backoff_max),
        )
        if answer == "dead" and outcome.on_exhausted:
            _send_exhausted(connection, message, outcome, broker)
    return answer


def _storable(seconds: float | None) -> float | None:
    """A delay that PostgreSQL can take: handlers, and producers in a message's options, may ask for any number."""
    if seconds is None or seconds != seconds:  # not a number: as if nothing was said
        return None
    return min(max(seconds, 0.0), MAX_DELAY_SECONDS)


def _together(connection: DeadlineConnection, outcome: Outcome) -> AbstractContextManager[Any]:
    """A transaction where there is more than one statement; a single one needs none, nor a savepoint in a batch."""
    return connection.transaction() if outcome.on_exhausted else nullcontext()


def _send_exhausted(connection: DeadlineConnection, message: ClaimedMessage, outcome: Outcome, broker: Any) -> None:
    """on_retry_exhausted: the callback commits together with the death, or not at all."""
    try:
        target = broker.get_actor(str(outcome.on_exhausted))  # a producer may have written anything into the options
    except dramatiq.ActorNotFound:
        logger.warning("on_retry_exhausted_unknown actor=%s message_id=%s", outcome.on_exhausted, message.id)
        return
    info = {"retries": message.attempt - 1, "max_retries": (outcome.max_attempts or message.attempt) - 1}
    broker.enqueue_on(connection, target.message(message._message.asdict(), info))


def without_details(message: ClaimedMessage) -> None:
    """Replace the outcome by one that can always be stored."""
    outcome = message.outcome
    if outcome is not None:
        message.outcome = Outcome(
            outcome.verb,
            outcome.reason if outcome.verb == "bury" else None,
            "Error",
            UNSTORABLE,
            delay_seconds=outcome.delay_seconds,
            max_attempts=outcome.max_attempts,
        )
