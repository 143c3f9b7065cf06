"""Who sleeps, who watches, and how sleepers are woken, by NOTIFY or by Redis
(migrations/functions/wakeups.sql).
"""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql

#: What a producer publishes after its commit: channel, queue.
Wake = tuple[str, str]


def note(wakes: set[Wake], channel: str | None, queue: str) -> None:
    """What the statement of an enqueue has answered. channel: None when nobody sleeps."""
    if channel is not None:
        wakes.add((channel, queue))


def wake_channel(connection: DeadlineConnection) -> str:
    """The channel on which workers of this schema are woken."""
    return str(connection.execute(sql("wake_channel")).fetchone()[0])  # type: ignore[index]


def call_workers(
    connection: DeadlineConnection, queues: Sequence[str], numbers: Sequence[int], passed: int = 0
) -> list[str]:
    """Wake those whose turn these numbers are; what was notified."""
    row = connection.execute(sql("call_workers"), (list(queues), list(numbers), passed)).fetchone()
    return list(row[0])  # type: ignore[index]


def wake_channels(connection: DeadlineConnection, queues: Sequence[str]) -> set[Wake]:
    """What is to be published to wake who sleeps on these queues."""
    return {(row[0], row[1]) for row in connection.execute(sql("wake_channels"), (list(queues),))}


def wake_queues(connection: DeadlineConnection, queues: Sequence[str]) -> None:
    """Notify who sleeps on these queues. Raises UnknownQueue."""
    connection.execute(sql("wake_queues"), (list(queues),))


def announce_sleep(connection: DeadlineConnection, queues: list[str], seconds: float) -> None:
    """Producers shall notify for so long."""
    connection.execute(sql("announce_sleep"), (queues, seconds))


def attend_queues(
    connection: DeadlineConnection,
    queues: list[str],
    types: list[str],
    seconds: float,
    forward: str | None = None,
) -> list[str]:
    """Watch those of these queues that nobody watches, for a worker that runs these types, or a relay to
    `forward`; returns which.
    """
    row = connection.execute(sql("attend_queues"), (queues, types, seconds, forward)).fetchone()
    return list(row[0])  # type: ignore[index]


def keep_attending(
    connection: DeadlineConnection,
    queues: list[str],
    types: list[str],
    seconds: float,
    forward: str | None = None,
) -> list[str]:
    """Watch these queues for longer; returns those that have to be left."""
    row = connection.execute(sql("keep_attending"), (queues, types, seconds, forward)).fetchone()
    return list(row[0])  # type: ignore[index]


def hand_over_queues(connection: DeadlineConnection, queues: list[str], *, wake: bool, leave: bool) -> None:
    """Wake who sleeps on these queues, or watch them no longer, or both."""
    connection.execute(sql("hand_over_queues"), (queues, wake, leave))
