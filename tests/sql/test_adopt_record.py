"""Adopting a schema of ours whose record is lost, partial or elsewhere (SPEC O8): verified object by object, then recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from packhorse.worker.adopt.adoption import Order, adopt, look
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.errors import AdoptionRefused, MigrationError, SchemaMismatch
from tests.sql.parking import in_background
from tests.support.databases import migrators
from tests.support.postgres import Database

NAMES = tuple(migration.name for migration in migrate.available())


@pytest.fixture
def connection(any_database: Database) -> Iterator[DeadlineConnection]:
    yield from migrators(any_database)


@pytest.fixture
def blank(empty_database: Database) -> Iterator[DeadlineConnection]:
    yield from migrators(empty_database)


def recorded(database: Database) -> list[tuple]:
    return database.query("select name, checksum from packhorse_migrations order by name")


def apply_without_record(database: Database, count: int, *, platform: bool = False) -> None:
    """The objects of the first `count` migrations, made by other means."""
    with database.connect(admin=True) as other:
        other.execute("create table packhorse_migrations (name text primary key)")  # a migration grants on it
        for migration in [*migrate.available()[:count], *(migrate.available(sets=["platform"])[len(NAMES) :] if platform else [])]:
            other.execute(migration.text.encode())
        other.execute("drop table packhorse_migrations")


def test_a_lost_record_is_written_again_and_the_messages_stay(connection: DeadlineConnection, any_database: Database) -> None:
    before = recorded(any_database)
    message = any_database.value("select message_id from enqueue_message('default', 'effect')")
    any_database.query("drop table packhorse_migrations")
    done = adopt(connection, Order())
    assert (done.recorded, done.applied, done.account) == (NAMES, (), None)
    assert recorded(any_database) == before
    assert any_database.value("select id from message_queue") == message
    migrate.check(connection)


def test_a_partial_record_is_completed(connection: DeadlineConnection, any_database: Database) -> None:
    before = recorded(any_database)
    any_database.query("delete from packhorse_migrations where name = any(%s)", list(NAMES[3:9]))
    assert adopt(connection, Order()).recorded == NAMES[3:9]
    assert recorded(any_database) == before


def test_a_look_changes_nothing(connection: DeadlineConnection, any_database: Database) -> None:
    any_database.query("drop table packhorse_migrations; drop index dead_letters_dead_at_idx")
    plan = look(connection, Order())
    assert plan.case == "record" and plan.hindrances
    assert any_database.value("select to_regclass('packhorse_migrations') is null and to_regnamespace('packhorse_scratch') is null") is True


DAMAGE = {
    "drop index message_queue_claim_idx": "index message_queue_claim_idx is missing.*CREATE INDEX message_queue_claim_idx",
    "alter table dead_letters drop column traceback": "column dead_letters.traceback is missing; alter table dead_letters add column traceback text",
    "alter table workers alter column running type bigint": "column workers.running is alter table .* bigint",
    "alter table message_queue disable row level security": "table message_queue is open.*enable row level security",
    "create or replace function wake_queue(p_queue text) returns void language sql as 'select'": r"function wake_queue\(text\) is .*run `create or replace",
    "revoke insert on workers from packhorse_worker": "grant workers to packhorse_worker is",
    "alter table workers add column team text not null": "column workers.team is not ours, and wants a value",
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_what_is_not_as_the_migrations_make_it_is_refused_by_name_with_its_repair(
    connection: DeadlineConnection, any_database: Database, damage: str
) -> None:
    any_database.query("drop table packhorse_migrations")
    any_database.query(damage)
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    assert any(re.search(DAMAGE[damage], problem) for problem in refused.value.problems), refused.value.problems
    assert any_database.value("select to_regclass('packhorse_migrations')") is None


def test_tables_of_another_owner_are_refused_with_the_login_that_may(database: Database) -> None:
    database.query("drop table packhorse_migrations")
    database.query("do $$ begin create role packhorse_migrator login; exception when duplicate_object then null; end $$")
    database.query("grant create on schema public to packhorse_migrator")
    database.query(f"grant create on database {database.name} to packhorse_migrator")
    connection = connect(database.server.url(database.name, "packhorse_migrator"), deadline_seconds=60)
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    connection.close()
    assert any("table message_queue belongs to postgres" in problem and "log in as postgres" in problem for problem in refused.value.problems)


def test_the_schema_of_an_earlier_release_is_recorded_as_far_as_it_goes_and_then_brought_up(
    blank: DeadlineConnection, empty_database: Database
) -> None:
    apply_without_record(empty_database, 15)
    empty_database.query("select enqueue_message('default', 'effect')")
    done = adopt(blank, Order())
    assert (done.recorded, done.applied) == (NAMES[:15], NAMES[15:])
    migrate.check(blank)
    assert empty_database.value("select count(*) from message_queue") == 1


def test_half_a_migration_is_refused(blank: DeadlineConnection, empty_database: Database) -> None:
    apply_without_record(empty_database, 15)
    empty_database.query("create table schedules (name text)")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(blank, Order())
    assert len(refused.value.problems) == 2 and "each with its statement" in refused.value.problems[1]
    assert re.search("table schedules has a name of ours .it lacks created_at, cron, .*different are name", refused.value.problems[0])
    assert empty_database.value("select to_regclass('packhorse_migrations')") is None
    done = adopt(blank, Order(moved=("schedules",)))
    assert (done.recorded, done.moved, done.applied) == (NAMES[:15], ("schedules",), NAMES[15:])
    migrate.check(blank)


def test_the_platform_is_adopted_when_it_is_named(blank: DeadlineConnection, empty_database: Database) -> None:
    apply_without_record(empty_database, len(NAMES), platform=True)
    done = adopt(blank, Order(sets=("platform",)))
    assert done.recorded == tuple(migration.name for migration in migrate.available(sets=["platform"])) and done.applied == ()
    migrate.check(blank)


def test_a_foreign_table_of_the_platform_is_refused_with_its_columns_and_moved_when_it_is_named(
    connection: DeadlineConnection, any_database: Database
) -> None:
    any_database.query("create table messages (id bigint primary key, phone integer, body text)")
    any_database.query("insert into messages values (1, 2, 'kept')")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order(sets=("platform",)))
    assert any(
        re.search("table messages has a name of ours .it lacks .*created_at.*different are .*phone.*--move messages", problem)
        for problem in refused.value.problems
    ), refused.value.problems
    assert any_database.value("select count(*) from packhorse_migrations") == len(NAMES)
    done = adopt(connection, Order(sets=("platform",), moved=("messages",)))
    assert done.moved == ("messages",) and len(done.applied) > 5
    migrate.check(connection)
    assert any_database.query("select body from packhorse_legacy.messages") == [("kept",)]


def test_a_record_that_this_code_does_not_know_is_refused(connection: DeadlineConnection, any_database: Database) -> None:
    any_database.query("insert into packhorse_migrations (name, checksum) values ('9999_rule_the_world', 'x')")
    with pytest.raises(SchemaMismatch, match="this code is older than the database"):
        adopt(connection, Order())


def test_an_empty_schema_is_not_adopted(blank: DeadlineConnection, empty_database: Database) -> None:
    with pytest.raises(MigrationError, match=r"nothing to adopt.*packhorse migrate up"):
        adopt(blank, Order())
    assert empty_database.value("select to_regclass('packhorse_migrations')") is None


def test_several_at_once_record_each_migration_once(any_database: Database) -> None:
    before = recorded(any_database)
    any_database.query("drop table packhorse_migrations")
    connections = [connect(any_database.admin_url, deadline_seconds=60) for _ in range(3)]
    done = [future.result(60) for future in [in_background(adopt, connection, Order()) for connection in connections]]
    for connection in connections:
        connection.close()
    assert sorted(len(found.recorded) for found in done) == [0, 0, len(NAMES)]
    assert recorded(any_database) == before
