"""Statements of ours on a connection of the caller's: psycopg's, in whatever transaction it is, with whatever
row factory it has.

The caller's commit decides. Errors come out as ours, with the driver's as their cause; after one the
transaction is failed, as after any statement that fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import dict_row

from packhorse.worker.config import load_settings
from packhorse.worker.db.async_connection import AsyncDeadlineConnection
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.names import Names
from packhorse.worker.db.queries import sql
from packhorse.worker.db.sessions import names_of
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.records import Row


@cache
def own_names() -> Names:
    """What our schemas are called by the settings of this process, read once. Raises ConfigError."""
    return names_of(load_settings())


def fetch(connection: Any, statement: str, values: Mapping[str, Any]) -> list[Row]:
    """The rows of a named statement, column by name, on a synchronous connection. Raises InvalidArgument (no
    connection of psycopg's, or what the database refuses), StoreError."""
    if isinstance(connection, psycopg.Cursor):
        connection = connection.connection
    if not isinstance(connection, psycopg.Connection):
        raise _refused(
            connection,
            "is no synchronous connection of psycopg",
            "Give a psycopg.Connection, or none for one of the broker's pool.",
        )
    # current_connection(): the handler's role and search_path are not ours
    if isinstance(connection, DeadlineConnection):
        with translated(), connection.as_ourselves():
            # its own execute: it leaves the handler's role on the way
            cursor = connection.execute(sql(statement), values)
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    with translated():
        return list(
            psycopg.Cursor(connection, row_factory=dict_row)
            .execute(own_names().of(sql(statement)).encode(), values)
            .fetchall()
        )


async def fetch_async(connection: Any, statement: str, values: Mapping[str, Any]) -> list[Row]:
    """The same on an asynchronous connection."""
    if isinstance(connection, psycopg.AsyncCursor):
        connection = connection.connection
    if not isinstance(connection, psycopg.AsyncConnection):
        raise _refused(
            connection,
            "is no asynchronous connection of psycopg",
            "Give a psycopg.AsyncConnection, or none for one of the broker's pool.",
        )
    if isinstance(connection, AsyncDeadlineConnection):
        return await connection.ours(fetch, connection.twin, statement, values)
    with translated():
        cursor = psycopg.AsyncCursor(connection, row_factory=dict_row)
        await cursor.execute(own_names().of(sql(statement)).encode(), values)
        return list(await cursor.fetchall())


def _refused(connection: Any, problem: str, hint: str) -> InvalidArgument:
    return InvalidArgument(
        f"connection: {type(connection).__name__} {problem}", field="connection", hint=hint
    )
