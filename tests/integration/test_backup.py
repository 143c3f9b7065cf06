"""docs/backup.md, walked: a copy has all of it, and starts nothing before somebody accepts it; three ways to
a newer server (SPEC O11).
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dramatiq
import pytest

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from packhorse.worker.exits import EXIT_OK
from tests.conftest import SERVERS, _server
from tests.support.cli import Cli
from tests.support.harness import House
from tests.support.pages import Page
from tests.support.postgres import Database, Server, older_programs, open_for_everyone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PAGE = Page("backup.md")
NEWEST = next(name for name in SERVERS if name.startswith("embedded"))
OLDEST = min(SERVERS, key=lambda name: int(re.sub(r"\D", "", name)))
FILL = """
select packhorse.declare_queue('q');
select packhorse.enqueue_message('q', 'effect', '{"name": "done"}');
select packhorse.complete_messages(array[id], array[lease_token]) from packhorse.claim_messages(gen_random_uuid(), '{q}');
select packhorse.enqueue_message('q', 'effect', '{"name": "dead"}');
select packhorse.bury_message(id, lease_token, 'failed', 'ValueError', 'no') from packhorse.claim_messages(gen_random_uuid(), '{q}');
select packhorse.enqueue_message('q', 'effect', '{"name": "running"}', p_conversation_key => 'c');
select packhorse.register_worker('00000000-0000-0000-0000-000000000001', 'host', 1, '0', '{q}', '{effect}', 1, '1 hour');
select id from packhorse.claim_messages('00000000-0000-0000-0000-000000000001', '{q}', p_lease => '1 hour');
select packhorse.enqueue_message('q', 'effect', '{"name": "behind it"}', p_conversation_key => 'c');
select packhorse.enqueue_message('q', 'effect', '{"name": "waiting"}', p_dedup_key => 'k');
select packhorse.enqueue_message('q', 'effect', '{"name": "later"}', p_delay => '1 hour');
select packhorse.set_schedule('hourly', 'effect', p_cron => '0 * * * *', p_queue => 'q', p_payload => '{"name": "scheduled"}');
update packhorse.schedules set last_planned_at = clock_timestamp() - interval '30 seconds', next_planned_at = clock_timestamp() - interval '20 seconds';
"""
ALL = "select id, state, payload ->> 'name' from packhorse.all_messages order by id"


def filled(database: Database) -> Database:
    for statement in FILL.strip().split(";\n"):
        database.query(statement.replace("%", "%%"))
    return database


def run(
    block: str, folder: Path, database: Database, variables: dict[str, str] | None = None, **names: str
) -> None:
    """A block of the page as a shell runs it, with its names of databases replaced."""
    for name, meant in names.items():
        block = re.sub(rf"\b{name}\b(?!\.dump)", meant, block)
    path = f"{SERVERS[NEWEST]}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PGHOST": str(database.server.socket_dir),
        "PGUSER": "postgres",
        "DATABASE_URL": database.admin_url,
    }
    environment |= variables or {}
    subprocess.run(
        ["sh", "-ec", block],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )


def copied(original: Database, target: str, folder: Path) -> Database:
    """A dump of the database, restored on that server by the commands of the page."""
    copy = Database(_server(target), f"{original.name}_copy")
    dump, restore = PAGE.block("--file roles.sql\npg_dump"), PAGE.block("pg_restore")
    run(dump, folder, original, app=original.name)
    run(restore, folder, copy, app_copy=copy.name)
    return copy


@pytest.fixture
def original():
    database = filled(_server(NEWEST).create_database())
    yield database
    database.drop()


def test_a_copy_waits_until_it_is_accepted_and_then_does_everything_once(
    original, tmp_path, monkeypatch, caplog
):
    before = original.query(ALL)
    copy = copied(original, NEWEST, tmp_path)
    try:
        assert copy.query(ALL) == before and [state for _, state, _ in before] == [
            "done",
            "dead",
            "running",
            "pending",
            "pending",
            "pending",
        ]
        cli = Cli(tmp_path, copy.admin_url)
        status = cli("copy", "status", "--json").document
        assert (status["copy"], status["waiting"], status["running"], status["schedules"]) == (True, 3, 1, 1)
        assert Cli(tmp_path, original.admin_url)("copy", "status", "--json").document["copy"] is False
        finding = next(
            entry for entry in cli("doctor", "--json").document["findings"] if entry["subject"] == "copy"
        )
        assert finding["status"] == "fail" and "4 messages and 1 schedule wait" in finding["text"]
        done: list[str] = []
        house = House("runtime", copy, monkeypatch, queues=["q"])

        @dramatiq.actor(actor_name="effect", queue_name="q", broker=house.broker)
        def effect(name: str) -> None:
            done.append(name)

        with caplog.at_level(logging.WARNING, "packhorse"):
            house.start()
            wait_until(lambda: "a copy that nobody has accepted" in caplog.text)
        assert (
            done == []
            and cli("enqueue", "effect", '{"name": "new"}', "--queue", "q", "--allow-unknown-type").code
            == EXIT_OK
        )
        assert cli("copy", "accept").code != EXIT_OK, "it asks, and here is nobody who answers"
        run(PAGE.line("copy accept --reason") + " --yes", tmp_path, copy)
        wait_until(lambda: len(done) == 4)
        house.stop()
        assert sorted(done) == ["behind it", "new", "running", "waiting"] and done.index(
            "running"
        ) < done.index("behind it")
        ids = [identity for identity, _, _ in copy.query(ALL)]
        assert len(set(ids)) == len(ids) and copy.value("select count(*) from packhorse.dead_letters") == 1
        assert (
            copy.value("select packhorse.redrive_dead_letters(p_queue => 'q')") is not None
            and original.query(ALL) == before
        ), "the original is as it was"
    finally:
        copy.drop()


def test_an_upgrade_by_dump_and_restore_brings_all_of_it_to_the_newest_server(tmp_path):
    if OLDEST == NEWEST:
        pytest.skip("no other PostgreSQL is installed (make programs)")
    old = filled(_server(OLDEST).create_database())
    copy = copied(old, NEWEST, tmp_path)
    try:
        assert copy.query(ALL) == old.query(ALL)
        run(PAGE.line("copy accept --paused") + " --yes", tmp_path, copy)
        assert (
            copy.value("select count(*) from packhorse.claim_messages(gen_random_uuid(), '{q}', 10)") == 0
        ), "paused"
        copy.query("select packhorse.resume_queue('q')")
        assert copy.value("select count(*) from packhorse.claim_messages(gen_random_uuid(), '{q}', 10)") == 2
        findings = Cli(tmp_path, copy.admin_url)("doctor", "--json").document["findings"]
        assert {
            entry["subject"]
            for entry in findings
            if entry["subject"] in ("schema", "rights", "sequences", "copy", "migrations")
            and entry["status"] != "ok"
        } == set()
    finally:
        copy.drop()
        old.drop()


def test_a_copy_made_from_a_template_looks_like_its_original_and_is_marked(original, tmp_path):
    twin = Database(original.server, f"{original.name}_twin")
    while original._idle:
        original._idle.pop().close()
    original.server.command("create database {} template {}", twin.name, original.name)
    try:
        run(PAGE.line("copy mark"), tmp_path, twin)
        cli = Cli(tmp_path, twin.admin_url)
        assert cli("copy", "status", "--json").document["copy"] is True
        assert cli("copy", "mark", "--json").document == {"marked": False}
        assert cli("copy", "accept", "--yes", "--json").document == {"accepted": True, "paused": False}
        assert cli("copy", "accept", "--yes", "--json").document == {"accepted": False, "paused": False}
    finally:
        twin.drop()


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    """The oldest and the newest, for one test."""
    if OLDEST == NEWEST:
        pytest.skip("no other PostgreSQL is installed (make programs)")
    started = []
    try:
        for name in (OLDEST, NEWEST):
            open_for_everyone(SERVERS[name])
            started.append(Server(name, SERVERS[name]))
        yield started[0], started[1]
    finally:
        for server in started:
            server.close()


@contextmanager
def working(database: Database, done: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A worker of this database that writes down what it does."""
    house = House("runtime", database, monkeypatch, queues=["q"])

    @dramatiq.actor(actor_name="effect", queue_name="q", broker=house.broker)
    def effect(name: str) -> None:
        done.append(name)

    house.start()
    try:
        yield house
    finally:
        house.stop()


