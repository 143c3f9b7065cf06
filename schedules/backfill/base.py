"""What a backfill is: a source that is walked by its key, and what is done before, with each batch, after it,
and to take it back.

A backfill works with the transaction that it is given and never ends it. All but `settle` may be repeated,
and may be killed at any statement: what it does twice must be the same as once.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreConflict
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import maintenance as maintenance_store
from packhorse.worker.store.backfill_tables import Batch, SourceTable
from packhorse.worker.suggest import did_you_mean

T = TypeVar("T")
#: A statement that changes a table waits so long for its lock: whoever queues behind it waits as long.
LOCK_MILLISECONDS = 50
#: After a lock that could not be had, others go first for so long; it is tried again, longer and longer
#: apart.
PATIENCE_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 0.05
MOST_PAUSE_SECONDS = 2.0
#: The least rows of a batch that is one whole source (PLATFORM C1: fewer than these, one transaction).
ONE_TRANSACTION_ROWS = 10_000

#: A run whose process has given no sign for so long is gone on with by the next.
SILENT_SECONDS = 30.0

Level = Literal["ok", "warning", "refused"]


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """One thing that a check or a verification has found. check: its name. hint: the statement or command
    that helps.
    """

    level: Level
    check: str
    text: str
    hint: str | None = None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch. rows: written to the target. skipped: explained and left. nulled: keys of rows
    that lost a value.
    """

    rows: int
    skipped: int = 0
    nulled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """A piece of work after the walk that has transactions of its own, and may be done again. act: does
    nothing when it is done already.
    """

    name: str
    act: Callable[[DeadlineConnection], None]


