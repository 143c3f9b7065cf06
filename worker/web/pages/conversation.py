"""One conversation: its messages in order, and what holds it; without a key, all that wait."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument, NotFound
from packhorse.worker.ops import conversations
from packhorse.worker.ops.conversations import Conversation
from packhorse.worker.records import Row
from packhorse.worker.store import browse
from packhorse.worker.store.browse import Page
from packhorse.worker.web import masks
from packhorse.worker.web.access import Role
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/conversations"
TITLE = "Conversations"
NAV = "Conversations"
TEMPLATE = "conversation.html"

MOST_MESSAGES = 100
MOST_WAITING = 100


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """key: None for the list of those that wait. typed: the key as the visitor gave it; asked: what addresses
    of this conversation say. found: None when it has no live message and no dead letter. rows: its messages
    in their order; on pages further back (before) those that ended. archive: how far those were looked for.
    is_bounded: more conversations wait than were looked at.
    """

    key: str | None
    typed: str
    asked: Mapping[str, Any]
    found: Conversation | None
    rows: tuple[Row, ...]
    archive: Page | None
    before: int | None
    waiting: list[Row]
    is_bounded: bool
    command: str


async def load(reader: Reader, query: Query) -> ConversationPage:
    """Parameters: key, or `of`, the id of one of its messages; before: an id, for older messages that ended.
    Raises NotFound.
    """
    typed, of, before = parameters.text(query, "key"), query.integer("of"), query.integer("before")
    key, asked = typed, {"key": typed}
    if typed is None and of is not None:
        key, asked = await reader.ask("conversation of", 60.0, browse.conversation_of, of), {"of": str(of)}
        if key is None:
            raise NotFound("conversation of message", of)
    if key is None:
        waiting = await reader.ask("conversations that wait", 5.0, browse.waiting, MOST_WAITING)
        is_bounded = bool(waiting) and waiting[0]["looked_at"] >= browse.MOST_PROBES
        return ConversationPage(
            None, "", {}, None, (), None, None, waiting, is_bounded, "packhorse conversations"
        )
    plain = query.visitor.may(Role.OPERATOR)
    found, archive = await asyncio.gather(
        reader.ask("conversation", 2.0, _show, key),
        reader.ask("conversation archived", 15.0, browse.archived_of, key, before, MOST_MESSAGES),
    )
    live = found.messages if found is not None and before is None else []
    rows = tuple(sorted([*archive.rows, *live], key=lambda row: row["id"]))
    if found is not None:
        found = replace(found, held_by=masks.log_text(found.held_by, query.visitor, (key,)))
    shown = key if plain or typed is not None else "KEY"
    return ConversationPage(
        key,
        typed or (key if plain else ""),
        asked,
        found,
        rows,
        replace(archive, newer=False),
        before,
        [],
        False,
        f"packhorse conversation show {shlex.quote(shown)}",
    )


def _show(connection: DeadlineConnection, key: str) -> Conversation | None:
    """Without the archive, which is asked apart. None: nothing of it lives or is dead, which is an answer as
    well.
    """
    try:
        return conversations.show(connection, key, recent_seconds=0, limit=MOST_MESSAGES)
    except InvalidArgument:
        return None
