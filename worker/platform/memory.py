"""What an AI agent remembers of a person: rows of ai_conversation_memory, 20 messages each, over after 30
quiet minutes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from packhorse.worker.platform.running import Script, run, run_async, to_object


@dataclass(frozen=True, slots=True)
class ConversationMemory:
    """What an agent remembers of a person. conversation_history: at most 20 messages, oldest first, each with
    role, content, timestamp.
    """

    id: UUID
    session_id: UUID
    user_phone: str
    agent_type: str
    conversation_history: list[dict[str, Any]]
    context: dict[str, Any]
    last_interaction: datetime


def get_or_create_conversation_memory(
    user_phone: str, agent_type: str, session_id: UUID | str | None = None, *, connection: Any = None
) -> ConversationMemory:
    """The memory touched in the last 30 minutes, else a new one. Callers at the same instant get the same
    one.

    user_phone: in any form. agent_type: 1 to 100 characters. session_id: that memory, made when missing;
    after 30 quiet minutes it starts anew, empty. connection: as for get_or_create_session(). Raises
    InvalidArgument, StoreError.
    """
    return run(_get(user_phone, agent_type, session_id), connection)


async def get_or_create_conversation_memory_async(
    user_phone: str, agent_type: str, session_id: UUID | str | None = None, *, connection: Any = None
) -> ConversationMemory:
    """As get_or_create_conversation_memory(), awaited."""
    return await run_async(_get(user_phone, agent_type, session_id), connection)


def _get(user_phone: str, agent_type: str, session_id: UUID | str | None) -> Script[ConversationMemory]:
    rows = yield (
        "platform_memory",
        {"user_phone": user_phone, "agent_type": agent_type, "session_id": session_id},
    )
    row = rows[0]
    return ConversationMemory(
        **{
            **row,
            "conversation_history": json.loads(row["conversation_history"]),
            "context": json.loads(row["context"]),
        }
    )


def update_conversation_memory(
    memory_id: UUID | str,
    message: Mapping[str, Any],
    context: Mapping[str, Any] | None = None,
    *,
    connection: Any = None,
) -> bool:
    """Remember one more message; the newest 20 stay. False when there is no such memory.

    memory_id: of ConversationMemory. message: `{"role": …, "content": …}`, role user, assistant, system or
    tool, content of 1 to 32768 characters; its timestamp is the database's. context: keys to put into the
    context; None as a value removes one. connection: as for get_or_create_session(). Raises InvalidArgument,
    StoreError.
    """
    return run(_update(memory_id, message, context), connection)


async def update_conversation_memory_async(
    memory_id: UUID | str,
    message: Mapping[str, Any],
    context: Mapping[str, Any] | None = None,
    *,
    connection: Any = None,
) -> bool:
    """As update_conversation_memory(), awaited."""
    return await run_async(_update(memory_id, message, context), connection)


def _update(
    memory_id: UUID | str, message: Mapping[str, Any], context: Mapping[str, Any] | None
) -> Script[bool]:
    given = {
        "memory_id": memory_id,
        "message": to_object("message", message),
        "context": None if context is None else to_object("context", context),
    }
    rows = yield "platform_update_memory", given
    return bool(rows[0]["done"])
