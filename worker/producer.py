"""Enqueue inside the caller's own transaction (SPEC Q9): psycopg 3, asyncpg, SQLAlchemy, Django.

One SQL call on the connection that the caller gives; what becomes of it is the caller's commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.encoding import Encoded, _seconds, _take_columns, to_json
from worker.errors import InvalidArgument
from worker.observe import tracing
from worker.records import EnqueueResult

_NAMES = (
    "p_queue", "p_message_type", "p_payload", "p_options", "p_priority", "p_delay", "p_run_at", "p_max_attempts", "p_conversation_key",
    "p_dedup_key", "p_dedup_window", "p_correlation_id", "p_trace_context", "p_expires_at", "p_concurrency_key",
)
_EXPRESSIONS = {
    "p_payload": "{}::jsonb", "p_options": "{}::jsonb", "p_priority": "{}::integer", "p_delay": "make_interval(secs => {}::float8)",
    "p_run_at": "{}::timestamptz", "p_max_attempts": "{}::integer", "p_dedup_window": "make_interval(secs => {}::float8)",
    "p_expires_at": "clock_timestamp() + make_interval(secs => {}::float8)",
}


def _statement(placeholder: Any) -> str:
    """The call with placeholders in the driver's style; fixed text, no values in it."""
    arguments = ", ".join(
        f"{name} => " + _EXPRESSIONS.get(name, "{}::text").format(placeholder(place)) for place, name in enumerate(_NAMES, 1)
    )
    return f"select message_id, duplicate from enqueue_message({arguments})"  # noqa: S608 - fixed names only


_PYFORMAT = _statement(lambda place: "%s")
_NUMBERED = _statement(lambda place: f"${place}")
_COLON = _statement(lambda place: f":a{place}").replace("::", "\\:\\:")


def _values(queue: str, message_type: str, payload: dict[str, Any], options: dict[str, Any]) -> list[Any]:
    if not isinstance(payload, dict):
        raise InvalidArgument(f"payload: must be a dict, not {type(payload).__name__}", field="payload", hint="Its keys are the handler's arguments.")
    encoded = Encoded(queue, message_type, to_json("payload", payload), "{}")
    rest = dict(options)
    delay = rest.pop("delay", None)
    _take_columns(encoded, rest)
    encoded.options = to_json("options", rest)
    extra = encoded.extra
    if tracing.active is not None:
        tracing.active.stamp(extra)
    return [
        queue, message_type, encoded.payload, encoded.options, encoded.priority,
        None if delay is None else _seconds("delay", delay), extra.get("run_at"), extra.get("max_attempts"),
        extra.get("conversation_key"), extra.get("dedup_key"), extra.get("dedup_window_seconds", 300.0), extra.get("correlation_id"),
        extra.get("trace_context"), extra.get("expires_seconds"), extra.get("concurrency_key"),
    ]


def enqueue(connection: Any, message_type: str, payload: dict[str, Any] | None = None, *, queue: str = "default", **options: Any) -> EnqueueResult:
    """Enqueue one message on a synchronous connection, in its transaction.

    connection: psycopg Connection or Cursor, SQLAlchemy Connection or Session, Django connection
    (`django.db.connection`). options: delay (s or timedelta), priority, conversation_key, dedup_key,
    dedup_window (s), correlation_id, trace_context, max_attempts, concurrency_key, run_at, expires_in (s);
    others become dramatiq options. Returns id and whether a dedup window answered with an older one.
    Raises InvalidArgument for what can be seen here, the driver's own error for the rest.
    """
    values = _values(queue, message_type, {} if payload is None else payload, options)
    if type(connection).__module__.startswith("sqlalchemy"):
        from sqlalchemy import text

        row = connection.execute(text(_COLON), {f"a{place}": value for place, value in enumerate(values, 1)}).one()
    elif type(connection).__module__.startswith("django"):
        with connection.cursor() as cursor:
            cursor.execute(_PYFORMAT, values)
            row = cursor.fetchone()
    else:
        row = connection.execute(_PYFORMAT, values).fetchone()
    return _result(row)


async def enqueue_async(
    connection: Any, message_type: str, payload: dict[str, Any] | None = None, *, queue: str = "default", **options: Any
) -> EnqueueResult:
    """The same on an asynchronous connection: psycopg AsyncConnection, asyncpg, SQLAlchemy AsyncConnection or AsyncSession."""
    values = _values(queue, message_type, {} if payload is None else payload, options)
    module = type(connection).__module__
    if module.startswith("asyncpg"):
        row = await connection.fetchrow(_NUMBERED, *values)
    elif module.startswith("sqlalchemy"):
        from sqlalchemy import text

        row = (await connection.execute(text(_COLON), {f"a{place}": value for place, value in enumerate(values, 1)})).one()
    else:
        cursor = await connection.execute(_PYFORMAT, values)
        row = await cursor.fetchone()
    return _result(row)


def _result(row: Any) -> EnqueueResult:
    """One row in whatever shape the caller's connection gives rows: a tuple, a mapping, an object with these names."""
    if isinstance(row, Mapping):
        return EnqueueResult(int(row["message_id"]), bool(row["duplicate"]))
    if hasattr(row, "message_id"):
        return EnqueueResult(int(row.message_id), bool(row.duplicate))
    return EnqueueResult(int(row[0]), bool(row[1]))
