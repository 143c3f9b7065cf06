"""What an adoption would do: record, move aside and import, or nothing. Reads only; the same plan is made again under the lock.

- `record`: the objects of the migrations are there, their record is not (or in part).
- `move`: something of another system has our names. What is known to belong to such a system, or was named by the
  operator, goes to a schema of its own; anything else is a hindrance, for it may be a table of the application.
- `import`: an earlier call moved the old tables; what has not been imported yet is.
- `nothing`: an empty schema, or one in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from packhorse.worker.adopt.compare import Comparison, Item, compare
from packhorse.worker.adopt.mapping import NAME, Choices, Mapping, choose, unexplained
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.doctor import snapshot
from packhorse.worker.errors import ConfigError
from packhorse.worker.records import Row
from packhorse.worker.store import adoption as store
from packhorse.worker.store.adoption import Legacy

Case = Literal["record", "move", "import", "nothing"]
SOURCE = "message_queue"
#: Names that home-made queues on this schema are known to have; they are moved without being asked for.
KNOWN_TABLES = frozenset(
    {SOURCE, "message_dedup", "processed_messages", "message_archive", "dead_letters", "conversation_locks", "message_queue_health"}
)
KNOWN_ROUTINES = frozenset(
    {
        "enqueue_message",
        "acquire_message_lock",
        "release_message_lock",
        "get_next_queue_message",
        "schedule_message_retry",
        "cleanup_old_messages",
        "cleanup_stale_message_locks",
        "acquire_conversation_lock",
        "release_conversation_lock",
        "cleanup_stuck_webhook_conversations",
        "is_new_message",
        "mark_message_processed",
    }
)
#: A column that no other queue has: a message_queue with it is ours.
OUR_COLUMN = "lease_token"
_MADE = re.compile(r"^create (?:or replace )?(?:unique )?(table|view|sequence|domain|type|index|function) (\w+)", re.MULTILINE)
_KEYS = re.compile(r"^\s*constraint (\w+) (?:primary key|unique)", re.MULTILINE)
_ADVICE = {
    "view": "goes on to show the old rows: make it again over the view all_messages",
    "trigger": "moves with the table: it does not fire for messages",
    "foreign key": "goes on to point at the old rows: drop it before you drop them",
    "publication": "goes on to publish the old table",
    "routine": "finds {table} by name: from now on that is the new table. Change it to call enqueue_message",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done. `problems`: why not; empty when it can be. `moves`: kind, name, bare. `statuses`: state, rows, fate."""

    case: Case
    comparison: Comparison
    moves: tuple[Row, ...] = ()
    dependents: tuple[Row, ...] = ()
    statuses: tuple[Row, ...] = ()
    mapping: Mapping | None = None
    key: Row | None = None
    problems: tuple[str, ...] = ()
    hindrances: tuple[Item, ...] = field(default=())


def survey(connection: DeadlineConnection, sets: Iterable[str], choices: Choices, *, moved: Iterable[str], legacy: str) -> Plan:
    """The plan for this database. moved: further names that belong to the old system. Call it in a transaction.

    Raises SchemaMismatch for a record that this code does not know, ConfigError for choices that cannot be, StoreError.
    """
    with translated():
        begun = store.import_plan(connection, legacy)
        found = compare(connection, sets)
        if begun is not None:
            return _continued(connection, found, begun, choices, legacy)
        if not found.hindrances:
            return Plan("record" if found.recordable or found.recorded else "nothing", found)
        if not found.is_ours and not _collisions(connection, found):
            return Plan("nothing", found)
        columns = store.table_columns(connection, store.current_schema(connection), SOURCE)
        collisions = _collisions(connection, found)
        if not collisions or (OUR_COLUMN in columns and not found.in_the_way):
            return Plan("record", found, hindrances=found.hindrances)
        return _moving(connection, found, collisions, choices, frozenset(moved), columns, ours=OUR_COLUMN in columns)


def _collisions(connection: DeadlineConnection, found: Comparison) -> list[Row]:
    """What stands under a name that a migration without a record wants to make."""
    relations: set[str] = set()
    routines: set[str] = set()
    pending = [m for m in migrate.available(sets=migrate.SETS) if m.name in found.pending]
    for migration in pending:
        for kind, name in _MADE.findall(migration.text):
            (routines if kind == "function" else relations).add(name)
        relations.update(_KEYS.findall(migration.text))
    sets = migrate.sets_in(m.name for m in pending)
    relations.update(name for kind, name in snapshot.read(sets) if kind == "sequence" and name.rsplit("_", 2)[0] in relations)
    return store.name_collisions(connection, sorted(relations), sorted(routines))


