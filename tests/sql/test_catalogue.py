"""The catalogue: everything is commented, nothing is open to PUBLIC, row-level security everywhere (SPEC O9,
STYLE 2.4).
"""

from __future__ import annotations

import re

from packhorse.worker.db import migration_files
from tests.support.postgres import Database

#: The schema of the platform is empty where there is none.
OURS = "n.nspname in ('packhorse', 'public')"


def names(database: Database, statement: str) -> list[str]:
    return [str(row[0]) for row in database.query(statement)]


def test_only_functions_that_run_as_their_owner_have_a_search_path_and_it_is_that_of_postgresql_alone(
    shared_database: Database,
) -> None:
    """No schema in which others may create, and temporary objects last (SPEC N2)."""
    rows = shared_database.query(
        f"select p.oid::regprocedure::text, p.proconfig, p.prosecdef from pg_proc p join pg_namespace n on n.oid = p.pronamespace where {OURS}"
    )
    assert {as_owner for _, _, as_owner in rows} == {True, False}
    for name, settings, as_owner in rows:
        paths = [setting for setting in settings or [] if setting.startswith("search_path=")]
        assert paths == (["search_path=pg_catalog, pg_temp"] if as_owner else []), name


def test_no_verb_of_a_worker_waits_for_a_locked_row_for_longer_than_half_a_second(
    shared_database: Database,
) -> None:
    verbs = [
        "complete_messages",
        "complete_and_claim_messages",
        "fail_message",
        "schedule_message_retry",
        "snooze_message",
        "release_messages",
        "bury_message",
        "extend_message_lease",
        "cancel_message",
        "rescue_expired_messages",
        "expire_messages",
        "bury_unknown_types",
        "promote_stranded_conversations",
        "cleanup_old_messages",
        "ensure_message_archive_partitions",
    ]
    rows = shared_database.query(
        "select proname::text from pg_proc where proname::text = any (%s) and 'lock_timeout=500ms' = any (proconfig)",
        verbs,
    )
    assert sorted(row[0] for row in rows) == sorted(verbs)


def test_everything_that_people_meet_is_commented(shared_database: Database) -> None:
    assert (
        names(
            shared_database,
            f"select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace "
            f"where {OURS} and obj_description(p.oid, 'pg_proc') is null",
        )
        == []
    )
    assert (
        names(
            shared_database,
            f"select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where {OURS} and c.relkind in "
            "('r', 'p', 'v', 'm') and not c.relispartition and c.relname <> 'packhorse_migrations' "
            "and obj_description(c.oid, 'pg_class') is null",
        )
        == []
    )
    assert (
        names(
            shared_database,
            f"select t.typname from pg_type t join pg_namespace n on n.oid = t.typnamespace where {OURS} and t.typtype = 'd' "
            "and obj_description(t.oid, 'pg_type') is null",
        )
        == []
    )


def test_row_level_security_is_on_everywhere_partitions_included(shared_database: Database) -> None:
    assert (
        names(
            shared_database,
            f"select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where {OURS} "
            "and c.relkind in ('r', 'p') and not c.relrowsecurity and c.relname <> 'packhorse_migrations'",
        )
        == []
    )
    assert (
        shared_database.value(
            "select count(*) from pg_inherits where inhparent = 'message_archive'::regclass"
        )
        >= 8
    )


def test_nothing_is_open_to_public(shared_database: Database) -> None:
    assert (
        names(
            shared_database,
            f"select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace, "
            f"aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where {OURS} and a.grantee = 0",
        )
        == []
    )
    assert (
        names(
            shared_database,
            f"select c.relname || ' ' || a.privilege_type from pg_class c join pg_namespace n on n.oid = c.relnamespace, "
            f"aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a where {OURS} and c.relkind in ('r', 'p', 'v') "
            "and a.grantee = 0",
        )
        == []
    )


def test_every_function_can_be_called_by_the_worker(shared_database: Database) -> None:
    """A function that rights.sql forgot would be found by the first worker, not before."""
    assert (
        names(
            shared_database,
            f"select p.oid::regprocedure from pg_proc p join pg_namespace n on n.oid = p.pronamespace "
            f"where {OURS} and not has_function_privilege('packhorse_worker', p.oid, 'execute')",
        )
        == []
    )


def test_constraints_and_indexes_have_names_of_their_own(shared_database: Database) -> None:
    generated = re.compile(r".*_check\d*$|.*_idx\d+$")
    found = names(
        shared_database,
        f"select conname from pg_constraint c join pg_namespace n on n.oid = c.connamespace where {OURS} and c.contype in ('c', 'u', 'p', 'f')",
    )
    found += names(
        shared_database,
        f"select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where {OURS} and c.relkind = 'i' and not c.relispartition",
    )
    assert found and [name for name in found if generated.match(name)] == []


def test_every_migration_says_what_it_locks() -> None:
    for migration in migration_files.available():
        if not migration.repeats:
            assert "-- Lock and duration:" in migration.text, migration.name
            assert re.fullmatch(r"\d{4}_[a-z]+_[a-z_]+", migration.name), migration.name


def test_numbers_of_migrations_grow_without_a_twin() -> None:
    numbers = [migration.name[:4] for migration in migration_files.available() if not migration.repeats]
    assert numbers == sorted(set(numbers))
