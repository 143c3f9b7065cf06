"""Enqueue inside the caller's own transaction (SPEC Q9).

One SQL call on the connection that the caller gives (calls.py); what becomes of it is the caller's commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Unpack

from packhorse.worker.enqueue import capture, unknown_types
from packhorse.worker.enqueue.calls import Call
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
from packhorse.worker.store.json_text import to_json
from packhorse.worker.store.options import OPTIONS, PER_MESSAGE_KEYS, seconds

#: Arguments of one message, which many payloads do not share.
_PER_MESSAGE = tuple(option.name for option in OPTIONS if option.key in PER_MESSAGE_KEYS)
_NAMES = ("p_queue", "p_message_type", "p_payload", "p_options", *(option.argument for option in OPTIONS))
_BULK_NAMES = (
    "p_payloads",
    *(name for name in _NAMES if name != "p_payload" and name.removeprefix("p_") not in _PER_MESSAGE),
)

#: Payloads per statement, and characters of JSON after which a statement is not filled up: memory on both
#: sides is bounded.
BULK_ROWS, BULK_CHARACTERS = 1000, 4_000_000
#: Payloads that become JSON by one call.
AT_ONCE = 50

_ONE = Call("message_id, duplicate, merged", "enqueue_message", _NAMES)
#: The same, and whether any worker knows the type.
_ASKING = Call(
    "message_id, duplicate, merged, packhorse.types_instead(message_id) as instead", "enqueue_message", _NAMES
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
    a JSON object of at most 1 MiB. options: those of EnqueueOptions; others become dramatiq options, unless
    they look like one of these misspelt. db_schema: where the queue is, when the settings of this
    process do not say it. Returns the id, and whether it is that of an older message. Logs type_unknown,
    once per type, when workers live and none has ever registered it. Raises InvalidArgument for what can be
    seen here, the driver's own error for the rest.
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

    connection, options: as for enqueue(), and the same for all of them; no dedup or pending key.
    payloads: any number, a thousand (or 4 MB) per statement, each read once. Open a transaction
    around the call if it shall be all or none. Raises InvalidArgument that names `payloads[position]` for
    what can be seen here, the driver's own error for the rest.
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
    for name in _PER_MESSAGE:
        if options.get(name) is not None:
            raise InvalidArgument(
                f"{name}: is of one message, not of many payloads", field=name, hint="Use enqueue() for each."
            )
    return _arguments(queue, message_type, {**options})


def _asks(message_type: str, schema: str | None) -> bool:
    return capture.active is None and unknown_types.is_asked(schema or "", message_type)


def _result(row: Any, message_type: str, schema: str | None, asked: bool) -> EnqueueResult:
    if asked:
        unknown_types.answered(schema or "", message_type, _value(row, 3, "instead"))
    return EnqueueResult(
        int(_value(row, 0, "message_id")), bool(_value(row, 1, "duplicate")), bool(_value(row, 2, "merged"))
    )


def _value(row: Any, place: int, name: str) -> Any:
    """A value of a row in whatever shape the caller's connection gives rows: a tuple, a mapping, an object
    with these names.
    """
    if isinstance(row, Mapping):
        return row[name]
    return getattr(row, name) if hasattr(row, name) else row[place]
