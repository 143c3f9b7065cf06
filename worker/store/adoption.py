"""What adoption asks the database and tells it (adoption.sql). Names of the user's tables and columns are identifiers, never text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows, value

PLAN = "packhorse_import_plan"


def scratch_schema(connection: DeadlineConnection) -> None:
    """Make a schema and work in it; only inside a transaction that will be rolled back."""
    connection.execute(sql("scratch_schema"), prepare=False)
    connection.execute(sql("scratch_search_path"), prepare=False)


def foreign_owners(connection: DeadlineConnection, tables: list[str]) -> list[Row]:
    """Tables of these names that belong to a role which this login may not act as: name, owner, login."""
    return rows(connection, "foreign_owners", (tables,))


def name_collisions(connection: DeadlineConnection, relations: list[str], routines: list[str]) -> list[Row]:
    """What stands in the schema under these names: kind, name (of a routine: its signature), bare, of_table."""
    return rows(connection, "name_collisions", {"relations": relations, "routines": routines})


def dependents(connection: DeadlineConnection, tables: list[str], routines: list[str]) -> list[Row]:
    """What uses tables of these names: kind, name, of_table. routines: signatures that move as well."""
    return rows(connection, "dependents", {"tables": tables, "routines": routines})


def table_columns(connection: DeadlineConnection, schema: str, table: str) -> dict[str, str]:
    """Columns of a table with their types, in order; empty when there is no such table."""
    return {row["name"]: row["type"] for row in rows(connection, "table_columns", (schema, table))}


def table_key(connection: DeadlineConnection, schema: str, table: str) -> Row | None:
    """name and type of the column that alone tells the rows apart; None when there is none."""
    found = rows(connection, "table_key", (schema, table))
    return found[0] if found else None


def current_schema(connection: DeadlineConnection) -> str:
    """The schema in which everything is made."""
    return str(value(connection, "current_schema"))


def hidden_rows_are_errors(connection: DeadlineConnection) -> None:
    """Until the end of the transaction."""
    connection.execute(sql("row_security_off"), prepare=False)


def lockers(connection: DeadlineConnection, table: str) -> list[Row]:
    """Who has locks on a table: pid, application_name, state, seconds."""
    return rows(connection, "legacy_lockers", (composed.Identifier(table).as_string(connection),))


class Legacy:
    """A foreign queue table: where it is, its key, and the expressions by which its columns are fields."""

    def __init__(self, schema: str, table: str, key: Row, columns: Mapping[str, Sequence[str]], finished_words: list[str]) -> None:
        self.table = composed.Identifier(_doubled(schema), _doubled(table))
        self.key, self.key_type = composed.Identifier(_doubled(key["name"])), composed.SQL(key["type"])
        self.columns = columns
        self.finished_words = finished_words

    def statuses(self, connection: DeadlineConnection) -> list[Row]:
        """status, finished_at ('yes' or None) and rows of every state."""
        statement = self._composed("legacy_statuses", status=self._field("status"), finished_at=self._field("finished_at"))
        return [dict(zip(("status", "finished_at", "rows"), row, strict=True)) for row in connection.execute(statement, (), prepare=False).fetchall()]

    def words(self, connection: DeadlineConnection, name: str) -> list[Row]:
        """Values of a field among rows that have not finished, and how many rows have them; 101 at most."""
        statement = self._composed("legacy_words", column=self._field(name), unfinished=self._unfinished())
        return [{"word": row[0], "rows": row[1]} for row in connection.execute(statement, self._words(), prepare=False).fetchall()]

    def fill(self, connection: DeadlineConnection, legacy: str) -> int:
        """Give every row that is to become a message its id; how many were new."""
        order = self.columns.get("created_at")
        created_at = composed.SQL("l.{}").format(_identifier(order[0])) if order else composed.SQL("null::timestamptz")
        statement = self._composed("import_fill", legacy=composed.Identifier(legacy), created_at=created_at, unfinished=self._unfinished())
        return connection.execute(statement, self._words(), prepare=False).rowcount

    def batch(self, connection: DeadlineConnection, legacy: str, limit: int) -> list[Row]:
        """The next rows of the ledger with their fields as texts."""
        names = (
            "queue",
            "message_type",
            "payload",
            "payload_bytes",
            "priority",
            "status",
            "run_at",
            "attempt",
            "max_attempts",
            "conversation_key",
            "dedup_key",
            "correlation_id",
            "error",
            "created_at",
            "expires_at",
            "finished_at",
        )
        fields = composed.SQL(", ").join(composed.SQL("{} as {}").format(self._field(name), composed.Identifier(name)) for name in names)
        statement = self._composed("import_batch", legacy=composed.Identifier(legacy), fields=fields)
        cursor = connection.execute(statement, (limit,), prepare=False)
        return [dict(zip(("message_id", "legacy_id", "here", *names), row, strict=True)) for row in cursor.fetchall()]

    def account(self, connection: DeadlineConnection, legacy: str) -> dict[str, int]:
        """How many rows of the old table became what; `missing` must be 0, `later` is for the next call."""
        statement = self._composed("import_account", legacy=composed.Identifier(legacy), unfinished=self._unfinished())
        cursor = connection.execute(statement, self._words(), prepare=False)
        return dict(zip([column.name for column in cursor.description or ()], cursor.fetchone() or (), strict=True))

    def _words(self) -> dict[str, Any]:
        return {"finished": self.finished_words}

    def _unfinished(self) -> composed.Composable:
        if self.columns.get("status"):
            return composed.SQL(sql("legacy_unfinished_by_status")).format(status=_identifier(self.columns["status"][0]))
        if self.columns.get("finished_at"):
            return composed.SQL("l.{} is null").format(_identifier(self.columns["finished_at"][0]))
        return composed.SQL("true")

    def _field(self, name: str) -> composed.Composable:
        """The expression of a field, as text; null when no column is it."""
        columns = [composed.SQL("l.{}").format(_identifier(column)) for column in self.columns.get(name.removesuffix("_bytes"), ()) if column]
        if not columns or (name == "finished_at" and self.columns.get("status")):
            return composed.SQL("null::text")
        if name == "finished_at":
            return composed.SQL("case when {} is not null then 'yes' end").format(columns[0])
        if name == "run_at":
            return composed.SQL("greatest({})::timestamptz::text").format(composed.SQL(", ").join(columns))
        if name.startswith("payload"):
            whole = self._payload(columns)
            part = sql("legacy_size" if name == "payload_bytes" else "legacy_bounded")
            return composed.SQL(part).format(text=whole)
        return composed.SQL("{}::text").format(columns[0])

    def _payload(self, columns: Sequence[composed.Composable]) -> composed.Composable:
        names = self.columns["payload"]
        if len(names) == 1:
            return composed.SQL("{}::text").format(columns[0])
        keys = [composed.Literal(_doubled(name)) for name in names if name]
        pairs = [composed.SQL("{}, {}").format(key, column) for key, column in zip(keys, columns, strict=True)]
        return composed.SQL("json_build_object({})::text").format(composed.SQL(", ").join(pairs))

    def _composed(self, statement: str, **parts: composed.Composable) -> composed.Composed:
        return composed.SQL(sql(statement)).format(table=self.table, key=self.key, key_type=self.key_type, **parts)


def move(connection: DeadlineConnection, legacy: str, objects: Sequence[Row]) -> list[str]:
    """Move objects (kind, name, bare) into the legacy schema; returns the statements that bring them back."""
    schema, way_back = current_schema(connection), []
    connection.execute(_named("legacy_schema", legacy=legacy), prepare=False)
    for row in objects:
        # the server itself wrote the signature of a routine, with its quotes
        name: composed.Composable = composed.SQL(row["name"]) if row["kind"] == "routine" else composed.Identifier(row["name"])
        there = composed.SQL("{}.{}").format(composed.Identifier(legacy), name)
        kind, statement = composed.SQL(row["kind"]), composed.SQL(sql("legacy_move"))
        connection.execute(statement.format(kind=kind, name=name, legacy=composed.Identifier(legacy)), prepare=False)
        way_back.append(statement.format(kind=kind, name=there, legacy=composed.Identifier(schema)).as_string(connection) + ";")
    return way_back


def begin_import(connection: DeadlineConnection, legacy: str, plan: Row) -> None:
    """Make the ledger and write the plan, in the transaction of the move. plan: source_table, key_column, key_type, choices, way_back."""
    for statement in ("import_plan_table", "import_ledger_table", "import_ledger_index"):
        connection.execute(_named(statement, legacy=legacy), prepare=False)
    for table in (PLAN, "packhorse_import"):
        connection.execute(composed.SQL(sql("import_row_security")).format(table=composed.Identifier(legacy, table)), prepare=False)
    document = {**plan, "choices": json.dumps(plan["choices"]), "way_back": json.dumps(plan["way_back"])}
    connection.execute(_named("import_plan_insert", legacy=legacy), document, prepare=False)


def import_plan(connection: DeadlineConnection, legacy: str) -> Row | None:
    """The plan of an import that has begun, finished or not; None when nothing was moved there."""
    if not value(connection, "import_plan_exists", (composed.Identifier(legacy, PLAN).as_string(connection),)):
        return None
    cursor = connection.execute(_named("import_plan", legacy=legacy), prepare=False)
    row = cursor.fetchone()
    if row is None:
        return None
    found = dict(zip([column.name for column in cursor.description or ()], row, strict=True))
    return {**found, "choices": json.loads(found["choices"]), "way_back": json.loads(found["way_back"])}


def change_choices(connection: DeadlineConnection, legacy: str, choices: Row) -> None:
    """What the operator said later counts as well."""
    connection.execute(_named("import_plan_choices", legacy=legacy), (json.dumps(choices),), prepare=False)


def write_messages(connection: DeadlineConnection, drafts: list[Row]) -> int:
    """Insert messages with the ids kept for them; how many. Raises StoreError when one of them is refused."""
    return connection.execute(sql("import_messages"), (json.dumps(drafts),), prepare=False).rowcount


def write_dead_letters(connection: DeadlineConnection, drafts: list[Row]) -> int:
    """Insert dead letters with the ids kept for them; how many."""
    return connection.execute(sql("import_dead_letters"), (json.dumps(drafts),), prepare=False).rowcount


def write_outcomes(connection: DeadlineConnection, legacy: str, drafts: list[Row]) -> int:
    """Write into the ledger what became of rows; how many had no outcome before."""
    return connection.execute(_named("import_outcomes", legacy=legacy), (json.dumps(drafts),), prepare=False).rowcount


def hold_queue(connection: DeadlineConnection, queue: str, *, pause: bool, operator: str) -> None:
    """Make a queue known and, when asked, let it stand still."""
    connection.execute(sql("import_hold_queue"), {"queue": queue, "pause": pause, "operator": operator})


def resume_queues(connection: DeadlineConnection, operator: str) -> list[str]:
    """Let the queues go on that this operator paused; their names."""
    return [row[0] for row in connection.execute(sql("import_resume_queues"), {"operator": operator}).fetchall()]


def finish_import(connection: DeadlineConnection, legacy: str) -> None:
    """The import is complete."""
    connection.execute(_named("import_finished", legacy=legacy), prepare=False)


def _identifier(name: str) -> composed.Identifier:
    return composed.Identifier(_doubled(name))


def _doubled(name: str) -> str:
    """A per cent sign in a name is no placeholder of psycopg."""
    return name.replace("%", "%%")


def _named(statement: str, legacy: str) -> composed.Composed:
    return composed.SQL(sql(statement)).format(legacy=composed.Identifier(legacy))
