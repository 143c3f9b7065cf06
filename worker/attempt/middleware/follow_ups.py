"""What follows a message (the next stage of a pipeline, its success callback) is sent, or the message runs
again.

dramatiq sends it after the handler, and only logs an error: the message is done and the pipeline ends without
a word (SPEC P1, W1). Here the message is then not done: at least once. In a transactional handler what
follows commits with the effects (SPEC P3).
"""

from __future__ import annotations

import logging
from typing import Any

from dramatiq.middleware import Callbacks as StockCallbacks
from dramatiq.middleware import Middleware
from dramatiq.middleware import Pipelines as StockPipelines

from packhorse.worker.attempt.messages import ClaimedMessage, Outcome, failure
from packhorse.worker.errors import (
    Cancel,
    CancelInterrupt,
    DrainInterrupt,
    LeaseInterrupt,
    NotCompleted,
    Snooze,
    StoreConflict,
    StoreUnavailable,
)
from packhorse.worker.states import Verb

logger = logging.getLogger("packhorse.follow_ups")

AGAIN_SECONDS = 1.0
#: Ways to end without having failed.
NO_FAILURES = (Snooze, Cancel, CancelInterrupt, DrainInterrupt, LeaseInterrupt, NotCompleted)


class FollowUps(Middleware):
    """Stands before a stock middleware that sends something in after_process_message."""

    def before_commit(self, broker: Any, message: ClaimedMessage, result: Any) -> None:
        """In the transaction of a handler that has returned; what it sends and raises ends like the handler's
        own.
        """
        super().after_process_message(broker, message, result=result)
        message.followed = True

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is not None or not isinstance(message, ClaimedMessage):
            super().after_process_message(broker, message, result=result, exception=exception)
        elif not message.followed and message.outcome is None:
            try:
                super().after_process_message(broker, message, result=result)
            except Exception as error:
                logger.warning(
                    "follow_up_failed message_id=%s error_class=%s", message.id, type(error).__name__
                )
                message.outcome = _again(error)


def _again(error: Exception) -> Outcome:
    """The database was away: no attempt is to blame. Anything else is a failure of this message."""
    if isinstance(error, (StoreUnavailable, StoreConflict)):
        return Outcome(
            Verb.SNOOZE,
            f"what follows could not be sent: {type(error).__name__}",
            delay_seconds=AGAIN_SECONDS,
        )
    return failure(error)


class Callbacks(FollowUps, StockCallbacks):
    """dramatiq's; to be snoozed, cancelled or handed back is no failure."""

    def sends_after(self, broker: Any, message: ClaimedMessage) -> bool:
        """May it send something after this message? Then a thread does it, not the event loop; else there is
        nothing to do.
        """
        own, options = message.options, broker.get_actor(message.actor_name).options
        return (
            "on_success" in own or "on_failure" in own or "on_success" in options or "on_failure" in options
        )

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if not isinstance(exception, NO_FAILURES):
            super().after_process_message(broker, message, result=result, exception=exception)


class Pipelines(FollowUps, StockPipelines):
    """dramatiq's; messages outside a pipeline pay for one dictionary look-up only."""

    def sends_after(self, broker: Any, message: ClaimedMessage) -> bool:
        """As that of Callbacks."""
        return "pipe_target" in message.options

    def before_commit(self, broker: Any, message: ClaimedMessage, result: Any) -> None:
        if "pipe_target" in message.options:
            super().before_commit(broker, message, result)

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if "pipe_target" in message.options:
            super().after_process_message(broker, message, result=result, exception=exception)
