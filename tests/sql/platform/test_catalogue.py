"""The catalogue with the platform in it: commented, closed, named, documented (SPEC O9, STYLE 2.4)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from packhorse.worker.db import migration_files
from tests.sql import test_catalogue as queue
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TEXT = "\n".join(
    path.read_text()
    for path in sorted((ROOT / "migrations/platform").rglob("*.sql"))
    if ".down." not in path.name
)
FUNCTIONS = set(re.findall(r"^create (?:or replace )?function platform\.(\w+)", TEXT, re.MULTILINE))
RELATIONS = set(
    re.findall(
        r"^create (?:or replace )?(?:table|view|domain) (?:if not exists )?platform\.(\w+)",
        TEXT,
        re.MULTILINE,
    )
)
#: For the owner, or for the host's users.
NOT_THE_WORKERS = {"refresh_platform_access", "claim_guest_bookings", "take_back_audit_events"}
AS_OWNER = {
    "platform_is_admin",
    "current_guest_session_id",
    "get_guest_session",
    "create_guest_session",
    "claim_guest_bookings",
    "create_messages_partition",
    "maintain_messages_partitions",
    "make_messages_partition",
    "drop_messages_partition",
    "get_whatsapp_auth_stats",
    "export_person_data",
    "erase_person_data",
    "take_back_audit_events",
}

# what holds for the queue's catalogue holds with the platform in it
test_only_functions_that_run_as_their_owner_have_a_search_path = (
    queue.test_only_functions_that_run_as_their_owner_have_a_search_path_and_it_is_that_of_postgresql_alone
)
test_everything_that_people_meet_is_commented = queue.test_everything_that_people_meet_is_commented
test_row_level_security_is_on_everywhere_partitions_included = (
    queue.test_row_level_security_is_on_everywhere_partitions_included
)
test_nothing_is_open_to_public = queue.test_nothing_is_open_to_public


def platform() -> list[migration_files.Migration]:
    return [
        migration
        for migration in migration_files.available(sets=["platform"])
        if migration.name.startswith("platform/0")
    ]


def test_every_migration_is_numbered_named_says_what_it_locks_and_has_a_way_back() -> None:
    for number, migration in enumerate(platform(), 1):
        assert re.fullmatch(rf"platform/{number:04}_[a-z]+_[a-z_]+", migration.name)
        assert "-- Lock and duration:" in migration.text and migration.down is not None, migration.name


def test_the_first_migration_looks_for_every_name() -> None:
    """Tables are adopted or refused; what else bears one of our names stands in the way."""
    first = platform()[0].text
    names = {
        listed: set(
            re.findall(r"'(\w+)'", first.split(f"{listed} constant text[] := array[")[1].split("];")[0])
        )
        for listed in ("v_relations", "v_functions")
    }
    adoptable = set(re.findall(r"^    '(\w+)', '", first.split("v_relations constant")[0], re.MULTILINE))
    assert names["v_functions"] == FUNCTIONS
    assert names["v_relations"] | adoptable == RELATIONS - {"platform_adopted_tables"} | {"messages_id_seq"}


def test_every_function_can_be_called_by_the_worker_but_those_of_others(shared_database: Database) -> None:
    rows = shared_database.query(
        "select proname::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('packhorse', 'public') "
        "and not has_function_privilege('packhorse_worker', p.oid, 'execute')"
    )
    assert {row[0] for row in rows} == NOT_THE_WORKERS & FUNCTIONS


def test_every_function_view_and_table_is_documented() -> None:
    page = (ROOT / "docs/platform.md").read_text()
    assert len(FUNCTIONS) > 40 and len(RELATIONS) > 20
    assert sorted(name for name in FUNCTIONS | RELATIONS if f"`{name}" not in page) == []


def test_what_is_documented_exists_with_these_arguments(shared_database: Database) -> None:
    page = (ROOT / "docs/platform.md").read_text()
    arguments = dict(
        shared_database.query(
            "select proname::text, coalesce(pg_get_function_identity_arguments(oid), '') from pg_proc where pronamespace = 'public'::regnamespace"
        )
    )
    for name, described in re.findall(r"^\| `(\w+)\(([^`]+)\)`", page, re.MULTILINE):
        assert name in arguments, name
        assert re.findall(r"\bp_\w+", described) == re.findall(r"\bp_\w+", str(arguments[name])), name


def test_only_these_functions_run_as_their_owner(shared_database: Database) -> None:
    rows = shared_database.query(
        "select distinct proname::text from pg_proc where prosecdef and pronamespace = 'public'::regnamespace"
    )
    assert {row[0] for row in rows} == AS_OWNER


def test_every_foreign_key_has_an_index_on_the_side_that_points(shared_database: Database) -> None:
    """Without it, deleting what is pointed at reads the whole table. Of a key of two columns with the
    company, the other one is enough.
    """
    rows = shared_database.query("""
        select c.conname::text from pg_constraint c where c.contype = 'f' and c.connamespace = 'public'::regnamespace and not exists (
          select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
          where i.indrelid = c.conrelid and coalesce(pg_get_expr(i.indpred, i.indrelid), '') !~ '[=<>]'
            and i.indkey[0] = any (c.conkey) and (cardinality(c.conkey) = 1 or a.attname <> 'company_id'))""")
    assert rows == []