def enqueue(database: Database, name: str) -> None:
    database.query(
        "select packhorse.enqueue_message('q', 'effect', jsonb_build_object('name', %s::text))", name
    )


def faults(folder: Path, database: Database) -> dict[str, list[str]]:
    """What the doctor finds wrong with this database, subject by subject; what it says of the server and the
    role left out.
    """
    found: dict[str, list[str]] = {}
    for entry in Cli(folder, database.admin_url)("doctor", "--json").document["findings"]:
        if (
            entry["subject"]
            in ("migrations", "schema", "rights", "row_level_security", "copy", "sequences", "partitions")
            and entry["status"] != "ok"
        ):
            found.setdefault(entry["subject"], []).append(
                entry["repair"] if entry["subject"] == "sequences" else entry["text"]
            )
    return found


def contents(database: Database) -> dict[str, str]:
    """A checksum of each table of the queue and the platform, whatever partitions it has."""
    tables = database.query(
        "select c.oid::regclass::text from pg_class c where c.relkind in ('r', 'p') and not c.relispartition"
        " and c.relnamespace in ('packhorse'::regnamespace, 'public'::regnamespace) order by 1"
    )
    return {
        name: database.value(f"select md5(string_agg(t::text, e'\n' order by t::text)) from {name} t")
        for (name,) in tables
    }  # type: ignore[misc]


