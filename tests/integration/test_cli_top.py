"""packhorse top: one frame for scripts; a live session on a real pseudo-terminal, ended by q and by Ctrl-C
(SPEC O5).
"""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest

from packhorse.worker.exits import EXIT_OK, EXIT_SCHEMA, EXIT_UNAVAILABLE, EXIT_USAGE
from tests.support.accounting import effects, wait_for_end
from tests.support.cli import Cli
from tests.support.proxy import Proxy
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.one_database]

HOLDER = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def cli(tmp_path, database):
    return Cli(tmp_path, database.url)


@pytest.fixture
def terminal():
    with ExitStack() as opened:
        yield lambda cli, *options: opened.enter_context(Terminal(cli, "top", *options))


def fill(database):
    database.query(
        "select enqueue_message('default', 'reply', '{\"phone\": \"250788000456\"}', p_conversation_key => 'wa:250788000456') from generate_series(1, 3)"
    )
    database.query("select * from claim_messages(%s, '{default}', 1, '5 minutes')", HOLDER)
    database.query("update message_queue set state = 'blocked' where state = 'pending'")
    database.query("select enqueue_message('default', 'late')")
    database.query(
        "update message_queue set run_at = clock_timestamp() - interval '3 hours' where message_type = 'late'"
    )
    database.query(
        "select register_worker(%s, 'host-1', 4711, '1', '{default}', '{reply}', 8, interval '20 seconds')",
        HOLDER,
    )
    database.query(
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, fingerprint, attempt, "
        "crashes, created_at) values (999, 'default', 'reply', '{}', '{}', 5, 'failed', 'TimeoutError', 'call 250788000456', 'f', 3, 0, now())"
    )
    database.query("select * from start_maintenance_run('old_events', 'retention', 'ann')")
    database.query("update maintenance_runs set gate = 'replication_lag_seconds'")


def test_one_frame_shows_everything(cli, database):
    fill(database)
    ran = cli("top", "--once")
    assert ran.code == EXIT_OK and ran.err == ""
    for line in (
        "default",
        "late",
        "3h",
        "host-1",
        "0 of 8 threads busy",
        "BLOCKED CONVERSATIONS 1",
        "for running",
        "DEAD LETTERS 1 in the last hour, 1 kept",
        "TimeoutError",
        "old_events",
        "held by replication_lag_seconds",
    ):
        assert line in ran.out, line
    assert "2507" not in ran.out, "people stay out of it"


def test_what_a_worker_cannot_do_is_on_its_line(cli, database):
    database.query(
        "select register_worker(%s, 'host-1', 4711, '1', '{default}', '{reply}', 8, interval '20 seconds', p_problems => %s)",
        HOLDER,
        ["beat has failed for 31 s (42501)", "rescue has failed for 20 s (42501)"],
    )
    (line,) = [line for line in cli("top", "--once").out.splitlines() if "host-1" in line]
    assert line.endswith("beat has failed for 31 s (42501) and 1 more")
    assert "beat has failed for 31 s (42501); rescue has failed" in cli("workers").out
    assert cli("workers", "--json").document[0]["problems"][0] == "beat has failed for 31 s (42501)"
    ran = cli("health", "--check", "system_summary")
    assert ran.code == 1 and "host-1 pid 4711: beat has failed for 31 s (42501) and 1 more" in ran.out


def test_a_count_that_stopped_at_its_limit_is_marked_and_an_undeclared_queue_is_shown(cli, database):
    database.query(
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, created_at) "
        "select n, 'default', 'reply', '{}', '{}', 5, 'failed', 'f', 3, 0, now() from generate_series(1, 10001) n"
    )
    database.query("insert into message_queue (queue, message_type) values ('nowhere', 'reply')")
    lines = cli("top", "--once").out.splitlines()
    assert "DEAD LETTERS 10000+ in the last hour, 10000+ kept" in lines
    assert [line.split()[0] for line in lines if "not declared" in line] == ["nowhere"]


