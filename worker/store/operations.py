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
from packhorse.worker.store import dead_letters, messages
from packhorse.worker.store.rows import rows, value
from packhorse.worker.suggest import did_you_mean


def queue_health(connection: DeadlineConnection) -> list[Row]:
    """One row per queue, by name: depth by state, ages of the oldest in seconds."""
    return rows(connection, "queue_health")


def queue_settings(connection: DeadlineConnection, queue: str) -> Row:
    """Settings of one queue; intervals as text. Raises UnknownQueue with a near miss."""
    connection.execute(sql("require_queue"), (queue,))
    return rows(connection, "queue_settings", (queue,))[0]


def pause_queue(connection: DeadlineConnection, queue: str, operator: str) -> bool:
    """Stop claims from a queue; False when it was paused already. Raises UnknownQueue."""
    return bool(value(connection, "pause_queue", (queue, operator)))


def resume_queue(connection: DeadlineConnection, queue: str, operator: str) -> bool:
    """Let claims go on; False when it was not paused. Raises UnknownQueue."""
    return bool(value(connection, "resume_queue", (queue, operator)))


def set_queue(connection: DeadlineConnection, queue: str, settings: dict[str, Any], operator: str) -> Row:
    """Change settings (column names of `queues`; None = no limit); the settings after it.

    Raises UnknownQueue, InvalidArgument for an unknown name or a value out of range; then nothing changed.
    """
    connection.execute(sql("set_queue"), (queue, messages.dumps(settings), operator))
    return queue_settings(connection, queue)


def list_messages(
    connection: DeadlineConnection,
    *,
    queue: str | None = None,
    state: str | None = None,
    message_type: str | None = None,
    conversation_key: str | None = None,
    limit: int = 50,
) -> list[Row]:
    """Messages that match all given filters, newest first; limit 1..10000. Raises UnknownQueue."""
    found = rows(
        connection,
        "list_messages",
        {"queue": queue, "state": state, "message_type": message_type, "conversation_key": conversation_key, "limit": limit},
    )
    if queue is not None and not found:  # messages of a queue that nobody has declared are the more to be seen
        connection.execute(sql("require_queue"), (queue,))
    return found


def show_message(connection: DeadlineConnection, message_id: int, step_characters: int = 0) -> Row:
    """One message, whole, wherever it is; of its steps name, attempt, time, size, and so many characters of each value. Raises NotFound."""
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


def cancel(connection: DeadlineConnection, message_id: int, operator: str, reason: str | None) -> str:
    """Stop a message: "cancelled", "requested" (it runs), "dead" (a dead letter, left alone) or "gone"."""
    answer = messages.cancel(connection, message_id, reason, operator)
    return "dead" if answer == "gone" and value(connection, "message_state", (message_id,)) == "dead" else answer


def retry_now(connection: DeadlineConnection, message_id: int, operator: str, reason: str | None) -> str:
    """Make a waiting message due, or redrive a dead one.

    Returns "due", "blocked" (due, but its conversation is not free) or "redriven"; a running or finished
    message is left alone and its state returned. Raises NotFound, and StoreConflict when somebody keeps it locked.
    """
    with connection.transaction():
        value(connection, "bound_lock_waits")
        state = value(connection, "retry_message_now", {"id": message_id, "operator": operator, "reason": reason})
        if state is not None:
            return "due" if state == "pending" else "blocked"
        if dead_letters.redrive(connection, [message_id], operator, reason):
            return "redriven"
    return message_state(connection, message_id)


def require_type(connection: DeadlineConnection, message_type: str) -> None:
    """Raise InvalidArgument, naming a near miss, unless some worker has registered the type."""
    known = [row["name"] for row in rows(connection, "known_types")]
    if message_type in known:
        return
    raise InvalidArgument(
        f"type: no worker has registered {message_type[:100]!r}",
        field="type",
        hint=did_you_mean(message_type, known, f"Known: {', '.join(known[:10]) or 'none yet'}.") + " --allow-unknown-type enqueues it all the same",
    )


def list_workers(connection: DeadlineConnection) -> list[Row]:
    """Worker processes, newest first; `silent` when the last heartbeat is older than a lease."""
    return rows(connection, "list_all_workers")


def blocked_conversations(connection: DeadlineConnection, limit: int = 50) -> list[Row]:
    """Conversations with waiting messages, longest waiting first, and the message that holds each."""
    return rows(connection, "blocked_conversations", (limit,))


def stats(connection: DeadlineConnection) -> Row:
    """Depths now, ends of the last hour with seconds from enqueue to end, its dead letters by code, totals of live workers."""
    return {
        "queues": queue_health(connection),
        "last_hour": rows(connection, "finished_last_hour"),
        "dead_by_code": rows(connection, "dead_by_code"),
        "workers": rows(connection, "worker_totals")[0],
    }
