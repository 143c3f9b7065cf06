"""Runs of maintenance, health gates, and the batches of retention; one function = one statement
(maintenance.sql).

Names of tables and columns come from configuration: they go through psycopg.sql as identifiers. `where` and
`assign` are SQL that the operator wrote in his own configuration file; they are parsed by the database and by
nobody else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.json_text import dumps
from packhorse.worker.store.rows import rows, value

#: In the condition of a policy: the time before which rows go.
CUTOFF = "{cutoff}"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run that this process works on: where it began, how far it is."""

    id: int
    cutoff: datetime | None
    cursor: list[str] | None
    rows: int
    batch_size: int | None
    resumed: int


@dataclass(frozen=True, slots=True)
class HealthGate:
    """One health gate: its value now (None: nothing to see), whether this role can see it."""

    gate: str
    value: float | None
    known: bool
    detail: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """What a retention batch works on. table: schema and name; keys: primary key columns; types: of column
    and keys, as the catalogue says.

    A column without a time zone is read as UTC, whatever zone the database or the role is set to.
    """

    table: tuple[str, str]
    column: str
    keys: tuple[str, ...]
    types: tuple[str, ...]
    where: str | None = None
    assign: str | None = None


#: Tables that a policy may name without a schema, whatever the search_path is: those that shipped policies
#: look after.
QUEUE_TABLES = frozenset(
    {
        "processed_messages",
        "message_dedup",
        "message_results",
        "dead_letters",
        "schedule_runs",
        "maintenance_runs",
        "message_archive",
        "message_queue",  # to be refused
    }
)
PLATFORM_TABLES = frozenset(
    {
        "ai_conversation_memory",
        "workflow_states",
        "dialog_contexts",
        "appointments_cache",
        "whatsapp_keys",
        "platform_events",
        "webhook_events",
        "audit_events",
        "messages",
        "platform_backfill_rows",
    }
)


def located(connection: DeadlineConnection, table: str) -> tuple[str, ...]:
    """[schema.]table of a policy, as it is written; with our schema where it is a table of ours."""
    if table in QUEUE_TABLES:
        return connection.names.schema, table
    if table in PLATFORM_TABLES:
        return connection.names.platform, table
    return tuple(table.split("."))


