"""Which backfills this process knows, and with which settings one is meant (SPEC M8).

Shipped ones are always known; an application's own when the modules of the setting `actors` are imported
(worker/runtime/actors.py: import_configured).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packhorse.schedules.backfill import declare
from packhorse.schedules.backfill.base import Backfill
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import StoreRejected
from packhorse.worker.ops import backfills as ops


@dataclass(frozen=True, slots=True)
class Unbegun:
    """A backfill that nobody has begun, and whose table is there. estimated_rows: by the planner; None when
    this role may not look.
    """

    name: str
    title: str
    source: str
    estimated_rows: float | None
    copies: bool


def titles() -> dict[str, str]:
    """What each of them does, by name: shipped ones first."""
    return {name: kind.title for name, kind in declare.shipped().items()} | {
        name: own.title for name, own in sorted(declare.declared.items())
    }


def find(connection: DeadlineConnection, name: str, given: Mapping[str, str] | None = None) -> Backfill:
    """A backfill with the settings that were given, else with those that it was begun with.

    Raises InvalidArgument with a near miss.
    """
    if given or name not in declare.names():
        return declare.find(name, given)
    try:
        begun = ops.show(connection, name, with_ledger=False).row
    except ops.UnknownBackfill:
        return declare.find(name)
    return declare.find(name, None if begun["state"] in ("new", "rolled_back") else begun["settings"])


def unbegun(connection: DeadlineConnection) -> list[Unbegun]:
    """Those that nobody has begun, or that were taken back, and whose source is there; shipped ones first.
    Raises StoreError.
    """
    begun = {row["name"] for row in ops.list_all(connection, {}) if row["state"] != "rolled_back"}
    found = []
    for name in titles():
        if name in begun:
            continue
        backfill = declare.find(name)
        label, estimated = backfill.source_name, None
        try:
            with translated(), connection.transaction():
                source = backfill.find_source(connection)
        except StoreRejected:  # its schema is closed to this role: whoever starts it may look
            pass
        else:
            if source is None:
                continue
            label, estimated = source.label, source.estimated_rows
        found.append(Unbegun(name, backfill.title, label, estimated, backfill.copies))
    return found
