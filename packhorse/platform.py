"""What handlers of a conversation platform use: sessions, memory, workflows, deduplication, HTTP answers, a
person's data (docs/platform-library.md).

All names of `packhorse.calls` (errors, boundaries, services, timeouts) are here, too. Each function of the
database works on the psycopg connection that it is given, else on one of the broker's pool, and has a twin
that is awaited. Names are looked up when they are used, as in `packhorse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packhorse import calls
from packhorse.worker.lazy import names_of

if TYPE_CHECKING:
    from packhorse.calls import TIMEOUTS_MS as TIMEOUTS_MS
    from packhorse.calls import AgentError as AgentError
    from packhorse.calls import BreakerPolicy as BreakerPolicy
    from packhorse.calls import BreakerStats as BreakerStats
    from packhorse.calls import CircuitOpen as CircuitOpen
    from packhorse.calls import ErrorBoundary as ErrorBoundary
    from packhorse.calls import MessageProcessingError as MessageProcessingError
    from packhorse.calls import Operation as Operation
    from packhorse.calls import RemoteService as RemoteService
    from packhorse.calls import RequestOptions as RequestOptions
    from packhorse.calls import RetryPolicy as RetryPolicy
    from packhorse.calls import SafeResponse as SafeResponse
    from packhorse.calls import ServiceCall as ServiceCall
    from packhorse.calls import ServiceFailed as ServiceFailed
    from packhorse.calls import ServiceOptions as ServiceOptions
    from packhorse.calls import ServiceRegistry as ServiceRegistry
    from packhorse.calls import ServiceResponse as ServiceResponse
    from packhorse.calls import WorkflowError as WorkflowError
    from packhorse.calls import default_registry as default_registry
    from packhorse.calls import get_service as get_service
    from packhorse.calls import initialize_service_registry as initialize_service_registry
    from packhorse.calls import is_retryable_error as is_retryable_error
    from packhorse.calls import register_service as register_service
    from packhorse.calls import safe_http_response as safe_http_response
    from packhorse.calls import with_error_boundary as with_error_boundary
    from packhorse.calls import with_timeout as with_timeout
    from packhorse.worker.platform.dedup import (
        is_new_message,
        is_new_message_async,
        mark_message_processed,
        mark_message_processed_async,
    )
    from packhorse.worker.platform.limits import limit_person, limit_person_async, take_turn, take_turn_async
    from packhorse.worker.platform.memory import (
        ConversationMemory,
        get_or_create_conversation_memory,
        get_or_create_conversation_memory_async,
        update_conversation_memory,
        update_conversation_memory_async,
    )
    from packhorse.worker.platform.people import (
        Erasure,
        erase_person_data,
        erase_person_data_async,
        export_person_data,
        export_person_data_async,
        mask_personal_data,
    )
    from packhorse.worker.platform.sessions import (
        AgentSession,
        add_message,
        add_message_async,
        end_session,
        end_session_async,
        get_conversation,
        get_conversation_async,
        get_or_create_session,
        get_or_create_session_async,
        update_context,
        update_context_async,
    )
    from packhorse.worker.platform.web import SafeHandler, request_correlation_id, safe_http_handler
    from packhorse.worker.platform.webhooks import record_webhook_event, record_webhook_event_async
    from packhorse.worker.platform.workflows import (
        advance_workflow,
        advance_workflow_async,
        finish_workflow,
        finish_workflow_async,
        start_workflow,
        start_workflow_async,
    )

_HOMES = {
    "AgentSession": "platform.sessions",
    "ConversationMemory": "platform.memory",
    "Erasure": "platform.people",
    "SafeHandler": "platform.web",
    "add_message": "platform.sessions",
    "add_message_async": "platform.sessions",
    "advance_workflow": "platform.workflows",
    "advance_workflow_async": "platform.workflows",
    "end_session": "platform.sessions",
    "end_session_async": "platform.sessions",
    "erase_person_data": "platform.people",
    "erase_person_data_async": "platform.people",
    "export_person_data": "platform.people",
    "export_person_data_async": "platform.people",
    "finish_workflow": "platform.workflows",
    "finish_workflow_async": "platform.workflows",
    "get_conversation": "platform.sessions",
    "get_conversation_async": "platform.sessions",
    "get_or_create_conversation_memory": "platform.memory",
    "get_or_create_conversation_memory_async": "platform.memory",
    "get_or_create_session": "platform.sessions",
    "get_or_create_session_async": "platform.sessions",
    "is_new_message": "platform.dedup",
    "is_new_message_async": "platform.dedup",
    "limit_person": "platform.limits",
    "limit_person_async": "platform.limits",
    "mark_message_processed": "platform.dedup",
    "mark_message_processed_async": "platform.dedup",
    "mask_personal_data": "platform.people",
    "record_webhook_event": "platform.webhooks",
    "record_webhook_event_async": "platform.webhooks",
    "request_correlation_id": "platform.web",
    "safe_http_handler": "platform.web",
    "start_workflow": "platform.workflows",
    "start_workflow_async": "platform.workflows",
    "take_turn": "platform.limits",
    "take_turn_async": "platform.limits",
    "update_context": "platform.sessions",
    "update_context_async": "platform.sessions",
    "update_conversation_memory": "platform.memory",
    "update_conversation_memory_async": "platform.memory",
}

__all__ = [
    "AgentSession",
    "ConversationMemory",
    "Erasure",
    "SafeHandler",
    "add_message",
    "add_message_async",
    "advance_workflow",
    "advance_workflow_async",
    "end_session",
    "end_session_async",
    "erase_person_data",
    "erase_person_data_async",
    "export_person_data",
    "export_person_data_async",
    "finish_workflow",
    "finish_workflow_async",
    "get_conversation",
    "get_conversation_async",
    "get_or_create_conversation_memory",
    "get_or_create_conversation_memory_async",
    "get_or_create_session",
    "get_or_create_session_async",
    "is_new_message",
    "is_new_message_async",
    "limit_person",
    "limit_person_async",
    "mark_message_processed",
    "mark_message_processed_async",
    "mask_personal_data",
    "record_webhook_event",
    "record_webhook_event_async",
    "request_correlation_id",
    "safe_http_handler",
    "start_workflow",
    "start_workflow_async",
    "take_turn",
    "take_turn_async",
    "update_context",
    "update_context_async",
    "update_conversation_memory",
    "update_conversation_memory_async",
]


if not TYPE_CHECKING:  # a type checker knows the names above, and refuses others
    __getattr__, __dir__ = names_of(
        __name__, (*__all__, *calls.__all__), {**calls._HOMES, **_HOMES}, rest="errors"
    )
