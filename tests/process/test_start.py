"""What a worker does when it cannot work: one clear line, the documented exit code or waiting; never a
traceback (of an import: tests/process/test_development.py).
"""

from __future__ import annotations

import pytest

from packhorse.worker.exits import EXIT_SCHEMA, EXIT_USAGE
from tests.support.accounting import effects
from tests.support.waiting import wait_until


def _ended(daemon, code):
    assert daemon.process.wait(20) == code, daemon.log
    assert "Traceback" not in daemon.log
    return daemon.log


def _writable(database):
    with database.connect(admin=True, options="-c default_transaction_read_only=off") as connection:
        connection.execute(f"alter database {database.name} set default_transaction_read_only = off")


@pytest.mark.slow
def test_an_unreachable_database_is_waited_for(own_server, ledger, start_daemon):
    database = own_server.create_database()
    own_server.stop()
    daemon = start_daemon(database, ledger)
    wait_until(lambda: "database_unavailable" in daemon.log)
    own_server.start()
    daemon.wait_ready()
    effects(database, 1)
    wait_until(lambda: ledger.counts("effect")["m0"] == 1)
    assert daemon.log.count("database_unavailable") == 1, "waiting is said once"
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_waiting_for_a_database_ends_at_sigterm(start_daemon):
    daemon = start_daemon("postgresql://nobody@127.0.0.1:1/none")
    wait_until(lambda: "database_unavailable" in daemon.log)
    assert daemon.stop(15) == 0
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_a_read_only_database_is_waited_for(database, ledger, start_daemon):
    database.query(f"alter database {database.name} set default_transaction_read_only = on")
    daemon = start_daemon(database, ledger)
    wait_until(lambda: "database_unavailable" in daemon.log)
    assert "read-only" in daemon.log
    _writable(database)
    daemon.wait_ready()
    effects(database, 1)
    wait_until(lambda: ledger.counts("effect")["m0"] == 1)
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_a_switch_to_read_only_and_back_is_survived(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, threads=2).wait_ready()
    effects(database, 5, "before")
    wait_until(lambda: len(ledger.lines("effect")) == 5)
    terminate = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    effects(database, 20, "m", seconds=0.2)
    database.query(f"alter database {database.name} set default_transaction_read_only = on")
    database.query(terminate)
    wait_until(lambda: "service_failed" in daemon.log)
    _writable(database)
    database.query(terminate)
    wait_until(lambda: len(ledger.counts("effect")) == 25, 40)
    wait_until(lambda: database.value("select count(*) from message_queue") == 0, 20)
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_a_database_without_the_schema_is_refused(empty_database, start_daemon):
    assert "packhorse migrate up" in _ended(start_daemon(empty_database), EXIT_SCHEMA)


@pytest.mark.slow
def test_a_database_that_is_newer_says_which_side_is_older(database, start_daemon):
    database.query(
        "insert into packhorse_migrations (name, checksum, release, objects) values ('9999_from_the_future', 'x', '99.0.0', '{}')"
    )
    assert "Upgrade packhorse" in _ended(start_daemon(database), EXIT_SCHEMA)


@pytest.mark.slow
def test_a_changed_migration_is_named(database, start_daemon):
    database.query("update packhorse_migrations set checksum = 'x' where name like '0003%%'")
    assert "0003_" in _ended(start_daemon(database), EXIT_SCHEMA)


@pytest.mark.slow
def test_modules_that_cannot_be_imported_or_declare_nothing_are_named(database, start_daemon):
    assert "no_such_module" in _ended(start_daemon(database, actors="no_such_module"), EXIT_USAGE)
    assert "declare no actors" in _ended(start_daemon(database, actors="tests.support.waiting"), EXIT_USAGE)


@pytest.mark.slow
def test_a_role_without_privileges_is_told_so(database, start_daemon):
    database.query(
        "do $$ begin create role packhorse_stranger login; exception when duplicate_object then null; end $$"
    )
    daemon = start_daemon(database.server.url(database.name, "packhorse_stranger"))
    wait_until(lambda: "start_failed" in daemon.log or "schema_mismatch" in daemon.log)
    daemon.stop(15)
    assert "permission denied" in daemon.log or "packhorse_worker" in daemon.log
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_a_queue_that_no_actor_is_on_is_said_with_a_near_one(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, queues="defualt,default").wait_ready()
    (line,) = [line for line in daemon.log.splitlines() if "queue_without_actors" in line]
    assert '"queue": "defualt", "near": "default"' in line
    effects(database, 1)
    wait_until(lambda: ledger.counts("effect")["m0"] == 1)
    assert daemon.stop() == 0
