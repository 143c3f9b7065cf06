"""Retries as one UPDATE of the same row (SPEC Q3, W1).

Replaces dramatiq's Retries, which enqueues a copy and then acknowledges the original: two transactions,
and a crash between them duplicates. The options mean the same (`max_retries`, `min_backoff`,
`max_backoff`, `retry_when`, `throws`, `on_retry_exhausted`); what an actor leaves open is decided by the
queue's policy in the database. Messages that are not ours (StubBroker in a test) go dramatiq's way.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import dramatiq
from dramatiq.middleware import Retries as StockRetries

from packhorse.worker.attempt.details import judgement_in, own_flag, storable, stored_text
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome, failure
from packhorse.worker.errors import (
    AskedOutcome,
    Bury,
    Cancel,
    CancelInterrupt,
    DrainInterrupt,
    InvalidArgument,
    LeaseInterrupt,
    LeaseLost,
    NotCompleted,
    Retry,
    RetryAfter,
    Snooze,
)
from packhorse.worker.states import Verb
from packhorse.worker.store.options import WITHOUT_END

logger = logging.getLogger("packhorse.retries")

#: Exceptions that are no errors: how a handler asks for an outcome, and how it learns that its attempt is
#: over.
ASKED: tuple[type[Exception], ...] = (AskedOutcome, dramatiq.errors.Retry, LeaseLost, NotCompleted)
#: A transactional handler that could not be committed, for no fault of its own, runs again after this; longer
#: each time in a row.
COMMIT_AGAIN_SECONDS = 1.0


def _actor(broker: Any, name: str) -> Any:
    """By its name or an alias; None of a message that nobody here can handle."""
    try:
        return broker.get_actor(name)
    except dramatiq.ActorNotFound:
        return None


def asked_for(exception: BaseException) -> Outcome | None:
    """The outcome that an exception of ours stands for, whatever the policy is; None of a failure. Raises for
    a Snooze of no number.
    """
    if isinstance(exception, RetryAfter):
        scope = None if exception.scope is None else storable(exception.scope, 200)
        return Outcome(
            Verb.PARK, stored_text(str(exception), 500), delay_seconds=exception.seconds, scope=scope
        )
    if isinstance(exception, Snooze):
        return Outcome(Verb.SNOOZE, exception.reason, delay_seconds=max(0.0, exception.seconds))
    if isinstance(exception, Cancel):
        return Outcome(Verb.CANCEL, stored_text(str(exception), 1000))
    if isinstance(exception, Bury):
        return Outcome(Verb.BURY, "buried", "Bury", stored_text(str(exception), 10_000))
    if isinstance(exception, CancelInterrupt):
        return Outcome(Verb.CANCEL, "cancelled by an operator while it ran")
    if isinstance(exception, (DrainInterrupt, LeaseInterrupt)):
        return Outcome(Verb.RELEASE, type(exception).__name__)
    if isinstance(exception, NotCompleted):
        return Outcome(
            Verb.UNCOMMITTED,
            stored_text(str(exception), 1000),
            delay_seconds=COMMIT_AGAIN_SECONDS,
            bounded=not exception.refused,
        )
    return None


#: What an actor's code may say of retries and the database understands (failure_policy in
#: migrations/functions/retry.sql).
POLICY = (
    "failure_breaker",
    "max_attempts",
    "max_retries",
    "min_backoff",
    "max_backoff",
    "on_retry_exhausted",
)


def check_resting(options: Mapping[str, Any]) -> None:
    """Raise InvalidArgument for an actor whose `services` or `failure_breaker` would do nothing."""
    services, limit = options.get("services"), options.get("failure_breaker")
    names = [services] if isinstance(services, str) else services or ()
    if not isinstance(names, list | tuple | set | frozenset) or not all(
        isinstance(name, str) and 1 <= len(name) <= 200 for name in names
    ):
        raise InvalidArgument(
            "services: must be names of what the actor calls",
            field="services",
            hint="A list of texts of 1 to 200 characters.",
        )
    if limit is not None and (
        isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 1_000_000
    ):
        raise InvalidArgument(
            f"failure_breaker: {str(limit)[:60]!r} is out of range",
            field="failure_breaker",
            hint="1 to 1000000 failures in a row, or None.",
        )


def services_of(actor: Any) -> list[str]:
    """What the actor says that it calls (option `services`): names of scopes, at most 200 characters each;
    what is no name is left out.
    """
    said = actor.options.get("services") or ()
    names = (
        [said] if isinstance(said, str) else said if isinstance(said, list | tuple | set | frozenset) else ()
    )
    return sorted({name for name in names if isinstance(name, str) and 1 <= len(name) <= 200})


def policies(broker: Any) -> str:
    """What the actors' code says of retries, by actor and alias, as JSON: for whoever ends an attempt without
    that code (SPEC Q5).
    """
    given: dict[str, Any] = next((m.given for m in broker.middleware if isinstance(m, Retries)), {})
    found = {}
    for name in (*broker.actors, *broker.aliases):
        actor = broker.get_actor(name)
        said = {**given, **actor.options}
        known = {
            option: said[option]
            for option in POLICY
            if option in said and isinstance(said[option], int | float | str | None)
        }
        found[name] = {"queue": actor.queue_name, "services": services_of(actor)} | known
    return json.dumps(found)


class Retries(StockRetries):
    """Decides how a failed attempt ends; the verb itself is one SQL function."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.given = {
            name: value for name, value in options.items() if value is not None or name == "max_retries"
        }

    @property
    def actor_options(self) -> set[str]:
        return {*super().actor_options, "max_attempts", "services", "failure_breaker"}

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is None or message.failed:
            return
        if not isinstance(message, ClaimedMessage):
            super().after_process_message(broker, message, result=result, exception=exception)
            return
        try:
            outcome = self.decide(_actor(broker, message.actor_name), message, exception)
        except Exception as error:
            # a retry_when that raises, options of the wrong type: never mistake the failure for success
            logger.warning(
                "retry_policy_failed message_id=%s actor=%s error_class=%s",
                message.id,
                message.actor_name,
                type(error).__name__,
            )
            outcome = failure(exception, judgement_in(exception, message.lease_token))
        message.outcome = outcome
        if outcome.traceback is not None and outcome.reason != "rejected":
            # as dramatiq's leaves them, for callbacks (on_failure, on_retry_exhausted) and the hooks that
            # come after
            message.options |= {
                "retries": message.attempt,
                "traceback": outcome.traceback,
                "requeue_timestamp": int(time.time() * 1000),
            }
        # The database decides whether attempts are left. Where the limit is known here, middleware is told
        # "nack" from the start, as dramatiq does; where it is the queue's, once the database has answered.
        limit = message.max_attempts if message.max_attempts is not None else outcome.max_attempts
        message.failed = outcome.verb is Verb.BURY or (
            outcome.verb is Verb.FAIL and limit is not None and message.attempt >= limit
        )

    def decide(self, actor: Any, message: ClaimedMessage, exception: BaseException) -> Outcome:
        """The outcome of an attempt that raised. Pure but for reading the message.

        What the exception says of itself comes first, then the actor's retry_when, then the error boundary
        that it left.
        """
        asked = asked_for(exception)
        if asked is not None:
            if (
                asked.verb is Verb.PARK
                and asked.scope is None
                and actor is not None
                and len(services := services_of(actor)) == 1
            ):
                return dataclasses.replace(asked, scope=services[0])
            return asked
        options = actor.options if actor is not None else {}
        throws = message.options.get("throws") or options.get("throws")
        judgement = judgement_in(exception, message.lease_token)
        retry_when = options.get("retry_when", self.retry_when)
        rejected = own_flag(exception) is False or (
            retry_when is None and judgement is not None and not judgement.retryable
        )
        if thrown := bool(throws and isinstance(exception, throws)):
            self.logger.info("Aborting message %r.", message.message_id)  # dramatiq's line
        if thrown or rejected:
            return dataclasses.replace(failure(exception, judgement), verb=Verb.BURY, reason="rejected")
        policy = self.policy(options, message)
        if retry_when is not None:
            if not retry_when(message.attempt - 1, exception):
                return dataclasses.replace(
                    failure(exception, judgement),
                    verb=Verb.BURY,
                    reason="failed",
                    on_exhausted=policy["on_exhausted"],
                )
            policy["max_attempts"] = WITHOUT_END  # retry_when takes precedence over max_retries
            judgement = judgement and dataclasses.replace(judgement, retryable=True)  # and over a boundary
        if isinstance(exception, Retry) and exception.seconds is not None:
            policy["delay_seconds"] = max(0.0, exception.seconds)
        elif isinstance(exception, dramatiq.errors.Retry) and exception.delay is not None:
            policy["delay_seconds"] = max(0.0, exception.delay / 1000)
        return failure(exception, judgement, **policy)

    def policy(self, options: dict[str, Any], message: ClaimedMessage) -> dict[str, Any]:
        """What the message, the actor or this middleware say; None leaves it to the queue."""

        def pick(name: str) -> Any:
            return message.options.get(name, options.get(name, self.given.get(name)))

        max_attempts = options.get("max_attempts")
        if max_attempts is None and any(
            "max_retries" in said for said in (message.options, options, self.given)
        ):
            max_retries = pick("max_retries")
            max_attempts = WITHOUT_END if max_retries is None else max_retries + 1
        low, high = pick("min_backoff"), pick("max_backoff")
        return {
            "max_attempts": max_attempts,
            "backoff_initial": low / 1000 if low is not None else None,
            "backoff_max": high / 1000 if high is not None else None,
            "on_exhausted": pick("on_retry_exhausted"),
        }
