"""One conversation: its messages in order, and what holds it; without a key, all that wait."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops import conversations
from packhorse.worker.ops.conversations import Conversation
from packhorse.worker.records import Row
from packhorse.worker.store import operations
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/conversations"
TITLE = "Conversations"
NAV = "Conversations"
TEMPLATE = "conversation.html"

#: How far back messages that ended are shown, by the word in the address.
WITHIN = {"1d": 86400.0, "7d": 7 * 86400.0, "30d": 30 * 86400.0}
MOST_MESSAGES = 200
MOST_WAITING = 100


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """key: None for the list of those that wait. found: None when the key has no message within that time."""

    key: str | None
    within: str
    found: Conversation | None
    waiting: list[Row]
    command: str


async def load(reader: Reader, query: Query) -> ConversationPage:
    """Parameters: key; within, a word of WITHIN."""
    key = parameters.text(query, "key")
    within = parameters.choice(query, "within", tuple(WITHIN))
    if key is None:
        waiting = await reader.ask("conversations that wait", 5.0, operations.blocked_conversations, MOST_WAITING)
        return ConversationPage(None, within, None, waiting, "packhorse conversations")
    command = f"packhorse conversation show {shlex.quote(key)}" + ("" if within == "1d" else f" --recent {within}")
    try:
        found = await reader.ask("conversation", 2.0, _show, key, WITHIN[within])
    except InvalidArgument:  # it has no message, or none within that time: the page says so
        found = None
    return ConversationPage(key, within, found, [], command)


def _show(connection: object, key: str, recent_seconds: float) -> Conversation:
    return conversations.show(connection, key, recent_seconds=recent_seconds, limit=MOST_MESSAGES)  # type: ignore[arg-type]