def test_an_upgrade_by_logical_replication_loses_nothing_and_does_nothing_twice(
    servers, tmp_path, monkeypatch
):
    old, new = filled(servers[0].create_database()), servers[1].create_empty_database()
    servers[0].command("alter system set wal_level = 'logical'")
    servers[0].stop()
    servers[0].start()
    with connect(old.admin_url, deadline_seconds=120) as owner:
        migrate.up(owner, sets=["platform"])
    old.query(
        "insert into messages (phone, direction, message) values ('+250788000001', 'inbound', 'muraho')"
    )
    both, done = {"OLD": old.admin_url, "NEW": new.admin_url}, []
    with working(old, done, monkeypatch):
        run(PAGE.block("create publication"), tmp_path, old, both)
        enqueue(old, "while it is copied")
        wait_until(
            lambda: new.value("select count(*) > 0 and bool_and(srsubstate = 'r') from pg_subscription_rel"),
            60,
        )
        # done, waiting, while it is copied
        wait_until(lambda: new.value("select count(*) from packhorse.message_archive") == 3)
        assert new.value("select packhorse.is_copy()") is True

        # a day for which the new server has no partition: replication stands still, and goes on once there is
        # one
        name, bounds = new.query(
            "select c.oid::regclass::text, pg_get_expr(c.relpartbound, c.oid) from pg_class c where c.oid = (select tableoid from packhorse.message_archive limit 1)"
        )[0]
        new.query(f"alter table packhorse.message_archive detach partition {name}")
        enqueue(old, "without a partition")
        wait_until(lambda: "no partition of relation" in servers[1].log, 30)
        new.query(f"alter table packhorse.message_archive attach partition {name} {bounds}")
        # as the erasure of a person does
        old.query("update packhorse.message_archive set payload = '{}' where payload ->> 'name' = 'done'")
        old.query(
            "select packhorse.ensure_message_archive_partitions(20), packhorse.set_queue('q', '{\"max_attempts\": 7}')"
        )
        wait_until(lambda: "without a partition" in done)
    enqueue(old, "when the worker had stopped")
    behind = faults(tmp_path, new)["sequences"]
    assert len(behind) >= 2 and all(
        part in "".join(behind) for part in ("message_queue_id_seq", "messages_id_seq")
    )
    run(PAGE.block("drop subscription"), tmp_path, old, both)

    assert (
        contents(new) == contents(old)
        and new.value("select payload from packhorse.message_archive order by id limit 1") == {}
    )
    stand = "select sequencename, last_value from pg_sequences where last_value is not null order by 1"
    assert new.query(stand) == old.query(stand)
    assert set(faults(tmp_path, new)) == {"copy"}
    with working(new, done, monkeypatch):
        enqueue(new, "new")
        run(PAGE.line("copy accept --reason") + " --yes", tmp_path, new)
        wait_until(lambda: len(done) == 7)
    moved = ["behind it", "new", "running", "when the worker had stopped"]
    assert (
        sorted(done[:3]) == ["waiting", "while it is copied", "without a partition"]
        and sorted(done[3:]) == moved
    )
    assert faults(tmp_path, new) == {}


