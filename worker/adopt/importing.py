"""The rows of the old queue become messages: in batches, each one transaction with its entries in the ledger.

The ledger gives every row the id of its message before the first one is written, so the order of
conversations is the old one, and what is enqueued meanwhile comes after. A row without an outcome is to be
done; a kill between two batches loses nothing and repeats nothing. Queues stand still until all of it is
there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from packhorse.worker.adopt.mapping import Draft, Mapping, draft, undecodable
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, MigrationError, StoreRejected
from packhorse.worker.records import Row
from packhorse.worker.store import adoption as store
from packhorse.worker.store.adoption import Legacy

#: Who paused a queue, as operators see it and as the import finds it again.
OPERATOR = "packhorse migrate adopt"
BATCH = 500
#: How often rows are looked for that came while others were imported; producers that go on must not keep the
#: queues still.
ROUNDS = 3
_FIELDS = tuple(field.name for field in fields(Draft))


def import_rows(
    connection: DeadlineConnection,
    old: Legacy,
    mapping: Mapping,
    *,
    batch: int = BATCH,
    first: bool = True,
    report: Callable[[int], Any] = lambda count: None,
) -> dict[str, int]:
    """Import what has not been imported; the account of all rows (later: those that came too late for this
    call).

    first: let the queues stand still until the end. report(count) after each batch. Raises MigrationError
    when the account does not add up, StoreError.
    """
    for _ in range(ROUNDS):
        migrate.alone(connection, lambda: _fill(connection, old))
        missing = True
        while missing:  # after the last batch, another call may have found more rows
            while count := migrate.alone(connection, lambda: _batch(connection, old, mapping, batch, first)):
                report(count)
            account = migrate.alone(connection, lambda: _finish(connection, old))
            missing = account["missing"] > 0
        if account["later"] == 0:
            break
    return account


def _fill(connection: DeadlineConnection, old: Legacy) -> int:
    store.hidden_rows_are_errors(connection)
    return old.fill(connection)


def _batch(connection: DeadlineConnection, old: Legacy, mapping: Mapping, limit: int, pause: bool) -> int:
    """One batch; returns how many rows, 0 when none was left."""
    store.hidden_rows_are_errors(connection)
    drafts = [draft(row, mapping) for row in old.batch(connection, limit)]
    for queue in sorted({made.queue for made in drafts if made.outcome not in ("finished", "gone")}):
        store.hold_queue(connection, queue, pause=pause, operator=OPERATOR)
    written = _write(connection, drafts)
    outcomes = [
        {"message_id": made.message_id, "outcome": made.outcome, "reason": made.reason} for made in written
    ]
    if store.write_outcomes(connection, outcomes) != len(drafts):
        raise MigrationError(
            "the ledger of the import changed under it; nothing of this batch was written. Run it again"
        )
    return len(drafts)


def _write(connection: DeadlineConnection, drafts: list[Draft]) -> list[Draft]:
    """Write a batch at once; when the server refuses a row, each on its own, and the refused ones as dead
    letters.
    """
    try:
        with connection.transaction():
            _insert(connection, drafts)
        return drafts
    except (InvalidArgument, StoreRejected):
        return [_write_one(connection, made) for made in drafts]


def _write_one(connection: DeadlineConnection, made: Draft) -> Draft:
    try:
        with connection.transaction():
            _insert(connection, [made])
        return made
    except (InvalidArgument, StoreRejected) as error:
        if made.outcome == "undecodable":
            raise
        refused = undecodable(made, made.payload, str(error))
        _insert(connection, [refused])
        return refused


def _insert(connection: DeadlineConnection, drafts: list[Draft]) -> None:
    messages = [_row(made) for made in drafts if made.outcome == "message"]
    dead = [_row(made) for made in drafts if made.outcome in ("dead_letter", "undecodable")]
    with translated():
        written = (store.write_messages(connection, messages) if messages else 0) + (
            store.write_dead_letters(connection, dead) if dead else 0
        )
    if written != len(messages) + len(dead):
        raise MigrationError(
            "the database took fewer rows than it was given (a trigger on our tables?); nothing of this batch was written"
        )


def _finish(connection: DeadlineConnection, old: Legacy) -> dict[str, int]:
    """The account. When it adds up, the import is finished and the queues go on; not while rows of the ledger
    are left to do.
    """
    store.hidden_rows_are_errors(connection)
    account = old.account(connection)
    if account["missing"]:
        return account
    parts = sum(
        account[name]
        for name in ("messages", "dead_letters", "undecodable", "finished", "later", "came_back")
    )
    if parts != account["rows"]:
        raise MigrationError(f"the account does not add up: {account['rows']} rows, {parts} accounted for")
    store.finish_import(connection)
    store.resume_queues(connection, OPERATOR)
    return account


def _row(made: Draft) -> Row:
    # asdict() copies deeply, and takes longer than the insert
    return {name: getattr(made, name) for name in _FIELDS}
