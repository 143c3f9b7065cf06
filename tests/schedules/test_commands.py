"""packhorse schedule, maintenance, partitions, table-care and config check: good and bad input, JSON, exit
codes (SPEC M7, O5).
"""

from __future__ import annotations

import pytest

from tests.support.cli import Cli

pytestmark = pytest.mark.slow

ORDERS = '[retention.orders]\ntable = "shop.orders"\ncolumn = "done_at"\nkeep = "7d"\n'
EVENTS = '[partitions.events]\ntable = "shop.events"\ncolumn = "at"\nevery = "month"\nahead = 2\nkeep = 2\ngrace = 0\n'


@pytest.fixture
def cli(tmp_path, database):
    """The owner's command line in a folder with a packhorse.toml; the tables exist."""
    (tmp_path / "packhorse.toml").write_text(ORDERS + EVENTS)
    database.query("create schema shop")
    database.query("create table shop.orders (id int primary key, done_at timestamptz)")
    database.query(
        "insert into shop.orders select n, now() - interval '1 year' from generate_series(1, 50) n"
    )
    database.query("create index on shop.orders (done_at)")
    database.query("create table shop.events (id int, at timestamptz) partition by range (at)")
    database.query(
        "create table shop.old partition of shop.events for values from ('2020-01-01Z') to ('2020-02-01Z')"
    )
    return Cli(tmp_path, database.admin_url, USER="ada", LOGNAME="ada")


def test_schedules_are_listed_shown_paused_and_run(cli, database):
    database.query(
        "select set_schedule('daily-report', 'effect', '30 2 * * *', p_time_zone => 'Europe/Berlin')"
    )
    (row,) = cli("schedule", "list", "--json").document
    assert (row["name"], row["trigger"], row["paused"], row["problem"]) == (
        "daily-report",
        "30 2 * * *",
        False,
        None,
    )
    assert "daily-report" in cli("schedule", "list").out
    shown = cli("schedule", "show", "daily-report", "--json").document
    assert (shown["message_type"], shown["missed"], shown["payload"]) == ("effect", "once", {})
    times = cli("schedule", "next", "daily-report", "-n", "3", "--json").document
    assert len(times) == 3 and all(
        "T02:30:00+" in time["local_time"] or "T03:30:00+" in time["local_time"] for time in times
    )
    assert cli("schedule", "pause", "daily-report", "--json").document == {
        "schedule": "daily-report",
        "paused": True,
        "changed": True,
    }
    assert "was paused already" in cli("schedule", "pause", "daily-report").out
    assert cli("schedule", "resume", "daily-report", "--json").document["changed"] is True
    message = cli("schedule", "run", "daily-report", "--json", "--reason", "why").document["message_id"]
    (run,) = cli("schedule", "history", "daily-report", "--json").document
    assert (run["message_id"], run["triggered_by"], run["outcome"]) == (message, "ada", "enqueued")
    assert database.query("select operator, reason from operator_actions where action = 'run_schedule'") == [
        ("ada", "why")
    ]


@pytest.mark.parametrize("command", ["show", "next", "run", "pause", "resume", "history"])
def test_an_unknown_schedule_is_refused_with_a_near_miss(cli, database, command):
    database.query("select set_schedule('daily-report', 'effect', '30 2 * * *')")
    ran = cli("schedule", command, "daily", "--json")
    assert ran.code in (1, 2) and ran.error["field"] == "schedule" and "daily-report" in ran.error["hint"]


def test_an_unusable_line_is_a_clear_error_of_schedule_next(cli, database):
    database.query("select set_schedule('s', 'effect', '99 * * * *')")
    ran = cli("schedule", "next", "s", "--json")
    assert ran.code != 0 and ran.error["field"] == "cron"


def test_maintenance_is_listed_planned_run_and_remembered(cli, database):
    tasks = {row["task"]: row for row in cli("maintenance", "list", "--json").document}
    assert (
        tasks["retention.orders"]["state"] == "never ran"
        and tasks["retention.platform_events"]["state"] == "absent"
    )
    assert {"partitions.events.make", "partitions.events.drop", "job.dead_workers"} <= set(tasks)
    planned = cli("maintenance", "plan", "retention.orders", "--json").document
    assert planned["rows"] == 50 and planned["bytes"] > 0
    assert cli("maintenance", "run", "retention.orders", "--dry-run", "--json").document["rows"] == 50
    refused = cli("maintenance", "run", "retention.orders", "--json")
    assert (
        refused.code == 2
        and refused.error["field"] == "yes"
        and "Delete 50 rows of shop.orders" in refused.error["hint"]
    )
    assert database.value("select count(*) from shop.orders") == 50
    assert cli("maintenance", "run", "retention.orders", "--yes", "--json").document == {
        "task": "retention.orders",
        "state": "succeeded",
        "rows": 50,
    }
    assert "succeeded, 0 rows" in cli("maintenance", "run", "retention.orders").out  # nothing to confirm
    first, second = cli("maintenance", "history", "--json").document[::-1]
    assert (first["rows_done"], second["rows_done"], first["triggered_by"]) == (50, 0, "ada")
    assert {gate["gate"] for gate in cli("maintenance", "status", "--json").document["gates"]} == {
        "replication_lag_seconds",
        "autovacuum_on_table",
        "oldest_snapshot_seconds",
        "connections_ratio",
        "queue_latency_seconds",
    }
    assert cli("maintenance", "cancel", "retention.orders", "--json").document == {
        "task": "retention.orders",
        "answer": "nothing",
    }


