"""OpenTelemetry around handlers (SPEC O3): one `process <queue>` span per attempt, see
worker/observe/tracing.py.

Adding it to a PostgresBroker switches tracing on in this process, for enqueueing too; the broker puts it in
front of all other middleware, so that it begins first and sees, last, how the attempt ended.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from dramatiq.middleware import Middleware

from packhorse.worker.attempt.messages import ClaimedMessage, failure
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.errors import LeaseLost
from packhorse.worker.observe import tracing
from packhorse.worker.observe.tracing import Failure, Processing

#: That of the attempt that runs in this context: a thread's, or a coroutine's.
_processing: ContextVar[Processing | None] = ContextVar("packhorse_processing", default=None)


class Tracing(Middleware):
    """Spans for every message that this process handles. Raises ConfigError without opentelemetry-api."""

    def __init__(self) -> None:
        self.tracer = tracing.switch_on()

    def before_process_message(self, broker: Any, message: Any) -> None:
        if not isinstance(message, ClaimedMessage):
            return
        processing = self.tracer.begin(
            message.queue_name,
            message.id,
            {"packhorse.actor": message.actor_name, "packhorse.attempt": message.attempt},
            message.trace_context,
        )
        _processing.set(processing)
        message.trace_id = f"{processing.span.get_span_context().trace_id:032x}"

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        processing = _processing.get()
        if processing is None or not isinstance(message, ClaimedMessage):
            return
        _processing.set(None)
        ended = outcome(message, exception)
        self.tracer.end(
            processing, ended, _failure(message, exception) if ended in ("failed", "dead", "lost") else None
        )

    def after_skip_message(self, broker: Any, message: Any) -> None:
        self.after_process_message(broker, message)

    def after_worker_shutdown(self, broker: Any, worker: Any) -> None:
        self.tracer.flush()  # a worker process ends without atexit


def outcome(message: ClaimedMessage, exception: BaseException | None) -> str:
    """done, failed (retry or dead, as the database decides), dead, snooze, cancelled, released or lost."""
    if message.stage is AttemptStage.COMMITTED:
        return "done"
    if message.lost or isinstance(exception, LeaseLost):
        return "lost"
    if message.failed:
        return "dead"
    if message.outcome is not None:
        return message.outcome.verb.expected
    return "done" if exception is None else "failed"


def _failure(message: ClaimedMessage, exception: BaseException | None) -> Failure | None:
    """The error as Retries has taken it down, else as it is."""
    outcome = message.outcome
    if outcome is None or outcome.error_class is None:
        exception = exception or message._exception  # the latter of a message that middleware refused
        if exception is None:
            return None
        outcome = failure(exception)
    return Failure(outcome.error_class or "Error", outcome.error_message or "", outcome.traceback)
