"""What an operator does with a backfill beside its run: check, dry run, verify, finish, roll back (SPEC M8).

Each is one function, and the engine calls them, too. Acts that need no engine (list, pause, resume, cancel,
start) are in worker/ops/backfills.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from packhorse.schedules.backfill.base import (
    SILENT_SECONDS,
    Backfill,
    BatchResult,
    CheckFinding,
    quickly,
    refuse,
    refuse_run_of_drop,
)
from packhorse.schedules.backfill.guard import guard, look, refuse_drop
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import backfills as store
from packhorse.worker.store import maintenance as maintenance_store
from packhorse.worker.store.backfill_tables import SourceTable
from packhorse.worker.suggest import did_you_mean

logger = logging.getLogger("packhorse.backfill")

#: Rows of the batch that a dry run does and takes back.
DRY_RUN_ROWS = 1000
#: A drop waits so long for those who read the table, and its last comparison may take so long.
DROP_LOCK_MILLISECONDS = 2000
LAST_LOOK_MILLISECONDS = 600_000


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would meet. rows: of the source. batch: keys of the first batch; copied: what became of them
    before all was taken back.
    """

    findings: tuple[CheckFinding, ...]
    rows: int
    batch: int
    copied: BatchResult


def check(connection: DeadlineConnection, backfill: Backfill) -> list[CheckFinding]:
    """Everything that stands in the way of a run, and what an operator should know before; of one that was
    begun it is a look, too.

    Raises StoreUnavailable. Changes nothing else.
    """
    with translated():
        source = backfill.find_source(connection)
        begun = store.progress(connection, backfill.name)
        state = begun[0] if begun else None
        if state is not None and state["state"] == "finished" and state["settings"] == backfill.settings:
            text = (
                f"the backfill is finished since {state['finished_at']:%Y-%m-%d %H:%M}Z: its source is gone"
            )
            return [
                CheckFinding(
                    "refused",
                    "state",
                    text,
                    f"packhorse backfill rollback {backfill.name} makes it again, where there is a way back.",
                )
            ]
        if backfill.needs_platform and not tables.exists(
            connection, connection.names.platform, "platform_backfill_rows"
        ):
            return [
                CheckFinding(
                    "refused",
                    "platform",
                    "the platform's tables are not there",
                    "packhorse migrate up --with platform",
                )
            ]
        if source is None:
            names = maintenance_store.table_names(connection)
            hint = did_you_mean(
                backfill.source_name,
                names,
                "Name it with its schema; nothing is to be done where it never was.",
            )
            return [CheckFinding("refused", "source", f"there is no table {backfill.source_name}", hint)]
        findings = [*_of_source(connection, backfill, source), *_of_earlier(backfill, source, state)]
        if not any(finding.level == "refused" for finding in findings):
            findings += backfill.check(connection, source)
        if state is not None:
            look(connection, backfill, source)
    return findings


def _of_source(connection: DeadlineConnection, backfill: Backfill, source: SourceTable) -> list[CheckFinding]:
    found = []
    if not source.keys:
        found.append(
            CheckFinding(
                "refused",
                "key",
                f"{source.label} has no primary key to walk by",
                f"Give it one: alter table {source.label} add primary key (…);",
            )
        )
    if source.has_children:
        found.append(
            CheckFinding(
                "refused",
                "source",
                f"{source.label} has child tables (inherits): their rows would be met twice",
                "Name each of them.",
            )
        )
    if not source.may_select:
        found.append(
            CheckFinding(
                "refused",
                "rights",
                f"this role may not read {source.label}",
                f"grant select on {source.label} to its role;",
            )
        )
    elif source.hidden_by_policies and source.estimated_rows > 0:
        found.append(
            CheckFinding(
                "refused",
                "rights",
                f"row-level security of {source.label} hides rows from this role, of about {source.estimated_rows:.0f}",
                f"Set maintenance_url to its owner, or: create policy backfill on {source.label} for select to packhorse_worker using (true);",
            )
        )
    if backfill.takes_over and not source.owned:
        found.append(
            CheckFinding(
                "warning",
                "rights",
                f"{source.label} belongs to {source.owner}: this role cannot drop it in the end",
                "Set maintenance_url to a connection of that role.",
            )
        )
    return found


