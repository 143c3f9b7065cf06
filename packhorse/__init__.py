"""Packhorse: background work on the Postgres you already have.

The public names, and the only package that an installation makes importable (SPEC N1). Importing them has no
side effects. They are looked up when they are used: a command that shows its help needs neither dramatiq nor
psycopg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packhorse.worker.lazy import names_of
from packhorse.worker.version import __version__ as __version__

if TYPE_CHECKING:
    from packhorse.schedules.backfill.declare import backfill
    from packhorse.worker.attempt.context import (
        correlation_id,
        current_async_connection,
        current_connection,
        current_message,
        superseded,
        superseded_async,
    )
    from packhorse.worker.attempt.steps import step, step_async
    from packhorse.worker.broker.actor import Actor, actor
    from packhorse.worker.broker.backends import rate_limiter_backend, result_backend
    from packhorse.worker.broker.postgres import PostgresBroker
    from packhorse.worker.enqueue.producer import (
        enqueue,
        enqueue_async,
        enqueue_payloads,
        enqueue_payloads_async,
    )
    from packhorse.worker.errors import (
        AgentError,
        Bury,
        Cancel,
        CancelInterrupt,
        ConfigError,
        DrainInterrupt,
        InvalidArgument,
        LeaseInterrupt,
        LeaseLost,
        MessageProcessingError,
        Retry,
        RetryAfter,
        Snooze,
        StepError,
        StoreError,
        StoreUnavailable,
        WorkerError,
        WorkflowError,
    )
    from packhorse.worker.records import EnqueueResult

_HOMES = {
    "Actor": "broker.actor",
    "actor": "broker.actor",
    "backfill": "packhorse.schedules.backfill.declare",
    "current_async_connection": "attempt.context",
    "PostgresBroker": "broker.postgres",
    "correlation_id": "attempt.context",
    "current_connection": "attempt.context",
    "current_message": "attempt.context",
    "enqueue": "enqueue.producer",
    "enqueue_async": "enqueue.producer",
    "enqueue_payloads": "enqueue.producer",
    "enqueue_payloads_async": "enqueue.producer",
    "EnqueueResult": "records",
    "rate_limiter_backend": "broker.backends",
    "result_backend": "broker.backends",
    "step": "attempt.steps",
    "step_async": "attempt.steps",
    "superseded": "attempt.context",
    "superseded_async": "attempt.context",
}

__all__ = [
    "Actor",
    "AgentError",
    "Bury",
    "Cancel",
    "CancelInterrupt",
    "ConfigError",
    "DrainInterrupt",
    "EnqueueResult",
    "InvalidArgument",
    "LeaseInterrupt",
    "LeaseLost",
    "MessageProcessingError",
    "PostgresBroker",
    "Retry",
    "RetryAfter",
    "Snooze",
    "StepError",
    "StoreError",
    "StoreUnavailable",
    "WorkerError",
    "WorkflowError",
    "actor",
    "backfill",
    "correlation_id",
    "current_async_connection",
    "current_connection",
    "current_message",
    "enqueue",
    "enqueue_async",
    "enqueue_payloads",
    "enqueue_payloads_async",
    "rate_limiter_backend",
    "result_backend",
    "step",
    "step_async",
    "superseded",
    "superseded_async",
]


if not TYPE_CHECKING:  # a type checker knows the names above, and refuses others
    __getattr__, __dir__ = names_of(__name__, __all__, _HOMES, rest="errors")
