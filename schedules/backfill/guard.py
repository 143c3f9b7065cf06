"""The drop guard: may an old table go (PLATFORM 7)?

Only when no row of it was made or changed in the last 48 hours, nothing in the catalogue still names it, and
the verification has passed. A table says when rows were made or changed by its time columns, where it has
some, and by the server's counters of inserts and updates: those are remembered with each look, so that a drop
needs an earlier look which is 48 hours old and saw the same.
"""

from __future__ import annotations

from packhorse.schedules.backfill.base import Backfill, CheckFinding
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import StoreError
from packhorse.worker.records import Row
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import backfills as store
from packhorse.worker.store.backfill_tables import SourceTable

QUIET_HOURS = 48


def look(connection: DeadlineConnection, backfill: Backfill, source: SourceTable) -> None:
    """Remember what the counters of the source are now."""
    store.note_look(connection, backfill.name, tables.counters(connection, source))


def guard(
    connection: DeadlineConnection, backfill: Backfill, source: SourceTable, state: Row
) -> list[CheckFinding]:
    """What forbids the drop, each by name; state: of the backfill, after a look. Changes nothing."""
    found = []
    if not source.owned:
        found.append(
            CheckFinding(
                "refused",
                "rights",
                f"only {source.owner}, the owner of {source.label}, can drop it",
                "Set maintenance_url to a connection of that role.",
            )
        )
    if state["state"] != "verified":
        found.append(
            CheckFinding(
                "refused",
                "verification",
                f"the backfill is {state['state']}, not verified",
                f"packhorse backfill verify {backfill.name}",
            )
        )
    if not backfill.takes_over:  # the table stays
        return found
    found += _activity(connection, backfill, source)
    found += [
        CheckFinding(
            "refused",
            "dependents",
            f"{name} still names {source.label}",
            "Point it at the new table, or drop it; a drop of ours never cascades.",
        )
        for name in tables.dependents(connection, source, backfill.own_relations(connection))
    ]
    return found


def _activity(connection: DeadlineConnection, backfill: Backfill, source: SourceTable) -> list[CheckFinding]:
    """Rows that were made or changed within QUIET_HOURS, by time columns and by counters."""
    found = []
    for column in backfill.time_columns:
        if source.types.get(column, "").startswith(("timestamp", "date")):
            newest, recent = tables.newest(connection, source, column, QUIET_HOURS)
            if recent:
                text = f"recent activity detected: the newest {column} of {source.label} is {newest}, within {QUIET_HOURS} h"
                found.append(
                    CheckFinding(
                        "refused", "activity", text, "Find who still writes it; repeat the run, and wait."
                    )
                )
    quiet = store.quiet_hours(connection, backfill.name)
    if quiet is None or quiet < QUIET_HOURS:
        since = (
            "nobody has looked before"
            if quiet is None
            else f"the counters of inserts and updates have not moved for {quiet:.1f} h, as far as anybody looked"
        )
        found.append(
            CheckFinding(
                "refused",
                "activity",
                f"{since}; {QUIET_HOURS} h are needed",
                f"Look again later: packhorse backfill check {backfill.name} is a look.",
            )
        )
    return found


def refuse_drop(findings: list[CheckFinding]) -> None:
    """Raise DropRefused with every refusal among the findings."""
    refused = tuple(finding for finding in findings if finding.level == "refused")
    if refused:
        raise DropRefused(refused)


class DropRefused(StoreError):
    """An old table may not go yet; nothing about the arguments was wrong. findings: every reason."""

    def __init__(self, findings: tuple[CheckFinding, ...]) -> None:
        self.findings = findings
        hints = list(dict.fromkeys(finding.hint for finding in self.findings if finding.hint))
        super().__init__(
            "not dropped: "
            + "; ".join(f"{finding.check}: {finding.text}" for finding in self.findings)
            + ". "
            + " ".join(hints)
        )