def test_a_large_fleet_is_counted_whole(cli, database):
    database.query(
        "select register_worker(gen_random_uuid(), 'host-' || n, n, '1', '{default}', '{reply}', 4, interval '1 minute') from generate_series(1, 250) n"
    )
    lines = cli("top", "--once").out.splitlines()
    assert any(line.startswith("WORKERS 250, 0 of 1000 threads busy") for line in lines)


def test_an_empty_queue_has_a_frame_and_a_pipe_gets_one_frame(cli):
    for arguments in (["--once"], []):
        ran = cli("top", *arguments)
        assert ran.code == EXIT_OK and "MAINTENANCE nothing runs" in ran.out and "\x1b" not in ran.out


def test_no_database_is_exit_69_no_schema_78_and_a_wrong_interval_2(tmp_path, empty_database, cli):
    assert Cli(tmp_path, "postgresql://u@127.0.0.1:1/x")("top", "--once").code == EXIT_UNAVAILABLE
    assert Cli(tmp_path, empty_database.admin_url)("top", "--once").code == EXIT_SCHEMA
    assert cli("top", "--interval", "soon").code == EXIT_USAGE


@pytest.mark.parametrize("end", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_a_live_session_ends_cleanly(cli, database, terminal, end):
    fill(database)
    session = terminal(cli, "--interval", "200ms")
    session.shows("DEAD LETTERS 1")
    database.query("select enqueue_message('default', 'another') from generate_series(1, 500)")
    session.shows("501")
    session.type(end)
    assert session.process.wait(20) == EXIT_OK
    wait_until(lambda: "\x1b[?1049l" in session.text, message="the screen is given back")
    assert "Traceback" not in session.text and "MAINTENANCE" not in session.text.split("\x1b[?1049l")[1]
    assert session.is_given_back


def test_sigterm_ends_it_as_well(cli, terminal):
    session = terminal(cli)
    session.shows("MAINTENANCE")
    session.process.terminate()
    assert session.process.wait(20) == EXIT_OK
    assert session.is_given_back


def beat(database, worker, done, failed, running=0):
    database.query(
        "select from beat_worker(%s, '{}', '{}', '20 seconds', 'running', %s, %s, p_running => %s)",
        worker,
        done,
        failed,
        running,
    )


def workers_line(cli):
    lines = cli("top", "--once", COLUMNS="80").out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("WORKERS"))
    head = lines[start]
    for line in lines[start + 1 :]:
        if not line.startswith("  ") or "host-" in line:
            break
        head += line[1:]
    return head


def test_rates_are_those_between_heartbeats_over_a_stated_time(cli, database):
    other = HOLDER.replace("1", "2")
    for worker in (HOLDER, other):
        database.query(
            "select register_worker(%s, 'host-1', 4711, '1', '{default}', '{reply}', 10, interval '20 seconds')",
            worker,
        )
    assert "- done/s, - failed/s" in workers_line(cli), "nothing to compare with"
    beat(database, HOLDER, 0, 0)
    assert "- done/s" in workers_line(cli)
    for number in range(1, 6):
        beat(database, HOLDER, number * 600, number * 6, running=7)
    assert database.value(
        "select recent_counts[2:3] || recent_counts[11:12] from workers where id = %s", HOLDER
    ) == [3000, 30, 1200, 12], "the last four"
    counts = (
        "update workers set running = %s, recent_counts = %s, last_seen_at = clock_timestamp() where id = %s"
    )
    database.query(counts, 7, [1018, 3000, 30, 1012, 2400, 24, 1006, 1800, 18, 1000, 1200, 12], HOLDER)
    database.query(counts, 2, [1006, 1060, 0, 1000, 1000, 0], other)
    assert workers_line(cli).startswith(
        "WORKERS 2, 9 of 20 threads busy, 110.0 done/s, 1.0 failed/s over 18s"
    )
    for _ in range(3):
        assert "110.0 done/s" in workers_line(cli), "a look in between changes nothing"
    database.query("update workers set last_seen_at = clock_timestamp() where id = %s", HOLDER)
    database.query(
        "update workers set last_seen_at = clock_timestamp() - interval '7 seconds' where id = %s", other
    )
    assert re.search(r"over 18s, as of ([7-9]|\d\d)s ago$", workers_line(cli))


