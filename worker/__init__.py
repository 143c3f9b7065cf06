"""Packhorse: background work on the Postgres you already have.

The public names; importing them has no side effects.
"""

__version__ = "0.1.0"

from worker.broker import PostgresBroker
from worker.context import correlation_id, current_connection, current_message
from worker.enqueue import enqueue, enqueue_async
from worker.errors import (
    AgentError,
    Bury,
    Cancel,
    ConfigError,
    InvalidArgument,
    LeaseLost,
    MessageProcessingError,
    Retry,
    Snooze,
    StoreError,
    StoreUnavailable,
    WorkerError,
    WorkflowError,
)
from worker.records import EnqueueResult

__all__ = [
    "AgentError", "Bury", "Cancel", "ConfigError", "EnqueueResult", "InvalidArgument", "LeaseLost", "MessageProcessingError",
    "PostgresBroker", "Retry", "Snooze", "StoreError", "StoreUnavailable", "WorkerError", "WorkflowError", "correlation_id",
    "current_connection", "current_message", "enqueue", "enqueue_async",
]