def _of_earlier(backfill: Backfill, source: SourceTable, state: dict[str, Any] | None) -> list[CheckFinding]:
    """A half-done run of another plan is never gone on with, and never forgotten."""
    if state is None or state["state"] in ("new", "rolled_back", "finished"):
        return []
    if state["settings"] != backfill.settings or state["source"] != source.label:
        text = f"it was begun on {state['source']} with {state['settings']}, not on {source.label} with {backfill.settings}"
        return [
            CheckFinding(
                "refused",
                "settings",
                text,
                f"Go on with those, or take it back first: packhorse backfill rollback {backfill.name}",
            )
        ]
    return []


def dry_run(connection: DeadlineConnection, backfill: Backfill) -> DryRun:
    """The check, the count, and the first batch, which is done and taken back: nothing is changed. Raises
    InvalidArgument, StoreError.
    """
    refuse_run_of_drop(backfill)
    findings = check(connection, backfill)
    refuse(findings, f"the backfill {backfill.name} cannot run")

    def first() -> tuple[int, int, BatchResult]:
        source = backfill.find_source(connection)
        assert source is not None, "the check has seen it"
        rows = tables.count(connection, source)
        with connection.transaction(force_rollback=True):
            backfill.prepare(connection, source)
            batch = tables.next_batch(connection, source, None, DRY_RUN_ROWS)
            if batch is None:
                return rows, 0, BatchResult(0)
            return rows, batch.rows, backfill.copy(connection, batch)

    rows, batch, copied = quickly(connection, first)
    return DryRun(tuple(findings), rows, batch, copied)


def verified(
    connection: DeadlineConnection,
    backfill: Backfill,
    source: SourceTable,
    operator: str,
    reason: str | None = None,
    *,
    asked: bool = False,
) -> list[CheckFinding]:
    """Compare source and target, and write down what was found: the backfill is verified, or copied when a
    finding refuses. asked: by an operator, which is recorded.
    """
    findings = backfill.verify(connection, source)
    passed = not any(finding.level == "refused" for finding in findings)
    with connection.transaction():
        store.note_findings(connection, backfill.name, [finding.as_row() for finding in findings])
        state = "verified" if passed else "copied"
        store.move(connection, backfill.name, state, operator, reason, {"passed": passed} if asked else None)
    for finding in findings:
        if finding.level != "ok":
            logger.warning(
                "backfill_finding backfill=%s level=%s check=%s: %s",
                backfill.name,
                finding.level,
                finding.check,
                finding.text,
            )
    return findings


def verify(
    connection: DeadlineConnection, backfill: Backfill, operator: str, reason: str | None = None
) -> list[CheckFinding]:
    """The comparison, asked for by an operator; also a look for the drop guard. Raises InvalidArgument,
    StoreError.
    """
    with translated():
        state, source = _begun(connection, backfill)
        if state["state"] not in ("copied", "verified") and not (
            state["state"] == "new" and not backfill.copies
        ):
            raise InvalidArgument(
                f"name: the backfill {backfill.name} is {state['state']}: there is nothing to compare yet",
                field="name",
                hint=f"packhorse backfill run {backfill.name}",
            )
        _refuse_running(connection, backfill)
        look(connection, backfill, source)
        return verified(connection, backfill, source, operator, reason, asked=True)


def stands_in_the_way(connection: DeadlineConnection, backfill: Backfill) -> list[CheckFinding]:
    """What forbids the clean-up now, each by name; also a look for the drop guard. Raises InvalidArgument,
    StoreError.
    """
    with translated():
        _, source = _begun(connection, backfill)
        _refuse_running(connection, backfill)
        look(connection, backfill, source)
        return guard(connection, backfill, source, store.progress(connection, backfill.name)[0])


