"""What exists, compared with what the migrations make: identical, missing or different, object by object.

The snapshot says what all migrations make together. A schema that an earlier release made is found by applying the
migrations one by one in a schema of its own, in a transaction that is always rolled back: the last stage whose objects
are all there is what the schema is. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.migrate import Migration
from packhorse.worker.db.queries import sql
from packhorse.worker.doctor import snapshot
from packhorse.worker.doctor.snapshot import Objects
from packhorse.worker.errors import SchemaMismatch
from packhorse.worker.store import adoption as store
from packhorse.worker.store import doctor

State = Literal["identical", "missing", "differs", "unknown"]
#: The record itself is what is written here, not what is compared.
_RECORD = ("index", "packhorse_migrations_pkey")
#: Kinds with a name of their own in the schema; the others go with their table.
_NAMED = frozenset({"table", "view", "sequence", "index", "domain", "function"})


@dataclass(frozen=True, slots=True)
class Item:
    """One object. text: how it differs. repair: the statement that mends it, or what to do."""

    kind: str
    name: str
    state: State
    text: str = ""
    repair: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found. `recorded`: names with a record; `recordable`: those whose objects are there, without one;
    `pending`: those that make what is missing. `hindrances`: why nothing can be recorded; empty when it can. `in_the_way`: the
    schema is whole as far as it goes, and the hindrances only have names that a pending migration wants."""

    recorded: tuple[str, ...]
    recordable: tuple[Migration, ...]
    pending: tuple[str, ...]
    items: tuple[Item, ...]
    hindrances: tuple[Item, ...]
    notes: tuple[Item, ...]
    in_the_way: bool = False

    @property
    def is_ours(self) -> bool:
        """Is there anything that a migration makes, or a record of one?"""
        return bool(self.recorded) or any(item.state != "missing" for item in self.items)


def compare(connection: DeadlineConnection, sets: Iterable[str] = ()) -> Comparison:
    """Compare the queue's schema with the migrations of the queue and of these sets (and those recorded).

    Call it in a transaction. Raises SchemaMismatch for a record that this code does not know, StoreError (the right to
    create a schema in the database is needed only when the schema is not what all migrations make).
    """
    theirs = migrate.applied(connection)
    wanted = sorted({*sets, *migrate.sets_in(theirs)})
    migrations = migrate.available(sets=wanted)
    refuse_strangers(theirs, migrations)
    found = objects(connection)
    target = {key: definition for key, definition in snapshot.read(wanted).items() if key != _RECORD}
    items = [_item(key, definition, found) for key, definition in target.items()]
    notes = _extras(connection, found, target)
    broken = [*_broken(connection), *_not_ours_to_change(connection, target), *(note for note in notes if note.state == "differs")]
    have: list[Migration] = []
    early: list[Item] = []
    if all(item.state == "identical" for item in items):
        have = migrations
    elif any(item.state == "identical" for item in items):
        have, early = _by_stages(connection, migrations, found, target)
    names = {migration.name for migration in have}
    gone = (
        [
            Item("migration", name, "differs", "is recorded, but what it makes is not all there", "packhorse doctor says what to mend")
            for name in sorted(set(theirs) - names)
        ]
        if have
        else []
    )
    hindrances = [*early, *broken, *gone] if have else [*(item for item in items if item.state != "identical"), *broken]
    return Comparison(
        recorded=tuple(sorted(theirs)),
        recordable=tuple(m for m in have if m.name not in theirs),
        pending=tuple(m.name for m in migrations if m.name not in names | set(theirs)),
        items=tuple(items),
        hindrances=tuple(hindrances),
        notes=tuple(note for note in notes if note.state == "unknown"),
        in_the_way=bool(early) and not broken and not gone,
    )


def refuse_strangers(theirs: dict[str, migrate.Applied], migrations: Sequence[Migration]) -> None:
    """Raise SchemaMismatch when the record has what this code does not know, or knows otherwise."""
    ours = {migration.name: migration.checksum for migration in migrations}
    for name in sorted(theirs, reverse=True):
        if name not in ours:
            raise SchemaMismatch(f"this code is older than the database, which has {name}. Upgrade packhorse")
        if theirs[name].checksum != ours[name]:
            raise SchemaMismatch(f"migration {name} in the database differs from the file of the same name")


