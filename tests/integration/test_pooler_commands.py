"""Q10: every command, the scheduler, maintenance and the exporter behind PgBouncer in transaction mode, the
owner's connection too.

Server connections are few and shared: a statement prepared on one is met again by another client, and so is a
setting that was left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from datetime import date, timedelta

import psycopg
import pytest

from tests.support.accounting import effects
from tests.support.cli import Cli
from tests.support.http import free_port, get
from tests.support.pgbouncer import PROGRAM, PgBouncer
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)"
    ),
]

RETENTION = '[retention.orders]\ntable = "orders"\ncolumn = "done_at"\nkeep = "7d"\n'
#: What a client leaves in its session when it does not mind that a stranger has it next.
LEFT_BEHIND = (
    "lock_timeout",
    "statement_timeout",
    "search_path",
    "default_transaction_isolation",
    "client_connection_check_interval",
    "timezone",
)
SERVER_CONNECTIONS = 4


@pytest.fixture
def bouncer(server, tmp_path):
    bouncer = PgBouncer(server, tmp_path)
    yield bouncer
    bouncer.close()


@pytest.fixture
def environment(bouncer, database):
    return {
        "PACKHORSE_POOLER": "true",
        "PACKHORSE_MAINTENANCE_URL": bouncer.url(database.name, "postgres"),
        "PACKHORSE_HEARTBEAT_SECONDS": "0.5",
        "PACKHORSE_LEASE_SECONDS": "4",
        "PACKHORSE_POLL_SECONDS": "0.5",
        "PACKHORSE_CALL_DEADLINE_SECONDS": "3",
        "PACKHORSE_METRICS_PORT": "0",
    }


@pytest.fixture
def cli(tmp_path, bouncer, database, environment):
    (tmp_path / "packhorse.toml").write_text(RETENTION)
    database.query("create table orders (id int primary key, done_at timestamptz)")
    database.query("create index on orders (done_at)")
    database.query("insert into orders select n, now() - interval '1 year' from generate_series(1, 50) n")
    return Cli(tmp_path, bouncer.url(database.name), **environment)


def settings_left(bouncer, database) -> set[tuple[str, ...]]:
    """What strangers find in the server connections of this database, of both roles."""
    found = set()
    for role in ("postgres", "worker_role"):
        url = bouncer.url(database.name, role) if role == "postgres" else bouncer.url(database.name)
        with ExitStack() as stack:
            for _ in range(SERVER_CONNECTIONS):  # open transactions: each has a server connection to itself
                connection = stack.enter_context(psycopg.connect(url, prepare_threshold=None))
                found.add(tuple(connection.execute(f"show {name}").fetchone()[0] for name in LEFT_BEHIND))  # type: ignore[index]
    return found


def old_partition(database) -> str:
    day = date.today() - timedelta(days=60)
    name = f"message_archive_{day:%Y%m%d}_old"
    database.query(
        f"create table {name} partition of message_archive for values from ('{day}Z') to ('{day + timedelta(days=1)}Z')"
    )
    return name


def test_every_command_works_again_and_again_and_leaves_nothing_behind(cli, bouncer, database):
    fresh = settings_left(bouncer, database)
    assert len(fresh) == 1, "one look for all server connections"
    effects(database, 3)
    (message, *_) = (row[0] for row in database.query("select id from message_queue order by id"))
    database.query("select bury_message(id) from message_queue where id = %s", message)
    commands = [
        ("migrate", "status"),
        ("migrate", "check"),
        ("enqueue", "effect", '{"key": "x"}', "--allow-unknown-type"),
        ("queue", "list"),
        ("queue", "pause", "default"),
        ("queue", "resume", "default"),
        ("message", "list"),
        ("message", "show", message),
        ("message", "explain", message + 1),
        ("message", "cancel", message + 2),
        ("dead-letter", "groups"),
        ("dead-letter", "list"),
        ("dead-letter", "show", message),
        ("conversations",),
        ("workers",),
        ("stats",),
        ("health",),
        ("doctor",),
        ("top", "--once"),
        ("table-care",),
        ("schedule", "list"),
        ("maintenance", "list"),
        ("maintenance", "plan", "retention.orders"),
        ("maintenance", "run", "retention.orders", "--yes"),
        ("maintenance", "status"),
        ("maintenance", "history"),
        ("partitions", "status"),
        ("partitions", "plan", "message_archive"),
        ("partitions", "make", "message_archive"),
        ("partitions", "check"),
        ("partitions", "history"),
        ("config", "check"),
    ]
    for _ in range(2):
        for command in commands:
            ran = cli(*command)
            assert ran.code in (0, 1), (command, ran)  # 1: health, doctor and check have something to say
            assert "prepared statement" not in ran.out + ran.err, command
    assert database.value("select count(*) from orders") == 0
    assert settings_left(bouncer, database) == fresh
    assert "prepared statements" not in cli("doctor").err


def test_partitions_are_detached_behind_the_pooler(cli, bouncer, database):
    fresh = settings_left(bouncer, database)
    names = [old_partition(database)]
    ran = cli("partitions", "detach", "message_archive", "--yes")
    assert ran.code == 0, ran
    attached = "select count(*) from pg_inherits where inhparent = 'message_archive'::regclass and inhrelid::regclass::text = any (%s)"
    assert database.value(attached, names) == 0
    assert settings_left(bouncer, database) == fresh


def test_an_owner_with_a_direct_connection_says_so(cli, bouncer, database):
    """`maintenance_pooler = false`: the owner's url is direct though the workers' is not."""
    direct = {"PACKHORSE_MAINTENANCE_URL": database.admin_url, "PACKHORSE_MAINTENANCE_POOLER": "false"}
    name = old_partition(database)
    assert cli("maintenance", "run", "retention.orders", "--yes", **direct).code == 0
    assert cli("partitions", "detach", "message_archive", "--yes", **direct).code == 0
    assert database.value("select count(*) from pg_inherits where inhrelid = %s::regclass", name) == 0


def test_the_scheduler_and_the_exporter_work_behind_the_pooler(cli, bouncer, database, tmp_path):
    fresh = settings_left(bouncer, database)
    port = free_port()
    database.query(
        "select set_schedule('tick', 'effect', p_every => interval '1 second', p_overlap => 'allow')"
    )
    cli.environment |= {"PACKHORSE_METRICS_PORT": str(port), "PACKHORSE_FLEET_SECONDS": "1"}
    process = cli.start("scheduler", output=tmp_path / "scheduler.log")
    try:
        wait_until(
            lambda: database.value("select count(*) from message_queue where message_type = 'effect'") >= 3,
            30,
            "planned runs",
        )
        for task in (
            "retention.orders",
            "partitions.message_archive.make",
            "partitions.message_archive.drop",
        ):
            database.query(
                "select enqueue_message('packhorse', 'packhorse.maintenance', jsonb_build_object('task', %s::text))",
                task,
            )
        done = "select count(distinct task) from maintenance_runs where state = 'succeeded'"
        wait_until(lambda: database.value(done) == 3, 40, "maintenance")
        wait_until(
            lambda: "packhorse_queue_messages" in get(port, "/metrics")[1], 20, "what the fleet has counted"
        )
        assert get(port, "/readyz")[0] == 200
    finally:
        os.kill(process.pid, signal.SIGTERM)
        try:
            assert process.wait(30) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    log = (tmp_path / "scheduler.log").read_text()
    assert "prepared statement" not in log and "service_failed" not in log and "Traceback" not in log
    assert settings_left(bouncer, database) == fresh
