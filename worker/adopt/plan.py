"""What an adoption would do: which rows of the old table become what. Reads only; the same plan is made again
before each import.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from packhorse.worker.adopt.mapping import NAME, STATUSES, Choices, Mapping, choose, unexplained
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import ConfigError
from packhorse.worker.records import Row
from packhorse.worker.store import adoption as store
from packhorse.worker.store.adoption import Legacy

#: Where home-made queues have their messages.
SOURCE = "public.message_queue"
#: A column that no other queue has.
OUR_COLUMN = "lease_token"


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What would be done.

    problems: why not; empty when it can be. statuses: status, finished_at, rows, fate. begun: the row of the
    import that goes on.
    choices: with those of earlier calls.
    """

    source: tuple[str, str]
    statuses: tuple[Row, ...] = ()
    mapping: Mapping | None = None
    key: Row | None = None
    problems: tuple[str, ...] = ()
    begun: Row | None = None
    choices: Choices = field(default_factory=Choices)

    @property
    def legacy(self) -> Legacy:
        """The old table, read as planned; of a plan without problems."""
        assert self.mapping is not None and self.key is not None
        return legacy_of(self.source, self.key, self.mapping)


def survey(connection: DeadlineConnection, source: tuple[str, str], choices: Choices) -> ImportPlan:
    """The plan for this table, with what earlier calls were told. Call it in a transaction. Raises
    StoreError.
    """
    with translated():
        begun = store.import_plan(connection)
        table = ".".join(source)
        if begun is not None and (begun["source_schema"], begun["source_table"]) != source:
            other = f"{begun['source_schema']}.{begun['source_table']}"
            return ImportPlan(
                source,
                problems=(f"from: an import of {other} has begun here. Say --from {other}",),
                begun=begun,
            )
        if begun is not None and begun["outlived"]:
            ours = connection.names.qualified("packhorse.packhorse_import, packhorse.packhorse_import_plan")
            problem = f"the messages of an earlier import are gone with the tables of the queue. To import all rows anew: drop table {ours}"
            return ImportPlan(source, problems=(problem,), begun=begun)
        if source[0] == connection.names.schema:
            problem = f"from: {source[0]} is Packhorse's own schema. For a queue of others there, set PACKHORSE_DB_SCHEMA to another name"
            return ImportPlan(source, problems=(problem,), begun=begun)
        columns = store.table_columns(connection, *source)
        if not columns:
            return ImportPlan(
                source,
                problems=(
                    f"from: there is no table {table}. Say --from SCHEMA.TABLE, or `packhorse migrate up`",
                ),
                begun=begun,
            )
        if OUR_COLUMN in columns:
            problem = f"from: {table} is a queue of Packhorse itself, of an unreleased version; there is no upgrade from it"
            return ImportPlan(source, problems=(problem,), begun=begun)
        key = _key(connection, source, columns, begun)
        if key is None:
            problem = f"{table} has no column that alone tells its rows apart: alter table {table} add primary key (...)"
            if begun is not None:
                problem = f"{table} has no column {begun['key_column']} any more, by which the import knows its rows"
            return ImportPlan(source, problems=(problem,), begun=begun)
        if begun is not None:
            choices = choices.over(stored_choices(begun["choices"]))
        mapping, statuses, problems = _reading(connection, source, key, columns, choices)
    return ImportPlan(source, tuple(statuses), mapping, key, tuple(problems), begun, choices)


def _key(
    connection: DeadlineConnection, source: tuple[str, str], columns: dict[str, str], begun: Row | None
) -> Row | None:
    """The column by which rows are known. An import that has begun keeps its own: by another one, every row
    would be new.
    """
    if begun is None:
        return store.table_key(connection, *source)
    name = begun["key_column"]
    return {"name": name, "type": columns[name]} if name in columns else None


def _reading(
    connection: DeadlineConnection,
    source: tuple[str, str],
    key: Row,
    columns: dict[str, str],
    choices: Choices,
) -> tuple[Mapping | None, list[Row], list[str]]:
    """How the rows are read, how many are in which state, and what nobody has decided yet."""
    try:
        mapping = choose(columns, choices)
    except ConfigError as error:
        return None, [], error.problems
    old = legacy_of(source, key, mapping)
    store.hidden_rows_are_errors(connection)
    statuses = old.statuses(connection)
    problems = unexplained(statuses, mapping)
    for name in ("queue", "message_type"):
        words = old.words(connection, name) if name in mapping.columns else []
        wrong = [
            (row["rows"], row["word"] or "")
            for row in words
            if not NAME.fullmatch(mapping.word(name, row["word"]) or "")
        ]
        problems += [
            f"{name}: {rows} rows have {word[:60]!r}, which is not a name. Say --value '{name}:OLD=NEW'"
            for rows, word in wrong[:20]
        ]
        if len(words) > 100:
            problems.append(
                f"{name}: more than 100 values in {mapping.columns[name][0]}. Another column? --map {name}=COLUMN, --set {name}=NAME"
            )
    return (
        mapping,
        [{**row, "fate": mapping.fate(row["status"], row["finished_at"])} for row in statuses],
        problems,
    )


def legacy_of(source: tuple[str, str], key: Row, mapping: Mapping) -> Legacy:
    """The old table, read with this mapping."""
    words = {
        *mapping.words.get("status", {}),
        *(word for word, fate in STATUSES.items() if fate == "finished"),
    }
    finished = [word for word in words if mapping.fate(word) == "finished"]
    return Legacy(*source, key, mapping.columns, sorted({word.strip().lower() for word in finished}))


def stored_choices(document: dict[str, Any]) -> Choices:
    """Choices as the plan in the database has them."""
    return Choices(document.get("columns", {}), document.get("values", {}), document.get("words", {}))