class Backfill(ABC):
    """One backfill with its settings; an instance is for one use. defaults: the settings that it has, all
    texts.

    time_columns: columns of the source that say when a row was made or changed. takes_over: it ends with the
    drop of its source. own_relations: what goes with the backfill, as to_regclass takes it. needs_platform:
    the ledger and the tables of the platform must be there. copies: False for a drop alone, which needs no
    run. changes_in_place: writers of the source wait for the rows of a batch, so batches stay short.
    returns_after_drop: its way back makes what the clean-up has dropped again. by_place: the source is walked
    in the order of storage, where it has one.
    """

    name: str
    title: str
    defaults: ClassVar[Mapping[str, str]] = {}
    time_columns: tuple[str, ...] = ()
    takes_over: bool = True
    needs_platform: bool = True
    copies: bool = True
    changes_in_place: bool = False
    returns_after_drop: bool = False
    by_place: bool = False
    most_rows: int = 20_000

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        for key in settings or {}:
            if key not in self.defaults:
                raise InvalidArgument(
                    f"settings: {self.name} has no setting {key[:60]!r}",
                    field="settings",
                    hint=did_you_mean(key, self.defaults, f"It has {', '.join(self.defaults) or 'none'}."),
                )
        self.settings = {**self.defaults, **(settings or {})}

    @property
    def task(self) -> str:
        """The task of its runs."""
        return f"backfill.{self.name}"

    @property
    def source_name(self) -> str:
        """[schema.]table as the settings say it."""
        return self.settings["source"]

    def find_source(self, connection: DeadlineConnection) -> SourceTable | None:
        """The source with the key that it is walked by; None when there is no such table."""
        source = tables.table(connection, self.source_name, ours=self.needs_platform)
        return source.walked_by_place() if source is not None and self.by_place else source

    def nothing_to_do(self, connection: DeadlineConnection) -> str | None:
        """Why a run would change nothing, in words; None when it would."""
        return None

    def own_relations(self, connection: DeadlineConnection) -> list[str]:
        return []

    @abstractmethod
    def check(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """What stands in the way, and what an operator should know before. Changes nothing."""

    def prepare(self, connection: DeadlineConnection, source: SourceTable) -> None:  # noqa: B027 -- most need something, not all
        """Columns, views, triggers: short locks only, in a transaction that is tried again when a lock cannot
        be had.
        """

    @abstractmethod
    def copy(self, connection: DeadlineConnection, batch: Batch) -> BatchResult:
        """One batch, in the transaction of its cursor. What is done already counts as neither copied nor
        skipped.
        """

    def settle(self, source: SourceTable) -> list[Stage]:
        """What follows the walk: indexes, keys, a swap of names. On a connection in autocommit."""
        return []

    @abstractmethod
    def verify(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """Is the source accounted for, row by row? Refused findings fail it. Changes nothing."""

    def last_look(
        self, connection: DeadlineConnection, source: SourceTable, rows: int | None
    ) -> list[CheckFinding]:
        """The comparison once more, while nobody can write to the source. rows: what an operator says that it
        has.
        """
        return self.verify(connection, source)

    def finish(self, connection: DeadlineConnection, source: SourceTable) -> None:
        """The clean-up, in one transaction, after the guard and a last verification under a lock of the
        source.
        """
        tables.run(connection, "backfill_drop", table=source.identifier)

    @abstractmethod
    def rollback(
        self, connection: DeadlineConnection, source: SourceTable | None, finished: bool
    ) -> list[CheckFinding]:
        """The way back, on a connection in autocommit; what stays and why. finished: after the clean-up.

        Raises InvalidArgument when there is none.
        """

    def accounted(
        self,
        source: SourceTable,
        rows: int,
        migrated: int,
        explained: int,
        missing: int,
        stale: int,
        examples: list[str],
    ) -> list[CheckFinding]:
        """Do the counts of a source add up? missing: neither copied nor explained (examples: their keys);
        stale: changed in the source after they were copied.
        """
        again = f"packhorse backfill run {self.name} copies them."
        found = CheckFinding(
            "ok", "accounted", f"source {rows} = migrated {migrated} + explained {explained}"
        )
        if missing:
            text = f"{missing} of {rows} rows are neither copied nor explained: {', '.join(examples)}"
            found = CheckFinding("refused", "accounted", text, again)
        if not stale:
            return [found]
        text = f"{stale} rows were changed in {source.label} after they were copied"
        return [found, CheckFinding("refused", "changed", text, again)]

    def refuse_without_source(self, source: SourceTable | None, finished: bool) -> None:
        """For a way back that needs the old table. Raises InvalidArgument."""
        if source is None:
            why = "its clean-up has dropped it" if finished else "somebody has dropped it"
            raise InvalidArgument(
                f"source: {self.source_name} is gone, {why}: there is no way back but a backup",
                field="source",
            )

    def not_ours(self, target: SourceTable) -> Iterator[CheckFinding]:
        """A refusal when this role does not own the table that is written to."""
        if not target.owned:
            text = f"{target.label} belongs to {target.owner}: this role cannot write all of its rows"
            hint = "Set maintenance_url to a connection of its owner."
            yield CheckFinding("refused", "rights", text, hint)

    def missing_columns(
        self, source: SourceTable, wanted: Mapping[str, tuple[str, ...]]
    ) -> Iterator[CheckFinding]:
        """A refusal for each column that the source lacks, or that has a type that begins with none of
        these.
        """
        for column, types in wanted.items():
            found = source.types.get(column)
            if found is None:
                hint = did_you_mean(
                    column,
                    source.types,
                    f"Add it: alter table {source.label} add column {column} {types[0] if types else 'text'};",
                )
                yield CheckFinding("refused", "columns", f"{source.label} has no column {column}", hint)
            elif types and not found.startswith(types):
                yield CheckFinding(
                    "refused", "columns", f"{source.label}.{column} is {found}, not {types[0]}"
                )


def refuse(findings: list[CheckFinding], what: str) -> None:
    """Raise InvalidArgument with every refusal among the findings, and the statement that helps with the
    first.
    """
    refused = [finding for finding in findings if finding.level == "refused"]
    if refused:
        text = "; ".join(finding.text for finding in refused)
        raise InvalidArgument(
            f"{refused[0].check}: {what}: {text}",
            field=refused[0].check,
            hint=next((f.hint for f in refused if f.hint), None),
        )


def refuse_run_of_drop(backfill: Backfill) -> None:
    """Raise InvalidArgument for one that copies nothing: there is nothing to run."""
    if not backfill.copies:
        hint = f"packhorse backfill check, verify and, two days later, finish {backfill.name}"
        raise InvalidArgument(f"name: {backfill.name} copies nothing: it is a drop", field="name", hint=hint)


def quickly(
    connection: DeadlineConnection, act: Callable[[], T], *, patience_seconds: float = PATIENCE_SECONDS
) -> T:
    """What `act` returns, in a transaction that waits for no lock longer than LOCK_MILLISECONDS; tried again
    until it has them all.

    Between two tries nothing is held: those who stood behind go first. Raises StoreConflict after
    patience_seconds.
    """
    deadline = time.monotonic() + patience_seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            with translated(), connection.transaction():
                maintenance_store.wait_for_locks(connection, LOCK_MILLISECONDS)
                return act()
        except StoreConflict:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(MOST_PAUSE_SECONDS, pause * 2)
