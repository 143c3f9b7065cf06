"""What /v1/openapi.json says of enqueueing over HTTP (SPEC W8)."""

from __future__ import annotations

from typing import Any

from packhorse.worker.version import __version__

_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}
_INTERVAL = {"type": "string", "description": "An interval of PostgreSQL.", "examples": ["5 minutes"]}
#: Keys of a message: those of enqueue_messages (migrations/functions/enqueue_many.sql).
MESSAGE: dict[str, dict[str, Any]] = {
    "queue": {"type": "string", "description": "One of the queues of the token."},
    "message_type": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9._-]{0,99}$"},
    "payload": {"type": "object", "description": "Keyword arguments of the handler."},
    "options": {"type": "object"},
    "priority": {"type": "integer", "minimum": 1, "maximum": 10, "default": 5},
    "delay": _INTERVAL,
    "run_at": _TIME,
    "expires_at": _TIME,
    "max_attempts": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
    "conversation_key": _TEXT,
    "concurrency_key": _TEXT,
    "fairness_key": _TEXT,
    "dedup_key": _TEXT,
    "dedup_window": _INTERVAL,
    "pending_key": _TEXT,
    "when_pending": {"type": "string", "enum": ["return", "replace", "append"]},
    "debounce": _INTERVAL,
    "max_wait": _INTERVAL,
    "correlation_id": _TEXT,
    "trace_context": _TEXT,
}
_MADE = {
    "type": "object",
    "required": ["id", "duplicate"],
    "properties": {"id": {"type": "integer", "format": "int64"}, "duplicate": {"type": "boolean"}},
}
_PROBLEMS = {
    "400": "A field is wrong; `field` names it.",
    "401": "No token in force.",
    "403": "The token may not use the queue.",
    "413": "The body is too large.",
    "415": "The body is no JSON.",
    "429": "Too many messages a second; Retry-After says when.",
    "503": "The database does not answer: send the same again.",
}


def document(base: str) -> dict[str, Any]:
    """The OpenAPI document. base: path of the page, before /v1."""
    reference = {"$ref": "#/components/schemas/Message"}
    many = {"type": "array", "items": reference, "minItems": 1, "maxItems": 1000}
    made = {
        "oneOf": [_MADE, {"type": "object", "properties": {"messages": {"type": "array", "items": _MADE}}}]
    }
    done = {"content": {"application/json": {"schema": made}}}
    problems = {
        status: {
            "description": text,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, text in _PROBLEMS.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Packhorse", "version": __version__},
        "servers": [{"url": f"{base}/v1"}],
        "security": [{"token": []}],
        "paths": {
            "/messages": {
                "post": {
                    "operationId": "enqueueMessages",
                    "summary": "Enqueue one message or many, all or none.",
                    "parameters": [
                        {
                            "name": "Idempotency-Key",
                            "in": "header",
                            "schema": {"type": "string", "minLength": 1, "maxLength": 200},
                        }
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"oneOf": [reference, many]}}},
                    },
                    "responses": {
                        "201": {"description": "They are there.", **done},
                        "200": {"description": "All of them were there already.", **done},
                        **problems,
                    },
                }
            }
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Message": {"type": "object", "required": ["queue", "message_type"], "properties": MESSAGE},
                "Problem": {
                    "type": "object",
                    "properties": {
                        "type": _TEXT,
                        "title": _TEXT,
                        "status": {"type": "integer"},
                        "detail": _TEXT,
                        "field": _TEXT,
                        "hint": _TEXT,
                    },
                },
            },
        },
    }
