"""What a handler uses around what it calls: services and their circuit breakers, error boundaries, timeouts (SPEC W9, W10).

Names are looked up when they are used, as in `packhorse`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packhorse.worker.calls.boundary import ErrorBoundary, Operation, SafeResponse, safe_http_response, with_error_boundary
    from packhorse.worker.calls.declarations import BreakerPolicy, RetryPolicy, ServiceOptions
    from packhorse.worker.calls.http import RequestOptions, ServiceResponse
    from packhorse.worker.calls.registry import (
        BreakerStats,
        ServiceRegistry,
        default_registry,
        get_service,
        initialize_service_registry,
        register_service,
    )
    from packhorse.worker.calls.remote import RemoteService, ServiceCall
    from packhorse.worker.calls.retryable import is_retryable_error
    from packhorse.worker.calls.timeouts import TIMEOUTS_MS, with_timeout
    from packhorse.worker.errors import AgentError, CircuitOpen, MessageProcessingError, ServiceFailed, WorkflowError

_HOMES = {
    "ErrorBoundary": "calls.boundary",
    "Operation": "calls.boundary",
    "SafeResponse": "calls.boundary",
    "safe_http_response": "calls.boundary",
    "with_error_boundary": "calls.boundary",
    "is_retryable_error": "calls.retryable",
    "TIMEOUTS_MS": "calls.timeouts",
    "with_timeout": "calls.timeouts",
    "BreakerPolicy": "calls.declarations",
    "RetryPolicy": "calls.declarations",
    "ServiceOptions": "calls.declarations",
    "RequestOptions": "calls.http",
    "ServiceResponse": "calls.http",
    "BreakerStats": "calls.registry",
    "ServiceRegistry": "calls.registry",
    "default_registry": "calls.registry",
    "get_service": "calls.registry",
    "initialize_service_registry": "calls.registry",
    "register_service": "calls.registry",
    "RemoteService": "calls.remote",
    "ServiceCall": "calls.remote",
}

__all__ = [
    "TIMEOUTS_MS",
    "AgentError",
    "BreakerPolicy",
    "BreakerStats",
    "CircuitOpen",
    "ErrorBoundary",
    "MessageProcessingError",
    "Operation",
    "RemoteService",
    "RequestOptions",
    "RetryPolicy",
    "SafeResponse",
    "ServiceCall",
    "ServiceFailed",
    "ServiceOptions",
    "ServiceRegistry",
    "ServiceResponse",
    "WorkflowError",
    "default_registry",
    "get_service",
    "initialize_service_registry",
    "is_retryable_error",
    "register_service",
    "safe_http_response",
    "with_error_boundary",
    "with_timeout",
]


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use; everything not listed in _HOMES is an error class."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"packhorse.worker.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
