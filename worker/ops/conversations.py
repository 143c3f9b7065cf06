"""One conversation, as an operator wants to see it: its messages in order, and what holds it (SPEC Q7,
Q8b).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.records import Row
from packhorse.worker.store import messages, operations

_HELD = {
    "running": "message {id} runs",
    "dead": "dead letter {id} blocks it (on_dead = block): redrive it or purge it",
    "earlier": "message {id} is first and does not start: {why}",
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: in the order of the conversation. waiting: how many of it wait, all of them counted. held_by:
    a sentence, None when nothing holds it; holder: the id of that message. gates: of the first message that
    waits, those that it does not pass."""

    key: str
    messages: list[Row]
    waiting: int
    holder: int | None
    held_by: str | None
    gates: list[dict[str, Any]]


def show(
    connection: DeadlineConnection, key: str, *, recent_seconds: float = 86400.0, limit: int = 100
) -> Conversation:
    """Live and dead messages, and those that ended within recent_seconds; the last `limit` of them. Raises
    InvalidArgument when there is none.
    """
    found = operations.conversation_messages(connection, key, recent_seconds, limit)
    kind, holder, waiting = operations.conversation_head(connection, key)
    if not found and holder is None:
        raise InvalidArgument(
            f"key: no message of the conversation {key[:100]!r}",
            field="key",
            hint="Its messages ended earlier, or it never had one",
        )
    gates = (
        []
        if holder is None or kind != "earlier"
        else [gate for gate in messages.explain(connection, holder) if not gate.passed]
    )
    stops = [gate for gate in gates if gate.gate != "rank"] or gates
    why = (
        "; ".join(f"{gate.gate}: {gate.detail}" for gate in stops)
        or "it is due, and a worker may take it at any moment"
    )
    held_by = None if kind is None else _HELD[kind].format(id=holder, why=why)
    return Conversation(key, found, waiting, holder, held_by, [asdict(gate) for gate in gates])
