"""docs/backup.md, walked with pg_dump and pg_restore: a copy has all of it, and starts nothing before somebody accepts it (SPEC O11)."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import dramatiq
import pytest

from packhorse.worker.exits import EXIT_OK
from tests.conftest import SERVERS, _server
from tests.support.cli import Cli
from tests.support.harness import House
from tests.support.pages import Page
from tests.support.postgres import Database
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


def run(block: str, folder: Path, database: Database, **names: str) -> None:
    """A block of the page as a shell runs it, with its names of databases replaced."""
    for name, meant in names.items():
        block = re.sub(rf"\b{name}\b(?!\.dump)", meant, block)
    path = f"{SERVERS[NEWEST]}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PGHOST": str(database.server.socket_dir), "PGUSER": "postgres", "DATABASE_URL": database.admin_url}
    subprocess.run(["sh", "-ec", block], cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=60)


def copied(original: Database, target: str, folder: Path) -> Database:
    """A dump of the database, restored on that server by the commands of the page."""
    copy = Database(_server(target), f"{original.name}_copy")
    dump, restore = PAGE.block("pg_dumpall"), PAGE.block("pg_restore")
    run(dump, folder, original, app=original.name)
    run(restore, folder, copy, app_copy=copy.name)
    return copy


@pytest.fixture
def original():
    database = filled(_server(NEWEST).create_database())
    yield database
    database.drop()


def test_a_copy_waits_until_it_is_accepted_and_then_does_everything_once(original, tmp_path, monkeypatch, caplog):
    before = original.query(ALL)
    copy = copied(original, NEWEST, tmp_path)
    try:
        assert copy.query(ALL) == before and [state for _, state, _ in before] == ["done", "dead", "running", "pending", "pending", "pending"]
        cli = Cli(tmp_path, copy.admin_url)
        status = cli("copy", "status", "--json").document
        assert (status["copy"], status["waiting"], status["running"], status["schedules"]) == (True, 3, 1, 1)
        assert Cli(tmp_path, original.admin_url)("copy", "status", "--json").document["copy"] is False
        finding = next(entry for entry in cli("doctor", "--json").document["findings"] if entry["subject"] == "copy")
        assert finding["status"] == "fail" and "4 messages and 1 schedule wait" in finding["text"]
        done: list[str] = []
        house = House("runtime", copy, monkeypatch, queues=["q"])

        @dramatiq.actor(actor_name="effect", queue_name="q", broker=house.broker)
        def effect(name: str) -> None:
            done.append(name)

        with caplog.at_level(logging.WARNING, "packhorse"):
            house.start()
            wait_until(lambda: "a copy that nobody has accepted" in caplog.text)
        assert done == [] and cli("enqueue", "effect", '{"name": "new"}', "--queue", "q", "--allow-unknown-type").code == EXIT_OK
        assert cli("copy", "accept").code != EXIT_OK, "it asks, and here is nobody who answers"
        run(PAGE.line("copy accept --reason") + " --yes", tmp_path, copy)
        wait_until(lambda: len(done) == 4)
        house.stop()
        assert sorted(done) == ["behind it", "new", "running", "waiting"] and done.index("running") < done.index("behind it")
        ids = [identity for identity, _, _ in copy.query(ALL)]
        assert len(set(ids)) == len(ids) and copy.value("select count(*) from packhorse.dead_letters") == 1
        assert copy.value("select packhorse.redrive_dead_letters(p_queue => 'q')") is not None and original.query(ALL) == before, (
            "the original is as it was"
        )
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
        assert copy.value("select count(*) from packhorse.claim_messages(gen_random_uuid(), '{q}', 10)") == 0, "paused"
        copy.query("select packhorse.resume_queue('q')")
        assert copy.value("select count(*) from packhorse.claim_messages(gen_random_uuid(), '{q}', 10)") == 2
        findings = Cli(tmp_path, copy.admin_url)("doctor", "--json").document["findings"]
        assert {
            entry["subject"]
            for entry in findings
            if entry["subject"] in ("schema", "rights", "sequences", "copy", "migrations") and entry["status"] != "ok"
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


def test_every_block_of_the_page_was_run():
    assert {block.text for block in PAGE.blocks} == {
        PAGE.block("pg_dumpall"),
        PAGE.block("pg_restore"),
        PAGE.block("copy accept --reason"),
        PAGE.block("copy mark"),
    }
