"""The tables are those of the contract, to the column: migrations/platform/contract.toml, compared both ways
(SPEC C1, C2, C5, C6).
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from typing import Any

import psycopg
import pytest

from packhorse.worker.db import migration_files
from tests.support.postgres import Database

pytestmark = [pytest.mark.slow, pytest.mark.oldest_and_newest]

FOLDER = migration_files.directory() / "platform"
TYPES = {
    "phone": "phone_number",
    "key": "message_key",
    "object": "message_json",
    "id": "bigint",
    "time": "time without time zone",
}
TYPES["timestamptz"] = "timestamp with time zone"
CAST = re.compile(
    r"::(text|jsonb|interval|regclass|numeric|integer|bigint|boolean|timestamp with time zone|phone_number)(\[\])?"
)
OURS = "(select c.oid from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition)"
LEFT_OUT_BY_ADOPTION = {"conversations", "platform_backfill_rows", "platform_adopted_tables"}
HOSTS_FORM = {"whatsapp_users", "referrals"}


@cache
def contract() -> dict[str, Any]:
    tables = tomllib.loads((FOLDER / "contract.toml").read_text())
    tables.pop("host")
    return tables


def plain(expression: str | None) -> str:
    """An expression without what PostgreSQL adds to it: casts, parentheses, quotes, blanks, the schema."""
    text = CAST.sub("", (expression or "").replace("clock_timestamp()", "now").replace("public.", ""))
    text = re.sub(r"= ANY \(ARRAY\[(.*?)\]\)", r" in \1", text)
    return re.sub(r"[\s()']", "", text).lower()


def column(text: str) -> tuple[str, bool, str, str]:
    """What the contract says of one: type, NOT NULL, default, identity."""
    name, _, default = text.removesuffix(" (a)").partition(" = ")
    kind = name.removesuffix("!")
    return TYPES.get(kind, kind), name.endswith("!"), plain(default), "d" if kind == "id" else ""


def expected() -> set[tuple[Any, ...]]:
    """Everything that the contract says, one tuple each."""
    found: set[tuple[Any, ...]] = set()
    for table, says in contract().items():
        found.add(("table", table, says.get("partitioned", "")))
        found.add(("primary", table, ", ".join(says["primary"])))
        found |= {("column", table, name, *column(text)) for name, text in says["columns"].items()}
        found |= {
            ("unique", table, name, ", ".join(columns)) for name, columns in says.get("unique", {}).items()
        }
        found |= {("foreign", table, name, text) for name, text in says.get("foreign", {}).items()}
        found |= {("check", table, name, plain(text)) for name, text in says.get("checks", {}).items()}
        found |= {("index", table, name, plain(text)) for name, text in says.get("indexes", {}).items()}
        found |= {("trigger", table, name, text) for name, text in says.get("triggers", {}).items()}
    return found


def actual(connection: psycopg.Connection) -> set[tuple[Any, ...]]:
    """The same of a database."""

    def rows(statement: str) -> list[tuple[Any, ...]]:
        return connection.execute(statement.replace("OURS", OURS)).fetchall()

    found: set[tuple[Any, ...]] = set()
    for name, key in rows("select relname, pg_get_partkeydef(oid) from pg_class where oid in OURS"):
        found.add(("table", name, (key or "").lower()))
    for table, name, kind, required, default, identity in rows(
        "select c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity::text "
        "from pg_attribute a join pg_class c on c.oid = a.attrelid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum "
        "where c.oid in OURS and a.attnum > 0 and not a.attisdropped"
    ):
        found.add(("column", table, name, kind.removeprefix("public."), required, plain(default), identity))
    actions = {"c": "cascade", "r": "restrict", "n": "set null", "a": "no action"}
    for table, name, kind, columns, target, targets, action, definition in rows(
        "select c.relname, k.conname, k.contype::text, "
        "(select string_agg(a.attname, ', ' order by n) from unnest(k.conkey) with ordinality u (num, n) "
        " join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.num), "
        "k.confrelid::regclass::text, (select string_agg(a.attname, ', ' order by n) from unnest(k.confkey) with ordinality u (num, n) "
        " join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.num), k.confdeltype::text, pg_get_constraintdef(k.oid) "
        "from pg_constraint k join pg_class c on c.oid = k.conrelid where c.oid in OURS and k.contype in ('p', 'u', 'f', 'c')"
    ):
        if kind == "p":
            found.add(("primary", table, columns))
        elif kind == "u":
            found.add(("unique", table, name, columns))
        elif kind == "f":
            found.add(("foreign", table, name, f"{columns} -> {target} ({targets}) {actions[action]}"))
        else:
            found.add(("check", table, name, plain(definition.removeprefix("CHECK "))))
    for table, name, definition in rows(
        "select t.relname, c.relname, pg_get_indexdef(c.oid) from pg_index i join pg_class c on c.oid = i.indexrelid join pg_class t on t.oid = i.indrelid "
        "where t.oid in OURS and not exists (select from pg_constraint k where k.conindid = c.oid and k.contype in ('p', 'u'))"
    ):
        unique, using = re.fullmatch(r"CREATE (UNIQUE )?INDEX .*? USING (.*)", definition, re.DOTALL).groups()  # type: ignore[union-attr]
        found.add(("index", table, name, plain((unique or "") + using)))
    for table, name, definition in rows(
        "select c.relname, t.tgname, pg_get_triggerdef(t.oid) from pg_trigger t join pg_class c on c.oid = t.tgrelid where c.oid in OURS and not tgisinternal"
    ):
        when, function = re.fullmatch(
            r"CREATE TRIGGER \S+ (.*?) ON .* EXECUTE FUNCTION (?:public\.)?(\w+)\(.*\)", definition
        ).groups()  # type: ignore[union-attr]
        found.add(("trigger", table, name, f"{when.lower()}: {function}"))
    return found


def test_the_tables_are_those_of_the_contract_and_no_others(shared_database: Database) -> None:
    with shared_database.connect(admin=True) as connection:
        there = actual(connection)
    assert sorted(expected() - there) == [], "the contract says it, the database lacks it"
    assert sorted(there - expected()) == [], "the database has it, the contract does not say it"


@pytest.mark.parametrize(
    "change",
    [
        "alter table clients add column nickname text",
        "alter table clients drop column importance",
        "alter table clients alter column visits_count set default 1",
        "alter table clients alter column name set not null",
        "alter table clients alter column email type varchar(100)",
        "alter table bookings drop constraint bookings_client_id_fkey",
        "alter table bookings drop constraint bookings_status_known",
        "drop index idx_clients_last_visit",
        "create index one_too_many on clients (name)",
        "drop trigger clients_touch on clients",
        "create table one_too_many (id integer primary key)",
    ],
)
def test_what_differs_is_found(shared_database: Database, change: str) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        connection.execute(change)
        assert actual(connection) != expected()


def test_a_table_is_adopted_by_the_columns_of_the_contract_without_its_additions() -> None:
    """What the first migration asks of a table of the host is what old clients write, not what we add."""
    text = (FOLDER / "0001_create_platform_domains.sql").read_text()
    listed = text.split("v_adoptable constant jsonb := jsonb_build_object(")[1].split(");")[0]
    asked = {
        name: "".join(re.findall(r"'([^']*)'", rest))
        for name, rest in re.findall(r"'(\w+)', ((?:'[^']*'\s*)+)", listed)
    }
    families = {"phone": "text", "id": "bigint"}
    for table, columns in asked.items():
        if table in HOSTS_FORM:
            continue
        wanted = []
        for name, said in contract()[table]["columns"].items():
            if not said.endswith("(a)"):
                kind = re.sub(r"\(.*", "", said.split(" = ")[0].removesuffix("!"))
                wanted.append(f"{name} {families.get(kind, kind)}")
        assert sorted(columns.split(", ")) == sorted(wanted), table
    assert set(asked) == set(contract()) - LEFT_OUT_BY_ADOPTION
