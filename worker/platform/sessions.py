"""Sessions of people with AI agents: rows of agent_chat_sessions, 24 hours long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from packhorse.worker.errors import InvalidArgument, StoreRejected
from packhorse.worker.platform.running import Script, run, run_async, to_object
from packhorse.worker.records import Row

ENDS = ("completed", "expired")


@dataclass(frozen=True, slots=True)
class AgentSession:
    """A session of a person with an AI agent. conversation_history: the newest 100 messages, oldest first,
    each with role, content, timestamp and metadata. expires_at: None when a client has written a session
    without an end."""

    id: UUID
    user_phone: str
    agent_type: str
    context: dict[str, Any]
    status: str
    conversation_history: list[dict[str, Any]]
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None


def get_or_create_session(
    user_phone: str,
    agent_type: str,
    user_id: UUID | str | None = None,
    agent_id: UUID | str | None = None,
    *,
    connection: Any = None,
) -> AgentSession:
    """The active session of a phone with an agent, or a new one that lives 24 hours. Callers at the same
    instant get the same one.

    user_phone: in any form, 1 to 100 characters; one person is one phone. agent_type: 1 to 100 characters.
    user_id: of whatsapp_users; it and agent_id are filled in where the session has none. connection: a
    psycopg Connection, in whose transaction it works; None: one of the broker's pool. Raises InvalidArgument,
    StoreError.
    """
    return run(_open(user_phone, agent_type, user_id, agent_id), connection)


async def get_or_create_session_async(
    user_phone: str,
    agent_type: str,
    user_id: UUID | str | None = None,
    agent_id: UUID | str | None = None,
    *,
    connection: Any = None,
) -> AgentSession:
    """As get_or_create_session(), awaited. connection: a psycopg AsyncConnection."""
    return await run_async(_open(user_phone, agent_type, user_id, agent_id), connection)


def _open(
    user_phone: str, agent_type: str, user_id: UUID | str | None, agent_id: UUID | str | None
) -> Script[AgentSession]:
    given = {"user_phone": user_phone, "agent_type": agent_type, "user_id": user_id, "agent_id": agent_id}
    opened = yield "platform_open_session", given
    found = yield "platform_session", {"id": opened[0]["id"]}
    if not found:
        raise StoreRejected(f"session {opened[0]['id']} was deleted while it was opened")
    return _session(found[0])


def _session(row: Row) -> AgentSession:
    return AgentSession(
        **{
            **row,
            "context": json.loads(row["context"] or "{}"),
            "conversation_history": json.loads(row["conversation_history"] or "[]"),
        }
    )


def add_message(
    session_id: UUID | str,
    role: str,
    content: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    connection: Any = None,
) -> bool:
    """Append a message to a session; False when there is no such session, or it is over. The newest 100 stay.

    session_id: of AgentSession. role: user, assistant, system or tool. content: 1 to 32768 characters.
    metadata: a JSON object. connection: as for get_or_create_session(). Raises InvalidArgument, StoreError.
    """
    return run(_add(session_id, role, content, metadata), connection)


async def add_message_async(
    session_id: UUID | str,
    role: str,
    content: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    connection: Any = None,
) -> bool:
    """As add_message(), awaited."""
    return await run_async(_add(session_id, role, content, metadata), connection)


def _add(session_id: UUID | str, role: str, content: str, metadata: Mapping[str, Any] | None) -> Script[bool]:
    given = {
        "session_id": session_id,
        "role": role,
        "content": content,
        "metadata": to_object("metadata", metadata or {}),
    }
    rows = yield "platform_add_message", given
    return bool(rows[0]["done"])


def get_conversation(
    session_id: UUID | str, limit: int = 20, *, connection: Any = None
) -> dict[str, Any] | None:
    """The last messages of a session and its context: `{"messages": [oldest first], "context": {…}}`; None
    when there is no such session.

    session_id: of AgentSession. limit: 1 to 100. connection: as for get_or_create_session(). Raises
    InvalidArgument, StoreError.
    """
    return run(_conversation(session_id, limit), connection)


async def get_conversation_async(
    session_id: UUID | str, limit: int = 20, *, connection: Any = None
) -> dict[str, Any] | None:
    """As get_conversation(), awaited."""
    return await run_async(_conversation(session_id, limit), connection)


def _conversation(session_id: UUID | str, limit: int) -> Script[dict[str, Any] | None]:
    rows = yield "platform_conversation", {"session_id": session_id, "limit": limit}
    text = rows[0]["conversation"]
    return None if text is None else json.loads(text)


def update_context(session_id: UUID | str, context: Mapping[str, Any], *, connection: Any = None) -> bool:
    """Put another context in the place of the session's; False when there is no such session, or it is over.

    session_id: of AgentSession. context: a JSON object, all of it. connection: as for
    get_or_create_session(). Raises InvalidArgument, StoreError.
    """
    return run(_replace(session_id, context), connection)


async def update_context_async(
    session_id: UUID | str, context: Mapping[str, Any], *, connection: Any = None
) -> bool:
    """As update_context(), awaited."""
    return await run_async(_replace(session_id, context), connection)


def _replace(session_id: UUID | str, context: Mapping[str, Any]) -> Script[bool]:
    rows = yield (
        "platform_update_context",
        {"session_id": session_id, "context": to_object("context", context)},
    )
    return bool(rows)


def end_session(session_id: UUID | str, status: str = "completed", *, connection: Any = None) -> bool:
    """End a session; False when there is no such session, or it is over.

    session_id: of AgentSession. status: completed or expired. connection: as for get_or_create_session().
    Raises InvalidArgument, StoreError.
    """
    return run(_end(session_id, status), connection)


async def end_session_async(
    session_id: UUID | str, status: str = "completed", *, connection: Any = None
) -> bool:
    """As end_session(), awaited."""
    return await run_async(_end(session_id, status), connection)


def _end(session_id: UUID | str, status: str) -> Script[bool]:
    if status not in ENDS:
        raise InvalidArgument(
            f"status: {status!r} is no end of a session", field="status", hint="completed or expired"
        )
    rows = yield "platform_end_session", {"session_id": session_id, "status": status}
    return bool(rows)
