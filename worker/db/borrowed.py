"""A connection of the caller's, as a handler of ours sees one (SPEC W12): a second object on the same
session, in the same transaction.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.types.json import JsonbLoader, JsonLoader

from packhorse.worker.db.async_connection import AsyncDeadlineConnection
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.names import Names
from packhorse.worker.errors import InvalidArgument


def borrowed(connection: object, names: Names = DeadlineConnection.names) -> DeadlineConnection:
    """For a handler in a thread. Raises InvalidArgument for what is no psycopg Connection in a
    transaction.
    """
    if isinstance(connection, psycopg.AsyncConnection):
        raise _refused("is asynchronous", "The handler is not: give a psycopg.Connection.")
    if not isinstance(connection, psycopg.Connection):
        raise _refused(
            f"{type(connection).__name__} is no connection",
            "Give a psycopg.Connection, or packhorse.testing.FakeConnection().",
        )
    return _twin(connection, names)


def borrowed_async(connection: object, names: Names = DeadlineConnection.names) -> AsyncDeadlineConnection:
    """For a coroutine. Raises InvalidArgument for what is no psycopg AsyncConnection in a transaction."""
    if isinstance(connection, psycopg.Connection):
        raise _refused("is synchronous", "The handler is a coroutine: give a psycopg.AsyncConnection.")
    if not isinstance(connection, psycopg.AsyncConnection):
        raise _refused(
            f"{type(connection).__name__} is no connection",
            "Give a psycopg.AsyncConnection, or packhorse.testing.FakeAsyncConnection().",
        )
    heard = connection.pgconn.notice_handler, connection.pgconn.notify_handler
    asynchronous = AsyncDeadlineConnection(_twin(connection, names))
    connection.pgconn.notice_handler, connection.pgconn.notify_handler = heard
    asynchronous._num_transactions = asynchronous.twin._num_transactions
    asynchronous.row_factory = connection.row_factory
    asynchronous.lock = connection.lock
    return asynchronous


def _twin(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], names: Names
) -> DeadlineConnection:
    idle = connection.info.transaction_status == TransactionStatus.IDLE
    if connection.autocommit and idle:
        raise _refused(
            "commits each statement by itself", "Call the handler inside `with connection.transaction():`."
        )
    heard = connection.pgconn.notice_handler, connection.pgconn.notify_handler
    twin = DeadlineConnection(connection.pgconn)
    connection.pgconn.notice_handler, connection.pgconn.notify_handler = heard
    twin.names = names
    twin._autocommit = connection.autocommit
    twin._own_adapters = connection.adapters
    # one session, one set of names
    twin._prepared, twin.prepare_threshold = connection._prepared, connection.prepare_threshold
    twin.__dict__["_pool"] = connection  # psycopg's sign that somebody else closes it
    if isinstance(connection, psycopg.Connection):
        twin.row_factory, twin.cursor_factory = connection.row_factory, connection.cursor_factory
    if idle:
        twin.execute("select")  # begins the transaction
    # as in a worker: the handler can neither commit nor roll back
    twin._num_transactions = max(1, connection._num_transactions)
    return twin


def _refused(problem: str, hint: str) -> InvalidArgument:
    return InvalidArgument(f"connection: {problem}", field="connection", hint=hint)


def with_parsed_json(connection: DeadlineConnection) -> DeadlineConnection:
    """Values of json and jsonb as Python objects, as psycopg has them; ours come as text."""
    connection.adapters.register_loader("json", JsonLoader)
    connection.adapters.register_loader("jsonb", JsonbLoader)
    return connection
