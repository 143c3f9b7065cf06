"""Packhorse: background work on the Postgres you already have.

The public names; importing them has no side effects. They are looked up when they are used: a command that
shows its help needs neither dramatiq nor psycopg.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from worker.broker import PostgresBroker
    from worker.context import correlation_id, current_connection, current_message
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
    from worker.producer import enqueue, enqueue_async, enqueue_payloads, enqueue_payloads_async
    from worker.records import EnqueueResult

_HOMES = {
    "PostgresBroker": "broker",
    "correlation_id": "context",
    "current_connection": "context",
    "current_message": "context",
    "enqueue": "producer",
    "enqueue_async": "producer",
    "enqueue_payloads": "producer",
    "enqueue_payloads_async": "producer",
    "EnqueueResult": "records",
}

__all__ = [
    "AgentError",
    "Bury",
    "Cancel",
    "ConfigError",
    "EnqueueResult",
    "InvalidArgument",
    "LeaseLost",
    "MessageProcessingError",
    "PostgresBroker",
    "Retry",
    "Snooze",
    "StoreError",
    "StoreUnavailable",
    "WorkerError",
    "WorkflowError",
    "correlation_id",
    "current_connection",
    "current_message",
    "enqueue",
    "enqueue_async",
    "enqueue_payloads",
    "enqueue_payloads_async",
]


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use; everything not listed in _HOMES is an error class."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
