"""Do what the plan says: record, or move aside, apply the migrations, import. Every step is a transaction that can be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from packhorse.worker.adopt.compare import applied_now
from packhorse.worker.adopt.importing import BATCH, import_rows
from packhorse.worker.adopt.mapping import Choices
from packhorse.worker.adopt.plan import SOURCE, Plan, legacy_of, stored_choices, survey
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import AdoptionRefused, MigrationError, StoreConflict
from packhorse.worker.store import adoption as store

#: A move waits 5 s for its lock, so that nobody queues behind it for longer; then it pauses, and tries again.
MOVE_ATTEMPTS = 5
MOVE_PAUSE_SECONDS = 2.0
LEGACY_SCHEMA = "packhorse_legacy"
#: Most reasons in one error.
SHOWN = 30


@dataclass(frozen=True, slots=True)
class Order:
    """What the operator asked for."""

    sets: tuple[str, ...] = ()
    choices: Choices = field(default_factory=Choices)
    moved: tuple[str, ...] = ()
    legacy: str = LEGACY_SCHEMA
    batch: int = BATCH


@dataclass(frozen=True, slots=True)
class Adopted:
    """What was done. recorded: migrations whose objects were there; applied: those that ran; account: of the old table's rows."""

    recorded: tuple[str, ...]
    applied: tuple[str, ...]
    moved: tuple[str, ...]
    way_back: tuple[str, ...]
    account: dict[str, int] | None


def look(connection: DeadlineConnection, order: Order) -> Plan:
    """The plan, in a transaction that changes nothing."""
    with translated(), connection.transaction(force_rollback=True):
        return survey(connection, order.sets, order.choices, moved=order.moved, legacy=order.legacy)


def adopt(
    connection: DeadlineConnection, order: Order, *, step: Callable[[str], Any] = lambda line: None, report: Callable[[int], Any] = lambda count: None
) -> Adopted:
    """Adopt what is there, apply what is missing, import what the old queue had not finished.

    step: called with a sentence per step; report: with the rows of each batch. Safe to repeat and when several start at
    once. Raises AdoptionRefused with every reason, ConfigError, SchemaMismatch, MigrationError, StoreError.
    """
    migrate.check_server(connection)
    recorded, moved = _change_catalogue(connection, order, step)
    applied = tuple(migrate.up(connection, lambda name: step(f"applied {name}"), sets=order.sets))
    with translated():
        begun = store.import_plan(connection, order.legacy)
        if begun is None:
            return Adopted(recorded, applied, moved, (), None)
        plan = look(connection, order)
        refuse(plan)
        if plan.mapping is None or plan.key is None:
            return Adopted(recorded, applied, moved, tuple(begun["way_back"]), None)
        choices = order.choices.over(stored_choices(begun["choices"]))
        store.change_choices(connection, order.legacy, _document(choices))
        old = legacy_of(order.legacy, plan.key, plan.mapping)
        account = import_rows(connection, old, order.legacy, plan.mapping, batch=order.batch, first=begun["finished_at"] is None, report=report)
    return Adopted(recorded, applied, moved, tuple(begun["way_back"]), account)


def _change_catalogue(connection: DeadlineConnection, order: Order, step: Callable[[str], Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Record or move, under the migrator's lock; names recorded and names moved. Tries again when a lock was not to be had."""
    for attempt in range(1, MOVE_ATTEMPTS + 1):
        try:
            return migrate.alone(connection, lambda: _decide(connection, order, step))
        except StoreConflict as error:
            with translated():
                holders = store.lockers(connection, SOURCE)
            named = "; ".join(f"backend {row['pid']} {row['application_name']} ({row['state']}, {row['seconds'] or 0} s)" for row in holders)
            if error.sqlstate != "55P03" or attempt == MOVE_ATTEMPTS:
                raise StoreConflict(f"{error}. Who has locks on {SOURCE}: {named or 'nobody any more'}") from error
            step(f"waiting for {SOURCE}: {named or 'a lock'}")
            time.sleep(MOVE_PAUSE_SECONDS)  # without a transaction: those who queued behind this go first
    raise AssertionError("unreachable")


def _decide(connection: DeadlineConnection, order: Order, step: Callable[[str], Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    plan = survey(connection, order.sets, order.choices, moved=order.moved, legacy=order.legacy)
    refuse(plan)
    if plan.case == "nothing":
        raise MigrationError("nothing to adopt: the schema has nothing of ours and nothing in the way. Run: packhorse migrate up")
    moved: tuple[str, ...] = ()
    if plan.case == "move":
        moved = _move(connection, order, plan)
        step(f"moved to {order.legacy}: {', '.join(moved)}")
    if plan.comparison.recordable:
        applied_now(connection, plan.comparison.recordable)
    names = tuple(migration.name for migration in plan.comparison.recordable)
    for name in names:
        step(f"recorded {name}")
    return names, moved


def _move(connection: DeadlineConnection, order: Order, plan: Plan) -> tuple[str, ...]:
    key = plan.key or {"name": None, "type": None}
    with translated():
        way_back = store.move(connection, order.legacy, plan.moves)
        store.begin_import(
            connection,
            order.legacy,
            {
                "source_table": SOURCE if plan.key else None,
                "key_column": key["name"],
                "key_type": key["type"],
                "choices": _document(order.choices),
                "way_back": way_back,
            },
        )
    return tuple(row["name"] for row in plan.moves)


def refuse(plan: Plan) -> None:
    """Raise AdoptionRefused with every reason why the plan cannot be carried out."""
    hindrances = [f"{item.kind} {item.name} {item.text}" + (f"; {item.repair}" if item.repair else "") for item in plan.hindrances]
    problems = [*hindrances, *plan.problems]
    if problems:
        more = [f"{len(problems) - SHOWN} more: packhorse migrate adopt --dry-run has them all"] if len(problems) > SHOWN else []
        raise AdoptionRefused(f"the schema cannot be adopted as it is: {len(problems)} reason(s)", problems[:SHOWN] + more)


def _document(choices: Choices) -> dict[str, Any]:
    return {"columns": dict(choices.columns), "values": dict(choices.values), "words": {name: dict(words) for name, words in choices.words.items()}}
