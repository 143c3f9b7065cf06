"""One message: why it does not run, what its attempts did, what it carries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from packhorse.worker.records import Gate, Row
from packhorse.worker.states import LIVE, State
from packhorse.worker.store import browse, messages, operations
from packhorse.worker.web import masks
from packhorse.worker.web.access import Visitor
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.render import payload_rows
from packhorse.worker.web.screens import Query

PATH = "/messages/{id}"
TITLE = "Message"
NAV = None
TEMPLATE = "message.html"

#: What may name a person.
_KEYS = ("conversation_key", "concurrency_key", "dedup_key", "pending_key")
_SCHEDULED = re.compile(r"schedule:(.+):(\d{4}-\d\d-\d\dT[\d:]+Z)")
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One entry of the history. event: retry, snooze, failed, lease_expired …; error and traceback as far as
    they are kept.
    """

    number: int | None
    event: str
    at: str | datetime | None
    error_class: str | None
    error_code: str | None
    error_message: str | None
    traceback: str | None
    holder: str | None

    @property
    def is_failure(self) -> bool:
        """Did something go wrong?"""
        return self.error_class is not None or self.event in ("lease_expired", "quarantined")


@dataclass(frozen=True, slots=True)
class MessagePage:
    """message: whole. payload, options, error_details: lines of a tree, without values; whoever may see them
    asks for that, which is recorded. gates: of a live message, in the order of the claim. stops: the first
    gate that it does not pass. attempts: newest first. schedule: the name of the schedule that made it."""

    message: Row
    payload: list[Row]
    options: list[Row]
    error_details: list[Row]
    gates: list[Gate]
    stops: Gate | None
    attempts: tuple[Attempt, ...]
    steps: tuple[Row, ...]
    actions: list[Row]
    trace_id: str | None
    schedule: str | None
    holder: str | None
    error_message: str | None
    command: str


async def load(reader: Reader, query: Query) -> MessagePage:
    """Parameter: id. Raises NotFound."""
    number = parameters.number(query, "id")
    message = await reader.ask("message", 2.0, operations.show_message, number)
    gates = await reader.ask("message gates", 2.0, messages.explain, number)
    actions = await reader.ask("message actions", 2.0, browse.actions_of, number)
    context = await reader.ask("message trace", 60.0, browse.trace_context, number)
    trace = _TRACE.match(context or "")
    is_live = message["state"] in LIVE
    holder = (
        await reader.ask("message holder", 2.0, operations.holder, number)
        if message["state"] == "running"
        else None
    )
    gates = [masks.gate(gate, query.visitor, keys_of(message)) for gate in gates]
    stops = _stops(gates, str(message["state"])) if is_live else None
    scheduled = _SCHEDULED.fullmatch(message["correlation_id"] or "")
    return MessagePage(
        message=message,
        payload=payload_rows(message["payload"]),
        options=payload_rows(message["options"]),
        error_details=payload_rows(message["error_details"]),
        gates=gates,
        stops=stops,
        attempts=attempts_of(message["history"], query.visitor),
        steps=tuple(step for step in (message["steps"] or ()) if isinstance(step, dict)),
        actions=actions,
        trace_id=trace.group(1) if trace else None,
        schedule=scheduled.group(1) if scheduled else None,
        holder=holder,
        error_message=masks.error_text(message["error_message"], query.visitor),
        command=f"packhorse message explain {number}",
    )


def _stops(gates: list[Gate], state: str) -> Gate | None:
    """The gate to be told first: of a blocked message that of its conversation, for that made it so; of
    others the first that it does not pass.
    """
    closed = [gate for gate in gates if not gate.passed and gate.gate != "rank"]
    said = [gate for gate in closed if gate.gate == "conversation"] if state == State.BLOCKED else []
    return next(iter([*said, *closed]), None)


def keys_of(row: Row) -> tuple[str, ...]:
    """The keys of a message that may name a person."""
    return tuple(str(row[name]) for name in _KEYS if row.get(name))


def attempts_of(history: Any, visitor: Visitor) -> tuple[Attempt, ...]:
    """The entries of a history, newest first, with the texts of errors as this visitor may see them; what
    somebody has put there by hand and is no entry is left out.
    """
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    return tuple(
        Attempt(
            entry.get("attempt") if isinstance(entry.get("attempt"), int) else None,
            _text(entry, "event") or "unknown",
            moment(_text(entry, "at")),
            _text(entry, "error_class"),
            _text(entry, "error_code"),
            masks.error_text(_text(entry, "error_message"), visitor),
            masks.error_text(_text(entry, "traceback"), visitor),
            _text(entry, "holder"),
        )
        for entry in reversed(entries)
    )


def moment(text: str | None) -> str | datetime | None:
    """A time of a history as one; as it stands there when it is none."""
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return text


def _text(entry: Row, name: str) -> str | None:
    found = entry.get(name)
    return None if found is None else str(found)
