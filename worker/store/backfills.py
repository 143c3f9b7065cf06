"""Backfills as the database knows them: one function = one statement (backfills.sql); in the caller's
transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.json_text import dumps
from packhorse.worker.store.rows import rows, value


def declare(
    connection: DeadlineConnection, name: str, source: str, settings: Mapping[str, str], operator: str
) -> Row:
    """state, passes, is_paused; the row is made when there is none. Raises PH005 (StoreRejected) for other
    settings than it was begun with.
    """
    return rows(connection, "backfill_declare", _begun(name, source, settings, operator, None))[0]


def move(
    connection: DeadlineConnection,
    name: str,
    state: str,
    operator: str,
    reason: str | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """The next state, recorded. Raises PH004, PH005 (StoreRejected)."""
    given = {
        "name": name,
        "state": state,
        "operator": operator,
        "reason": reason,
        "details": None if details is None else dumps(details),
    }
    connection.execute(sql("backfill_move"), given)


def note_step(
    connection: DeadlineConnection, name: str, run_id: int, copied: int, skipped: int, walked: int
) -> None:
    connection.execute(sql("backfill_note_step"), (name, run_id, copied, skipped, walked))


def note_look(connection: DeadlineConnection, name: str, counters: list[int]) -> None:
    """What the source's counters are now. Does nothing for a backfill that nobody has begun."""
    connection.execute(sql("backfill_note_look"), (name, counters))


def note_total(connection: DeadlineConnection, name: str, total: int, estimated: bool) -> None:
    connection.execute(sql("backfill_note_total"), (total, estimated, name))


def note_memo(connection: DeadlineConnection, name: str, memo: dict[str, Any]) -> None:
    """What the way back of a backfill needs to know, added to what is known."""
    connection.execute(sql("backfill_note_memo"), (dumps(memo), name))


def memo(connection: DeadlineConnection, name: str) -> dict[str, Any]:
    return rows(connection, "backfill_memo", (name,))[0]["memo"]  # type: ignore[no-any-return]


def note_findings(connection: DeadlineConnection, name: str, findings: list[dict[str, Any]]) -> None:
    connection.execute(sql("backfill_note_findings"), (dumps(findings), name))


def start(
    connection: DeadlineConnection,
    name: str,
    source: str,
    settings: Mapping[str, str],
    operator: str,
    reason: str | None,
) -> int:
    """The id of the message that carries it."""
    return int(value(connection, "backfill_start", _begun(name, source, settings, operator, reason)))


def pause(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> str:
    """requested, paused or nothing."""
    return str(value(connection, "backfill_pause", (name, operator, reason)))


def resume(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> str:
    """enqueued, resumed or nothing."""
    return str(value(connection, "backfill_resume", (name, operator, reason)))


def cancel(connection: DeadlineConnection, name: str, operator: str, reason: str | None) -> str:
    """requested, cancelled or nothing."""
    return str(value(connection, "backfill_cancel", (name, operator, reason)))


def progress(connection: DeadlineConnection, name: str | None = None) -> list[Row]:
    """Backfills that somebody has begun, by name; or one of them."""
    return rows(connection, "backfill_progress", {"name": name})


def last_sign_seconds(connection: DeadlineConnection, name: str) -> float | None:
    """Seconds since the process that works on it gave its last sign; None when none does."""
    return value(connection, "backfill_is_worked_on", (name,))  # type: ignore[no-any-return]


def queue_is_busy(connection: DeadlineConnection) -> bool:
    return bool(value(connection, "backfill_queue_is_busy"))


def quiet_hours(connection: DeadlineConnection, name: str) -> float | None:
    """For how long the source's counters have not moved; None before the first look."""
    return value(connection, "backfill_quiet_hours", (name,))  # type: ignore[no-any-return]


def has_ledger(connection: DeadlineConnection) -> bool:
    """Is the platform installed?"""
    return bool(value(connection, "backfill_has_ledger"))


def ledger(connection: DeadlineConnection, name: str) -> list[Row]:
    """outcome, reason, rows: what it did not copy as it was. Needs the platform's tables."""
    return rows(connection, "backfill_ledger", (name,))


def forget_ledger(connection: DeadlineConnection, name: str) -> int:
    return int(connection.execute(sql("backfill_forget_ledger"), (name,)).rowcount)


def server_version(connection: DeadlineConnection) -> int:
    return int(value(connection, "backfill_server_version"))


def drop_timeouts(connection: DeadlineConnection, lock_ms: int, statement_ms: int) -> None:
    """For the rest of the transaction."""
    connection.execute(sql("backfill_drop_timeouts"), (f"{lock_ms}ms", f"{statement_ms}ms"))


def _begun(
    name: str, source: str, settings: Mapping[str, str], operator: str, reason: str | None
) -> dict[str, Any]:
    return {
        "name": name,
        "source": source,
        "settings": dumps(dict(settings)),
        "operator": operator,
        "reason": reason,
    }
