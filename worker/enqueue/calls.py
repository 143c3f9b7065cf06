"""One call of a SQL function on the connection of a caller: psycopg 3, asyncpg, SQLAlchemy, Django (SPEC Q9).

Each has placeholders and a shape of rows of its own.
"""

from __future__ import annotations

import inspect
import json
from functools import cache
from typing import Any

from packhorse.worker.config import own_schema
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.names import Names
from packhorse.worker.enqueue import capture
from packhorse.worker.enqueue.encoding import Encoded
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store.json_text import dumps
from packhorse.worker.store.options import OPTIONS

_LIBRARIES = ("django", "sqlalchemy", "asyncpg", "psycopg")
_EXPRESSIONS = {
    # by way of text: the caller's connection may have a codec for jsonb (asyncpg's set_type_codec), which
    # would encode our text once more
    **dict.fromkeys(("p_payload", "p_payloads", "p_options"), "{}::text::jsonb"),
    **{option.argument: option.expression for option in OPTIONS},
}


class Call:
    """A call of one SQL function with its arguments by name, in each placeholder style, in the schema of a
    queue.
    """

    def __init__(self, columns: str, function: str, names: tuple[str, ...]) -> None:
        def text(placeholder: Any) -> str:
            arguments = ", ".join(
                f"{name} => " + _EXPRESSIONS.get(name, "{}::text").format(placeholder(place))
                for place, name in enumerate(names, 1)
            )
            return f"select {columns} from packhorse.{function}({arguments})"  # noqa: S608 - fixed names only

        self._names = names
        self._pyformat = text(lambda place: "%s")
        self._numbered = text(lambda place: f"${place}")
        self._colon = text(lambda place: f":a{place}").replace("::", "\\:\\:")

    def run(self, connection: Any, arguments: dict[str, Any], schema: str | None) -> Any:
        """Its only row, on a synchronous connection of any supported driver; raises that driver's errors."""
        if capture.active is not None:
            return _captured(capture.active, arguments)
        connection = _unwrapped(connection)
        values = [arguments[name] for name in self._names]
        names = _names(connection, schema)
        library = _library(connection)
        if library == "django":
            _require(connection, "cursor")
            with connection.cursor() as cursor:
                cursor.execute(names.of(self._pyformat), values)
                return cursor.fetchone()
        _require(connection)
        # current_connection(): the handler's role and search_path are not the queue's
        if isinstance(connection, DeadlineConnection):
            with connection.as_ourselves():
                return connection.execute(names.of(self._pyformat), values).fetchone()
        sqlalchemy = library == "sqlalchemy"
        answer = (
            connection.execute(*self._for_sqlalchemy(names, values))
            if sqlalchemy
            else _cursor(connection).execute(names.of(self._for_psycopg(connection)), values)
        )
        if inspect.isawaitable(answer):  # nothing has happened on it yet
            if inspect.iscoroutine(answer):
                answer.close()  # else Python warns that nobody awaited it
            raise _refused(
                connection, "is asynchronous", "Call enqueue_async or enqueue_payloads_async with it."
            )
        return answer.one() if sqlalchemy else answer.fetchone()

    async def run_async(self, connection: Any, arguments: dict[str, Any], schema: str | None) -> Any:
        """The same on an asynchronous connection."""
        if capture.active is not None:
            return _captured(capture.active, arguments)
        connection = _unwrapped(connection)
        _require_asynchronous(connection)
        values = [arguments[name] for name in self._names]
        names = _names(connection, schema)
        library = _library(connection)
        if library == "asyncpg":
            return await connection.fetchrow(names.of(self._numbered), *values)
        if library == "sqlalchemy":
            return (await connection.execute(*self._for_sqlalchemy(names, values))).one()
        cursor = await _cursor(connection).execute(names.of(self._for_psycopg(connection)), values)
        return await cursor.fetchone()

    def _for_psycopg(self, connection: Any) -> str:
        """By what its cursors take: those that psycopg calls raw have PostgreSQL's own placeholders."""
        kinds = getattr(connection, "cursor_factory", type(connection)).__mro__
        return self._numbered if any("RawCursor" in kind.__name__ for kind in kinds) else self._pyformat

    def _for_sqlalchemy(self, names: Names, values: list[Any]) -> tuple[Any, dict[str, Any]]:
        from sqlalchemy import text

        return text(names.of(self._colon)), {f"a{place}": value for place, value in enumerate(values, 1)}


def _captured(taker: capture.Capture, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What the SQL function would answer; the messages go to a test, and whatever was given as a connection
    is not looked at.
    """
    extra = {
        option.key: arguments[option.argument]
        for option in OPTIONS
        if option.name != "priority" and arguments.get(option.argument, option.default) != option.default
    }
    many = "p_payloads" in arguments
    payloads = (
        [dumps(payload) for payload in json.loads(arguments["p_payloads"])]
        if many
        else [arguments["p_payload"]]
    )
    taken = taker.take(
        [
            Encoded(
                arguments["p_queue"],
                arguments["p_message_type"],
                payload,
                arguments["p_options"],
                arguments["p_priority"],
                {**extra},
            )
            for payload in payloads
        ]
    )
    return (len(taken),) if many else (taken[0].id, taken[0].duplicate, taken[0].merged)


def _names(connection: Any, schema: str | None) -> Names:
    """What our schemas are called: as the caller says, as the connection of a handler has it, as the settings
    say.
    """
    if schema is None and isinstance(connection, DeadlineConnection):
        return connection.names
    return _of_schema(own_schema() if schema is None else schema)


@cache
def _of_schema(schema: str) -> Names:
    return Names(schema)


def _unwrapped(connection: Any) -> Any:
    """The driver's own connection, where SQLAlchemy's pool has one around it (engine.raw_connection(),
    connection.connection).
    """
    if type(connection).__module__.startswith("sqlalchemy.pool"):
        return connection.driver_connection
    return connection


def _library(connection: Any) -> str:
    """Whose connection it is: SQLModel's sessions are SQLAlchemy's, and applications have classes of their
    own.
    """
    homes = (kind.__module__.partition(".")[0] for kind in type(connection).__mro__)
    return next((home for home in homes if home in _LIBRARIES), "")


def _cursor(connection: Any) -> Any:
    """Of psycopg a cursor whose rows are tuples, whatever the connection makes of rows: its own may leave out
    a column.
    """
    if _library(connection) == "psycopg" and hasattr(connection, "cursor_factory"):
        return connection.cursor(row_factory=lambda cursor: tuple)
    return connection


def _refused(connection: Any, problem: str, hint: str) -> InvalidArgument:
    return InvalidArgument(
        f"connection: {type(connection).__name__} {problem}", field="connection", hint=hint
    )


def _require(connection: Any, method: str = "execute") -> None:
    if not callable(getattr(connection, method, None)):
        raise _refused(
            connection,
            "is no database connection",
            "Give one of psycopg, asyncpg or SQLAlchemy, or django.db.connection.",
        )


def _require_asynchronous(connection: Any) -> None:
    """Refuse a synchronous connection before it has enqueued: awaiting its answer would fail too late."""
    library = _library(connection)
    # of any class it descends from: a decorator may hide that its own is one
    waits = any(inspect.iscoroutinefunction(vars(kind).get("execute")) for kind in type(connection).__mro__)
    if library == "django" or (library in ("psycopg", "sqlalchemy") and not waits):
        raise _refused(connection, "is synchronous", "Call enqueue or enqueue_payloads with it.")
    _require(connection)
