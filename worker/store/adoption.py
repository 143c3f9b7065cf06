"""What adoption asks the database and tells it (adoption.sql). Names of the user's tables and columns are
identifiers, never text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.records import Row
from packhorse.worker.store.rows import rows, value


def table_columns(connection: DeadlineConnection, schema: str, table: str) -> dict[str, str]:
    """Columns of a table with their types, in order; empty when there is no such table."""
    return {row["name"]: row["type"] for row in rows(connection, "table_columns", (schema, table))}


def table_key(connection: DeadlineConnection, schema: str, table: str) -> Row | None:
    """name and type of the column that alone tells the rows apart; None when there is none."""
    found = rows(connection, "table_key", (schema, table))
    return found[0] if found else None


def hidden_rows_are_errors(connection: DeadlineConnection) -> None:
    """Until the end of the transaction."""
    connection.execute(sql("row_security_off"), prepare=False)


class Legacy:
    """A foreign queue table: where it is, its key, and the expressions by which its columns are fields."""

    def __init__(
        self,
        schema: str,
        table: str,
        key: Row,
        columns: Mapping[str, Sequence[str]],
        finished_words: list[str],
    ) -> None:
        self.table = composed.Identifier(_doubled(schema), _doubled(table))
        self.key, self.key_type = (
            composed.Identifier(_doubled(key["name"])),
            composed.SQL(_doubled(key["type"])),
        )
        self.columns = columns
        self.finished_words = finished_words

    def statuses(self, connection: DeadlineConnection) -> list[Row]:
        """status, finished_at ('yes' or None) and rows of every state."""
        statement = self._composed(
            "legacy_statuses",
            connection,
            status=self._field("status"),
            finished_at=self._field("finished_at"),
        )
        return [
            dict(zip(("status", "finished_at", "rows"), row, strict=True))
            for row in connection.execute(statement, (), prepare=False).fetchall()
        ]

    def words(self, connection: DeadlineConnection, name: str) -> list[Row]:
        """Values of a field among rows that have not finished, and how many rows have them; 101 at most."""
        statement = self._composed(
            "legacy_words", connection, column=self._field(name), unfinished=self._unfinished()
        )
        return [
            {"word": row[0], "rows": row[1]}
            for row in connection.execute(statement, self._words(), prepare=False).fetchall()
        ]

    def fill(self, connection: DeadlineConnection) -> int:
        """Give every row that is to become a message its id; how many were new."""
        order = self.columns.get("created_at")
        created_at = (
            composed.SQL("l.{}").format(_identifier(order[0])) if order else composed.SQL("null::timestamptz")
        )
        statement = self._composed(
            "import_fill", connection, created_at=created_at, unfinished=self._unfinished()
        )
        return connection.execute(statement, self._words(), prepare=False).rowcount

    def batch(self, connection: DeadlineConnection, limit: int) -> list[Row]:
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
        fields = composed.SQL(", ").join(
            composed.SQL("{} as {}").format(self._field(name), composed.Identifier(name)) for name in names
        )
        statement = self._composed("import_batch", connection, fields=fields)
        cursor = connection.execute(statement, (limit,), prepare=False)
        return [
            dict(zip(("message_id", "legacy_id", "here", *names), row, strict=True))
            for row in cursor.fetchall()
        ]

    def account(self, connection: DeadlineConnection) -> dict[str, int]:
        """How many rows of the old table became what; `missing` are left to do, `later` is for the next
        call.
        """
        statement = self._composed("import_account", connection, unfinished=self._unfinished())
        cursor = connection.execute(statement, self._words(), prepare=False)
        return dict(
            zip([column.name for column in cursor.description or ()], cursor.fetchone() or (), strict=True)
        )

    def _words(self) -> dict[str, Any]:
        return {"finished": self.finished_words}

    def _unfinished(self) -> composed.Composable:
        if self.columns.get("status"):
            return composed.SQL(sql("legacy_unfinished_by_status")).format(
                status=_identifier(self.columns["status"][0])
            )
        if self.columns.get("finished_at"):
            return composed.SQL("l.{} is null").format(_identifier(self.columns["finished_at"][0]))
        return composed.SQL("true")

    def _field(self, name: str) -> composed.Composable:
        """The expression of a field, as text; null when no column is it."""
        columns = [
            composed.SQL("l.{}").format(_identifier(column))
            for column in self.columns.get(name.removesuffix("_bytes"), ())
            if column
        ]
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
        pairs = [
            composed.SQL("{}, {}").format(key, column) for key, column in zip(keys, columns, strict=True)
        ]
        return composed.SQL("json_build_object({})::text").format(composed.SQL(", ").join(pairs))

    def _composed(
        self, statement: str, connection: DeadlineConnection, **parts: composed.Composable
    ) -> composed.Composed:
        return composed.SQL(connection.names.qualified(sql(statement))).format(
            table=self.table, key=self.key, key_type=self.key_type, **parts
        )


def begin_import(connection: DeadlineConnection, plan: Row) -> None:
    """Make the ledger and write the plan: source_schema, source_table, key_column, key_type, choices."""
    for statement in (
        "import_plan_table",
        "import_plan_row_security",
        "import_ledger_table",
        "import_ledger_row_security",
        "import_ledger_index",
    ):
        connection.execute(sql(statement), prepare=False)
    connection.execute(
        sql("import_plan_insert"), {**plan, "choices": json.dumps(plan["choices"])}, prepare=False
    )


def import_plan(connection: DeadlineConnection) -> Row | None:
    """The plan of an import that has begun, finished or not; None when none has. outlived: its messages are
    gone with their tables.
    """
    if not value(connection, "import_plan_exists"):
        return None
    found = rows(connection, "import_plan")
    return found[0] if found else None


def change_choices(connection: DeadlineConnection, choices: Row) -> None:
    """What the operator said later counts as well."""
    connection.execute(sql("import_plan_choices"), (json.dumps(choices),), prepare=False)


def write_messages(connection: DeadlineConnection, drafts: list[Row]) -> int:
    """Insert messages with the ids kept for them; how many. Raises StoreError when one of them is refused."""
    return connection.execute(sql("import_messages"), (json.dumps(drafts),), prepare=False).rowcount


def write_dead_letters(connection: DeadlineConnection, drafts: list[Row]) -> int:
    """Insert dead letters with the ids kept for them; how many."""
    return connection.execute(sql("import_dead_letters"), (json.dumps(drafts),), prepare=False).rowcount


def write_outcomes(connection: DeadlineConnection, drafts: list[Row]) -> int:
    """Write into the ledger what became of rows; how many had no outcome before."""
    return connection.execute(sql("import_outcomes"), (json.dumps(drafts),), prepare=False).rowcount


def hold_queue(connection: DeadlineConnection, queue: str, *, pause: bool, operator: str) -> None:
    """Make a queue known and, when asked, let it stand still."""
    connection.execute(sql("import_hold_queue"), {"queue": queue, "pause": pause, "operator": operator})


def resume_queues(connection: DeadlineConnection, operator: str) -> list[str]:
    """Let the queues go on that this operator paused; their names."""
    return [
        row[0] for row in connection.execute(sql("import_resume_queues"), {"operator": operator}).fetchall()
    ]


def finish_import(connection: DeadlineConnection) -> None:
    """The import is complete."""
    connection.execute(sql("import_finished"), prepare=False)


def _identifier(name: str) -> composed.Identifier:
    return composed.Identifier(_doubled(name))


def _doubled(name: str) -> str:
    """A per cent sign in a name is no placeholder of psycopg."""
    return name.replace("%", "%%")