def objects(connection: DeadlineConnection) -> Objects:
    """The objects of the first schema of the search path, by kind and name."""
    with translated():
        found = {(row["kind"], row["name"]): row["definition"] for row in doctor.schema_objects(connection)}
    found.pop(_RECORD, None)
    return found


def _item(key: tuple[str, str], definition: str, found: Objects) -> Item:
    kind, name = key
    if key not in found:
        return Item(kind, name, "missing", "is missing", snapshot.repair(kind, name, definition))
    if found[key] == definition:
        return Item(kind, name, "identical")
    return Item(kind, name, "differs", f"is {found[key]}; it should be {definition}", snapshot.repair(kind, name, definition, changed=True))


def _by_stages(
    connection: DeadlineConnection, migrations: Sequence[Migration], found: Objects, target: Objects
) -> tuple[list[Migration], list[Item]]:
    """The migrations whose objects are all there, and what has a name that the rest wants.

    The queue first, then each set on top of what the queue has: an old release may have had both.
    """
    own = [m for m in migrations if "/" not in m.name]
    have, made = _stage(connection, [], own, found)
    for name in migrate.SETS:
        of_set = [m for m in migrations if m.name.startswith(f"{name}/")]
        if have and of_set:
            more, made_more = _stage(connection, have, of_set, found)
            have, made = have + more, made_more or made
    if not have:
        return [], []
    early = [
        Item(kind, name, "differs", f"is there, although {have[-1].name} is the last migration whose objects all are", "drop it, or rename it")
        for kind, name in target
        if (kind, name) in found and (kind, name) not in made and kind in _NAMED
    ]
    return have, early


def _stage(connection: DeadlineConnection, base: Sequence[Migration], more: Sequence[Migration], found: Objects) -> tuple[list[Migration], Objects]:
    """How many of `more`, after `base`, are all there, and the objects that they make; in a scratch schema, rolled back."""
    best, made = 0, {}
    with translated(), connection.transaction(force_rollback=True):
        store.scratch_schema(connection)
        connection.execute(sql("migrations_table"), prepare=False)
        for migration in base:
            connection.execute(migration.text.encode(), prepare=False)
        for count, migration in enumerate(more, 1):
            connection.execute(migration.text.encode(), prepare=False)
            made_here = objects(connection)
            if made_here and made_here.items() <= found.items():
                best, made = count, made_here
    return list(more[:best]), made


def _broken(connection: DeadlineConnection) -> list[Item]:
    with translated():
        return [
            Item("index", row["name"], "differs", "is invalid", f"drop index concurrently {row['name']}; then make it again")
            for row in doctor.invalid_indexes(connection)
        ]


def _not_ours_to_change(connection: DeadlineConnection, target: Objects) -> list[Item]:
    """Tables whose owner this login may not act as: the next migration would fail."""
    with translated():
        return [
            Item(
                "table",
                row["name"],
                "differs",
                f"belongs to {row['owner']}, and this login may not act as that role",
                f"log in as {row['owner']}, or: {doctor.repair('owner', table=row['name'], role=row['login'])}",
            )
            for row in store.foreign_owners(connection, [name for kind, name in target if kind == "table"])
        ]


def _extras(connection: DeadlineConnection, found: Objects, target: Objects) -> list[Item]:
    """What others have put onto our tables: to be seen; a column that refuses our inserts stands in the way."""
    tables = {name for kind, name in target if kind == "table"}
    extras = []
    for (kind, name), definition in found.items():
        table = name.partition(".")[0]
        if (kind, name) in target or table not in tables or kind not in ("column", "trigger", "policy", "constraint"):
            continue
        if kind == "column" and " not null" in definition and " default " not in definition:
            extras.append(
                Item(
                    kind,
                    name,
                    "differs",
                    "is not ours, and wants a value that we do not write",
                    doctor.repair("nullable", table=table, part=name.partition(".")[2]),
                )
            )
        else:
            extras.append(Item(kind, name, "unknown", f"is not ours: {definition}"))
    return extras


def applied_now(connection: DeadlineConnection, migrations: Iterable[Migration]) -> None:
    """Write the record of these migrations; in the caller's transaction."""
    with translated():
        connection.execute(sql("migrations_table"))
        for migration in migrations:
            connection.execute(sql("migrations_record"), (migration.name, migration.checksum, migration.runs_beside))
        connection.execute(sql("migrations_readable"))
