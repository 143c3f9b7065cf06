"""What `packhorse doctor` asks the database (doctor.sql). Reads catalogues; leaves nothing behind, on a
pooler's connections either.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows, value

#: The message type of maintenance; the scheduler's worker registers it.
MAINTENANCE_TYPE = "packhorse.maintenance"


def schema_objects(connection: DeadlineConnection) -> list[Row]:
    """kind, name and definition of every object of the sets that the database has, in order; white space in
    definitions is one blank.
    """
    with connection.transaction(force_rollback=True):  # so that definitions name no schema
        names = connection.names
        value(
            connection,
            "unqualified_names",
            (f"{names.quoted(names.schema)}, {names.quoted(names.platform)}",),
        )
        cursor = connection.execute(
            connection.names.qualified(sql("schema_objects")).replace(
                "{body}", names.without_names("f.prosrc")
            ),
            prepare=False,
        )
        return [
            {"kind": kind, "name": name, "definition": " ".join(definition.split())}
            for kind, name, definition in cursor.fetchall()
        ]


def rights_to_mend(connection: DeadlineConnection, sets: Iterable[str]) -> list[str]:
    """Statements that make the rights on our objects what they should be; none when they are."""
    statements = ["rights_of_queue", *(f"rights_of_{name.replace('-', '_')}" for name in sorted(sets))]
    return [row[0] for statement in statements for row in connection.execute(sql(statement)).fetchall()]


def adopted_tables(connection: DeadlineConnection) -> dict[str, bool]:
    """Tables that stood here before the platform came: name -> was it left as it is? For a database with the
    platform.
    """
    return {row["name"]: row["is_left_alone"] for row in rows(connection, "adopted_tables")}


def invalid_indexes(connection: DeadlineConnection) -> list[Row]:
    """Indexes that a concurrent build left unfinished: name, definition."""
    return rows(connection, "invalid_indexes")


def unvalidated_constraints(connection: DeadlineConnection) -> list[Row]:
    """Constraints that were never validated: table_name, name."""
    return rows(connection, "unvalidated_constraints")


def server(connection: DeadlineConnection) -> Row:
    """Version, connections, role and clock, in one row."""
    return rows(connection, "doctor_server")[0]


def roles(connection: DeadlineConnection) -> list[Row]:
    """The three roles of the migrations: role, exists, member (this login has its rights)."""
    return rows(connection, "doctor_roles")


def retention(connection: DeadlineConnection) -> Row:
    """webhook_ids, dead_letters: is the oldest older than the shipped policies keep it? scheduler: is one
    alive?
    """
    return rows(connection, "doctor_retention", (MAINTENANCE_TYPE,))[0]


def relays(connection: DeadlineConnection) -> Row:
    """How many relays live and queues are forwarded, and which of these no relay serves (ten at most)."""
    return rows(connection, "doctor_relays")[0]


def retry_spans(connection: DeadlineConnection) -> list[Row]:
    """queue, attempts, seconds (how long an outage its retries outlast), breaker (False); the shortest first,
    without those that have one.
    """
    return rows(connection, "doctor_retry_spans")


def sequences(connection: DeadlineConnection) -> list[Row]:
    """Sequences of ours: name, stands (the last number given out), highest (of those taken), of_worker
    (workers take numbers from it), visible.

    Where visible is False, this role may not see all of it, and what it may not see counts as 0. Reads one
    column of each table.
    """
    found: dict[str, Row] = {}
    for row in rows(connection, "doctor_sequences"):
        known = found.setdefault(row["name"], {**row, "stands": row["stands"] or 0, "highest": 0})
        known["visible"] = known["visible"] and row["visible"]
        if row["visible"]:
            known["highest"] = max(known["highest"], _highest(connection, row))
    return list(found.values())


def _highest(connection: DeadlineConnection, row: Row) -> int:
    table, column = (
        composed.Identifier(row["schema"], row["table_name"]),
        composed.Identifier(row["column_name"]),
    )
    answer = connection.execute(
        composed.SQL(sql("doctor_highest")).format(table=table, column=column)
    ).fetchone()
    return int(answer[0] or 0) if answer else 0


def runways(connection: DeadlineConnection) -> list[Row]:
    """Tables that are partitioned by a time: table_name, days (until inserts find no partition), every (day,
    week or month, the width of one).
    """
    return rows(connection, "doctor_runways")


def settings(connection: DeadlineConnection) -> dict[str, str]:
    """Settings that can hurt, by name, in the unit of pg_settings."""
    return {row["name"]: row["setting"] for row in rows(connection, "doctor_settings")}


def repair(what: str, **names: str) -> str:
    """The text of a statement that mends something (repairs.sql), for people to read and run."""
    return sql(f"repair_{what}").format(**names) + ";"


def connection_mode(first: DeadlineConnection, others: list[DeadlineConnection]) -> str:
    """direct, session (a pooler that keeps one server process per client) or transaction (one that does not).

    The others occupy server processes with open transactions, one after the other. Behind a transaction
    pooler one of them gets the process that `first` had, and `first` is given another; without one it keeps
    its own.
    """
    pid = _pid(first)
    with ExitStack() as held:
        for other in others:
            held.enter_context(other.transaction(force_rollback=True))
            if _pid(other) == pid or _pid(first) != pid:
                return "transaction"
    return "direct" if first.info.backend_pid == pid else "session"


def listens(
    listener: DeadlineConnection, sender: DeadlineConnection, word: str, timeout_seconds: float
) -> bool:
    """Does a NOTIFY of `sender` reach `listener` in time? The listener must be closed afterwards."""
    listener.execute(sql("doctor_listen"), prepare=False)
    value(sender, "doctor_notify", (word,))
    return any(found.payload == word for found in listener.notifies(timeout=timeout_seconds, stop_after=1))


def _pid(connection: DeadlineConnection) -> int:
    return int(value(connection, "backend_pid"))