@pytest.mark.parametrize("command", [("plan",), ("run", "--yes"), ("cancel",)])
def test_an_unknown_task_is_refused_with_a_near_miss(cli, command):
    ran = cli("maintenance", command[0], "retention.order", *command[1:], "--json")
    assert ran.code in (1, 2) and ran.error["field"] == "task" and "retention.orders" in ran.error["hint"]


def test_a_broken_policy_is_shown_by_list_and_fails_its_run_alone(cli, database, tmp_path):
    (tmp_path / "packhorse.toml").write_text(
        ORDERS + ORDERS.replace(".orders", ".broken", 1) + 'where = "nothing = 1"\n'
    )
    ran = cli("maintenance", "list", "--json")
    broken = next(row for row in ran.document if row["task"] == "retention.broken")
    assert ran.code == 1 and 'column "nothing" does not exist' in broken["problem"]
    assert cli("maintenance", "run", "retention.broken", "--yes").code == 2
    assert cli("maintenance", "run", "retention.orders", "--yes").code == 0


def test_partitions_are_shown_checked_made_and_dropped(cli, database):
    row = next(row for row in cli("partitions", "status", "--json").document if row["policy"] == "events")
    assert row["partitions"] == 1 and row["runway_days"] == 0 and "runway is short" in row["problem"]
    checked = cli("partitions", "check", "--json")
    assert checked.code == 1 and "events" in [row["policy"] for row in checked.document]
    assert [step["action"] for step in cli("partitions", "plan", "events", "--json").document] == [
        "make"
    ] * 3 + ["detach"]
    assert [
        step["action"] for step in cli("maintenance", "plan", "partitions.events.drop", "--json").document
    ] == ["detach"]
    assert cli("partitions", "make", "events", "--json").document == {
        "task": "partitions.events.make",
        "state": "succeeded",
    }
    assert cli("partitions", "make", "message_archive").code == 0
    assert cli("partitions", "check").code == 0
    assert cli("partitions", "detach", "events").code == 2  # asks
    assert cli("partitions", "detach", "events", "--yes", "--json").document == {
        "policy": "events",
        "detached": 1,
    }
    (detached,) = cli("partitions", "history", "--json").document
    assert (detached["partition"], detached["dropped_at"]) == ("shop.old", None)
    assert cli("partitions", "drop", "events").code == 2  # asks
    assert cli("partitions", "drop", "events", "--yes", "--json").document["state"] == "succeeded"
    (dropped,) = cli("partitions", "history", "--json").document
    assert (dropped["partition"], dropped["dropped_at"] is not None) == ("shop.old", True)
    assert cli("partitions", "drain", "events", "--yes", "--json").document == {"policy": "events", "rows": 0}


@pytest.mark.parametrize("command", ["plan", "make", "detach", "drop", "drain"])
def test_an_unknown_partition_policy_is_refused_with_a_near_miss(cli, command):
    ran = cli("partitions", command, "event", "--json")
    assert ran.code == 2 and ran.error["field"] == "policy" and "'events'" in ran.error["hint"]


def test_table_care_estimates_empty_space_and_looks_at_partitions(cli, database):
    database.query(
        "create table loose (id bigint primary key, body text); insert into loose select n, repeat('x', 200) from generate_series(1, 30000) n"
    )
    database.query("create table parts (at timestamptz not null) partition by range (at)")
    database.query("create table parts_rest partition of parts default")
    database.query("insert into parts select now() from generate_series(1, 7)")
    with database.connect(admin=True) as admin:
        admin.execute("delete from loose where id % 10 <> 0")
        admin.execute("vacuum analyze loose")
        admin.execute("vacuum analyze parts")
    report = cli("table-care", "--json").document
    tables = {row["table"]: row for row in report["tables"]}
    assert 0.8 < tables["loose"]["bloat_ratio"] < 0.95, tables["loose"]
    partitions = {row["table"]: row for row in report["partitions"]}
    assert partitions["parts"]["default_rows"] == 7 and "drain" in partitions["parts"]["advice"]
    assert (
        partitions["packhorse.message_archive"]["partitions"] == 8
        and partitions["packhorse.message_archive"]["advice"] is None
    )


