"""Adopt the queue of another system: its unfinished rows become messages, its table stays as it is (SPEC O8).

Every step is a transaction that can be repeated, so a call after a kill goes on, and a call some time later
imports what came since.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from packhorse.worker.adopt.importing import BATCH, import_rows
from packhorse.worker.adopt.mapping import Choices
from packhorse.worker.adopt.plan import SOURCE, ImportPlan, survey
from packhorse.worker.db import migrate, schema_version
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.doctor.adopted import examine_newly_adopted
from packhorse.worker.doctor.findings import Finding
from packhorse.worker.errors import AdoptionRefused
from packhorse.worker.store import adoption as store

#: Most reasons in one error.
SHOWN = 30


@dataclass(frozen=True, slots=True)
class Order:
    """What the operator asked for. source: schema and name of the old table."""

    sets: tuple[str, ...] = ()
    choices: Choices = field(default_factory=Choices)
    source: tuple[str, str] = (SOURCE.split(".")[0], SOURCE.split(".")[1])
    batch: int = BATCH


@dataclass(frozen=True, slots=True)
class Adopted:
    """What was done. applied: migrations that ran; account: of the old table's rows; lacking: checks and keys
    that tables of the platform, which these migrations have adopted, do not have.
    """

    applied: tuple[str, ...]
    account: dict[str, int]
    lacking: tuple[Finding, ...] = ()


def look(connection: DeadlineConnection, order: Order) -> ImportPlan:
    """The plan, in a transaction that changes nothing."""
    with translated(), connection.transaction(force_rollback=True):
        return survey(connection, order.source, order.choices)


def adopt(
    connection: DeadlineConnection,
    order: Order,
    *,
    step: Callable[[str], Any] = lambda line: None,
    report: Callable[[int], Any] = lambda count: None,
) -> Adopted:
    """Apply what is missing, and import what the old queue has not finished.

    step: called with a sentence per step; report: with the rows of each batch. Safe to repeat and when
    several start at once. Raises AdoptionRefused with every reason, ConfigError, SchemaMismatch,
    MigrationError, StoreError.
    """
    schema_version.check_server(connection)
    refuse(look(connection, order))
    applied = tuple(migrate.up(connection, lambda name: step(f"applied {name}"), sets=order.sets))
    begun = migrate.alone(connection, lambda: _begin(connection, order))
    with translated():
        plan = look(connection, order)
        refuse(plan)
        assert plan.mapping is not None
        store.change_choices(connection, _document(plan.choices))
        account = import_rows(
            connection, plan.legacy, plan.mapping, batch=order.batch, first=begun, report=report
        )
    return Adopted(applied, account, tuple(examine_newly_adopted(connection, applied)))


def _begin(connection: DeadlineConnection, order: Order) -> bool:
    """Make the ledger, unless it is there; is this the first import, or one that has not been finished?"""
    plan = survey(connection, order.source, order.choices)
    refuse(plan)
    if plan.begun is None:
        assert plan.key is not None
        store.begin_import(
            connection,
            {
                "source_schema": order.source[0],
                "source_table": order.source[1],
                "key_column": plan.key["name"],
                "key_type": plan.key["type"],
                "choices": _document(order.choices),
            },
        )
        migrate.mend_rights(connection)
        return True
    return plan.begun["finished_at"] is None


def refuse(plan: ImportPlan) -> None:
    """Raise AdoptionRefused with every reason why the plan cannot be carried out."""
    if plan.problems:
        more = (
            [f"{len(plan.problems) - SHOWN} more: packhorse migrate adopt --dry-run has them all"]
            if len(plan.problems) > SHOWN
            else []
        )
        raise AdoptionRefused(
            f"{'.'.join(plan.source)} cannot be adopted as it is: {len(plan.problems)} reason(s)",
            [*plan.problems[:SHOWN], *more],
        )


def _document(choices: Choices) -> dict[str, Any]:
    return {
        "columns": dict(choices.columns),
        "values": dict(choices.values),
        "words": {name: dict(words) for name, words in choices.words.items()},
    }