def quoted(connection: DeadlineConnection, table: str) -> str:
    """The same for to_regclass."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in located(connection, table))


def start(
    connection: DeadlineConnection,
    task: str,
    kind: str,
    triggered_by: str,
    message_id: int | None,
    plan: dict[str, Any],
    *,
    cutoff: datetime | None = None,
    batch_size: int | None = None,
    silent_after_seconds: float | None = None,
) -> RunRecord | None:
    """Begin the run of a task, or go on with an unfinished one; None while another process works on it.

    silent_after_seconds: one that has not beaten for so long is nobody's; None: two minutes.
    """
    row = connection.execute(
        sql("start_maintenance_run"),
        {
            "task": task,
            "kind": kind,
            "triggered_by": triggered_by,
            "message_id": message_id,
            "plan": dumps(plan),
            "cutoff": cutoff,
            "batch_size": batch_size,
            "silent_after": 120.0 if silent_after_seconds is None else silent_after_seconds,
        },
    ).fetchone()
    return (
        None
        if row is None
        else RunRecord(row[0], row[1], None if row[2] is None else json.loads(row[2]), row[3], row[4], row[5])
    )


def beat(
    connection: DeadlineConnection,
    run_id: int,
    *,
    rows_done: int = 0,
    cursor: list[str] | None = None,
    batch_size: int | None = None,
    gate: str | None = None,
    throttled_seconds: float = 0.0,
) -> str:
    """Progress of a run; "go", "cancel", "pause" or "lost"."""
    text = None if cursor is None else json.dumps(cursor)
    return str(
        value(
            connection, "beat_maintenance_run", (run_id, rows_done, text, batch_size, gate, throttled_seconds)
        )
    )


def end(
    connection: DeadlineConnection,
    run_id: int,
    state: str,
    error: str | None = None,
    details: dict[str, Any] | None = None,
) -> bool:
    """End a run (succeeded, failed, cancelled) or pause it; False when it is not ours any more."""
    return bool(
        value(
            connection,
            "end_maintenance_run",
            (run_id, state, error, None if details is None else dumps(details)),
        )
    )


def cancel(connection: DeadlineConnection, task: str, operator: str, reason: str | None) -> str:
    """Ask the run of a task to end: "requested", "cancelled" or "nothing"."""
    return str(value(connection, "cancel_maintenance_run", (task, operator, reason)))


def expect(connection: DeadlineConnection, run_id: int, total: int) -> None:
    connection.execute(sql("set_maintenance_total"), (total, run_id))


def declare_policies(connection: DeadlineConnection, policies: dict[str, dict[str, Any]]) -> int:
    """What configuration says of each task, for what works without it (workers, cleanup_old_messages); how
    many changed.
    """
    return int(value(connection, "declare_policies", (dumps(policies),)))


def health(connection: DeadlineConnection) -> list[Row]:
    """One row per task that ever ran."""
    return rows(connection, "maintenance_health")


def history(connection: DeadlineConnection, task: str | None, limit: int) -> list[Row]:
    """Runs of one task, or of all, newest first."""
    return rows(connection, "maintenance_history", {"task": task, "limit": limit})


def progress(connection: DeadlineConnection, task: str) -> Row | None:
    """The unfinished run of a task."""
    found = rows(connection, "maintenance_progress", (task,))
    return found[0] if found else None


def gates(connection: DeadlineConnection, table: str | None) -> list[HealthGate]:
    """The health gates as they stand now."""
    return [
        HealthGate(*row)
        for row in connection.execute(
            sql("maintenance_gates"), (table and quoted(connection, table),)
        ).fetchall()
    ]


def has_worker(connection: DeadlineConnection) -> bool:
    """Does some live process take the messages of maintenance?"""
    return bool(value(connection, "maintenance_has_worker"))


def table_facts(connection: DeadlineConnection, table: str, column: str) -> Row | None:
    """What a policy has to know about its table; None when there is none."""
    found = rows(connection, "table_facts", {"table": quoted(connection, table), "column": column})
    return found[0] if found else None


def table_exists(connection: DeadlineConnection, table: str) -> bool:
    return bool(value(connection, "table_exists", (quoted(connection, table),)))


def table_names(connection: DeadlineConnection) -> list[str]:
    return [row[0] for row in connection.execute(sql("table_names")).fetchall()]


def cutoff(connection: DeadlineConnection, keep_seconds: float) -> datetime:
    """The database clock, keep_seconds ago."""
    return value(connection, "retention_cutoff", (keep_seconds,))  # type: ignore[no-any-return]


def longest_backoff(connection: DeadlineConnection) -> float:
    """The longest backoff_max of all queues, in seconds."""
    return float(value(connection, "longest_backoff"))


def job(connection: DeadlineConnection, statement: str, limit: int) -> int:
    """Call the SQL function of a job once; how many rows it repaired."""
    return int(value(connection, statement, {"limit": limit}) or 0)


def batch(
    connection: DeadlineConnection,
    target: Target,
    before: datetime,
    after: list[str] | None,
    limit: int,
    timeout_seconds: float,
    *,
    touch: bool = True,
) -> tuple[int, list[str] | None, int]:
    """Delete (or change) the next rows of a target; in the caller's transaction, which has its timeouts set.

    after: the cursor of the batch before, or None. touch: False passes them by. Returns rows changed, the new
    cursor (None: nothing was left), rows met. Raises StoreConflict when a lock could not be had in a second,
    StoreUnavailable after timeout_seconds.
    """
    batch_timeouts(connection, timeout_seconds)
    statement = _compose("retention_update" if target.assign else "retention_delete", target, after, touch)
    parameters: dict[str, Any] = {"cutoff": before, "limit": limit}
    parameters |= {f"after_{place}": part for place, part in enumerate(after or ())}
    changed, last, met = connection.execute(statement, parameters).fetchone()  # type: ignore[misc]
    return int(changed), None if last is None else json.loads(last), int(met)


def count(connection: DeadlineConnection, target: Target, before: datetime) -> tuple[int, int]:
    """Rows and bytes that a run would meet now. May read the whole range: give the connection its time."""
    row = connection.execute(_compose("retention_count", target, None), {"cutoff": before}).fetchone()
    return int(row[0]), int(row[1])  # type: ignore[index]


def estimate(connection: DeadlineConnection, target: Target, before: datetime) -> int:
    """About how many rows a run would meet now, by the planner: reads no row of the table."""
    row = connection.execute(_compose("retention_estimate", target, None), {"cutoff": before}).fetchone()
    return int(json.loads(row[0])[0]["Plan"]["Plan Rows"])  # type: ignore[index]


def wait_a_second(connection: DeadlineConnection) -> None:
    """The caller's transaction waits for no lock longer than a second."""
    connection.execute(sql("short_lock_timeout"))


