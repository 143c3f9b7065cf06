"""Enqueue inside the caller's own transaction (SPEC Q9): psycopg 3, asyncpg, SQLAlchemy, Django.

One SQL call on the connection that the caller gives; what becomes of it is the caller's commit.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, Unpack

from packhorse.worker.config import own_schema
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.names import Names
from packhorse.worker.enqueue import capture, unknown_types
from packhorse.worker.enqueue.encoding import (
    Encoded,
    refuse_misspelt,
    refuse_nul,
    refuse_too_late,
    refuse_window_without_key,
    take_columns,
)
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.observe import tracing
from packhorse.worker.observe.correlation import inherit
from packhorse.worker.records import EnqueueOptions, EnqueueResult
from packhorse.worker.store.json_text import dumps, to_json
from packhorse.worker.store.options import OPTIONS, seconds

_LIBRARIES = ("django", "sqlalchemy", "asyncpg", "psycopg")
_PER_MESSAGE = ("p_payload", "p_dedup_key", "p_dedup_window")
_NAMES = ("p_queue", "p_message_type", "p_payload", "p_options", *(option.argument for option in OPTIONS))
_BULK_NAMES = ("p_payloads", *(name for name in _NAMES if name not in _PER_MESSAGE))
_EXPRESSIONS = {
    # by way of text: the caller's connection may have a codec for jsonb (asyncpg's set_type_codec), which
    # would encode our text once more
    **dict.fromkeys(("p_payload", "p_payloads", "p_options"), "{}::text::jsonb"),
    **{option.argument: option.expression for option in OPTIONS},
}
#: Payloads per statement, and characters of JSON after which a statement is not filled up: memory on both
#: sides is bounded.
BULK_ROWS, BULK_CHARACTERS = 1000, 4_000_000
#: Payloads that become JSON by one call.
AT_ONCE = 50


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
    return (len(taken),) if many else (taken[0].id, taken[0].duplicate)


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


_ONE = Call("message_id, duplicate", "enqueue_message", _NAMES)
#: The same, and whether any worker knows the type.
_ASKING = Call(
    "message_id, duplicate, packhorse.types_instead(message_id) as instead", "enqueue_message", _NAMES
)
_MANY = Call("message_count", "enqueue_payloads", _BULK_NAMES)


def _arguments(queue: str, message_type: str, options: dict[str, Any]) -> dict[str, Any]:
    """What all messages of a call share, by the names of the SQL function. Raises InvalidArgument."""
    refuse_nul("queue", queue)
    refuse_nul("message_type", message_type)
    encoded = Encoded(queue, message_type, "", "{}")
    for name in options:
        refuse_misspelt(name)
    rest = dict(options)
    delay = rest.pop("delay", None)
    if delay is not None and rest.get("run_at") is not None:
        raise InvalidArgument(
            "run_at: delay, too, says when it may start", field="run_at", hint="Give one of them."
        )
    take_columns(encoded, rest)
    refuse_window_without_key(encoded.extra)
    if delay is not None:
        encoded.extra["delay_seconds"] = seconds("delay", delay)
        refuse_too_late(encoded.extra["delay_seconds"], encoded.extra)
    inherit(encoded.extra)
    if tracing.active is not None:
        tracing.active.stamp(encoded.extra)
    given = {"priority": encoded.priority, **encoded.extra}
    arguments = {option.argument: given.get(option.key, option.default) for option in OPTIONS}
    return {
        "p_queue": queue,
        "p_message_type": message_type,
        "p_options": to_json("options", rest),
        **arguments,
    }


def _payload(name: str, payload: Any) -> str:
    if not isinstance(payload, dict):
        raise InvalidArgument(
            f"{name}: must be a dict, not {type(payload).__name__}",
            field=name,
            hint="Its keys are the handler's arguments.",
        )
    return to_json(name, payload)


def _parts(payloads: Iterable[dict[str, Any]]) -> Iterator[str]:
    """JSON arrays of BULK_ROWS payloads, fewer when they are long. Raises InvalidArgument that names the
    payload's position.
    """
    if isinstance(payloads, (Mapping, str, bytes)) or not isinstance(payloads, Iterable):
        raise InvalidArgument(
            f"payloads: must be dicts one after another (a list, say), not {type(payloads).__name__}",
            field="payloads",
        )
    part: list[str] = []
    count = size = 0
    for text, holds in _texts(iter(payloads)):
        part.append(text)
        count += holds
        size += len(text)
        if count >= BULK_ROWS or size >= BULK_CHARACTERS:
            yield f"[{','.join(part)}]"
            part, count, size = [], 0, 0
    if part:
        yield f"[{','.join(part)}]"


def _texts(payloads: Iterator[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """JSON of payloads with commas between them, and of how many. Some at once take half the time; one by one
    to say what is wrong with which.
    """
    place = 0
    while some := list(islice(payloads, AT_ONCE)):
        try:
            together = to_json("payloads", some) if all(type(payload) is dict for payload in some) else None
        except InvalidArgument:
            together = None
        if together is not None:
            yield together[1:-1], len(some)
        else:
            for number, payload in enumerate(some, place + 1):
                yield _payload(f"payloads[{number}]", payload), 1
        place += len(some)


def enqueue(
    connection: Any,
    message_type: str,
    payload: dict[str, Any] | None = None,
    *,
    queue: str = "default",
    db_schema: str | None = None,
    **options: Unpack[EnqueueOptions],
) -> EnqueueResult:
    """Enqueue one message on a synchronous connection, in its transaction.

    connection: psycopg Connection or Cursor, SQLAlchemy Connection, Session or raw connection, Django
    connection (`django.db.connection`). message_type: the name of the actor. payload: its arguments by name,
    a JSON object of at most 1 MiB. options: delay (s or timedelta), priority, conversation_key, dedup_key,
    dedup_window (s), correlation_id, trace_context, max_attempts, concurrency_key, run_at, expires_in (s);
    others become dramatiq options, unless they look like one of these misspelt. db_schema: where the queue
    is, when the settings of this process do not say it. Returns id and whether a dedup window answered with
    an older one. Logs type_unknown, once per type, when workers live and none has ever registered it. Raises
    InvalidArgument for what can be seen here, the driver's own error for the rest.
    """
    arguments = {
        **_arguments(queue, message_type, {**options}),
        "p_payload": _payload("payload", {} if payload is None else payload),
    }
    asks = _asks(message_type, db_schema)
    return _result(
        (_ASKING if asks else _ONE).run(connection, arguments, db_schema), message_type, db_schema, asks
    )


async def enqueue_async(
    connection: Any,
    message_type: str,
    payload: dict[str, Any] | None = None,
    *,
    queue: str = "default",
    db_schema: str | None = None,
    **options: Unpack[EnqueueOptions],
) -> EnqueueResult:
    """The same on an asynchronous connection: psycopg AsyncConnection, asyncpg, SQLAlchemy AsyncConnection or
    AsyncSession.
    """
    arguments = {
        **_arguments(queue, message_type, {**options}),
        "p_payload": _payload("payload", {} if payload is None else payload),
    }
    asks = _asks(message_type, db_schema)
    return _result(
        await (_ASKING if asks else _ONE).run_async(connection, arguments, db_schema),
        message_type,
        db_schema,
        asks,
    )


def enqueue_payloads(
    connection: Any,
    message_type: str,
    payloads: Iterable[dict[str, Any]],
    *,
    queue: str = "default",
    db_schema: str | None = None,
    **options: Unpack[EnqueueOptions],
) -> int:
    """Enqueue a message per payload, in order, in the connection's transaction; returns how many.

    connection, options: as for enqueue(), and the same for all of them; no dedup_key. payloads: any number, a
    thousand (or 4 MB) per statement, each read once. Open a transaction around the call if it shall be all or
    none. Raises InvalidArgument that names `payloads[position]` for what can be seen here, the driver's own
    error for the rest.
    """
    shared = _shared(queue, message_type, {**options})
    return sum(
        int(_value(_MANY.run(connection, {**shared, "p_payloads": part}, db_schema), 0, "message_count"))
        for part in _parts(payloads)
    )


async def enqueue_payloads_async(
    connection: Any,
    message_type: str,
    payloads: Iterable[dict[str, Any]],
    *,
    queue: str = "default",
    db_schema: str | None = None,
    **options: Unpack[EnqueueOptions],
) -> int:
    """The same on an asynchronous connection."""
    shared = _shared(queue, message_type, {**options})
    count = 0
    for part in _parts(payloads):
        count += int(
            _value(
                await _MANY.run_async(connection, {**shared, "p_payloads": part}, db_schema),
                0,
                "message_count",
            )
        )
    return count


def _shared(queue: str, message_type: str, options: dict[str, Any]) -> dict[str, Any]:
    for name in ("dedup_key", "dedup_window"):
        if options.get(name) is not None:
            raise InvalidArgument(
                f"{name}: many payloads share no dedup window", field=name, hint="Use enqueue() for each."
            )
    return _arguments(queue, message_type, {**options})


def _asks(message_type: str, schema: str | None) -> bool:
    return capture.active is None and unknown_types.is_asked(schema or "", message_type)


def _result(row: Any, message_type: str, schema: str | None, asked: bool) -> EnqueueResult:
    if asked:
        unknown_types.answered(schema or "", message_type, _value(row, 2, "instead"))
    return EnqueueResult(int(_value(row, 0, "message_id")), bool(_value(row, 1, "duplicate")))


def _value(row: Any, place: int, name: str) -> Any:
    """A value of a row in whatever shape the caller's connection gives rows: a tuple, a mapping, an object
    with these names.
    """
    if isinstance(row, Mapping):
        return row[name]
    return getattr(row, name) if hasattr(row, name) else row[place]