def _moving(
    connection: DeadlineConnection,
    found: Comparison,
    collisions: Sequence[Row],
    choices: Choices,
    named: frozenset[str],
    columns: dict[str, str],
    *,
    ours: bool,
) -> Plan:
    """A plan that moves what is in the way; with problems where something in the way is not known to be the old queue's."""
    tables = {row["bare"] for row in collisions if row["kind"] == "table" and row["bare"] in KNOWN_TABLES | named}
    moves, problems = [], [f"move: nothing in the way is called {name[:60]!r}" for name in sorted(named - {row["bare"] for row in collisions})]
    for row in collisions:
        known = KNOWN_ROUTINES if row["kind"] == "routine" else KNOWN_TABLES
        if row["of_table"] in tables:
            continue  # goes with its table
        if row["kind"] == "index" or row["of_table"] is not None:
            problems.append(f"{row['kind']} {row['name']} of {row['of_table']} has a name of ours: alter {row['kind']} {row['name']} rename to ...")
        elif row["bare"] == SOURCE and row["kind"] != "table":
            problems.append(f"{SOURCE} is a {row['kind']}, not a table: rename it, and adopt the table behind it")
        elif row["bare"] in known | named:
            moves.append(row)
        else:
            problems.append(
                f"{row['kind']} {row['name']} has a name of ours{_unlike(found, row)}. When it belongs to the old system, say "
                f"--move {row['bare']}; when it belongs to your application, give Packhorse a schema of its own (PACKHORSE_DB_SCHEMA)"
            )
    if ours and problems:
        problems.append("when they are ours, and damaged: packhorse migrate adopt --dry-run --json lists what is missing, each with its statement")
    owners = [f"table {row['name']} belongs to {row['owner']}: log in as {row['owner']}" for row in store.foreign_owners(connection, sorted(tables))]
    dependents = [
        {**row, "advice": _ADVICE[row["kind"]].format(table=row["of_table"])}
        for row in store.dependents(connection, sorted(tables), [row["name"] for row in moves if row["kind"] == "routine"])
    ]
    if SOURCE not in tables:
        return Plan("move", found, tuple(moves), tuple(dependents), problems=tuple([*problems, *owners]))
    key = store.table_key(connection, store.current_schema(connection), SOURCE)
    if key is None:
        problems.append(f"{SOURCE} has no column that alone tells its rows apart: alter table {SOURCE} add primary key (...)")
    mapping, statuses, more = _reading(connection, store.current_schema(connection), key, columns, choices) if key and not owners else (None, [], [])
    return Plan("move", found, tuple(moves), tuple(dependents), tuple(statuses), mapping, key, tuple([*problems, *owners, *more]))


def _unlike(found: Comparison, row: Row) -> str:
    """How far a table is from the one that we make: its columns."""
    columns = [item for item in found.items if item.kind == "column" and item.name.startswith(f"{row['bare']}.")] if row["kind"] == "table" else []
    missing = [item.name.partition(".")[2] for item in columns if item.state == "missing"]
    others = [item.name.partition(".")[2] for item in columns if item.state == "differs"]
    parts = [f"{word} {', '.join(names)}" for word, names in (("it lacks", missing), ("different are", others)) if names]
    return f" ({'; '.join(parts)})" if parts else ""


def _continued(connection: DeadlineConnection, found: Comparison, begun: Row, choices: Choices, legacy: str) -> Plan:
    """The old tables have been moved: what is left is to apply and to import."""
    if begun["source_schema"] != store.current_schema(connection):
        raise ConfigError([f"legacy_schema: {legacy} has the old tables of the schema {begun['source_schema']}. Say --legacy-schema NAME"])
    problems = [f"{row['kind']} {row['name']} has a name of ours again, after the move: drop or rename it" for row in _collisions(connection, found)]
    if begun["source_table"] is None:
        return Plan("import", found, problems=tuple(problems))
    key = {"name": begun["key_column"], "type": begun["key_type"]}
    columns = store.table_columns(connection, legacy, begun["source_table"])
    if not columns:
        problems.append(f"{legacy}.{begun['source_table']} is gone, and its import is not finished" if begun["finished_at"] is None else "")
        return Plan("import", found, problems=tuple(filter(None, problems)))
    mapping, statuses, more = _reading(connection, legacy, key, columns, choices.over(stored_choices(begun["choices"])))
    return Plan("import", found, (), (), tuple(statuses), mapping, key, tuple([*problems, *more]))


def _reading(
    connection: DeadlineConnection, schema: str, key: Row, columns: dict[str, str], choices: Choices
) -> tuple[Mapping | None, list[Row], list[str]]:
    """How the rows are read, how many are in which state, and what nobody has decided yet."""
    try:
        mapping = choose(columns, choices)
    except ConfigError as error:
        return None, [], error.problems
    old = legacy_of(schema, key, mapping)
    store.hidden_rows_are_errors(connection)
    statuses = old.statuses(connection)
    problems = unexplained(statuses, mapping)
    for name in ("queue", "message_type"):
        words = old.words(connection, name) if name in mapping.columns else []
        wrong = [(row["rows"], row["word"] or "") for row in words if not NAME.fullmatch(mapping.word(name, row["word"]) or "")]
        problems += [f"{name}: {rows} rows have {word[:60]!r}, which is not a name. Say --value '{name}:OLD=NEW'" for rows, word in wrong[:20]]
        if len(words) > 100:
            problems.append(f"{name}: more than 100 values in {mapping.columns[name][0]}. Another column? --map {name}=COLUMN, --set {name}=NAME")
    return mapping, [{**row, "fate": mapping.fate(row["status"], row["finished_at"])} for row in statuses], problems


def legacy_of(schema: str, key: Row, mapping: Mapping) -> Legacy:
    """The old table, read with this mapping."""
    finished = [word for word in {*mapping.words.get("status", {}), *_finished_words()} if mapping.fate(word) == "finished"]
    return Legacy(schema, SOURCE, key, mapping.columns, sorted({word.strip().lower() for word in finished}))


def _finished_words() -> list[str]:
    from packhorse.worker.adopt.mapping import STATUSES

    return [word for word, fate in STATUSES.items() if fate == "finished"]


def stored_choices(document: Row) -> Choices:
    """Choices as the plan in the database has them."""
    return Choices(document.get("columns", {}), document.get("values", {}), document.get("words", {}))
