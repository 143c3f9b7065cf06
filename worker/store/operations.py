"""What an operator does with queues, messages and workers; one function = one statement (operations.sql).

Each takes a connection first and works in its transaction. Errors come out as psycopg errors inside
`translated()`. Every act names its operator and is recorded in operator_actions (SPEC Q4, O5).
"""

from __future__ import annotations

from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.errors import InvalidArgument, NotFound
from packhorse.worker.records import Row
from packhorse.worker.store import messages
from packhorse.worker.store.json_text import dumps
from packhorse.worker.store.rows import rows, value
from packhorse.worker.suggest import did_you_mean

#: Messages, and dead letters, that queue_health() counts of one queue and of all together (see
#: count_bound()); beyond that the planner estimates.
MOST_COUNTED, MOST_COUNTED_TOGETHER = 10_000, 50_000


def queue_health(connection: DeadlineConnection) -> list[Row]:
    """One row per queue, by name: depth by state, ages of the oldest in seconds; estimates: the states whose
    number is the planner's.
    """
    bounds = {"each": MOST_COUNTED, "together": MOST_COUNTED_TOGETHER}
    return rows(connection, "queue_health", bounds)


def queue_settings(connection: DeadlineConnection, queue: str) -> Row:
    """Settings of one queue; intervals as text. Raises UnknownQueue with a near miss."""
    connection.execute(sql("require_queue"), (queue,))
    return rows(connection, "queue_settings", (queue,))[0]


def require_queue(connection: DeadlineConnection, queue: str) -> None:
    """Raise UnknownQueue, with a near miss, unless it exists."""
    connection.execute(sql("require_queue"), (queue,))


def retry_span(connection: DeadlineConnection, queue: str) -> Row:
    """attempts; seconds: how long an outage they outlast, at least; breaker: does a failure breaker count?
    Actors and messages may say otherwise.

    Raises UnknownQueue.
    """
    require_queue(connection, queue)
    return rows(connection, "retry_span", (queue,))[0]


def pause_queue(connection: DeadlineConnection, queue: str, operator: str, reason: str | None) -> bool:
    """Stop claims from a queue; False when it was paused already. Raises UnknownQueue."""
    return bool(value(connection, "pause_queue", (queue, operator, reason)))


def resume_queue(connection: DeadlineConnection, queue: str, operator: str, reason: str | None) -> bool:
    """Let claims go on; False when it was not paused. Raises UnknownQueue."""
    return bool(value(connection, "resume_queue", (queue, operator, reason)))


def set_queue(
    connection: DeadlineConnection, queue: str, settings: dict[str, Any], operator: str, reason: str | None
) -> Row:
    """Change settings (column names of `queues`; None = no limit); the settings after it.

    Raises UnknownQueue, InvalidArgument for an unknown name or a value out of range; then nothing changed.
    """
    connection.execute(sql("set_queue"), (queue, dumps(settings), operator, reason))
    return queue_settings(connection, queue)


def pause_all_queues(connection: DeadlineConnection, operator: str, reason: str | None) -> list[str]:
    """Pause every queue that is not paused; which."""
    return list(value(connection, "pause_all_queues", (operator, reason)))


def resume_all_queues(connection: DeadlineConnection, operator: str, reason: str | None) -> list[str]:
    """Resume what pause_all_queues paused; which. What somebody paused singly stays paused."""
    return list(value(connection, "resume_all_queues", (operator, reason)))


def delete_queue(connection: DeadlineConnection, queue: str, operator: str, reason: str | None) -> None:
    """Remove a queue that nothing uses. Raises UnknownQueue, and StoreRejected with the SQLSTATE PH005 while
    something does.
    """
    value(connection, "delete_queue", (queue, operator, reason))


def show_message(connection: DeadlineConnection, message_id: int, step_characters: int = 0) -> Row:
    """One message, whole, wherever it is; of its steps name, attempt, time, size, and so many characters of
    each value. Raises NotFound.
    """
    found = rows(connection, "show_message", {"id": message_id, "characters": step_characters})
    if not found:
        raise NotFound("message", message_id)
    return found[0]


def message_state(connection: DeadlineConnection, message_id: int) -> str:
    """State of one message. Raises NotFound."""
    state = value(connection, "message_state", (message_id,))
    if state is None:
        raise NotFound("message", message_id)
    return str(state)


def last_traceback(connection: DeadlineConnection, message_id: int) -> str | None:
    """That of its last failed attempt, as far as it is kept."""
    found = value(connection, "last_traceback", (message_id,))
    return None if found is None else str(found)


def cancel(connection: DeadlineConnection, message_id: int, operator: str, reason: str | None) -> str:
    """Stop a message: "cancelled", "requested" (it runs), "dead" (a dead letter, left alone) or "gone"."""
    answer = messages.cancel(connection, message_id, reason, operator)
    return (
        "dead" if answer == "gone" and value(connection, "message_state", (message_id,)) == "dead" else answer
    )


def holder(connection: DeadlineConnection, message_id: int) -> str | None:
    """host:pid of the worker that runs a message (its id when it is not known); None when nobody does."""
    found = value(connection, "message_holder", (message_id,))
    return None if found is None else str(found)


def require_type(connection: DeadlineConnection, message_type: str) -> None:
    """Raise InvalidArgument, naming a near miss, unless some worker has registered the type."""
    known = [row["name"] for row in rows(connection, "known_types")]
    if message_type in known:
        return
    raise InvalidArgument(
        f"type: no worker has registered {message_type[:100]!r}",
        field="type",
        hint=did_you_mean(message_type, known, f"Known: {', '.join(known[:10]) or 'none yet'}.")
        + " --allow-unknown-type enqueues it all the same",
    )


def list_workers(connection: DeadlineConnection) -> list[Row]:
    """Worker processes, newest first; `silent` when the last heartbeat is older than a lease."""
    return rows(connection, "list_all_workers")


def blocked_conversations(connection: DeadlineConnection, limit: int = 50) -> list[Row]:
    """Conversations with waiting messages, longest waiting first, and the message that holds each."""
    return rows(connection, "blocked_conversations", (limit,))


def conversation_messages(
    connection: DeadlineConnection, key: str, recent_seconds: float, limit: int
) -> list[Row]:
    """Messages of a conversation in its order: live and dead ones, and those that ended within
    recent_seconds; the last `limit`.
    """
    return rows(connection, "conversation_messages", {"key": key, "recent": recent_seconds, "limit": limit})


def conversation_head(connection: DeadlineConnection, key: str) -> tuple[str | None, int | None, int]:
    """What holds a conversation ("running", "dead", "earlier": the first one that waits; None: nothing), the
    id of that, and how many wait.
    """
    row = rows(connection, "conversation_head", {"key": key})[0]
    return row["kind"], row["id"], row["waiting"]


def stats(connection: DeadlineConnection) -> Row:
    """Depths now, ends of the last hour with seconds from enqueue to end, its dead letters by code, totals of
    live workers.
    """
    return {
        "queues": queue_health(connection),
        "last_hour": rows(connection, "finished_last_hour"),
        "dead_by_code": rows(connection, "dead_by_code"),
        "workers": rows(connection, "worker_totals")[0],
    }
