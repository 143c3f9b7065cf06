"""C3: a text column of session ids becomes a uuid column, online (PLATFORM 7).

A new column beside the old one, a trigger that keeps it, short batches; then an index and a foreign key
beside the writers, a comparison, and a swap of names in one short transaction. No writer of a valid value
ever fails. From the swap to the clean-up the text is kept, so the way back is a swap, too; after it the way
back is a walk. The steps are in uuid_steps.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from packhorse.schedules.backfill import uuid_steps as steps
from packhorse.schedules.backfill.base import Backfill, BatchResult, CheckFinding, Stage, quickly
from packhorse.schedules.backfill.uuid_steps import Conversion
from packhorse.schedules.backfill.walking import each_batch
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument, StoreRejected
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import backfills as store
from packhorse.worker.store.backfill_tables import Batch, SourceTable
from packhorse.worker.store.rows import rows as rows_of_statement

TEXTS = ("text", "character varying", "character")


@dataclass(frozen=True, slots=True)
class FurtherIndex:
    """An index that S004 makes beside it, where its table is. columns: a condition on none of them."""

    name: str
    table: str
    columns: str


FURTHER = (
    FurtherIndex("idx_conversation_logs_session_id", "healthcare.conversation_logs", "session_id"),
    FurtherIndex(
        "idx_conversation_logs_clinic_created", "healthcare.conversation_logs", "clinic_id, created_at desc"
    ),
    FurtherIndex("idx_whatsapp_messages_whatsapp_id", "core.whatsapp_messages", "whatsapp_message_id"),
    FurtherIndex(
        "idx_whatsapp_messages_org_created", "core.whatsapp_messages", "organization_id, created_at desc"
    ),
)


class SessionIds(Backfill):
    """See the module. Settings: table, column, target (the table of sessions, by its id)."""

    name = "session_ids"
    title = "a text column of session ids becomes uuid, with a foreign key"
    defaults = {
        "table": "core.whatsapp_conversations",
        "column": "session_id",
        "target": "core.conversation_sessions",
    }
    takes_over = False
    changes_in_place = True
    most_rows = 10_000

    @property
    def source_name(self) -> str:
        return self.settings["table"]

    def conversion(self, source: SourceTable, *, is_swapped: bool) -> Conversion:
        """The names as they are now."""
        return Conversion(self.name, source, self.settings["column"], self.settings["target"], is_swapped)

    def _is_swapped(self, source: SourceTable) -> bool:
        return source.types.get(self.settings["column"]) == "uuid"

    def nothing_to_do(self, connection: DeadlineConnection) -> str | None:
        """It is uuid already, and no run of ours is on its way."""
        source = self.find_source(connection)
        begun = store.progress(connection, self.name)
        on_its_way = (
            bool(begun)
            and begun[0]["settings"] == self.settings
            and begun[0]["state"] not in ("verified", "finished")
        )
        # it has died at the very end
        on_its_way = on_its_way or store.last_sign_seconds(connection, self.name) is not None
        if source is None or not self._is_swapped(source) or on_its_way:
            return None
        return f"{source.label}.{self.settings['column']} is uuid already"

    def check(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """Type and counts of the column; what stands on it and would break."""
        column, label = self.settings["column"], source.label
        found = (
            [
                CheckFinding(
                    "refused", "source", f"{label} is partitioned", "Convert its partitions one by one."
                )
            ]
            if source.kind == "p"
            else []
        )
        if not source.owned:
            text = f"{label} belongs to {source.owner}: this role cannot change its columns"
            found.append(
                CheckFinding("refused", "rights", text, "Set maintenance_url to a connection of its owner.")
            )
        target = tables.table(connection, self.settings["target"])
        if (
            target is None
            or target.types.get("id") != "uuid"
            or not ({"id"} == set(target.keys) or "id" in target.unique)
        ):
            text = (
                f"{self.settings['target']} has no key id of type uuid"
                if target
                else f"there is no table {self.settings['target']}"
            )
            found.append(
                CheckFinding(
                    "refused", "target", text, "--set target=schema.table names the table of sessions."
                )
            )
        facts = rows_of_statement(connection, "ids_column", {"table": source.quoted, "column": column})
        if not facts:
            return [*found, *self.missing_columns(source, {column: ()})]
        if self._is_swapped(source):
            return found or [CheckFinding("ok", "type", f"{label}.{column} is uuid already")]
        found += _of_column(f"{label}.{column}", label, column, facts[0])
        if any(finding.level == "refused" for finding in found):
            return found
        counts = steps.counts(connection, self.conversion(source, is_swapped=False))
        text = f"{label}.{column} is {facts[0]['type']}: {counts['rows']} rows, {counts['nulls']} NULL, {counts['valid']} valid"
        more = f", {counts['invalid']} invalid, {counts['orphaned']} that no session has"
        found.append(CheckFinding("ok", "values", text + more))
        lost = counts["invalid"] + counts["orphaned"]
        if lost:
            found.append(
                CheckFinding("warning", "values", f"{lost} values become NULL; the ledger keeps their texts")
            )
        return found

    def prepare(self, connection: DeadlineConnection, source: SourceTable) -> None:
        """The new column and the trigger that keeps it."""
        if self._is_swapped(source):
            return
        store.note_memo(connection, self.name, {"type": source.types[self.settings["column"]]})
        steps.begin(connection, self.conversion(source, is_swapped=False))

    def copy(self, connection: DeadlineConnection, batch: Batch) -> BatchResult:
        """Rows of the batch whose text has no UUID yet."""
        current = tables.table(connection, self.source_name)
        assert current is not None, "the batch is of it"
        if self._is_swapped(current):  # killed after the swap: the walk is over
            return BatchResult(0)
        changed, nulled = steps.copy(connection, self.conversion(batch.source, is_swapped=False), batch)
        return BatchResult(changed, len(nulled), tuple(nulled))

    def settle(self, source: SourceTable) -> list[Stage]:
        """Index, key, comparison, swap; each does nothing when it is done already."""
        before = self.conversion(source, is_swapped=False)
        return [
            Stage(
                "index",
                lambda connection: self._unless_swapped(
                    connection, lambda: steps.build_index(connection, before)
                ),
            ),
            Stage(
                "key",
                lambda connection: self._unless_swapped(
                    connection, lambda: steps.add_key(connection, before)
                ),
            ),
            Stage(
                "validate",
                lambda connection: self._unless_swapped(
                    connection, lambda: steps.validate_key(connection, before)
                ),
            ),
            Stage(
                "swap",
                lambda connection: self._unless_swapped(connection, lambda: self._swap(connection, before)),
            ),
            Stage("further indexes", _further_indexes),
        ]

    def _unless_swapped(self, connection: DeadlineConnection, act: Callable[[], None]) -> None:
        source = self.find_source(connection)
        if source is not None and not self._is_swapped(source):
            act()

    def _swap(self, connection: DeadlineConnection, before: Conversion) -> None:
        refused = [
            finding.text for finding in steps.compare(connection, before) if finding.level == "refused"
        ]
        if refused:
            raise StoreRejected(f"not swapped: {'; '.join(refused)}")
        quickly(connection, lambda: steps.swap(connection, before))

    def verify(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """uuid in the catalogue, key, index, no orphan; NULLs after = NULLs before + ledger."""
        current = tables.table(connection, self.source_name)
        assert current is not None, "it is walked"
        if not self._is_swapped(current):
            return [
                CheckFinding(
                    "refused",
                    "type",
                    f"{source.label}.{self.settings['column']} is not uuid",
                    f"packhorse backfill run {self.name}",
                )
            ]
        now = self.conversion(current, is_swapped=True)
        return [
            *steps.look(connection, now),
            *(steps.compare(connection, now) if now.other in current.types else []),
        ]

    def finish(self, connection: DeadlineConnection, source: SourceTable) -> None:
        """The text goes, and who kept it."""
        steps.end(connection, self.conversion(source, is_swapped=True))

    def rollback(
        self, connection: DeadlineConnection, source: SourceTable | None, finished: bool
    ) -> list[CheckFinding]:
        """Text again, with the texts of the ledger."""
        if source is None:
            raise InvalidArgument(f"source: there is no table {self.source_name}", field="source")
        if not self._is_swapped(source):
            quickly(connection, lambda: steps.undo(connection, self.conversion(source, is_swapped=False)))
        else:
            now = self.conversion(source, is_swapped=True)
            if now.other not in source.types or finished:
                self._restore(connection, now, source)
            quickly(connection, lambda: steps.swap_back(connection, now))
        store.forget_ledger(connection, self.name)
        return []

    def _restore(self, connection: DeadlineConnection, now: Conversion, source: SourceTable) -> None:
        """After the clean-up the texts are to be made again, beside the writers."""
        quickly(
            connection,
            lambda: steps.add_text(
                connection, now, str(store.memo(connection, self.name).get("type", "text"))
            ),
        )
        each_batch(connection, source, lambda batch: steps.restore_texts(connection, now, batch))


def _of_column(place: str, label: str, column: str, facts: dict[str, Any]) -> list[CheckFinding]:
    """What forbids the conversion of a column, and what goes with its text."""
    found = []
    say = f"Of the column {column} in {label},"
    if not str(facts["type"]).startswith(TEXTS):
        found.append(CheckFinding("refused", "type", f"{place} is {facts['type']}, neither text nor uuid"))
    if facts["is_required"]:
        found.append(
            CheckFinding(
                "refused",
                "values",
                f"{place} is NOT NULL: invalid values could not become NULL",
                f"{say} drop not null;",
            )
        )
    if facts["has_default"]:
        found.append(
            CheckFinding(
                "refused", "values", f"{place} has a default, which is a text", f"{say} drop default;"
            )
        )
    for kind in ("views", "policies", "constraints"):
        for name in facts[kind]:
            text = f"{kind}: {name} stands on {place}"
            found.append(
                CheckFinding("refused", "dependents", text, "Drop it, and make it again after the swap.")
            )
    for name in facts["indexes"]:
        text = f"the index {name} stands on {place}"
        if name.endswith("(unique)"):
            found.append(
                CheckFinding("refused", "dependents", text, "Drop it, and make it again after the swap.")
            )
        else:
            found.append(
                CheckFinding(
                    "warning",
                    "dependents",
                    f"{text}: it goes with the text",
                    "Make one like it on the uuid column afterwards.",
                )
            )
    return found


def _further_indexes(connection: DeadlineConnection) -> None:
    for index in FURTHER:
        table = tables.table(connection, index.table)
        if (
            table is not None
            and table.kind == "r"
            and {part.split(" ")[0] for part in index.columns.split(", ")} <= table.types.keys()
        ):
            steps.build_further_index(connection, table, index.name, index.columns)
