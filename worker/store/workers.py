"""Worker processes: register, beat, deregister, rescue (migrations/functions/workers.sql)."""

from __future__ import annotations

from uuid import UUID

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.errors import StoreUnavailable
from packhorse.worker.records import Attention, Beat
from packhorse.worker.store import messages
from packhorse.worker.store.fleet import read_only

UPKEEP_STEPS = (
    "upkeep_partitions",
    "upkeep_messages",
    "upkeep_unknown_types",
    "upkeep_workers",
    "upkeep_conversations",
    "upkeep_windows",
    "upkeep_archive",
)
#: Of each table, per call.
CLEANUP_ROWS = 5000
#: Messages that one call rescues.
RESCUE_ROWS = 500


def register(
    connection: DeadlineConnection,
    worker_id: UUID,
    hostname: str,
    pid: int,
    version: str,
    queues: list[str],
    types: list[str],
    threads: int,
    lease_seconds: float,
    isolation: bool,
    policies: str,
    problems: list[str],
    daemon: UUID | None = None,
    forward: str | None = None,
) -> None:
    """A process starts; declares its queues and types. policies: JSON text, by type: see register_worker in
    migrations/functions/workers.sql. problems: what its predecessor could not do. daemon: the parent of the
    process; None: it has none. forward: where it takes messages of forwarded queues; None: it runs them.
    """
    connection.execute(
        sql("register_worker"),
        (
            worker_id,
            hostname,
            pid,
            version,
            queues,
            types,
            threads,
            lease_seconds,
            isolation,
            policies,
            problems,
            daemon,
            forward,
        ),
    )


def beat(
    connection: DeadlineConnection,
    worker_id: UUID,
    ids: list[int],
    tokens: list[int],
    lease_seconds: float,
    state: str,
    done: int,
    failed: int,
    problems: list[str] | None = None,
    running: int | None = None,
) -> Beat:
    """Extend every held lease by lease_seconds from now (database clock).

    problems: what the process cannot do, for its row in `workers`; at most 20 of 200 characters are kept.
    running: handlers that run now; None: as many as ids.
    """
    given = {
        "id": worker_id,
        "ids": ids,
        "tokens": tokens,
        "lease": lease_seconds,
        "state": state,
        "done": done,
        "failed": failed,
        "problems": problems or [],
        "running": running,
    }
    rows = connection.execute(sql("beat_worker"), given).fetchall()
    asked, peers, before = rows[0][4:]
    return Beat(
        [Attention(*row[:4]) for row in rows if row[0] is not None],
        known=not any(row[0] is None and row[1] is not None for row in rows),
        asked=asked,
        peers=peers,
        before=before,
    )


def asked(connection: DeadlineConnection, worker_id: UUID) -> str | None:
    """What operators have asked of the daemon of this process: "quiet", "drain", or None."""
    row = connection.execute(sql("asked_of_worker"), (worker_id,)).fetchone()
    return None if row is None or row[0] is None else str(row[0])


def ask(
    connection: DeadlineConnection, worker_id: UUID, request: str, operator: str, reason: str | None
) -> str:
    """Ask the daemon of this process to be "quiet", to "drain" or to "resume": "asked", "unchanged",
    "draining" or "gone". Recorded.
    """
    return str(connection.execute(sql("ask_worker"), (worker_id, request, operator, reason)).fetchone()[0])  # type: ignore[index]


def withdraw_crashes(connection: DeadlineConnection, ids: list[int], worker_id: UUID) -> int:
    """This process lives, so its leases on these messages, which were over, were no crashes; how many had
    been counted.
    """
    given = (ids, worker_id, "its process lives")
    return int(connection.execute(sql("withdraw_crashes"), given).fetchone()[0])  # type: ignore[index]


def deregister(connection: DeadlineConnection, worker_id: UUID) -> None:
    connection.execute(sql("deregister_worker"), (worker_id,))


def rescue(connection: DeadlineConnection) -> int:
    """Return messages of lost holders, at most RESCUE_ROWS; how many."""
    return int(connection.execute(sql("rescue"), (RESCUE_ROWS,)).fetchone()[0])  # type: ignore[index]


def expire(connection: DeadlineConnection) -> int:
    """Cancel messages that are not worth doing any more, which no claim takes meanwhile; how many."""
    return int(connection.execute(sql("expire")).fetchone()[0])  # type: ignore[index]


def recover(
    connection: DeadlineConnection,
    worker_id: UUID,
    started: list[int],
    detail: str,
    *,
    crashed: bool,
    refused: list[int],
    keep: list[int],
) -> int:
    """Return at once what an ended child held; how many.

    started: ids of messages whose handlers had begun; each counts a crash if the process `crashed`. refused:
    ids of those whose completion the database refused; they are marked and do not run again. keep: ids of
    those that are left as they are.
    """
    given = (worker_id, started, detail, crashed, refused, keep)
    return int(connection.execute(sql("recover_worker"), given).fetchone()[0])  # type: ignore[index]


def upkeep(connection: DeadlineConnection, step: str, unknown_type_seconds: float) -> bool:
    """One step (of UPKEEP_STEPS) of slow upkeep, bounded; True when there is more to do of it.

    A transaction of its own: what one of them has to wait for, or cannot do, is not the others' affair.
    """
    repeats = step in ("upkeep_workers", "upkeep_windows")
    parameters: tuple[float, ...] | None = (CLEANUP_ROWS,) if repeats else None
    if step == "upkeep_unknown_types":
        parameters = (unknown_type_seconds,)
    count = connection.execute(sql(step), parameters).fetchone()[0]  # type: ignore[index]
    return repeats and int(count) >= CLEANUP_ROWS


def self_test(connection: DeadlineConnection) -> bool:
    """Enqueue a probe as this role; see, change and remove it, then roll back. False when row-level security
    hides it from one of these.

    Raises StoreUnavailable for a database that takes no writes.
    """
    if problem := read_only(connection):
        raise StoreUnavailable(problem)
    with connection.transaction(force_rollback=True):
        probe = messages.enqueue_plain(connection, "default", "packhorse_probe", "{}", "{}", 5)
        return all(
            connection.execute(sql(step), (probe,)).rowcount == 1
            for step in ("see_probe", "change_probe", "remove_probe")
        )


def forwarded_queues(connection: DeadlineConnection, forward: str) -> list[str]:
    """The names of all queues that are forwarded to this place."""
    return list(connection.execute(sql("forwarded_queues"), (forward,)).fetchone()[0])  # type: ignore[index]