def test_of_a_working_daemon_the_rate_and_the_busy_threads_are_true(cli, database, ledger, start_daemon):
    """Against what was done between the same heartbeats."""
    from packhorse.worker.db.connection import connect
    from packhorse.worker.store.top import look

    daemon = start_daemon(database, ledger, threads=4, heartbeat_seconds=0.3).wait_ready()
    effects(database, 400, seconds=0.02)
    connection = connect(database.url)

    def four_heartbeats():
        (row,) = look(connection).workers
        return (
            row
            if row["running"] and database.value("select cardinality(recent_counts) = 12 from workers")
            else None
        )

    wait_until(four_heartbeats)
    with database.session() as admin, admin.transaction():  # one instant
        (counts,) = admin.execute("select recent_counts from workers for update").fetchone()
        (row,) = look(connection).workers
    assert row["seconds"] == pytest.approx(counts[0] - counts[9])
    assert (
        row["done_per_second"] == pytest.approx((counts[1] - counts[10]) / row["seconds"])
        and row["done_per_second"] > 0
    )
    assert 1 <= row["running"] <= 4
    connection.close()
    wait_for_end(database)
    wait_until(lambda: database.value("select done_total from workers") == 400)
    assert daemon.stop() == 0


def test_a_frame_fits_the_terminal_whatever_there_is(cli, database, terminal):
    fill(database)
    for number in range(40):
        database.query("select declare_queue(%s)", f"a_queue_with_a_name_that_is_rather_long_{number}")
        database.query(
            "select register_worker(gen_random_uuid(), 'a-host-with-a-name-that-is-long', 1, '1', '{default}', '{t}', 4, interval '1 hour')"
        )
    session = terminal(cli)
    session.shows("MAINTENANCE")
    from packhorse.worker.cli.top_frame import frame
    from packhorse.worker.db.connection import connect
    from packhorse.worker.store.top import look

    connection = connect(database.url)
    for width, height in ((80, 24), (40, 10), (200, 60)):
        seen = look(connection)  # once: a second later the ages are others
        lines = frame(seen, title="t", problem="the database is away", width=width, height=height)
        assert len(lines) <= height and max(map(len, lines)) <= width
        whole = {
            word
            for line in frame(seen, title="t", problem="the database is away", width=1000, height=1000)
            for word in line.split()
        }
        assert {word for line in lines for word in line.split()} - whole <= {"…", "...", "more"} | {
            word for line in lines for word in line.split() if word.isdigit()
        }
    lines = frame(look(connection), title="t", problem=None, width=80, height=24)
    assert (
        sum(
            line.startswith(("QUEUE", "WORKERS", "OLDEST", "BLOCKED", "DEAD", "MAINTENANCE"))
            for line in lines
        )
        == 6
    )
    connection.close()


def test_an_outage_is_shown_and_survived(cli, database, server, terminal):
    proxy = Proxy(server.socket_dir)
    cli.environment["DATABASE_URL"] = proxy.url(database.name, "packhorse_test")
    session = terminal(cli, "--interval", "200ms")
    session.shows("MAINTENANCE")
    proxy.refuse(True)
    session.shows("the database is away")
    database.query("select enqueue_message('default', 'after') from generate_series(1, 321)")
    proxy.refuse(False)
    session.shows("321")
    session.type(b"q")
    assert session.process.wait(20) == EXIT_OK
    proxy.close()
