"""How an attempt ends that runs from RabbitMQ: the same decisions as SQL makes of a row, without asking it.

A failure is decided by the message, else its actor, else its queue (failure_policy and message_backoff in
migrations/functions/retry.sql; a test compares the two). Only what a failure breaker says of it is asked of
Postgres (custody.py).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from packhorse.worker.attempt.details import stored_text
from packhorse.worker.attempt.finish import decided
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome
from packhorse.worker.states import Ended, Verb
from packhorse.worker.store.options import MAX_DELAY_SECONDS

MOST_ENTRIES = 20
#: A header of history goes with each attempt: shorter than what a row keeps.
MOST_TEXT = 200


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What a queue says of retries, as `packhorse queue show` has it; in seconds. breaker: it has a failure
    breaker.
    """

    max_attempts: int = 3
    crash_limit: int = 3
    initial: float = 1.0
    multiplier: float = 2.0
    longest: float = 30.0
    jitter: float = 0.0
    breaker: bool = False

    def backoff(self, attempt: int, initial: float | None, longest: float | None) -> float:
        """Seconds before the attempt after this one. initial, longest: of message or actor, which win."""
        first = bounded(self.initial if initial is None else initial)
        most = bounded(max(self.longest, initial or 0.0) if longest is None else longest)
        factor = max(self.multiplier, 1.0)
        delay = first
        for _ in range(min(max(attempt, 1) - 1, 4000)):
            if delay >= most or factor == 1.0 or delay <= 0:
                break
            delay *= factor
        off = min(self.jitter, 1.0) * random.random() if self.jitter > 1e-9 else 0.0
        return min(delay, most) * (1.0 - off)


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of a message. wait_seconds: until its next attempt, which is number `attempt`; None: there
    is none. reason: of a dead letter. failed: it is a failure, which a failure breaker counts.
    """

    ended: Ended
    wait_seconds: float | None = None
    attempt: int = 0
    reason: str = "buried"
    failed: bool = False


def ending_of(message: ClaimedMessage, policy: QueuePolicy) -> Ending:
    """Of a message that was handed back. `message.outcome` is what goes into a dead letter."""
    outcome = message.outcome = decided(message)
    if outcome is None:
        return Ending(Ended.DONE)
    delay = None if outcome.delay_seconds is None else bounded(outcome.delay_seconds)
    match outcome.verb:
        case Verb.FAIL:
            return _failed(message, outcome, policy, delay)
        case Verb.BURY:
            failed = outcome.reason in ("failed", "rejected") and outcome.error_class is not None
            return Ending(Ended.DEAD, reason=outcome.reason or "buried", failed=failed)
        case Verb.RETRY:
            return Ending(Ended.RETRY, delay or 0.0, message.attempt + 1)
        case Verb.CANCEL:
            return Ending(Ended.CANCELLED)
        case Verb.RELEASE:
            return Ending(Ended.RELEASED)
        case _:
            return Ending(Ended.SNOOZE, delay or 0.0, message.attempt)


def _failed(message: ClaimedMessage, outcome: Outcome, policy: QueuePolicy, delay: float | None) -> Ending:
    if outcome.details is not None and not (outcome.details.retryable and outcome.details.recoverable):
        return Ending(Ended.DEAD, reason="rejected", failed=True)
    if message.attempt >= attempts_allowed(message, outcome.max_attempts, policy):
        return Ending(Ended.DEAD, reason="failed", failed=True)
    if delay is None:
        delay = policy.backoff(message.attempt, outcome.backoff_initial, outcome.backoff_max)
    return Ending(Ended.RETRY, delay, message.attempt + 1, failed=True)


def attempts_allowed(message: ClaimedMessage, of_actor: int | None, policy: QueuePolicy) -> int:
    """The message's own limit, else its actor's, else its queue's."""
    for said in (message.max_attempts, of_actor):
        if said is not None:
            return said
    return policy.max_attempts


def bounded(seconds: float) -> float:
    """As PostgreSQL would take it."""
    return 0.0 if seconds != seconds else min(max(seconds, 0.0), MAX_DELAY_SECONDS)


def with_entry(
    history: list[Any], message: ClaimedMessage, ended: Ended, at: str, holder: object
) -> list[Any]:
    """The attempt history of a message, with one more entry when an attempt has failed; as append_history in
    migrations/functions/history.sql, without tracebacks.
    """
    outcome = message.outcome
    if ended is not Ended.RETRY or outcome is None:
        return history
    entry = {
        "attempt": message.attempt,
        "event": "retry",
        "at": at,
        "error_class": outcome.error_class,
        "error_message": stored_text(outcome.error_message or outcome.reason or "", MOST_TEXT),
        "holder": str(holder),
    }
    return [*history, {name: value for name, value in entry.items() if value is not None}][-MOST_ENTRIES:]


def read_history(text: object) -> list[Any]:
    """Entries of a header or a row; none of what cannot be read."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    return found if isinstance(found, list) else []