def batch_timeouts(connection: DeadlineConnection, timeout_seconds: float) -> None:
    """The caller's transaction waits for no lock longer than a second, and for no statement longer than
    that.
    """
    connection.execute(sql("batch_timeouts"), (f"{int(timeout_seconds * 1000)}ms",))


def by_key(connection: DeadlineConnection) -> None:
    """The caller's transaction finds the rows of a batch by their keys, never by reading a whole table."""
    connection.execute(sql("batch_by_key"))


def without_wait(connection: DeadlineConnection) -> None:
    """The commit of the caller's transaction waits for no disk: for what is done again with its cursor when
    the server crashes.
    """
    connection.execute(sql("batch_without_wait"))


def without_hashes(connection: DeadlineConnection) -> None:
    """Nor by hashing a table, which reads it, too: for an UPDATE that finds its rows by the key."""
    connection.execute(sql("batch_without_hashes"))


def long_statements(connection: DeadlineConnection) -> None:
    """The rest of the session: a statement may take as long as it takes, and wait for those who came before
    it. Behind a transaction pooler the session is not ours: there the timeouts of the role hold.
    """
    if not connection.pooled:
        connection.execute(sql("long_statements"))


def wait_for_locks(connection: DeadlineConnection, milliseconds: int) -> None:
    """The caller's transaction waits for no lock longer than that."""
    connection.execute(sql("set_lock_timeout"), (f"{milliseconds}ms",))


def parse_where(connection: DeadlineConnection, target: Target, before: datetime) -> None:
    """Is the policy's condition one SQL expression, of this table's columns? Raises StoreRejected,
    InvalidArgument when not.
    """
    if target.where:
        connection.execute(_compose("retention_where", target, None), {"cutoff": before})
        connection.execute(
            composed.SQL("explain ") + _compose("retention_count", target, None), {"cutoff": before}
        )


def parse_assign(connection: DeadlineConnection, target: Target, before: datetime) -> None:
    """Can this be assigned? Raises StoreRejected, InvalidArgument when not."""
    if target.assign:
        connection.execute(
            composed.SQL("explain ") + _compose("retention_update", target, None),
            {"cutoff": before, "limit": 1},
        )


def probe(connection: DeadlineConnection, target: Target, before: datetime) -> bool:
    """Can this role see any row at all?"""
    statement = _compose("retention_probe", target, None)
    return bool(connection.execute(statement, {"cutoff": before}).fetchone()[0])  # type: ignore[index]


def _compose(name: str, target: Target, after: list[str] | None, touch: bool = True) -> composed.Composed:
    """A statement with the target's names in it."""
    keys = [composed.Identifier(key) for key in target.keys]
    column = composed.Identifier(target.column)
    follows: composed.Composable = composed.SQL("true")
    if after is not None:
        places = composed.SQL(", ").join(
            composed.SQL("{}::{}").format(composed.Placeholder(f"after_{place}"), composed.SQL(type_name))
            for place, type_name in enumerate(target.types)
        )
        follows = composed.SQL("(t.{}, {}) > ({})").format(column, _joined("t.{}", keys), places)
    cutoff = composed.SQL(
        "%(cutoff)s::timestamptz"
        if target.types[0].endswith("with time zone")
        else "(%(cutoff)s at time zone 'UTC')"
    )
    return composed.SQL(sql(name)).format(
        table=composed.Identifier(*target.table),
        column=column,
        after=follows,
        cutoff=cutoff,
        where=cutoff.join(_trusted(part) for part in (target.where or "true").split(CUTOFF)),
        assign=_trusted(target.assign or ""),
        keys=_joined("t.{}", keys),
        # as the type writes it: what JSON makes of an array is none
        keys_of_batch=_joined("b.{}::text", keys),
        keys_descending=_joined("b.{} desc", keys),
        same=_joined("t.{0} = b.{0}", keys, " and ") if touch else composed.SQL("false"),
    )


def _joined(form: str, names: list[composed.Identifier], by: str = ", ") -> composed.Composed:
    return composed.SQL(by).join(composed.SQL(form).format(name) for name in names)


def _trusted(text: str) -> composed.SQL:
    """SQL of the operator's own configuration; a per cent sign in it is one, not a parameter."""
    return composed.SQL(text.replace("%", "%%"))
