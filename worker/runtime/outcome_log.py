"""One log line per message and outcome (SPEC P8): failures always, success when it is asked for. Never a
payload.

On a console a failure has its traceback, which says where, and not what the exception says: that may be a
payload (SPEC W13).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.states import Ended

logger = logging.getLogger("packhorse.message")


class OutcomeLog:
    """mode: the setting log_outcomes. `failures`: success only at level debug; `all`: at info."""

    def __init__(self, mode: str, worker_id: object) -> None:
        self._success = logging.INFO if mode == "all" else logging.DEBUG
        self._worker_id = worker_id

    def done(self, messages: Iterable[ClaimedMessage]) -> None:
        """These were completed."""
        if logger.isEnabledFor(self._success):
            for message in messages:
                self._say(self._success, message, Ended.DONE)

    def ended(self, message: ClaimedMessage, ended: Ended) -> None:
        """This one ended otherwise; a lost lease has a line of its own."""
        if ended is Ended.LOST:
            return
        level = (
            logging.WARNING if ended is Ended.DEAD else self._success if ended is Ended.DONE else logging.INFO
        )
        if ended is Ended.RELEASED and not message.started_at:
            level = logging.DEBUG  # handing back what never started is routine
        if logger.isEnabledFor(level):
            self._say(level, message, ended)

    def _say(self, level: int, message: ClaimedMessage, ended: Ended) -> None:
        outcome = message.outcome
        values = (
            message.id,
            message.queue_name,
            message.actor_name,
            message.attempt,
            ended.value,
            round(message.ran_seconds, 3),
            round(message.due_seconds + message.started_at - message.claimed_at, 3)
            if message.started_at
            else None,
            message.correlation_id,
            outcome.error_class if outcome else None,
            outcome.details.code if outcome and outcome.details else None,
            self._worker_id,
            message.trace_id,
        )
        if ended in (Ended.RETRY, Ended.DEAD):
            shown = None
            if outcome and outcome.outline:
                shown = f"{outcome.outline}\nits text: packhorse message show {message.id}"
            logger.log(
                level,
                "message_failed message_id=%s queue=%s actor=%s attempt=%s outcome=%s duration_seconds=%s wait_seconds=%s "
                "correlation_id=%s error_class=%s error_code=%s worker_id=%s trace_id=%s",
                *values,
                extra={"outline": shown},
            )
        else:
            logger.log(
                level,
                "message_ended message_id=%s queue=%s actor=%s attempt=%s outcome=%s duration_seconds=%s wait_seconds=%s "
                "correlation_id=%s error_class=%s error_code=%s worker_id=%s trace_id=%s",
                *values,
            )
