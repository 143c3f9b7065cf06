"""Real `packhorse scheduler` processes: killed at random, refusing a bad plan, running maintenance end to end
(SPEC M1, M7, P7).
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from packhorse.worker.db.embedded import Embedded
from packhorse.worker.exits import EXIT_USAGE
from tests.process.test_privacy_and_clock import FAKETIME
from tests.sql.platform.conftest import create_platform_database
from tests.support.cli import Cli
from tests.support.notes import nap
from tests.support.postgres import Server, available_servers, open_for_everyone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

QUICK = {
    "PACKHORSE_HEARTBEAT_SECONDS": "0.5",
    "PACKHORSE_LEASE_SECONDS": "4",
    "PACKHORSE_RESCUE_SECONDS": "0.5",
    "PACKHORSE_POLL_SECONDS": "0.5",
    "PACKHORSE_CALL_DEADLINE_SECONDS": "3",
}


@pytest.fixture
def start_scheduler(tmp_path):
    """Start `packhorse scheduler` in a process group of its own; killed at the end."""
    started = []

    def start(url, *arguments, **environment):
        process = Cli(tmp_path, url, **{**QUICK, **environment}).start(
            "scheduler", *arguments, output=tmp_path / f"scheduler-{len(started)}.log"
        )
        process.log_path = tmp_path / f"scheduler-{len(started)}.log"
        started.append(process)
        return process

    yield start
    for process in started:
        kill(process)


def kill(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(10)


def test_three_schedulers_killed_at_random_decide_each_planned_time_exactly_once(database, start_scheduler):
    """Twenty-five schedules of every second: ten minutes of planned times pass in half a minute."""
    database.query(
        "select set_schedule('tick_' || n, 'effect', p_every => interval '1 second', p_missed => 'all', p_missed_limit => 1000, "
        "p_overlap => 'allow') from generate_series(1, 25) n"
    )
    chance = random.Random(7)
    running = [start_scheduler(database.url) for _ in range(3)]

    def count():
        return database.value("select count(*) from schedule_runs where schedule = 'tick_1'")

    kills = 0
    while (done := count()) < 24:
        wait_until(lambda: count() >= done + 2, 60, "the timetable goes on")
        place = chance.randrange(3)
        kill(running[place])
        kills += 1
        running[place] = start_scheduler(database.url)
    for process in running:
        kill(process)
    wait_until(
        lambda: (
            database.value(
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
                "and application_name like 'packhorse%'"
            )
            == 0
        )
    )
    runs = database.query(
        "select schedule, planned_at, outcome, message_id from schedule_runs where schedule like 'tick%' order by 1, 2"
    )
    assert kills >= 5 and len(runs) >= 25 * 24 - 25
    assert {outcome for _, _, outcome, _ in runs} == {"enqueued"}
    assert all(
        later[1] - earlier[1] == timedelta(seconds=1)
        for earlier, later in pairwise(runs)
        if earlier[0] == later[0]
    )
    assert (
        database.value("select count(*) from message_queue where message_type = 'effect'")
        == len(runs)
        == len({row[3] for row in runs})
    )


class FastServer(Server):
    """Its clock runs twenty times as fast as ours, once `fast` is set and it is started again."""

    fast = False

    def _run(self, program: str, *args: str) -> None:
        if self.fast and program == "pg_ctl":
            args = (
                f"LD_PRELOAD={FAKETIME}",
                "FAKETIME=+0 x20",
                "FAKETIME_DONT_FAKE_MONOTONIC=1",
                str(self._bin / program),
                *args,
            )
            program = "/usr/bin/env"
        super()._run(program, *args)


@pytest.fixture
def fast_database():
    name = next(iter(available_servers()))
    open_for_everyone(available_servers()[name])
    server = FastServer(name, available_servers()[name])
    server.stop()
    server.fast = True
    server.start()
    yield server.create_database()
    server.close()


@pytest.mark.skipif(
    FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install faketime)"
)
@pytest.mark.timeout(300)
def test_ten_minutes_of_the_databases_time_beside_killed_schedulers_have_each_planned_time_once(
    fast_database, start_scheduler
):
    database = fast_database
    began = database.value("select clock_timestamp()")
    database.query(
        "select set_schedule('tick_' || n, 'effect', p_every => interval '1 second', p_missed => 'all', p_missed_limit => 1000, "
        "p_overlap => 'allow') from generate_series(1, 3) n"
    )
    database.query(
        "select set_schedule('minute', 'effect', '* * * * *', p_missed => 'all', p_missed_limit => 1000, p_overlap => 'allow')"
    )
    chance = random.Random(11)
    slow_beats = {"PACKHORSE_LEASE_SECONDS": "120", "PACKHORSE_HEARTBEAT_SECONDS": "0.5"}
    running = [start_scheduler(database.url, **slow_beats) for _ in range(3)]
    decided = "select count(*) from schedule_runs where schedule = 'tick_1'"
    kills = 0
    while database.value(decided) < 600:
        before = database.value(decided)
        wait_until(lambda before=before: database.value(decided) > before, 60, "the timetable goes on")
        nap(chance.random() / 2)  # in the middle of whatever it does
        place = chance.randrange(3)
        kill(running[place])
        kills += 1
        running[place] = start_scheduler(database.url, **slow_beats)
    for process in running:
        kill(process)
    wait_until(
        lambda: (
            database.value(
                "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'packhorse%'"
            )
            == 0
        )
    )
    assert kills >= 5 and database.value("select clock_timestamp()") - began > timedelta(minutes=10)
    runs = database.query(
        "select schedule, planned_at, outcome, message_id from schedule_runs where schedule like 'tick%' or schedule = 'minute' order by 1, 2"
    )
    assert {outcome for _, _, outcome, _ in runs} == {"enqueued"}
    steps = [
        (earlier[0], later[1] - earlier[1]) for earlier, later in pairwise(runs) if earlier[0] == later[0]
    ]
    assert {step for name, step in steps if name == "minute"} == {timedelta(minutes=1)} and len(
        runs
    ) >= 3 * 600 - 300 + 9
    assert {step for name, step in steps if name != "minute"} == {timedelta(seconds=1)}
    assert (
        database.value("select count(*) from message_queue where message_type = 'effect'")
        == len(runs)
        == len({row[3] for row in runs})
    )


def test_the_timetable_goes_on_after_an_outage_and_makes_up_for_it(own_server, start_scheduler):
    """Elsewhere the queue came back and scheduled work did not (FAILURES 36)."""
    database = own_server.create_database()
    database.query(
        "select set_schedule('all', 'effect', p_every => interval '1 second', p_missed => 'all', p_missed_limit => 1000, p_overlap => 'allow')"
    )
    database.query(
        "select set_schedule('once', 'effect', p_every => interval '1 second', p_overlap => 'allow')"
    )
    scheduler = start_scheduler(database.url)
    wait_until(
        lambda: database.value("select count(*) from schedule_runs where schedule = 'once'") >= 2,
        40,
        "the timetable goes on",
    )
    own_server.stop("immediate")
    nap(8)  # the outage
    own_server.start()
    back = database.value("select date_trunc('second', clock_timestamp())")
    wait_until(
        lambda: (
            database.value(
                "select count(*) from schedule_runs where schedule = 'once' and planned_at > %s", back
            )
            >= 2
        ),
        40,
        "it fires again",
    )
    scheduler.send_signal(signal.SIGTERM)
    assert scheduler.wait(30) == 0, scheduler.log_path.read_text()
    assert "Traceback" not in scheduler.log_path.read_text()
    times = [
        row[0]
        for row in database.query("select planned_at from schedule_runs where schedule = 'all' order by 1")
    ]
    assert all(later - earlier == timedelta(seconds=1) for earlier, later in pairwise(times)), (
        "those of the outage were made up, each once"
    )
    assert database.value("select max(missed_count) from schedule_runs where schedule = 'once'") >= 6


def test_a_plan_that_does_not_fit_is_refused_at_the_start_with_every_problem(database, tmp_path):
    database.query("create schema shop")
    database.query("create table shop.orders (id int primary key, done_at timestamptz, note text)")
    (tmp_path / "packhorse.toml").write_text("""
        [retention.a]
        table = "shop.order"
        column = "done_at"
        keep = "7d"
        [retention.b]
        table = "shop.orders"
        column = "note"
        keep = "7d"
        [partitions.c]
        table = "shop.plain"
        column = "done_at"
        every = "day"
        ahead = 1
        keep = 1
        """)
    ran = Cli(tmp_path, database.admin_url)("scheduler")
    assert ran.code == 2
    for text in (
        "[retention.a]: table: there is no table 'shop.order'",
        "Did you mean 'shop.orders'",
        "[retention.b]: column: note is text",
        "[partitions.c]: table: there is no partitioned table",
    ):
        assert text in ran.err, ran.err
    (tmp_path / "packhorse.toml").write_text('[retention.a]\ncolumn = "c"\nkeep = "x"\n[gates]\nlag = 1')
    ran = Cli(tmp_path, database.admin_url)("scheduler")
    assert ran.code == 2 and "[retention.a]: keep" in ran.err and "[gates]: lag" in ran.err


def test_a_reload_with_a_plan_that_is_wrong_is_refused_and_the_timetable_goes_on(
    database, start_scheduler, tmp_path
):
    database.query(
        "select set_schedule('tick', 'effect', p_every => interval '1 second', p_overlap => 'allow')"
    )
    scheduler = start_scheduler(database.url)

    def fired():
        return database.value("select count(*) from schedule_runs where schedule = 'tick'")

    wait_until(lambda: "timetable_declared" in scheduler.log_path.read_text() and fired(), 40)
    (tmp_path / "packhorse.toml").write_text('[schedules.report]\ncrom = "0 7 * * *"\n')
    scheduler.send_signal(signal.SIGHUP)
    wait_until(lambda: "reload_refused" in scheduler.log_path.read_text(), 20)
    assert "did you mean 'cron'?" in scheduler.log_path.read_text()
    before = fired()
    wait_until(lambda: fired() > before, 20)
    assert "child_exited" not in scheduler.log_path.read_text()


@pytest.mark.parametrize(
    "modules", [["tests.support.actors"], []], ids=["an actor that is loaded", "a live worker"]
)
def test_a_schedule_whose_messages_nobody_takes_is_said_at_the_start(
    database, ledger, start_daemon, start_scheduler, tmp_path, modules
):
    (tmp_path / "packhorse.toml").write_text(
        "[schedules.report]\nmessage_type = 'effect'\nqueue = 'defualt'\ncron = '0 7 * * *'\n"
        "[schedules.good]\nmessage_type = 'effect'\ncron = '0 7 * * *'\n"
    )
    if not modules:
        start_daemon(database, ledger).wait_ready()
    scheduler = start_scheduler(database.url, *modules)
    wait_until(lambda: "timetable_declared" in scheduler.log_path.read_text(), 40)
    (line,) = [line for line in scheduler.log_path.read_text().splitlines() if "schedule_unserved" in line]
    assert '"schedule": "report", "message_type": "effect", "queue": "defualt", "near": "default"' in line


def test_up_with_a_plan_that_is_wrong_ends_with_the_code_of_a_wrong_configuration(database, tmp_path):
    (tmp_path / "packhorse.toml").write_text('[schedules.report]\ncrom = "0 7 * * *"\n')
    ran = Cli(tmp_path, database.admin_url)("up", "tests.support.actors")
    assert ran.code == EXIT_USAGE and "did you mean 'cron'?" in ran.err


def test_a_task_runs_as_a_message_from_the_command_line_to_the_history(database, start_scheduler, tmp_path):
    database.query("create schema shop")
    database.query("grant usage on schema shop to packhorse_worker")
    database.query("create table shop.orders (id int primary key, done_at timestamptz)")
    database.query("grant all on shop.orders to packhorse_worker")
    database.query(
        "insert into shop.orders select n, now() - interval '1 year' from generate_series(1, 50) n"
    )
    (tmp_path / "packhorse.toml").write_text(
        '[retention.orders]\ntable = "shop.orders"\ncolumn = "done_at"\nkeep = "7d"\ncron = "0 0 1 1 *"\n'
        '[schedules.report]\nmessage_type = "effect"\ncron = "0 0 1 1 *"\n'
    )
    scheduler = start_scheduler(database.url)
    cli = Cli(tmp_path, database.url, USER="ada", LOGNAME="ada")
    wait_until(
        lambda: database.value("select count(*) from schedules where name = 'retention.orders'") == 1,
        30,
        "the timetable is written",
    )
    assert database.query("select source from schedules where name = 'report'") == [("toml",)]
    ran = cli("schedule", "run", "retention.orders", "--json", "--reason", "test")
    assert ran.code == 0, ran.err
    message = ran.document["message_id"]
    wait_until(lambda: database.value("select count(*) from shop.orders") == 0, 40, "retention ran")
    run = wait_until(
        lambda: next(
            (
                row
                for row in cli("schedule", "history", "retention.orders", "--json").document
                if row["outcome"] == "done"
            ),
            None,
        ),
        40,
        "the history shows done",
    )
    assert (run["message_id"], run["triggered_by"]) == (message, "ada")
    (done,) = cli("maintenance", "history", "retention.orders", "--json").document
    assert (done["state"], done["rows_done"], done["triggered_by"]) == ("succeeded", 50, "schedule")
    assert cli("message", "show", message, "--json").document["state"] == "done"
    # a task that fails: attempts, the dead letter of a message, and the history says so
    database.query(
        "create function shop.no() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$"
    )
    database.query("create trigger no before delete on shop.orders for each row execute function shop.no()")
    database.query("insert into shop.orders values (1, now() - interval '1 year')")
    cli("schedule", "run", "retention.orders")
    wait_until(
        lambda: (
            database.value(
                "select count(*) from maintenance_runs where task = 'retention.orders' and state = 'failed'"
            )
            >= 1
        ),
        40,
    )
    scheduler.send_signal(signal.SIGTERM)
    assert scheduler.wait(30) == 0, scheduler.log_path.read_text()


def test_what_a_stopping_scheduler_pauses_the_next_one_goes_on_with_at_once(
    database, start_scheduler, tmp_path
):
    """A deployment at the wrong minute paused a daily run until the next night; a kill did not."""
    database.query("create schema shop")
    database.query("create table shop.orders (id int primary key, done_at timestamptz not null)")
    database.query(
        "insert into shop.orders select n, now() - interval '30 days' from generate_series(1, 500) n"
    )
    database.query("create index on shop.orders (done_at)")
    database.query("grant usage on schema shop to packhorse_worker")
    database.query("grant select, update, delete on shop.orders to packhorse_worker")
    line = '[retention.orders]\ntable = "shop.orders"\ncolumn = "done_at"\nkeep = "7d"\ncron = "0 0 1 1 *"\nbatch = 5\npause_ratio = '
    (tmp_path / "packhorse.toml").write_text(f"{line}100.0\n")
    first = start_scheduler(database.url)
    wait_until(
        lambda: database.value("select count(*) from schedules where name = 'retention.orders'") == 1,
        30,
        "the timetable is written",
    )
    database.query("select run_schedule_now('retention.orders')")
    wait_until(lambda: database.value("select count(*) from shop.orders") < 500, 40, "it has begun")
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0, first.log_path.read_text()
    assert database.value("select state from maintenance_runs where task = 'retention.orders'") == "paused"
    (tmp_path / "packhorse.toml").write_text(f"{line}0.0\n")
    start_scheduler(database.url)
    ended = "select state, resumed, rows_done from maintenance_runs where task = 'retention.orders'"
    wait_until(lambda: database.query(ended) == [("succeeded", 1, 500)], 40, "it went on")
    database.query("drop schema shop cascade")


def test_retention_that_waits_at_a_closed_gate_keeps_no_job_waiting(database, start_scheduler, tmp_path):
    """A long report closed a gate: retention runs filled every thread for their whole budgets, and due
    reminders waited behind them.
    """
    (tmp_path / "packhorse.toml").write_text("[gates]\nconnections_ratio = 0.0\n")
    start_scheduler(database.url)
    tasks = ("message_dedup", "message_results", "dead_letters", "schedule_runs", "processed_messages")
    wait_until(
        lambda: database.value("select count(*) from schedules where name = 'job.dead_workers'") == 1,
        30,
        "the timetable is written",
    )
    for task in tasks:
        database.query("select run_schedule_now(%s)", f"retention.{task}")
    wait_until(
        lambda: database.value("select count(*) from maintenance_runs where gate = 'connections_ratio'") >= 2,
        30,
        "some wait at the gate",
    )
    database.query("select run_schedule_now('job.dead_workers')")
    ended = "select count(*) from maintenance_runs where task = 'job.dead_workers' and state = 'succeeded'"
    wait_until(lambda: database.value(ended) >= 1, 30, "a job without gates runs beside them")
    assert (
        database.value("select count(*) from maintenance_runs where kind = 'retention' and state = 'running'")
        == 2
    )


def test_due_reminders_become_messages_where_the_platform_is(server, start_scheduler, tmp_path):
    database = create_platform_database(server)
    try:
        database.query("select declare_queue('reminders')")
        database.query("insert into companies (id, name) values (1, 'Salon')")
        database.query(
            "insert into reminders (company_id, phone, queue, message_type, remind_at) values "
            "(1, '250788000456', 'reminders', 'effect', now() - interval '1 minute')"
        )
        start_scheduler(database.url)
        cli = Cli(tmp_path, database.url)
        wait_until(
            lambda: database.value("select count(*) from schedules where name = 'job.due_reminders'") == 1,
            30,
            "the timetable is written",
        )
        tasks = {row["task"]: row["state"] for row in cli("maintenance", "list", "--json").document}
        assert (
            tasks["partitions.messages.make"] != "absent" and tasks["retention.platform_events"] != "absent"
        )
        cli("schedule", "run", "job.due_reminders")
        wait_until(
            lambda: database.value("select count(*) from message_queue where queue = 'reminders'") == 1,
            40,
            "the reminder is a message",
        )
        # the partitions of the platform, by the function with its owner's rights: the worker owns nothing
        ran = cli("partitions", "make", "messages", "--json")
        assert ran.document["state"] == "succeeded", ran.err
        status = {row["table"]: row for row in cli("partitions", "status", "--json").document}
        assert status["messages"]["runway_days"] > 140
        assert "only its owner" in cli("partitions", "drop", "messages", "--yes").err
        owner = Cli(tmp_path, database.url, PACKHORSE_MAINTENANCE_URL=database.admin_url)
        assert owner("partitions", "drop", "messages", "--yes", "--json").document["state"] == "succeeded"
        for task in sorted(task for task in tasks if task.startswith("job.")):
            assert cli("maintenance", "run", task, "--json").document["state"] == "succeeded", task
    finally:
        database.drop()


def events(process):
    return [json.loads(line) for line in process.log_path.read_text().splitlines() if line.startswith("{")]


MONTHS = "select count(*) from pg_inherits where inhparent = 'messages'::regclass"


def test_a_scheduler_makes_missing_months_at_its_start_and_says_once_what_it_may_not_do(
    server, start_scheduler, tmp_path
):
    database = create_platform_database(server)
    try:
        for (name,) in database.query(
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'messages'::regclass"
        ):
            database.query(f"drop table {name}")
        (tmp_path / "packhorse.toml").write_text(
            '[retention.processed_messages]\nkeep = "90d"\n[retention.dead_letters]\nenabled = false\n'
        )
        scheduler = start_scheduler(database.url)
        wait_until(
            lambda: database.value(MONTHS) == 6, 30, "the months are made, though their cron is hours away"
        )
        wait_until(lambda: "timetable_declared" in scheduler.log_path.read_text(), 30)
        assert database.value("select count(*) from schedules where name = 'partitions.messages.drop'") == 0
        wait_until(
            lambda: (
                database.value("select retention_keep('processed_messages', '7 days')") == timedelta(days=90)
            ),
            10,
        )
        assert database.value("select retention_keep('dead_letters', '30 days')") is None
        problems = [event["problem"] for event in events(scheduler) if event["event"] == "plan_warning"]
        (said,) = [problem for problem in problems if "partitions.messages" in problem]
        assert (
            "only the owner of messages" in said
            and "set maintenance_url to a connection of that role" in said
        )
        ran = Cli(tmp_path, database.url)("maintenance", "list", "--json")
        row = next(row for row in ran.document if row["task"] == "partitions.messages.drop")
        assert (ran.code, row["state"]) == (0, "left out") and "maintenance_url" in row["problem"]
    finally:
        database.drop()


def test_a_scheduler_that_is_the_owner_drops_months_and_makes_partitions_of_other_tables_at_its_start(
    server, start_scheduler, tmp_path
):
    database = create_platform_database(server)
    try:
        database.query("create schema shop")
        database.query("create table shop.events (at timestamptz) partition by range (at)")
        (tmp_path / "packhorse.toml").write_text(
            '[partitions.events]\ntable = "shop.events"\ncolumn = "at"\nevery = "day"\nahead = 2\nkeep = 5\nmake_cron = "0 0 1 1 *"\n'
        )
        scheduler = start_scheduler(database.url, PACKHORSE_MAINTENANCE_URL=database.admin_url)
        wait_until(lambda: "timetable_declared" in scheduler.log_path.read_text(), 40)
        assert database.value("select count(*) from schedules where name = 'partitions.messages.drop'") == 1
        assert [event for event in events(scheduler) if event["event"] == "plan_warning"] == []
        made = "select count(*) from pg_inherits where inhparent = 'shop.events'::regclass"
        wait_until(lambda: database.value(made) == 3, 30, "made at the start, though the cron is months away")
    finally:
        database.drop()


def test_on_the_embedded_server_the_owner_is_known():
    """`packhorse up` knew it; a scheduler of its own on the same server did not."""
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp") as name:
        folder = Path(name)
        with Embedded(folder / ".packhorse") as server:
            server.prepare()
            connection = connect(server.owner_url, deadline_seconds=120)
            migrate.up(connection, sets=["platform"])
            process = Cli(folder, **QUICK).start("scheduler", output=folder / "log")
            try:
                look = "select count(*) from packhorse.schedules where name = 'partitions.messages.drop'"
                wait_until(
                    lambda: connection.execute(look).fetchone() == (1,),
                    40,
                    "the task of the owner is in the timetable",
                )
            finally:
                kill(process)
                connection.close()
