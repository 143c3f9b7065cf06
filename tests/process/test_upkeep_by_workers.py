"""Workers alone: what packhorse.toml keeps they keep, and what is missing they make, without a scheduler and
without traffic (SPEC M4, M5).
"""

from __future__ import annotations

import os
import signal
from datetime import timedelta

import pytest

from tests.support.cli import Cli
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CONFIGURED = """
[retention.processed_messages]
keep = "90d"
[retention.dead_letters]
enabled = false
[retention.message_results]
enabled = false
[partitions.message_archive]
keep = 60
"""
#: The rows that an upkeep by constants of its own would delete, and a window that every upkeep deletes: it
#: says that the upkeep was there.
OLD = """
insert into processed_messages (external_id, first_seen_at, processed_at)
  select 'w' || n, now() - interval '20 days', now() - interval '20 days' from generate_series(1, 5) n;
select store_message_result('kept', '1', '-1 day');
insert into message_dedup (queue, dedup_key, message_id, expires_at) values ('default', 'over', 1, now() - interval '1 day');
do $$ declare v_day timestamptz := date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' - interval '35 days'; begin
  execute format('create table message_archive_%s partition of message_archive for values from (%L) to (%L)',
    to_char(v_day at time zone 'UTC', 'YYYYMMDD'), v_day, v_day + interval '1 day'); end $$
"""
LEFT = """
select (select count(*) from processed_messages), (select count(*) from dead_letters), (select count(*) from message_results),
  (select count(*) from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'message_archive'::regclass
   and to_date(substr(c.relname, 17, 8), 'YYYYMMDD') < now() - interval '30 days')
"""


@pytest.fixture
def start(tmp_path):
    """Start `packhorse worker` in a process group of its own; killed at the end."""
    started = []

    def worker(url, **environment):
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(Cli(tmp_path, url, **environment).start("worker", "tests.support.actors", output=log))
        return log

    yield worker
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(10)


def filled(database):
    with database.connect(admin=True) as connection:
        connection.execute(OLD)
    database.query("""select declare_queue('blocky'), set_queue('blocky', '{"on_dead": "block"}')""")
    for queue, key in (("blocky", "c"), ("default", None)):
        database.query(
            "select bury_message((select message_id from enqueue_message(%s, 'gone', p_conversation_key => %s)))",
            queue,
            key,
        )
    database.query("update dead_letters set dead_at = now() - interval '31 days'")
    assert database.query(LEFT) == [(5, 2, 1, 1)]


def upkeep_is_done(database):
    """The step of the windows is over; the archive's follows within a second."""
    wait_until(
        lambda: database.value("select count(*) from message_dedup") == 0, 40, "the upkeep deletes windows"
    )


@pytest.mark.parametrize(
    ("toml", "left"),
    [
        (CONFIGURED, (5, 2, 1, 1)),
        ("", (5, 2, 0, 0)),
        ("[retention.dead_letters]\nkep = '1d'\n", (5, 2, 1, 1)),
    ],
    ids=["kept", "none", "wrong"],
)
def test_a_worker_keeps_what_its_configuration_keeps(database, start, tmp_path, toml, left):
    filled(database)
    (tmp_path / "packhorse.toml").write_text(toml)
    log = start(database.url)
    if "kep" in toml:  # nothing at all is deleted until it is mended
        wait_until(
            lambda: "plan_problem" in log.read_text() and "did you mean 'keep'?" in log.read_text(),
            40,
            "it says what is wrong",
        )
        wait_until(
            lambda: database.value("select count(*) from maintenance_tasks where policy = '{}'") == 6, 40
        )
        for step in (
            "cleanup_expired_windows()",
            "cleanup_old_messages()",
            "drop_expired_archive_partitions()",
        ):
            assert database.value(f"select {step}") == 0, step
    else:
        upkeep_is_done(database)
        wait_until(lambda: database.query(LEFT) == [left], 20, str(left))
    assert database.query(LEFT) == [left]
    if toml == CONFIGURED:
        database.query("select cleanup_old_messages(), drop_expired_archive_partitions()")
        assert database.query(LEFT) == [left], "whoever calls the known name, too"
        assert database.value("select retention_keep('processed_messages', '7 days')") == timedelta(days=90)


@pytest.mark.parametrize("place", [0, 1], ids=["today", "tomorrow"])
def test_a_worker_makes_a_missing_partition_of_the_archive_without_traffic(database, start, place):
    names = "select inhrelid::regclass::text from pg_inherits where inhparent = 'message_archive'::regclass order by 1"
    before = database.query(names)
    database.query(f"drop table {before[place][0]}")
    start(database.url)
    wait_until(lambda: database.query(names) == before, 40, "the partition is there again")
