"""From the outcome of a message to one verb in the database; the same for the runtime and for dramatiq's
Worker.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Protocol

import dramatiq

from packhorse.worker.attempt.details import judgement_in, stored_text
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome, failure
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.states import Ended, Verb
from packhorse.worker.store import messages
from packhorse.worker.store.options import MAX_DELAY_SECONDS

logger = logging.getLogger("packhorse.finish")

#: What is written when what should be written cannot be stored (FAILURES 13): plain ASCII, cannot fail.
UNSTORABLE = "the error could not be stored"
MAX_ATTEMPTS = 1_000_000


class Sender(Protocol):
    """What sends the callback of a message that has died: a broker."""

    def get_actor(self, actor_name: str) -> Any: ...
    def enqueue_on(self, connection: DeadlineConnection, message: dramatiq.Message[Any]) -> int: ...


def finish(connection: DeadlineConnection, message: ClaimedMessage, broker: Sender) -> Ended:
    """Write the outcome of one message, in its own transaction (or the caller's).

    LOST is a normal answer: somebody else owns the message now. Raises StoreError through the lending block
    when the database does not answer.
    """
    outcome = decided(message)
    if outcome is None:
        return (
            Ended.DONE if messages.complete(connection, [message.id], [message.lease_token]) else Ended.LOST
        )
    if outcome.on_exhausted and outcome.verb in (Verb.FAIL, Verb.BURY):
        with connection.transaction():  # the callback commits together with the death, or not at all
            ended = _write(connection, message, outcome)
            if ended is Ended.DEAD:
                send_exhausted(connection, message, outcome, broker)
            return ended
    return _write(connection, message, outcome)


def decided(message: ClaimedMessage) -> Outcome | None:
    """The outcome that is to be written; None: done."""
    outcome = message.outcome
    if outcome is not None or not message.failed:
        return outcome
    # rejected by middleware (for example max_age): dramatiq's nack without an exception of the handler
    exception = message._exception
    if exception is None:
        return Outcome(Verb.BURY, "rejected")
    return dataclasses.replace(
        failure(exception, judgement_in(exception, message.lease_token)), verb=Verb.BURY, reason="rejected"
    )


def _write(connection: DeadlineConnection, message: ClaimedMessage, outcome: Outcome) -> Ended:
    """One statement: the verb, and what it makes of the message when the lease is still ours."""
    lease = message.id, message.lease_token
    reason = stored_text(outcome.reason, 1000) if outcome.reason else outcome.reason
    delay = _storable(outcome.delay_seconds)
    error = outcome.error_class, outcome.error_message, outcome.traceback, outcome.frame
    details = outcome.details.as_json() if outcome.details is not None else None
    match outcome.verb:
        case Verb.FAIL:
            attempts = (
                None if outcome.max_attempts is None else int(max(0, min(outcome.max_attempts, MAX_ATTEMPTS)))
            )
            backoff = _storable(outcome.backoff_initial), _storable(outcome.backoff_max)
            kept = message.options_to_keep()
            answer = messages.fail(
                connection,
                *lease,
                error[0] or "Error",
                error[1] or "",
                *error[2:],
                attempts,
                delay,
                *backoff,
                details,
                kept,
            )
            return _failed(message, answer)
        case Verb.BURY if outcome.reason in ("failed", "rejected") and outcome.error_class is not None:
            return _failed(
                message,
                messages.reject(connection, *lease, outcome.reason, outcome.error_class, *error[1:], details),
            )
        case Verb.BURY:
            return (
                Ended.DEAD
                if messages.bury(connection, *lease, outcome.reason or "buried", *error, details)
                else Ended.LOST
            )
        case Verb.RETRY:
            text, kept = error[1] or reason or "", message.options_to_keep()
            moved = messages.retry(
                connection, *lease, delay or 0.0, error[0] or "Retry", text, error[2], details, kept
            )
            return Ended.RETRY if moved else Ended.LOST
        case Verb.SNOOZE:
            return Ended.SNOOZE if messages.snooze(connection, *lease, delay or 0.0, reason) else Ended.LOST
        case Verb.PARK:
            return _park(connection, message, outcome, delay or 0.0, reason)
        case Verb.CANCEL:
            return Ended.CANCELLED if messages.cancel_held(connection, *lease, reason) else Ended.LOST
        case Verb.RELEASE:
            why = reason if message.started_at else None
            return (
                Ended.RELEASED
                if messages.release(connection, [message.id], [message.lease_token], why)
                else Ended.LOST
            )
        case Verb.UNCOMMITTED:
            return _failed(
                message,
                messages.return_uncommitted(
                    connection, *lease, delay or 0.0, reason or "", bounded=outcome.bounded
                ),
            )


def _failed(message: ClaimedMessage, answer: str) -> Ended:
    """What the database has made of a failure. A failure breaker that it trips says so in the log."""
    if answer == "parked":
        say_parked(message)
        return Ended.SNOOZE
    return Ended(answer)


def say_parked(message: ClaimedMessage) -> None:
    """A failure breaker has been tripped by this message."""
    logger.warning(
        "failure_breaker_parked queue=%s actor=%s error_class=%s message_id=%s",
        message.queue_name,
        message.actor_name,
        message.outcome.error_class if message.outcome is not None else None,
        message.id,
    )


def _park(
    connection: DeadlineConnection,
    message: ClaimedMessage,
    outcome: Outcome,
    seconds: float,
    reason: str | None,
) -> Ended:
    """Thousands may be told to wait at once: the one that parks their scope says so in the log."""
    answer = messages.park(connection, message.id, message.lease_token, seconds, outcome.scope, reason)
    if answer == "parked":
        logger.warning(
            "scope_parked scope=%s seconds=%s message_id=%s actor=%s",
            outcome.scope,
            seconds,
            message.id,
            message.actor_name,
        )
        return Ended.SNOOZE
    return Ended(answer)


def _storable(seconds: float | None) -> float | None:
    """A delay that PostgreSQL can take: handlers, and producers in a message's options, may ask for any
    number.
    """
    if seconds is None or seconds != seconds:  # not a number: as if nothing was said
        return None
    return min(max(seconds, 0.0), MAX_DELAY_SECONDS)


def send_exhausted(
    connection: DeadlineConnection, message: ClaimedMessage, outcome: Outcome, broker: Sender
) -> None:
    """on_retry_exhausted: the callback is told of the message and of its retries."""
    try:
        # a producer may have written anything into the options
        target = broker.get_actor(str(outcome.on_exhausted))
    except dramatiq.ActorNotFound:
        logger.warning("on_retry_exhausted_unknown actor=%s message_id=%s", outcome.on_exhausted, message.id)
        return
    info = {"retries": message.attempt - 1, "max_retries": (outcome.max_attempts or message.attempt) - 1}
    broker.enqueue_on(connection, target.message(message._message.asdict(), info))


def without_details(message: ClaimedMessage) -> None:
    """Replace the outcome by one that can always be stored."""
    outcome = message.outcome
    message.keeps_options = False
    if outcome is not None:
        message.outcome = Outcome(
            outcome.verb,
            outcome.reason if outcome.verb is Verb.BURY else None,
            "Error",
            UNSTORABLE,
            delay_seconds=outcome.delay_seconds,
            max_attempts=outcome.max_attempts,
            scope=outcome.scope,
        )
