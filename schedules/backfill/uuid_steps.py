"""The steps of C3 on one column: each is to be repeated without harm, and none holds a lock for longer than
an instant.

Before the swap clients write the text: COLUMN is text, COLUMN_uuid is kept by the trigger. After it they
write the UUID: COLUMN is uuid, and COLUMN_text is kept, until the clean-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from packhorse.schedules.backfill.base import CheckFinding, quickly
from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import maintenance
from packhorse.worker.store.backfill_tables import Batch, SourceTable, quoted
from packhorse.worker.store.rows import value

UUID_FORM = "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"


@dataclass(frozen=True, slots=True)
class Conversion:
    """Names of a conversion. target: [schema.]table of the sessions, whose key is id. is_swapped: clients
    write the UUID.
    """

    backfill: str
    source: SourceTable
    column: str
    target: str
    is_swapped: bool

    @property
    def other(self) -> str:
        """The column beside the one that clients write."""
        return f"{self.column}_text" if self.is_swapped else f"{self.column}_uuid"

    @property
    def text(self) -> str:
        return self.other if self.is_swapped else self.column

    @property
    def uuid(self) -> str:
        return self.column if self.is_swapped else self.other

    @property
    def index(self) -> str:
        """The index on the UUID; its last name from the swap on."""
        return f"idx_{self.source.name}_{self.column}{'' if self.is_swapped else '_uuid'}"[:63]

    @property
    def key(self) -> str:
        return f"{self.source.name}_{self.column}{'' if self.is_swapped else '_uuid'}_fkey"[:63]

    def parts(self, batch: Batch | None = None) -> dict[str, Any]:
        """Everything that a statement may name."""
        keys = [composed.Identifier(key) for key in self.source.keys]
        found = {
            "source": self.source.identifier,
            "target": composed.Identifier(*self.target.split(".")),
            "id": composed.Identifier("id"),
            "text": composed.Identifier(self.text),
            "uuid": composed.Identifier(self.uuid),
            "written": composed.Identifier(self.column),
            "key": composed.Identifier(self.key),
            "form": composed.Literal(UUID_FORM),
            "backfill": composed.Literal(self.backfill),
            "label": composed.Literal(self.source.label),
            "keys": composed.SQL(", ").join(composed.SQL("s.{}").format(key) for key in keys),
            "same": composed.SQL(" and ").join(composed.SQL("s.{0} = j.{0}").format(key) for key in keys),
            "key_text": self.source.key_text(),
            "key_of_new": self.source.key_text("new"),
        }
        return found if batch is None else {**found, "in_batch": batch.where()}

    @property
    def swapped(self) -> Conversion:
        return Conversion(self.backfill, self.source, self.column, self.target, not self.is_swapped)


def counts(connection: DeadlineConnection, names: Conversion) -> dict[str, int]:
    """rows, nulls, valid, invalid, orphaned; reads the table."""
    row = tables.run(connection, "ids_counts", **names.parts()).fetchone()
    return dict(zip(("rows", "nulls", "valid", "invalid", "orphaned"), row, strict=True))


def begin(connection: DeadlineConnection, names: Conversion) -> None:
    """The new column, and the trigger that keeps it."""
    tables.run(connection, "ids_add_uuid", **names.parts())
    _keep(connection, names)
    tables.run(connection, "ids_note_loss", **names.parts())
    tables.run(connection, "ids_note_comment")
    tables.run(connection, "ids_note_revoke")
    tables.run(connection, "ids_note_trigger", **names.parts())


def _keep(connection: DeadlineConnection, names: Conversion) -> None:
    tables.run(connection, "ids_keep_text" if names.is_swapped else "ids_keep_uuid", **names.parts())
    tables.run(connection, "ids_keep_comment")
    tables.run(connection, "ids_keep_revoke")
    tables.run(connection, "ids_trigger", **names.parts())


def _drop_triggers(connection: DeadlineConnection, names: Conversion) -> None:
    for name in ("ids_drop_trigger", "ids_drop_note_trigger"):
        tables.run(connection, name, **names.parts())
    for name in ("ids_drop_function", "ids_drop_note_function"):
        tables.run(connection, name)


def copy(connection: DeadlineConnection, names: Conversion, batch: Batch) -> tuple[int, list[str]]:
    """How many texts have become UUIDs, and the keys of rows whose text could not."""
    maintenance.without_hashes(connection)
    changed, nulled = tables.run(connection, "ids_copy", batch.parameters, **names.parts(batch)).fetchone()
    return int(changed), list(nulled)


def build_index(connection: DeadlineConnection, names: Conversion) -> None:
    """Beside the writers, outside of a transaction; the leftover of a build that was killed is dropped
    first.
    """
    column = composed.Identifier(names.uuid)
    if _without_leftover(connection, names.source, names.index):
        tables.run(
            connection,
            "ids_create_index",
            index_name=composed.Identifier(names.index),
            source=names.source.identifier,
            column=column,
        )


def build_further_index(connection: DeadlineConnection, table: SourceTable, name: str, columns: str) -> None:
    """The same for one of another table. columns: SQL of ours."""
    if _without_leftover(connection, table, name):
        tables.run(
            connection,
            "ids_create_further_index",
            index_name=composed.Identifier(name),
            source=table.identifier,
            columns=composed.SQL(columns),
        )


def _without_leftover(connection: DeadlineConnection, table: SourceTable, name: str) -> bool:
    """Is the index to be built?"""
    row = tables.run(
        connection, "ids_index_state", {"table": table.quoted, "index": quoted(table.schema, name)}
    ).fetchone()
    if row is not None and not row[0]:
        tables.run(connection, "ids_drop_index", index=composed.Identifier(table.schema, name))
        return True
    return row is None


def add_key(connection: DeadlineConnection, names: Conversion) -> None:
    """Not valid yet: what is written from now on is checked."""
    if _key_state(connection, names) is None:
        quickly(connection, lambda: tables.run(connection, "ids_add_key", **names.parts()))


def validate_key(connection: DeadlineConnection, names: Conversion) -> None:
    """Values whose session was deleted meanwhile become NULL first."""
    if _key_state(connection, names) is False:
        with connection.transaction():
            tables.run(connection, "ids_orphans", **names.parts())
        tables.run(connection, "ids_validate_key", **names.parts())


def _key_state(connection: DeadlineConnection, names: Conversion) -> bool | None:
    """Valid, not valid, or None: there is none."""
    row = tables.run(
        connection, "ids_key_state", {"table": names.source.quoted, "name": names.key}
    ).fetchone()
    return None if row is None else bool(row[0])


def compare(connection: DeadlineConnection, names: Conversion) -> list[CheckFinding]:
    """Text and UUID, row by row."""
    rows, uuids, nulls, explained, missing, wrong, examples = tables.run(
        connection, "ids_accounts", **names.parts()
    ).fetchone()
    again = f"packhorse backfill run {names.backfill}"
    found = []
    if missing:
        found.append(
            CheckFinding(
                "refused",
                "accounted",
                f"{missing} texts are neither a UUID nor explained: rows {', '.join(examples)}",
                again,
            )
        )
    if wrong:
        found.append(
            CheckFinding("refused", "values", f"{wrong} rows have another UUID than their text", again)
        )
    text = f"{rows} rows = {uuids} UUIDs + {nulls} that were NULL + {explained} in the ledger"
    return found or [CheckFinding("ok", "accounted", text)]


def look(connection: DeadlineConnection, names: Conversion) -> list[CheckFinding]:
    """What the catalogue must say in the end."""
    table = {"schema": names.source.schema, "table": names.source.name, "column": names.column}
    found = []
    data_type = value(connection, "ids_data_type", table)
    if data_type != "uuid":
        found.append(CheckFinding("refused", "type", f"the information schema says {data_type}"))
    if (
        not value(connection, "ids_key_is_used", {**table, "key": names.key})
        or _key_state(connection, names) is not True
    ):
        found.append(CheckFinding("refused", "key", f"the foreign key {names.key} is missing, or not valid"))
    if not value(connection, "ids_index_is_listed", {**table, "index": names.index}):
        found.append(CheckFinding("refused", "index", f"the index {names.index} is missing"))
    return found or [
        CheckFinding(
            "ok",
            "type",
            f"{names.source.label}.{names.column} is uuid, {names.key} is valid, {names.index} is there",
        )
    ]


def swap(connection: DeadlineConnection, names: Conversion) -> None:
    """The UUID takes the name that clients write. One transaction; the caller sees to short waits."""
    after = names.swapped
    source = names.source.identifier
    _drop_triggers(connection, names)
    _rename(connection, "column", source, names.text, after.text)
    _rename(connection, "column", source, names.uuid, after.uuid)
    _move_index(connection, names.source, after.index, f"{after.index}_text"[:63])
    _move_index(connection, names.source, names.index, after.index)
    _rename(connection, "key", source, names.key, after.key)
    _keep(connection, after)


def swap_back(connection: DeadlineConnection, names: Conversion) -> None:
    """The way back: the text has its name again; UUID, key, index and trigger go."""
    before = names.swapped
    source = names.source.identifier
    _drop_triggers(connection, names)
    tables.run(connection, "ids_drop_key", **names.parts())
    # with its index
    tables.run(connection, "ids_drop_column", source=source, column=composed.Identifier(names.uuid))
    _rename(connection, "column", source, names.text, before.text)
    _move_index(connection, names.source, f"{names.index}_text"[:63], names.index)


def undo(connection: DeadlineConnection, names: Conversion) -> None:
    """The way back before the swap."""
    _drop_triggers(connection, names)
    tables.run(connection, "ids_drop_key", **names.parts())
    tables.run(
        connection, "ids_drop_column", source=names.source.identifier, column=composed.Identifier(names.uuid)
    )


def end(connection: DeadlineConnection, names: Conversion) -> None:
    """The clean-up: text and trigger go."""
    _drop_triggers(connection, names)
    tables.run(
        connection, "ids_drop_column", source=names.source.identifier, column=composed.Identifier(names.text)
    )


def add_text(connection: DeadlineConnection, names: Conversion, type_name: str) -> None:
    """The way back after the clean-up: a column for the texts, and the trigger that keeps it. type_name: as
    the catalogue had it.
    """
    tables.run(connection, "ids_add_text", type=composed.SQL(type_name), **names.parts())
    _keep(connection, names)


def restore_texts(connection: DeadlineConnection, names: Conversion, batch: Batch) -> None:
    tables.run(connection, "ids_restore_texts", batch.parameters, **names.parts(batch))


def _rename(
    connection: DeadlineConnection, kind: str, source: composed.Identifier, old: str, new: str
) -> None:
    parts: dict[str, composed.Composable] = {
        "source": source,
        "from": composed.Identifier(old),
        "to": composed.Identifier(new),
    }
    tables.run(connection, f"ids_rename_{kind}", None, **parts)


def _move_index(connection: DeadlineConnection, source: SourceTable, old: str, new: str) -> None:
    """Rename an index, where there is one of this name."""
    if tables.exists(connection, source.schema, old):
        tables.run(
            connection,
            "ids_rename_index",
            index=composed.Identifier(source.schema, old),
            to=composed.Identifier(new),
        )