def test_table_care_says_that_there_are_snapshots_which_the_role_may_not_see(tmp_path, database):
    cli = Cli(tmp_path, database.url)
    with database.connect(admin=True) as reporter:
        reporter.execute("begin isolation level repeatable read")
        reporter.execute("select 1")
        (hidden,) = [
            row for row in cli("table-care", "--json").document["snapshots"] if row["state"] == "hidden"
        ]
        assert hidden["age_seconds"] is None and hidden["advice"].startswith(
            "grant pg_read_all_stats to packhorse_test"
        )


def test_table_care_reports_with_statements_and_changes_nothing(cli, database):
    database.query("create table shop.t (id smallint primary key)")
    report = cli("table-care", "--json").document
    assert set(report) == {"tables", "partitions", "indexes", "sequences", "snapshots"} and report["tables"]
    assert "tables" in cli("table-care").out


def test_config_check_reports_all_problems_and_exits_2(cli, tmp_path):
    assert cli("config", "check", "--json").document == {"ok": True, "not_compared": None, "warnings": []}
    assert cli("config", "check", "--offline", "--json").document == {
        "ok": True,
        "not_compared": "--offline",
        "warnings": [],
    }
    (tmp_path / "packhorse.toml").write_text(
        "treads = 3\n[retension.x]\nkeep = 1\n"
        + ORDERS
        + "btach = 5\n"
        + EVENTS
        + "grase = 1\n[gates]\nlag = 1\n"
    )
    ran = cli("config", "check")
    assert ran.code == 2
    for text in (
        "treads",
        "retension",
        "btach: there is no such field; did you mean 'batch'",
        "grase: there is no such field; did you mean 'grace'",
        "[gates]: lag",
    ):
        assert text in ran.err, ran.err


def test_config_check_compares_policies_with_the_database(cli, database, tmp_path):
    database.query("create table shop.baskets (id bigint primary key, done_at timestamptz)")
    database.query("grant all on shop.baskets to packhorse_worker")
    policies = tmp_path / "packhorse.toml"
    policies.write_text(
        '[retention.a]\ntable = "shop.basket"\ncolumn = "done_at"\nkeep = "7d"\n[retention.b]\ntable = "shop.baskets"\ncolumn = "doneat"\nkeep = "7d"\n'
        '[retention.c]\ntable = "shop.baskets"\ncolumn = "done_at"\nkeep = "7d"\nwhere = "done_at = = 1"\n'
        '[retention.d]\ntable = "message_queue"\ncolumn = "created_at"\nkeep = "7d"\n[schedules.e]\nmessage_type = "x"\ncron = "never"\n'
        '[retention.processed_messages]\nkeep = "1s"\n'
    )
    ran = cli("config", "check")
    assert ran.code == 2
    for text in (
        "[retention.a]: ",
        "Did you mean 'shop.baskets'",
        "Did you mean 'done_at'",
        "[retention.c]: where: ",
        "[retention.d]: ",
        "[schedules.e]: cron",
        "[retention.processed_messages]: keep: 1 s is shorter than the longest backoff",
    ):
        assert text in ran.err, ran.err
    policies.write_text('[retention.a]\ntable = "shop.baskets"\ncolumn = "done_at"\nkeep = "7d"\n')
    database.query(
        "insert into shop.baskets select n, now() from generate_series(1, 20000) n; analyze shop.baskets"
    )
    ran = cli("config", "check", "--json")
    assert (
        ran.document["ok"]
        and "create index" in ran.document["warnings"][0]
        and "warning: [retention.a]" in ran.err
    )


def test_config_check_without_a_database_says_what_it_could_not_see(tmp_path, empty_database):
    nowhere = Cli(tmp_path, "postgresql://nobody@localhost:1/none?connect_timeout=2")
    for cli, reason in (
        (nowhere, "connection"),
        (Cli(tmp_path), "database_url"),
        (Cli(tmp_path, empty_database.url), "schema"),
    ):
        ran = cli("config", "check")
        assert ran.code == 0 and "not compared with a database" in ran.out and reason in ran.out, ran.out


def test_without_a_database_each_command_says_so_and_exits_69(tmp_path):
    cli = Cli(tmp_path, "postgresql://nobody@localhost:1/none?connect_timeout=2")
    for command in (("schedule", "list"), ("maintenance", "list"), ("partitions", "status"), ("table-care",)):
        ran = cli(*command, "--json")
        assert ran.code == 69 and ran.error["code"] == "unavailable", command


def test_a_database_without_the_schema_is_named_as_such_by_every_command(empty_database, tmp_path):
    cli = Cli(tmp_path, empty_database.admin_url)
    for command in (
        ("scheduler",),
        ("schedule", "list"),
        ("maintenance", "list"),
        ("partitions", "status"),
        ("table-care",),
    ):
        ran = cli(*command)
        assert ran.code == 78 and "packhorse migrate up" in ran.err, (command, ran)