def finish(
    connection: DeadlineConnection,
    backfill: Backfill,
    operator: str,
    reason: str | None = None,
    *,
    rows: int | None = None,
) -> None:
    """The clean-up: guard, a last comparison while nobody can write, and the drop, in one transaction.

    rows: how many rows the operator says that the source has; asked of a drop that copies nothing. Raises
    DropRefused with every reason, InvalidArgument, StoreConflict when the table could not be had.
    """
    with translated():
        _, source = _begun(connection, backfill)
        _refuse_running(connection, backfill)
        look(connection, backfill, source)
        state = store.progress(connection, backfill.name)[0]
        refuse_drop(guard(connection, backfill, source, state))
        with connection.transaction():
            store.drop_timeouts(connection, DROP_LOCK_MILLISECONDS, LAST_LOOK_MILLISECONDS)
            tables.run(connection, "backfill_lock_source", table=source.identifier)
            refuse_drop(backfill.last_look(connection, source, rows))
            counted = tables.count(connection, source)
            backfill.finish(connection, source)
            store.move(
                connection,
                backfill.name,
                "finished",
                operator,
                reason,
                {"table": source.label, "rows": counted},
            )
    logger.info("backfill_finished backfill=%s source=%s rows=%d", backfill.name, source.label, counted)


def no_way_back(backfill: Backfill) -> str:
    """What to know before its clean-up."""
    return (
        f"After it there is no way back but a backup, which `pg_dump --table={backfill.source_name}` makes. "
    )


def rollback(
    connection: DeadlineConnection, backfill: Backfill, operator: str, reason: str | None = None
) -> list[CheckFinding]:
    """The way back: what the backfill has made goes, or what it dropped is made again; what stays, and why.

    In transactions of its own: killed, it is to be repeated. Raises InvalidArgument where there is no way
    back, StoreError.
    """
    with translated():
        begun = store.progress(connection, backfill.name)
        if not begun or begun[0]["state"] == "new":
            raise InvalidArgument(
                f"name: nobody has begun the backfill {backfill.name}: there is nothing to take back",
                field="name",
            )
        _refuse_running(connection, backfill)
        store.pause(connection, backfill.name, operator, reason)  # no worker goes on with it meanwhile
        finished = begun[0]["state"] == "finished"
        findings = backfill.rollback(connection, backfill.find_source(connection), finished)
        details = {"findings": [finding.text for finding in findings]}
        store.move(connection, backfill.name, "rolled_back", operator, reason, details)
    logger.info("backfill_rolled_back backfill=%s findings=%d", backfill.name, len(findings))
    return findings


def _begun(connection: DeadlineConnection, backfill: Backfill) -> tuple[dict[str, Any], SourceTable]:
    """State and source of a backfill that somebody has begun with these settings. Raises InvalidArgument."""
    begun = store.progress(connection, backfill.name)
    source = backfill.find_source(connection)
    if begun and begun[0]["state"] == "finished":
        raise InvalidArgument(
            f"name: the backfill {backfill.name} is finished: its source is gone", field="name"
        )
    if source is None:
        raise InvalidArgument(
            f"source: there is no table {backfill.source_name}",
            field="source",
            hint="Name it with its schema.",
        )
    if not begun:
        if backfill.copies:
            raise InvalidArgument(
                f"name: nobody has begun the backfill {backfill.name}",
                field="name",
                hint=f"packhorse backfill run {backfill.name}",
            )
        store.declare(connection, backfill.name, source.label, backfill.settings, "unknown")
        begun = store.progress(connection, backfill.name)
    refuse(_of_earlier(backfill, source, begun[0]), f"the backfill {backfill.name} has other settings")
    return begun[0], source


def _refuse_running(connection: DeadlineConnection, backfill: Backfill) -> None:
    seconds = store.last_sign_seconds(connection, backfill.name)
    if seconds is not None and seconds < SILENT_SECONDS:
        raise InvalidArgument(
            f"name: a process works on the backfill {backfill.name}, its last sign is {seconds:.0f} s old",
            field="name",
            hint=f"packhorse backfill pause {backfill.name}, or wait for its end.",
        )
