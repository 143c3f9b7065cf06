"""A user's own backfill: a function that gets the keys of a batch, beside the actors of the application (SPEC
M8).

    @packhorse.backfill("lower_emails", table="app.users", key="id")
    def lower_emails(connection, keys):
        return connection.execute("update app.users set email = lower(email) where id = any(%s)",
        (keys,)).rowcount

It is found as schedules that are declared in code: by importing the modules of the setting `actors`.
Importing has no other effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from packhorse.schedules.backfill.base import Backfill, BatchResult, CheckFinding
from packhorse.schedules.maintenance.policies import NAME
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store.backfill_tables import Batch, SourceTable
from packhorse.worker.suggest import did_you_mean

#: connection, keys of the batch -> rows that were changed; None counts all.
Copy = Callable[[Any, list[Any]], int | None]
#: connection -> rows that are not as they should be.
Count = Callable[[Any], int]

#: Backfills that modules of users declared, by name.
declared: dict[str, OwnBackfill] = {}


class OwnBackfill(Backfill):
    """A declared backfill. Its table stays: it ends with `verified`."""

    needs_platform = False
    takes_over = False

    def __init__(
        self,
        name: str,
        table: str,
        key: str | Sequence[str],
        copy: Copy,
        verify: Count | None,
        rollback: Callable[[Any], object] | None,
        most_rows: int,
    ) -> None:
        self.name = name
        self.title = (copy.__doc__ or f"{copy.__module__}.{copy.__qualname__}").strip().splitlines()[0]
        self.defaults = {"source": table}  # type: ignore[misc]  # of this one
        super().__init__()
        self.keys = (key,) if isinstance(key, str) else tuple(key)
        self.most_rows = most_rows
        self.function = copy
        self._verify = verify
        self._rollback = rollback

    def find_source(self, connection: DeadlineConnection) -> SourceTable | None:
        found = super().find_source(connection)
        return (
            None
            if found is None
            else found.walked_by(self.keys if set(self.keys) <= found.types.keys() else ())
        )

    def check(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """The key must be one: else the walk would miss rows, or read the table for each batch."""
        whole = tables.table(connection, self.source_name)
        assert whole is not None, "the engine has found it"
        if source.keys == whole.keys or (len(source.keys) == 1 and source.keys[0] in source.unique):
            return [
                CheckFinding("ok", "volume", f"{source.label} has about {source.estimated_rows:.0f} rows")
            ]
        columns = ", ".join(source.keys)
        text = f"{columns} of {source.label} is no key: neither its primary key nor a unique, NOT NULL column"
        return [
            CheckFinding(
                "refused",
                "key",
                text,
                f"Its primary key is {', '.join(whole.keys) or 'missing'}; or: create unique index concurrently on {source.label} ({columns});",
            )
        ]

    def copy(self, connection: DeadlineConnection, batch: Batch) -> BatchResult:
        """The function, with the keys of the batch."""
        keys = tables.next_keys(connection, batch.source, batch.after, batch.rows)
        done = self.function(connection, keys)
        if done is not None and (isinstance(done, bool) or not isinstance(done, int)):
            raise InvalidArgument(
                f"{self.name}: the function returned {type(done).__name__}, not a number of rows",
                field="copy",
                hint="Return cursor.rowcount, or nothing.",
            )
        return BatchResult(len(keys) if done is None else done)

    def verify(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """What the function verify= counts must be 0."""
        if self._verify is None:
            return [CheckFinding("ok", "verify", "no verification is declared")]
        left = self._verify(connection)
        if left:
            return [
                CheckFinding(
                    "refused",
                    "verify",
                    f"{left} row(s) of {source.label} are not as they should be",
                    f"packhorse backfill run {self.name} walks it again.",
                )
            ]
        return [CheckFinding("ok", "verify", "every row is as it should be")]

    def finish(self, connection: DeadlineConnection, source: SourceTable) -> None:
        """There is none: the table is the application's."""
        raise InvalidArgument(
            f"name: the backfill {self.name} has no clean-up: its table stays", field="name"
        )

    def rollback(
        self, connection: DeadlineConnection, source: SourceTable | None, finished: bool
    ) -> list[CheckFinding]:
        """The function rollback=, in one transaction."""
        if self._rollback is None:
            raise InvalidArgument(
                f"name: the backfill {self.name} declares no way back",
                field="name",
                hint="Give it rollback=, or restore a backup.",
            )
        with connection.transaction():
            self._rollback(connection)
        return []


def backfill(
    name: str,
    *,
    table: str,
    key: str | Sequence[str] = "id",
    verify: Count | None = None,
    rollback: Callable[[Any], object] | None = None,
    most_rows: int = 5000,
) -> Callable[[Copy], Copy]:
    """Declare a backfill: the function below is called with a connection and a list of keys, batch after
    batch, until the table is walked.

    name: what commands call it. table: [schema.]table; key: its primary key, or a column that is unique and
    NOT NULL; several columns come as tuples. The function works in the transaction of the batch, which ends
    with it, and returns how many rows it has changed (None: all). A batch that was killed is done again, so a
    row may be met twice. verify: gets a connection, returns how many rows are not as they should be.
    rollback: gets a connection, in one transaction. most_rows: of one batch, 1..100000; its size follows the
    time that it takes. Raises InvalidArgument for a bad name and one that is declared twice.
    """
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            f"name: {name[:80]!r} is not a name", field="name", hint="Letters, digits, dots and underscores."
        )
    if isinstance(most_rows, bool) or not 1 <= most_rows <= 100_000:
        raise InvalidArgument("most_rows: must be between 1 and 100000", field="most_rows")
    if name in shipped():
        raise InvalidArgument(
            f"name: {name!r} is a backfill of Packhorse", field="name", hint="Give it another name."
        )

    def declare(function: Copy) -> Copy:
        other = declared.get(name)
        if other is not None and (other.function.__module__, other.function.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise InvalidArgument(
                f"name: the backfill {name!r} is declared twice",
                field="name",
                hint="Give one of them another name.",
            )
        declared[name] = OwnBackfill(name, table, key, function, verify, rollback, most_rows)
        return function

    return declare


def shipped() -> Mapping[str, type[Backfill]]:
    """Those of Packhorse, by name."""
    from packhorse.schedules.backfill.shipped import SHIPPED

    return SHIPPED


def names() -> list[str]:
    """All that this process knows."""
    return [*shipped(), *sorted(declared)]


def find(name: str, settings: Mapping[str, str] | None = None) -> Backfill:
    """A backfill with these settings beside its own. Raises InvalidArgument with a near miss."""
    if name in shipped():
        return shipped()[name](settings)
    if name not in declared:
        hint = did_you_mean(
            name,
            names(),
            "`packhorse backfill list` names them; your own are in the modules of the setting `actors`.",
        )
        raise InvalidArgument(f"name: there is no backfill {name[:100]!r}", field="name", hint=hint)
    if settings and settings != declared[name].settings:
        raise InvalidArgument(
            f"settings: {name} has none: its declaration says what it works on", field="settings"
        )
    return declared[name]
