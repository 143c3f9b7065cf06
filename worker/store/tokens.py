"""Tokens of the page and of producers (migrations/functions/tokens.sql); one function = one statement
(web.sql).

Each takes a connection first and works in its transaction. Errors come out as psycopg errors inside
`translated()`. Only the SHA-256 of a token goes to the database.
"""

from __future__ import annotations

import hashlib
import secrets

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows, value

PREFIX = "phk_"


def create(
    connection: DeadlineConnection,
    name: str,
    role: str,
    operator: str,
    reason: str | None,
    queues: list[str] | None = None,
) -> str:
    """A new token, which is nowhere but in the answer: `phk_` and 32 random bytes. queues: of a producer.
    Raises InvalidArgument, UnknownQueue.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    value(connection, "create_access_token", (name, role, _hash(token), operator, reason, queues))
    return token


def use(connection: DeadlineConnection, token: str) -> Row | None:
    """id, name and role of a token in force, which is noted as used; None when there is no such token."""
    found = rows(connection, "use_access_token", (_hash(token),))
    return found[0] if found else None


def enqueue(connection: DeadlineConnection, token: str, messages: str) -> list[tuple[int, bool]]:
    """Enqueue what a producer with this token asks for, all or none; id and "it was there already" of each.

    messages: a JSON array of objects. Raises InvalidArgument (`token` when it is none in force,
    `token.queues` when it may not use a queue), UnknownQueue.
    """
    return list(connection.execute(sql("enqueue_by_token"), (_hash(token), messages)).fetchall())


def enqueue_once(
    connection: DeadlineConnection, token: str, messages: str, key: str, window: str, *, many: bool
) -> list[tuple[int, bool]]:
    """As `enqueue`, where the same request may come again: each message has this dedup_key, and its place
    behind it when there may be many. window: an interval, for messages that say none.
    """
    said = {"token": _hash(token), "messages": messages, "key": key, "window": window, "many": many}
    return list(connection.execute(sql("enqueue_by_token_once"), said).fetchall())


def in_force(connection: DeadlineConnection, token_ids: list[str]) -> dict[str, Row]:
    """id, name and role of those of these tokens that are in force, by id."""
    return {row["id"]: row for row in rows(connection, "access_tokens_in_force", (token_ids,))}


def any_in_force(connection: DeadlineConnection) -> bool:
    """Is there a token that somebody can use?"""
    return bool(value(connection, "has_access_tokens"))


def list_tokens(connection: DeadlineConnection) -> list[Row]:
    """Tokens, those in force first, at most 1000; without their hashes."""
    return rows(connection, "list_access_tokens")


def revoke(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> bool:
    """End a token and its sessions; False when none in force has this name."""
    return bool(value(connection, "revoke_access_token", (name, operator, reason)))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