def test_what_a_logical_replica_lacks_is_found_and_mended(tmp_path):
    replica = filled(_server(NEWEST).create_database())
    try:
        with connect(replica.admin_url, deadline_seconds=120) as owner:
            migrate.up(owner, sets=["platform"])
        replica.query(
            "insert into messages (phone, direction, message) values ('+250788000001', 'inbound', 'muraho')"
        )
        replica.query(
            "select packhorse.cancel_message(id) from packhorse.message_queue where run_at > clock_timestamp()"
        )
        assert faults(tmp_path, replica) == {}
        names = [
            "message_lease_token_seq",
            "message_queue_id_seq",
            "messages_id_seq",
            "operator_actions_id_seq",
        ]
        for name in names:
            replica.query(f"alter sequence {name} restart")
        for (name,) in replica.query(
            "select c.oid::regclass::text from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'packhorse.message_archive'::regclass"
            " and c.relname > 'message_archive_' || to_char(clock_timestamp() at time zone 'UTC', 'YYYYMMDD')"
        ):
            replica.query(f"drop table {name}")
        found = faults(tmp_path, replica)
        assert (
            sorted(re.findall(r"setval\('(\w+)'", " ".join(found["sequences"]))) == names
            and len(found["partitions"]) == 1
        )
        assert set(found) == {"sequences", "partitions"} and found["partitions"][0].startswith(
            "message_archive has partitions for 0."
        )
        for statement in found["sequences"]:
            replica.query(statement)
        run("packhorse partitions make message_archive", tmp_path, replica)
        assert faults(tmp_path, replica) == {}
    finally:
        replica.drop()


def test_pg_upgrade_leaves_the_same_database_and_workers_that_wait_go_on(tmp_path, monkeypatch):
    newest = SERVERS[NEWEST]
    programs = older_programs(int(re.sub(r"\D", "", NEWEST)))
    if programs is None:
        pytest.skip("no older PostgreSQL with all programs is installed (make programs)")
    for place in (programs, newest):
        open_for_everyone(place)
    server = Server("before_pg_upgrade", programs)
    done: list[str] = []
    try:
        database = filled(server.create_database())
        numbers = "select queue_oid::bigint, dead_letters_oid::bigint from packhorse.installation"
        version = "select current_setting('server_version_num')::integer / 10000"
        with working(database, done, monkeypatch) as house:
            wait_until(lambda: done == ["waiting"])
            wait_until(lambda: database.value("select count(*) from packhorse.message_archive") == 2)
            enqueue(database, "at the end")
            wait_until(lambda: done == ["waiting", "at the end"])
            before, stood, major = database.query(ALL), database.query(numbers), database.value(version)
            server.upgrade(newest, PAGE.block("pg_upgrade --old-bindir"))

            assert database.value(version) > major  # type: ignore[operator]
            assert database.query(numbers) == stood and database.value("select packhorse.is_copy()") is False
            enqueue(database, "afterwards")
            wait_until(lambda: len(done) == 3, 30)
            assert house.exit_code is None, "the worker that waited is the one that goes on"
        assert done == ["waiting", "at the end", "afterwards"], "each once"
        ended = [(one, "done" if name == "at the end" else state, name) for one, state, name in before]
        assert [row for row in database.query(ALL) if row[2] != "afterwards"] == ended
        assert Cli(tmp_path, database.admin_url)("copy", "accept", "--yes", "--json").document == {
            "accepted": False,
            "paused": False,
        }
        assert faults(tmp_path, database) == {}
    finally:
        server.close()


def test_every_block_of_the_page_was_run():
    assert {block.text for block in PAGE.blocks} == {
        PAGE.block("--file roles.sql\npg_dump"),
        PAGE.block("pg_restore"),
        PAGE.block("copy accept --reason"),
        PAGE.block("copy mark"),
        PAGE.block("pg_upgrade --old-bindir"),
        PAGE.block("create publication"),
        PAGE.block("drop subscription"),
    }
