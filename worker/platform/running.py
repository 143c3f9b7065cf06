"""How a script of this library reaches the database: on the connection that the caller gives, else on one of
the broker's pool.

A script is a generator: it yields a statement's name with its values, is sent the rows, and returns the
answer. So there is one text of each script, and a synchronous and an asynchronous way to run it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

import dramatiq

from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.async_connection import in_thread
from packhorse.worker.db.callers import fetch, fetch_async
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.records import Row

T = TypeVar("T")
Script = Generator[tuple[str, Mapping[str, Any]], list[Row], T]


def run(script: Script[T], connection: Any = None, *, deadline_seconds: float = 0.0) -> T:
    """Run it on a psycopg connection, in its transaction; without one on a connection of the broker's pool,
    where each statement commits. deadline_seconds: of a statement that may take longer than the pool's.

    Raises InvalidArgument, StoreError.
    """
    if connection is not None:
        return _through(script, connection)
    with _broker().pool.connection() as own:
        usual = own.deadline_seconds
        own.deadline_seconds = max(usual, deadline_seconds)
        try:
            return _through(script, own)
        finally:
            own.deadline_seconds = usual


async def run_async(script: Script[T], connection: Any = None, *, deadline_seconds: float = 0.0) -> T:
    """The same on a psycopg AsyncConnection; without one in a helper thread, so that the event loop goes
    on.
    """
    if connection is None:
        return await in_thread(run, script, deadline_seconds=deadline_seconds)
    rows: list[Row] | None = None
    while True:
        try:
            statement, values = next(script) if rows is None else script.send(rows)
        except StopIteration as end:
            answer: T = end.value
            return answer
        rows = await fetch_async(connection, statement, values)


def _through(script: Script[T], connection: Any) -> T:
    rows: list[Row] | None = None
    while True:
        try:
            statement, values = next(script) if rows is None else script.send(rows)
        except StopIteration as end:
            answer: T = end.value
            return answer
        rows = fetch(connection, statement, values)


def _broker() -> PostgresBroker:
    broker = dramatiq.get_broker()
    if not isinstance(broker, PostgresBroker):
        raise InvalidArgument(
            f"connection: none is given, and the broker is a {type(broker).__name__}",
            field="connection",
            hint="Give a connection, or dramatiq.set_broker(PostgresBroker()) first.",
        )
    return broker


def to_json(name: str, value: object) -> str:
    """A value as JSON. Raises InvalidArgument that names the argument."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: is no JSON: {error}", field=name) from error


def to_object(name: str, value: object) -> str:
    """A dict as a JSON object. Raises InvalidArgument that names the argument."""
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{name}: must be a dict, not {type(value).__name__}", field=name)
    return to_json(name, dict(value))
