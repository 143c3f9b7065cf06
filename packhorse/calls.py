"""What a handler uses around what it calls: services and their circuit breakers, error boundaries, timeouts
(SPEC W9, W10).

Names are looked up when they are used, as in `packhorse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packhorse.worker.lazy import names_of

if TYPE_CHECKING:
    from packhorse.worker.calls.boundary import (
        ErrorBoundary,
        Operation,
        SafeResponse,
        safe_http_response,
        with_error_boundary,
    )
    from packhorse.worker.calls.declarations import BreakerPolicy, RetryPolicy, ServiceOptions
    from packhorse.worker.calls.registry import (
        BreakerStats,
        ServiceRegistry,
        default_registry,
        get_service,
        initialize_service_registry,
        register_service,
    )
    from packhorse.worker.calls.remote import RemoteService, ServiceCall
    from packhorse.worker.calls.requests import RequestOptions, ServiceResponse
    from packhorse.worker.calls.retryable import is_retryable_error
    from packhorse.worker.calls.timeouts import TIMEOUTS_MS, with_timeout
    from packhorse.worker.errors import (
        AgentError,
        CircuitOpen,
        MessageProcessingError,
        ServiceFailed,
        WorkflowError,
    )

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
    "RequestOptions": "calls.requests",
    "ServiceResponse": "calls.requests",
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


if not TYPE_CHECKING:  # a type checker knows the names above, and refuses others
    __getattr__, __dir__ = names_of(__name__, __all__, _HOMES, rest="errors")
