"""From the ending of a message to one verb in the database; the same for the runtime and for dramatiq's Worker."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dramatiq

from packhorse.worker.attempt.messages import ClaimedMessage, Ending, clean, failure
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.enqueue.encoding import MAX_DELAY_SECONDS
from packhorse.worker.store import messages

logger = logging.getLogger("packhorse.settle")

#: What is written when what should be written cannot be stored (FAILURES 13): plain ASCII, cannot fail.
UNSTORABLE = "the error could not be stored"
MAX_ATTEMPTS = 1_000_000


def settle(connection: DeadlineConnection, message: ClaimedMessage, broker: Any) -> str:
    """Write the ending of one message, in its own transaction (or the caller's).

    Returns done, retry, snooze, release, cancelled, dead or lost. Lost is a normal answer: somebody else
    owns the message now. Raises StoreError through the lending block when the database does not answer.
    """
    ending = message.ending
    if ending is None and message.failed:
        # rejected by middleware (for example max_age): dramatiq's nack without an exception of the handler
        exception = message._exception
        ending = Ending("bury", "rejected") if exception is None else dataclasses.replace(failure(exception), verb="bury", reason="rejected")
    if ending is None:
        return "done" if messages.complete(connection, [message.id], [message.lease_token]) else "lost"
    reason = clean(ending.reason, 1000) if ending.reason else ending.reason
    match ending.verb:
        case "fail":
            return _fail(connection, message, ending, broker)
        case "bury":
            with _together(connection, ending):
                answer = (
                    "dead"
                    if messages.bury(
                        connection,
                        message.id,
                        message.lease_token,
                        ending.reason or "buried",
                        ending.error_class,
                        ending.error_message,
                        ending.traceback,
                        ending.frame,
                    )
                    else "lost"
                )
                if answer == "dead" and ending.on_exhausted:
                    _send_exhausted(connection, message, ending, broker)
            return answer
        case "retry":
            moved = messages.retry(
                connection,
                message.id,
                message.lease_token,
                _storable(ending.delay_seconds) or 0.0,
                ending.error_class or "Retry",
                ending.error_message or reason or "",
            )
            return "retry" if moved else "lost"
        case "snooze":
            delay = _storable(ending.delay_seconds) or 0.0
            return "snooze" if messages.snooze(connection, message.id, message.lease_token, delay, reason) else "lost"
        case "cancel":
            return "cancelled" if messages.cancel_held(connection, message.id, message.lease_token, reason) else "lost"
        case "release":
            why = reason if message.started else None
            return "release" if messages.release(connection, [message.id], [message.lease_token], why) else "lost"
        case "uncommitted":
            delay = _storable(ending.delay_seconds) or 0.0
            return messages.return_uncommitted(connection, message.id, message.lease_token, delay, reason or "", bounded=ending.bounded)
        case verb:
            raise AssertionError(f"unknown ending {verb}")


def _fail(connection: DeadlineConnection, message: ClaimedMessage, ending: Ending, broker: Any) -> str:
    with _together(connection, ending):
        answer = messages.fail(
            connection,
            message.id,
            message.lease_token,
            ending.error_class or "Error",
            ending.error_message or "",
            ending.traceback,
            ending.frame,
            None if ending.max_attempts is None else int(max(0, min(ending.max_attempts, MAX_ATTEMPTS))),
            _storable(ending.delay_seconds),
            _storable(ending.backoff_initial),
            _storable(ending.backoff_max),
        )
        if answer == "dead" and ending.on_exhausted:
            _send_exhausted(connection, message, ending, broker)
    return answer


def _storable(seconds: float | None) -> float | None:
    """A delay that PostgreSQL can take: handlers, and producers in a message's options, may ask for any number."""
    if seconds is None or seconds != seconds:  # not a number: as if nothing was said
        return None
    return min(max(seconds, 0.0), MAX_DELAY_SECONDS)


def _together(connection: DeadlineConnection, ending: Ending) -> AbstractContextManager[Any]:
    """A transaction where there is more than one statement; a single one needs none, nor a savepoint in a batch."""
    return connection.transaction() if ending.on_exhausted else nullcontext()


def _send_exhausted(connection: DeadlineConnection, message: ClaimedMessage, ending: Ending, broker: Any) -> None:
    """on_retry_exhausted: the callback commits together with the death, or not at all."""
    try:
        target = broker.get_actor(str(ending.on_exhausted))  # a producer may have written anything into the options
    except dramatiq.ActorNotFound:
        logger.warning("on_retry_exhausted_unknown actor=%s message_id=%s", ending.on_exhausted, message.id)
        return
    info = {"retries": message.attempt - 1, "max_retries": (ending.max_attempts or message.attempt) - 1}
    broker.enqueue_on(connection, target.message(message._message.asdict(), info))


def without_details(message: ClaimedMessage) -> None:
    """Replace the ending by one that can always be stored."""
    ending = message.ending
    if ending is not None:
        message.ending = Ending(
            ending.verb,
            ending.reason if ending.verb == "bury" else None,
            "Error",
            UNSTORABLE,
            delay_seconds=ending.delay_seconds,
            max_attempts=ending.max_attempts,
        )
