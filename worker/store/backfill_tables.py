"""Tables of a backfill: what the catalogue says of them, a walk by key in batches, and statements with their
names in them (backfills.sql).

Everything works in the transaction of the caller. Errors come out as psycopg errors inside `translated()`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.store.rows import rows, value

_PUBLIC = composed.SQL("public")


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table as the catalogue knows it. keys: columns that name a row, in order; types: those of all
    columns, by name.

    required: columns that are NOT NULL. unique: columns that alone are a key. number: its oid, which no other
    table of its name has. has_places: its rows can be read in the order in which they are stored. by_place:
    it is walked in that order instead of that of its keys.
    """

    schema: str
    name: str
    number: int
    kind: str
    keys: tuple[str, ...]
    types: dict[str, str]
    required: frozenset[str]
    unique: frozenset[str]
    estimated_rows: float
    hidden_by_policies: bool
    owned: bool
    owner: str
    may_select: bool
    has_children: bool
    has_places: bool = False
    by_place: bool = False

    @property
    def label(self) -> str:
        """schema.table, for people and the ledger."""
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        """For to_regclass."""
        return quoted(self.schema, self.name)

    @property
    def identifier(self) -> composed.Identifier:
        return composed.Identifier(self.schema, self.name)

    def walked_by(self, keys: Sequence[str]) -> SourceTable:
        """The same, with other columns as its key."""
        return replace(self, keys=tuple(keys))

    def walked_by_place(self) -> SourceTable:
        """The same, walked in the order of storage where it has one, else by its keys.

        Keys that are random (uuid) make each batch read all of a table that memory does not hold, and write
        to all of the indexes of the target. In the order of storage a page is read once. A row that is
        updated meanwhile may move behind the walk, as a new row with a random key may be behind it: the
        comparison finds it, and the next run copies it.
        """
        return replace(self, by_place=self.has_places)

    @property
    def walk(self) -> tuple[tuple[str, str], ...]:
        """What it is walked by: columns and their types."""
        return (("ctid", "tid"),) if self.by_place else tuple((key, self.types[key]) for key in self.keys)

    def key_text(self, alias: str = "s") -> composed.Composed:
        """The key of a row as one text, as the ledger has it."""
        parts = [composed.SQL(f"{alias}.{{}}::text").format(composed.Identifier(key)) for key in self.keys]
        return (
            parts[0]
            if len(parts) == 1
            else composed.SQL("pg_catalog.concat_ws(',', {})").format(composed.SQL(", ").join(parts))
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of a source with after < key <= through; rows: how many keys there were when it was looked at.

    A row that comes in between belongs to it, too: a batch is a range, so that one statement can do it. In a
    walk by place `through` has one text more: the file that has these places.
    """

    source: SourceTable
    after: list[str] | None
    through: list[str]
    rows: int

    def where(self, alias: str = "s") -> composed.Composable:
        """The condition, with the values of `parameters`."""
        upper = _compared(self.source, alias, "<=", "through")
        return (
            upper
            if self.after is None
            else composed.SQL("{} and {}").format(_compared(self.source, alias, ">", "after"), upper)
        )

    @property
    def parameters(self) -> dict[str, Any]:
        found = {f"through_{place}": part for place, part in enumerate(self.through)}
        return found | {f"after_{place}": part for place, part in enumerate(self.after or ())}


def quoted(*parts: str) -> str:
    """A name for to_regclass."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def table(connection: DeadlineConnection, name: str, *, ours: bool = False) -> SourceTable | None:
    """A table by its [schema.]name; None when there is none. ours: one without a schema is in the platform's,
    else as the search_path finds it.
    """
    parts = name.split(".")
    if ours and len(parts) == 1:
        parts = [connection.names.platform, name]
    found = rows(connection, "backfill_table", (quoted(*parts),))
    if not found:
        return None
    row = found[0]
    return SourceTable(
        row["schema"],
        row["name"],
        row["number"],
        row["kind"],
        tuple(row["key_columns"]),
        row["columns"] or {},
        frozenset(row["required"]),
        frozenset(row["unique_columns"]),
        row["estimated_rows"],
        row["hidden_by_policies"],
        row["owned"],
        row["owner"],
        row["may_select"],
        row["has_children"],
        row["has_places"],
    )


def exists(connection: DeadlineConnection, *parts: str) -> bool:
    """Is there a table or view of this name?"""
    return bool(value(connection, "backfill_relation_exists", (quoted(*parts),)))


def run(
    connection: DeadlineConnection,
    name: str,
    parameters: dict[str, Any] | None = None,
    **parts: composed.Composable,
) -> Any:
    """Execute a named statement with these names and conditions in it; the cursor."""
    text = composed.SQL(connection.names.of(sql(name)))
    return connection.execute(text.format(**parts), parameters)


def count(connection: DeadlineConnection, source: SourceTable) -> int:
    """All rows; reads the table."""
    return int(run(connection, "backfill_count", table=source.identifier).fetchone()[0])


def next_batch(
    connection: DeadlineConnection, source: SourceTable, after: list[str] | None, limit: int
) -> Batch | None:
    """The batch after a cursor, which is `through` of the batch before; None when nothing is left."""
    if source.by_place:
        return _next_places(connection, source, after, limit)
    found, through = run(
        connection, "backfill_through", _walk(after, limit), **_parts(source, after)
    ).fetchone()
    return Batch(source, after, json.loads(through), int(found)) if found else None


def _next_places(
    connection: DeadlineConnection, source: SourceTable, after: list[str] | None, limit: int
) -> Batch | None:
    """The next rows in the order of storage; from the beginning when the table was stored anew since the
    cursor was written (VACUUM FULL, CLUSTER, TRUNCATE), for its places say nothing any more.
    """
    connection.execute(sql("batch_by_place"))
    place, file = after if after and len(after) == 2 else ("(0,0)", "")
    parameters = {"source": source.quoted, "file": file, "after": place, "limit": limit}
    found, begin, through, stored_in = run(
        connection, "backfill_through_place", parameters, table=source.identifier
    ).fetchone()
    return Batch(source, [begin], [through, stored_in], int(found)) if found else None


def first_key(connection: DeadlineConnection, batch: Batch) -> str:
    """The key of a batch of one row, as the ledger has it."""
    row = run(
        connection,
        "backfill_key_text",
        batch.parameters,
        source=batch.source.identifier,
        key_text=batch.source.key_text(),
        in_batch=batch.where(),
    ).fetchone()
    return str(row[0]) if row else "?"


def next_keys(
    connection: DeadlineConnection, source: SourceTable, after: list[str] | None, limit: int
) -> list[Any]:
    """The keys after one, as Python has them: values, or tuples where the key has several columns."""
    found = run(connection, "backfill_keys", _walk(after, limit), **_parts(source, after)).fetchall()
    return [row[0] for row in found] if len(source.keys) == 1 else [tuple(row) for row in found]


def explain(connection: DeadlineConnection, backfill: str, batch: Batch, reason: str) -> None:
    """Write the rows of a batch into the ledger as skipped, whole."""
    parameters = {"backfill": backfill, "source": batch.source.label, "reason": reason, **batch.parameters}
    run(
        connection,
        "backfill_explain",
        parameters,
        source=batch.source.identifier,
        key_text=batch.source.key_text(),
        in_batch=batch.where(),
    )


def counters(connection: DeadlineConnection, source: SourceTable) -> list[int]:
    """Rows inserted and updated since the server's statistics began."""
    return list(value(connection, "backfill_counters", {"table": source.quoted}))


def newest(connection: DeadlineConnection, source: SourceTable, column: str, hours: int) -> tuple[Any, bool]:
    """The newest time in a column, and whether it is within the last hours."""
    now = composed.SQL(
        "clock_timestamp()"
        if source.types[column].endswith("with time zone")
        else "(clock_timestamp() at time zone 'UTC')"
    )
    row = run(
        connection,
        "backfill_newest",
        {"hours": hours},
        table=source.identifier,
        column=composed.Identifier(column),
        now=now,
    ).fetchone()
    return row[0], bool(row[1])


def dependents(connection: DeadlineConnection, source: SourceTable, own: Sequence[str]) -> list[str]:
    """Views, foreign keys, functions and policies that name a table; own: relations and functions that go
    with it.
    """
    return [
        f"{row['kind']} {row['name']}"
        for row in rows(connection, "backfill_dependents", {"table": source.quoted, "own": list(own)})
    ]


def grant_view(connection: DeadlineConnection, schema: str, view: str, *, to_authenticated: bool) -> None:
    """Make a view one for readers: the roles of ours and the host's that the server has."""
    identifier = composed.Identifier(schema, view)
    there = _host_roles(connection)
    ours = ["packhorse_worker", "packhorse_reader", "packhorse_producer"]
    run(connection, "backfill_revoke_view", view=identifier, roles=_roles([*ours, *there]))
    readers = [
        *ours[:2],
        *(role for role in there if role == "service_role" or (to_authenticated and role == "authenticated")),
    ]
    run(connection, "backfill_grant_view", view=identifier, roles=_roles(readers))


def public_roles(connection: DeadlineConnection) -> composed.Composable:
    """PUBLIC, and the roles to which default privileges of the host give everything that is made."""
    return composed.SQL("public, {}").format(_roles(there)) if (there := _host_roles(connection)) else _PUBLIC


def _host_roles(connection: DeadlineConnection) -> list[str]:
    """Those that the server has."""
    hosts = ("anon", "authenticated", "service_role")
    return [role for role in hosts if value(connection, "backfill_role_exists", (role,))]


def _roles(names: Sequence[str]) -> composed.Composed:
    return composed.SQL(", ").join(map(composed.Identifier, names))


def _walk(after: list[str] | None, limit: int) -> dict[str, Any]:
    return {"limit": limit, **{f"after_{place}": part for place, part in enumerate(after or ())}}


def _parts(source: SourceTable, after: list[str] | None) -> dict[str, composed.Composable]:
    keys = [composed.Identifier(key) for key in source.keys]
    return {
        "table": source.identifier,
        "keys": composed.SQL(", ").join(composed.SQL("t.{}").format(key) for key in keys),
        "keys_of_batch": composed.SQL(", ").join(composed.SQL("b.{}::text").format(key) for key in keys),
        "keys_descending": composed.SQL(", ").join(composed.SQL("b.{} desc").format(key) for key in keys),
        "after": composed.SQL("true") if after is None else _compared(source, "t", ">", "after"),
    }


def _compared(source: SourceTable, alias: str, operator: str, prefix: str) -> composed.Composed:
    """(alias.key, …) operator (parameters), each of the key's type."""
    columns = composed.SQL(", ").join(
        composed.SQL(f"{alias}.{{}}").format(composed.Identifier(key)) for key, _ in source.walk
    )
    values = composed.SQL(", ").join(
        composed.SQL("{}::{}").format(composed.Placeholder(f"{prefix}_{place}"), composed.SQL(type_name))
        for place, (_, type_name) in enumerate(source.walk)
    )
    return composed.SQL(f"({{}}) {operator} ({{}})").format(columns, values)
