"""Retention against real tables: what a dry run counts, a run removes; and nothing else, whatever happens
(SPEC M6, FAILURES 65, 66).
"""

from __future__ import annotations

import os
import re
import signal
import threading
from types import SimpleNamespace

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.schedules.config import Plan
from packhorse.schedules.maintenance import batches, retention
from packhorse.schedules.maintenance import run as run_loop
from packhorse.schedules.maintenance.batches import next_size
from packhorse.schedules.maintenance.checking import check_plan
from packhorse.schedules.maintenance.gates import judge
from packhorse.schedules.maintenance.policies import Gates, Retention
from packhorse.schedules.maintenance.retention import RetentionRun
from packhorse.schedules.maintenance.retention import plan as dry_run
from packhorse.schedules.maintenance.tasks import TaskRunner
from packhorse.schedules.registry import JOBS, RETENTION, Job
from packhorse.worker.errors import InvalidArgument, StoreRejected
from packhorse.worker.store import maintenance as store
from packhorse.worker.store.maintenance import HealthGate
from tests.support.cli import Cli
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.calendar]

DAY = 86400.0
OPEN = Gates(None, None, None, None, None)


@pytest.fixture
def shop(database):
    """create(columns): the table shop.orders with 1000 old rows (id 1..1000) and 100 young ones; SQL of more
    statements after it.
    """

    def create(
        columns="id bigint primary key", *more, insert="insert into shop.orders (id, done_at)", values="n"
    ):
        database.query("create schema shop")
        database.query("grant usage on schema shop to packhorse_worker")
        database.query(f"create table shop.orders ({columns}, done_at timestamptz, note text default 'x')")
        for statement in more:
            database.query(statement)
        database.query(
            f"{insert} select {values}, clock_timestamp() - interval '30 days' - n * interval '1 second' from generate_series(1, 1000) n"
        )
        database.query(
            f"{insert} select {values}, clock_timestamp() - interval '1 day' from generate_series(1001, 1100) n"
        )
        database.query("create index on shop.orders (done_at)")
        database.query("grant select, update, delete on shop.orders to packhorse_worker")
        database.query("analyze shop.orders")

    return create


def policy(**changes):
    return Retention(
        **{
            "name": "orders",
            "table": "shop.orders",
            "column": "done_at",
            "keep_seconds": 7 * DAY,
            "batch": 97,
            "pause_ratio": 0.0,
            **changes,
        }
    )


def run(connection, of=None, gates=OPEN, **options):
    return RetentionRun(connection, of or policy(), gates, triggered_by="test", **options).run()


def left(database, where="true"):
    return database.value(f"select count(*) from shop.orders where {where}")


def last(database, column):
    return database.value(f"select {column} from maintenance_runs order by id desc limit 1")


# -- what goes and what stays --------------------------------------------------------------------
def test_a_dry_run_counts_what_the_run_then_deletes_and_changes_nothing(database, shop, open_connection):
    shop()
    connection = open_connection()
    found = dry_run(connection, policy())
    assert (found.rows, found.bytes > 1000, found.warnings) == (1000, True, ())
    assert left(database) == 1100 and database.value("select count(*) from maintenance_runs") == 0
    assert run(connection) == "succeeded"
    assert left(database) == 100
    assert database.query(
        "select rows_done, batches >= 10, resumed, kind, state, gate, triggered_by from maintenance_runs"
    ) == [(1000, True, 0, "retention", "succeeded", None, "test")]


@pytest.mark.parametrize(
    ("columns", "more", "insert", "values"),
    [
        ("id bigint primary key", (), "insert into shop.orders (id, done_at)", "n"),
        (
            "tenant text, id uuid, primary key (tenant, id)",
            (),
            "insert into shop.orders (tenant, id, done_at)",
            "'t' || n % 7, gen_random_uuid()",
        ),
        (
            '"Key" text, "order" numeric(10, 2), primary key ("order", "Key")',
            (),
            'insert into shop.orders ("Key", "order", done_at)',
            "'%s''' || n, n / 3",
        ),
        ("id bigint", (), "insert into shop.orders (id, done_at)", "n"),  # no primary key: ctid
        (
            "at date, id int, primary key (at, id)",
            (),
            "insert into shop.orders (at, id, done_at)",
            "current_date, n",
        ),
        (
            "id bigint, primary key (id) include (note)",
            (),
            "insert into shop.orders (id, note, done_at)",
            "n, null",
        ),
        ("id text[] primary key", (), "insert into shop.orders (id, done_at)", "array[n::text, 'a,\"b']"),
        ("id int4range primary key", (), "insert into shop.orders (id, done_at)", "int4range(n, n + 2)"),
        ("id jsonb primary key", (), "insert into shop.orders (id, done_at)", "jsonb_build_object('n', n)"),
        ("id float8 primary key", (), "insert into shop.orders (id, done_at)", "n / 3.0"),
    ],
    ids=["single", "composite", "quoted", "ctid", "date", "include", "array", "range", "json", "float"],
)
def test_rows_go_by_key_whatever_the_key_is(database, shop, open_connection, columns, more, insert, values):
    shop(columns, *more, insert=insert, values=values)
    assert run(open_connection()) == "succeeded"
    assert (left(database), last(database, "rows_done")) == (100, 1000)


def test_partitioned_tables_are_read_over_all_partitions(database, open_connection):
    database.query("create schema shop")
    database.query(
        "create table shop.orders (id bigint, part int, done_at timestamptz, primary key (id, part)) partition by list (part)"
    )
    for part in (0, 1):
        database.query(f"create table shop.orders_{part} partition of shop.orders for values in ({part})")
    database.query(
        "insert into shop.orders select n, n % 2, clock_timestamp() - interval '30 days' from generate_series(1, 500) n"
    )
    assert run(open_connection("owner")) == "succeeded"
    assert left(database) == 0


def test_a_partitioned_table_without_primary_key_is_refused(database, open_connection):
    database.query("create schema shop")
    database.query("create table shop.orders (id bigint, done_at timestamptz) partition by hash (id)")
    with pytest.raises(InvalidArgument, match="partitioned"):
        run(open_connection("owner"))


@pytest.mark.parametrize("columns", ["id bigint primary key", "id bigint"], ids=["key", "ctid"])
def test_a_table_with_children_is_refused_and_a_child_is_not(database, shop, open_connection, columns):
    """Neither a key nor a ctid is unique over a table and its children: young rows would go with old ones."""
    shop(columns)
    database.query("create table shop.young () inherits (shop.orders)")
    database.query(
        "insert into shop.young (id, done_at) select n, clock_timestamp() from generate_series(1, 1000) n"
    )
    database.query(
        "insert into shop.young (id, done_at) select n, clock_timestamp() - interval '30 days' from generate_series(1, 10) n"
    )
    connection = open_connection("owner")
    with pytest.raises(InvalidArgument, match=r"child tables.*policy for each child"):
        run(connection)
    assert left(database) == 2110
    assert run(connection, policy(table="shop.young")) == "succeeded"
    assert (left(database), database.value("select count(*) from shop.young")) == (2100, 1000)


@pytest.mark.parametrize("name", ["message_queue", "packhorse.message_queue"])
def test_live_messages_are_no_table_for_a_policy(database, open_connection, name):
    database.query("select enqueue_message('default', 'effect')")
    of = policy(table=name, column="created_at", keep_seconds=0.0)
    with pytest.raises(InvalidArgument, match="live messages"):
        run(open_connection(), of)
    assert database.value("select count(*) from message_queue") == 1
    assert "expires_at" in check_plan(open_connection(), Plan((of,), (), (), Gates(), ())).problems[0][1]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_a_column_without_a_time_zone_is_utc_whatever_the_session_says(database, shop, open_connection, zone):
    shop("id bigint primary key, expires_at timestamp(0)")
    database.query(
        "update shop.orders set expires_at = clock_timestamp() at time zone 'UTC' + case when id <= 500 then -1 else 1 end * interval '1 hour'"
    )
    connection = open_connection()
    connection.execute(f"set timezone = '{zone}'")
    of = policy(column="expires_at", keep_seconds=0.0)
    assert dry_run(connection, of).rows == 500
    assert run(connection, of) == "succeeded"
    assert left(database) == left(database, "id > 500") == 600


def test_null_dates_and_rows_outside_the_condition_stay(database, shop, open_connection):
    shop()
    database.query("update shop.orders set done_at = null where id <= 100")
    database.query("update shop.orders set note = '100% live' where id between 101 and 200")
    of = policy(where="note not like '100% live' and note not like '%s' or note is null")
    connection = open_connection()
    assert dry_run(connection, of).rows == 800
    assert run(connection, of) == "succeeded"
    assert left(database, "id <= 200") == 200 and left(database) == 300


def test_an_or_in_the_condition_does_not_reach_young_rows(database, shop, open_connection):
    shop()
    run(open_connection(), policy(where="note = 'y' or true"))
    assert left(database) == 100


def test_assign_changes_instead_of_deleting_and_ends(database, shop, open_connection):
    shop()
    of = policy(assign="note = 'old', done_at = done_at", where="note <> 'old'")
    connection = open_connection()
    assert dry_run(connection, of).rows == 1000
    assert run(connection, of) == "succeeded"
    assert left(database) == 1100 and left(database, "note = 'old'") == 1000
    assert run(connection, of) == "succeeded" and last(database, "rows_done") == 0


def test_rows_that_others_hold_are_passed_over_and_go_next_time(database, shop, open_connection):
    shop()
    with database.connect(admin=True) as other, other.transaction():
        other.execute("select from shop.orders where id in (5, 500, 1000) for update")
        assert run(open_connection()) == "succeeded"
        assert left(database) == 103
    assert run(open_connection()) == "succeeded"
    assert left(database) == 100


def test_a_condition_may_name_the_time_before_which_rows_go(database, shop, open_connection):
    """Aged by the beginning, a row that was finished yesterday would go (SPEC M4b)."""
    shop("id bigint primary key, closed_at timestamptz, zoneless timestamp")
    database.query("update shop.orders set closed_at = clock_timestamp() - interval '1 day' where id <= 10")
    database.query(
        "update shop.orders set zoneless = clock_timestamp() at time zone 'UTC' - interval '6 days' where id between 11 and 20"
    )
    of = policy(
        where="(closed_at is null or closed_at < {cutoff}) and (zoneless is null or zoneless < {cutoff} at time zone 'UTC')"
    )
    connection = open_connection()
    found = dry_run(connection, of)
    assert found.rows == 980 and "{cutoff}" not in found.action
    assert run(connection, of) == "succeeded"
    assert left(database) == 120 and left(database, "id <= 20") == 20


def test_a_webhook_that_was_seen_long_ago_and_finished_just_now_is_recognised_for_its_days(
    database, open_connection
):
    database.query(
        "insert into processed_messages (external_id, first_seen_at, processed_at) values ('late', clock_timestamp() - interval '90 days', "
        "clock_timestamp()), ('done', clock_timestamp() - interval '9 days', clock_timestamp() - interval '8 days')"
    )
    of = next(of for of in RETENTION if of.name == "processed_messages")
    assert run(open_connection(), of) == "succeeded"
    assert database.query("select external_id from processed_messages") == [("late",)]


@pytest.mark.parametrize("where", [None, "queue = 'blocky' or true"])
def test_no_policy_deletes_a_dead_letter_that_blocks_its_conversation(database, open_connection, where):
    """A policy of one's own, or another condition for the shipped one, deletes by age as well (SPEC Q1)."""
    database.query("""select declare_queue('blocky'), set_queue('blocky', '{"on_dead": "block"}')""")
    for queue, key in (("blocky", "c"), ("default", None)):
        database.query(
            "select bury_message((select message_id from enqueue_message(%s, 'gone', p_conversation_key => %s)))",
            queue,
            key,
        )
    database.query("update dead_letters set dead_at = clock_timestamp() - interval '2 days'")
    assert (
        run(
            open_connection(),
            Retention("mine", table="dead_letters", column="dead_at", keep_seconds=DAY, where=where),
        )
        == "succeeded"
    )
    assert database.query("select queue from dead_letters") == [("blocky",)]


def test_shipped_policies_never_touch_live_rows(database, open_connection):
    """Every shipped policy of the queue, cutoffs moved to now: live messages, blocking letters and open runs
    stay.
    """
    database.query("select enqueue_message('default', 'effect') from generate_series(1, 3)")
    database.query(
        "select enqueue_message('default', 'effect', p_dedup_key => 'k', p_dedup_window => '1 day')"
    )
    database.query("select set_schedule('s', 'effect', '* * * * *')")
    database.query("select run_schedule_now('s')")
    database.query(
        "insert into maintenance_runs (task, kind, triggered_by, state) values ('x', 'job', 'me', 'paused')"
    )
    tables = ("message_queue", "message_dedup", "schedule_runs", "maintenance_runs", "schedules")
    before = {table: database.value(f"select count(*) from {table}") for table in tables}
    connection = open_connection()
    for shipped in RETENTION:
        if not shipped.optional:
            now = Retention(
                **{name: getattr(shipped, name) for name in shipped.__dataclass_fields__}
                | {"keep_seconds": 0.0}
            )
            assert run(connection, now) == "succeeded", shipped.name
    assert database.value("select count(*) from maintenance_runs where state = 'paused'") == 1
    for table in tables[:3]:
        assert database.value(f"select count(*) from {table}") == before[table], table


# -- pausing, resuming, cancelling ---------------------------------------------------------------
def stop_after(batches, stop):
    seen = []

    def on_progress(rows, gate):
        seen.append(rows)
        if len(seen) >= batches:
            stop.set()

    return on_progress


def test_a_stopped_run_goes_on_with_its_cursor_and_its_cutoff(database, shop, open_connection):
    shop()
    stop = threading.Event()
    assert run(open_connection(), stop=stop, on_progress=stop_after(3, stop)) == "paused"
    cutoff, done = database.query("select cutoff, rows_done from maintenance_runs")[0]
    assert 0 < done < 1000 and left(database) == 1100 - done
    # what has become old enough since then is for the next run
    database.query("update shop.orders set done_at = %s + interval '1 millisecond' where id = 1100", cutoff)
    assert run(open_connection()) == "succeeded"
    assert database.query("select rows_done, resumed, cutoff, state from maintenance_runs") == [
        (1000, 1, cutoff, "succeeded")
    ]
    assert left(database) == 100


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_seconds": 365 * DAY},
        {"where": "id > 2000"},
        {"column": "shipped_at"},
        {"assign": "note = 'old'", "where": "id > 2000"},
    ],
)
def test_an_unfinished_run_of_another_policy_is_not_gone_on_with(database, shop, open_connection, changes):
    """With its cutoff and its cursor the old run would go on deleting what the policy keeps by now."""
    shop("id bigint primary key, shipped_at timestamptz")
    stop = threading.Event()
    assert run(open_connection(), stop=stop, on_progress=stop_after(3, stop)) == "paused"
    before = left(database)
    assert run(open_connection(), policy(**changes)) == "succeeded"
    assert left(database) == before > 100
    assert database.query(
        "select state, cancel_requested_by, error like 'the policy was changed%', rows_done from maintenance_runs order by id"
    ) == [("cancelled", "test", True, 1100 - before), ("succeeded", None, None, 0)]
    # pace is no part of what goes: a run goes on with another batch, budget or warning
    run(open_connection(), stop=stop)
    database.query("drop index shop.orders_done_at_idx")
    assert run(open_connection(), policy(batch=50)) == "succeeded"
    assert last(database, "resumed") == 1


def test_the_budget_pauses_a_run(database, shop, open_connection, monkeypatch):
    shop()
    now = [0.0]  # the clock of the run: twenty seconds pass between two batches

    def between(rows, gate):
        now[0] += 20.0

    monkeypatch.setattr(run_loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    of = policy(budget_seconds=30.0)
    connection = open_connection()
    states = [run(connection, of, on_progress=between)]
    assert (states, last(database, "batches")) == (["paused"], 2)
    while states[-1] == "paused" and len(states) < 20:
        states.append(run(connection, of, on_progress=between))
    assert len(states) > 2 and states[-1] == "succeeded"
    assert database.query("select rows_done, resumed from maintenance_runs") == [(1000, len(states) - 1)]


class Rests(threading.Event):
    """Notes for how long it is waited, and does not wait."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def wait(self, timeout=None):
        self.asked.append(timeout)
        return super().wait(0)


@pytest.mark.parametrize(("ratio", "known"), [(0.0, True), (100.0, True), (100.0, False)])
def test_a_run_rests_after_each_batch_but_the_last_in_proportion_to_its_work(
    database, shop, open_connection, monkeypatch, ratio, known
):
    shop()
    took = []
    size_of = retention.next_size
    monkeypatch.setattr(
        retention,
        "next_size",
        lambda size, seconds, most: (took.append(seconds), size_of(size, seconds, most))[1],
    )
    rests = Rests()
    gates = OPEN if known else Gates(None, None, 900.0, None, None)
    with database.connect(admin=True) as holder, holder.transaction(force_rollback=True):
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select 1")  # a snapshot whose age this role may not see: half the speed
        assert run(open_connection(), policy(pause_ratio=ratio), gates=gates, stop=rests) == "succeeded"
    assert len(rests.asked) == last(database, "batches") - 1 > 5
    assert rests.asked == pytest.approx(
        [max(run_loop.LEAST_REST_SECONDS, seconds * ratio * (1 if known else 2)) for seconds in took]
    )


@pytest.mark.parametrize("when", ["running", "paused"])
def test_a_run_is_cancelled_and_what_it_did_stays_done(database, shop, open_connection, when):
    shop()
    stop = threading.Event()
    if when == "running":
        assert (
            run(
                open_connection(),
                on_progress=lambda rows, gate: database.query(
                    "select cancel_maintenance_run('retention.orders', 'ada', 'wrong')"
                ),
            )
            == "cancelled"
        )
    else:
        run(open_connection(), stop=stop, on_progress=stop_after(2, stop))
        assert database.value("select cancel_maintenance_run('retention.orders', 'ada')") == "cancelled"
    assert database.query("select state, cancel_requested_by from maintenance_runs") == [("cancelled", "ada")]
    assert 100 < left(database) < 1100
    assert database.value("select cancel_maintenance_run('retention.orders')") == "nothing"
    assert database.value("select count(*) from operator_actions where action = 'cancel_maintenance'") >= 1
    assert run(open_connection()) == "succeeded"  # a new one
    assert left(database) == 100 and database.value("select count(*) from maintenance_runs") == 2


def test_a_second_runner_is_busy_and_a_silent_one_is_taken_over(database, shop, open_connection):
    shop()
    answers = []

    def second(rows, gate):
        if not answers:
            answers.append(run(open_connection()))

    assert run(open_connection(), on_progress=second) == "succeeded"
    assert answers == ["busy"]


def test_whoever_lost_its_run_takes_its_last_batch_back(database, shop, open_connection):
    shop()
    stolen = []

    def steal(rows, gate):
        if not stolen:
            database.query("update maintenance_runs set beat_at = clock_timestamp() - interval '1 hour'")
            stolen.append(run(open_connection()))

    assert run(open_connection(), on_progress=steal) == "lost"
    assert stolen == ["succeeded"]
    assert left(database) == 100
    assert database.query("select rows_done, resumed, state from maintenance_runs") == [
        (1000, 1, "succeeded")
    ]


def test_a_killed_process_goes_on_where_it_was(database, shop, tmp_path):
    shop()
    database.query("""create function shop.slow() returns trigger language plpgsql as
        $$ begin perform pg_sleep(0.002); return old; end $$""")
    database.query(
        "create trigger slow before delete on shop.orders for each row execute function shop.slow()"
    )
    (tmp_path / "packhorse.toml").write_text(
        '[retention.orders]\ntable = "shop.orders"\ncolumn = "done_at"\nkeep = "7d"\nbatch = 50\npause_ratio = 0\n'
    )
    cli = Cli(tmp_path, database.url)
    process = cli.start("maintenance", "run", "retention.orders", "--yes", output=tmp_path / "log")
    wait_until(
        lambda: (database.value("select max(rows_done) from maintenance_runs") or 0) > 100,
        30,
        "the run is in its middle",
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    wait_until(
        lambda: (
            database.value(
                "select count(*) from pg_stat_activity where application_name = 'packhorse maintenance' and datname = current_database()"
            )
            == 0
        )
    )
    done = database.value("select rows_done from maintenance_runs")
    assert left(database) == 1100 - done  # rows and progress are one transaction
    busy = cli("maintenance", "run", "retention.orders", "--yes", "--json")
    assert busy.document["state"] == "busy" and busy.code == 1
    # what waiting would do
    database.query("update maintenance_runs set beat_at = clock_timestamp() - interval '3 minutes'")
    again = cli("maintenance", "run", "retention.orders", "--yes", "--json")
    assert again.document == {"task": "retention.orders", "state": "succeeded", "rows": 1000 - done}
    assert database.query("select rows_done, resumed, state from maintenance_runs") == [
        (1000, 1, "succeeded")
    ]
    assert left(database) == 100


# -- trouble -------------------------------------------------------------------------------------
def test_a_table_that_is_locked_halves_the_batch_and_the_run_ends_all_the_same(
    database, shop, open_connection, monkeypatch
):
    shop()
    monkeypatch.setattr(batches, "MOST_CONFLICTS", 50)
    blocker = database.connect(admin=True)
    sizes = []
    connection = open_connection()
    batch = retention.store.batch

    def watched(*args):
        sizes.append(args[4])
        if len(sizes) == 2:
            blocker.execute("begin")
            blocker.execute("lock table shop.orders in share mode")
        if len(sizes) == 4:
            blocker.execute("commit")
        return batch(*args)

    monkeypatch.setattr(retention.store, "batch", watched)
    assert run(connection) == "succeeded"
    blocker.close()
    assert sizes[2] == max(1, sizes[1] // 2) and sizes[3] == max(1, sizes[2] // 2)
    assert left(database) == 100


def test_a_run_that_fails_is_recorded_and_the_next_one_is_new(database, shop, open_connection):
    shop()
    database.query(
        "create function shop.no() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$"
    )
    database.query(
        "create trigger no before delete on shop.orders for each row when (old.id = 700) execute function shop.no()"
    )
    with pytest.raises(StoreRejected, match="not this one"):
        run(open_connection())
    said = "shop.orders: 1 row(s) refused and stay, first: not this one"
    assert database.query("select state, error, rows_done from maintenance_runs") == [("failed", said, 999)]
    assert left(database) == 101, "those behind it are gone"
    database.query("drop trigger no on shop.orders")
    assert run(open_connection()) == "succeeded"
    assert database.value(
        "select last_success_at is not null from maintenance_health where task = 'retention.orders'"
    )


def test_a_connection_that_is_cut_leaves_a_run_that_the_same_message_goes_on_with(
    database, shop, open_connection
):
    shop()
    connection = open_connection()

    def cut(rows, gate):
        database.query("select pg_terminate_backend(%s)", connection.info.backend_pid)

    with pytest.raises(Exception, match=r"terminat|closed|lost"):
        run(connection, message_id=7, on_progress=cut)
    assert last(database, "state") == "running"
    assert run(open_connection(), message_id=7) == "succeeded"  # its retry: at once
    assert database.query("select rows_done, resumed from maintenance_runs") == [(1000, 1)]


def test_rows_that_a_foreign_key_restricts_hold_up_none_behind_them(database, shop, open_connection):
    """The oldest batch was never gone, and so no other one, night after night."""
    shop(
        "id bigint primary key",
        "create table shop.lines (order_id bigint references shop.orders on delete restrict)",
    )
    database.query("insert into shop.lines values (1000), (999), (500), (1)")
    for done in (996, 0):
        with pytest.raises(StoreRejected, match=r"4 row\(s\) refused and stay, first: .*foreign key"):
            run(open_connection())
        assert (left(database), last(database, "rows_done"), last(database, "state")) == (104, done, "failed")
    database.query("delete from shop.lines")
    assert run(open_connection()) == "succeeded" and left(database) == 100


def test_a_refusal_before_a_pause_is_in_the_history(database, shop, open_connection):
    shop(
        "id bigint primary key",
        "create table shop.lines (order_id bigint references shop.orders on delete restrict)",
    )
    database.query("insert into shop.lines values (1000)")
    stop = threading.Event()
    assert run(open_connection(), stop=stop, on_progress=stop_after(3, stop)) == "paused"
    assert "foreign key" in last(database, "error") and last(database, "rows_done") > 0


def test_a_trigger_that_keeps_the_oldest_rows_holds_up_none_behind_them(database, shop, open_connection):
    shop()
    database.query(
        "create function shop.keep() returns trigger language plpgsql as $$ begin return null; end $$"
    )
    database.query(
        "create trigger keep before delete on shop.orders for each row when (old.id > 800) execute function shop.keep()"
    )
    with pytest.raises(StoreRejected, match="changed none"):
        run(open_connection())
    assert left(database, "id <= 800") == 0 and left(database) == 300


def test_a_trigger_that_keeps_every_row_is_an_error_and_no_success(database, shop, open_connection):
    shop()
    database.query(
        "create function shop.keep() returns trigger language plpgsql as $$ begin return null; end $$"
    )
    database.query(
        "create trigger keep before delete on shop.orders for each row execute function shop.keep()"
    )
    with pytest.raises(StoreRejected, match="changed none"):
        run(open_connection())


# -- row-level security --------------------------------------------------------------------------
def test_hidden_rows_are_an_error_in_a_dry_run_and_in_a_run(database, shop, open_connection):
    shop()
    database.query("alter table shop.orders enable row level security")
    for act in (dry_run, run):
        with pytest.raises(StoreRejected, match="0 rows visible of about 1100"):
            act(open_connection(), policy())
    assert last(database, "state") == "failed"
    database.query("create policy all_of_them on shop.orders to packhorse_worker using (true)")
    assert run(open_connection()) == "succeeded" and left(database) == 100


def test_a_table_that_was_never_analysed_is_not_taken_for_empty(database, open_connection):
    database.query("create schema shop")
    database.query("grant usage on schema shop to packhorse_worker")
    database.query("create table shop.orders (id int primary key, done_at timestamptz)")
    database.query("alter table shop.orders enable row level security")
    database.query("grant all on shop.orders to packhorse_worker")
    database.query(
        "insert into shop.orders select n, now() - interval '1 year' from generate_series(1, 50) n"
    )
    wait_until(lambda: database.value("select pg_stat_get_live_tuples('shop.orders'::regclass)") == 50)
    with pytest.raises(StoreRejected, match="about 50"):
        run(open_connection())


def test_a_table_that_is_empty_since_the_last_vacuum_is_not_taken_for_hidden(database, shop, open_connection):
    """The queue's own tables have policies that show everything to the worker: 0 rows means 0 rows."""
    shop()
    database.query("alter table shop.orders enable row level security")
    database.query(
        "create policy all_of_them on shop.orders to packhorse_worker using (true) with check (true)"
    )
    database.query("delete from shop.orders")
    assert database.value("select reltuples from pg_class where oid = 'shop.orders'::regclass") == 1100
    assert run(open_connection()) == "succeeded"


def test_policies_that_show_but_do_not_let_delete_are_an_error(database, shop, open_connection):
    shop()
    database.query("alter table shop.orders enable row level security")
    database.query("create policy look on shop.orders for select to packhorse_worker using (true)")
    database.query("create policy lock on shop.orders for update to packhorse_worker using (true)")
    with pytest.raises(StoreRejected, match="changed none"):
        run(open_connection())


# -- gates ---------------------------------------------------------------------------------------
def test_a_vacuum_of_a_partition_closes_the_gate_of_its_table(database, open_connection):
    database.query("create schema shop")
    database.query(
        "create table shop.orders (id bigint, part int, done_at timestamptz, primary key (id, part)) partition by list (part)"
    )
    database.query("create table shop.orders_0 partition of shop.orders for values in (0)")
    database.query("create table shop.other (id int)")
    database.query("insert into shop.orders select n, 0, now() from generate_series(1, 20000) n")
    pid = []

    def vacuum():
        with database.connect(admin=True) as connection:
            pid.append(connection.execute("select pg_backend_pid()").fetchone()[0])
            connection.execute("set vacuum_cost_delay = 100")
            connection.execute("set vacuum_cost_limit = 1")
            try:
                connection.execute("vacuum shop.orders_0")
            except psycopg.errors.QueryCanceled:
                pass

    thread = threading.Thread(target=vacuum)
    thread.start()
    try:
        connection = open_connection("owner")
        wait_until(lambda: database.value("select count(*) from pg_stat_progress_vacuum") == 1)
        for table, vacuums in (("shop.orders", 1), ("shop.orders_0", 1), ("shop.other", 0)):
            found = {gate.gate: gate.value for gate in store.gates(connection, table)}
            assert found["autovacuum_on_table"] == vacuums
    finally:
        database.query("select pg_cancel_backend(%s)", pid[0])
        thread.join(20)


def test_what_the_role_may_not_see_is_unknown_and_slower(database, shop, open_connection):
    holder = database.connect(admin=True)
    holder.execute("begin isolation level repeatable read")
    holder.execute("select 1")
    found = {gate.gate: gate for gate in retention.store.gates(open_connection(), "shop.nothing")}
    holder.close()
    assert (found["oldest_snapshot_seconds"].known, found["oldest_snapshot_seconds"].value) == (False, None)
    verdict = judge(found.values(), Gates(), None)
    assert verdict.closed is None and verdict.slow


def test_others_connections_count_though_their_kind_is_hidden(database, open_connection):
    others = [database.connect(admin=True) for _ in range(5)]
    found = {gate.gate: gate.value for gate in retention.store.gates(open_connection(), None)}
    for other in others:
        other.close()
    assert found["connections_ratio"] >= 6 / 200


def test_a_deep_queue_that_somebody_works_on_closes_its_gate_and_an_orphaned_one_does_not(
    database, open_connection
):
    database.query("select enqueue_message('default', 'effect')")
    database.query("update message_queue set run_at = clock_timestamp() - interval '1 minute'")

    def latency():
        return next(
            gate.value
            for gate in retention.store.gates(open_connection(), None)
            if gate.gate == "queue_latency_seconds"
        )

    assert latency() is None
    database.query(worker_row(database))
    assert latency() >= 60
    for limit in ("max_concurrency", "max_concurrency_per_key", "rate_limit"):
        database.query(f"update queues set {limit} = 1 where name = 'default'")
        assert latency() is None, "its own limit holds it back, not the load"
        database.query(f"update queues set {limit} = null where name = 'default'")
    assert latency() >= 60
    database.query(
        "update queues set paused_at = clock_timestamp(), paused_by = 'ada' where name = 'default'"
    )
    assert latency() is None


def worker_row(database):
    """An insert that fills whatever columns the table of workers demands."""
    values = {
        "uuid": "gen_random_uuid()",
        "text": "'x'",
        "text[]": "array['default']",
        "integer": "1",
        "timestamp with time zone": "clock_timestamp()",
        "interval": "'1 minute'",
        "jsonb": "'{}'",
        "bigint": "1",
        "boolean": "false",
    }
    columns = dict(
        database.query(
            "select a.attname, format_type(a.atttypid, a.atttypmod) from pg_attribute a where a.attrelid = 'workers'::regclass and a.attnum > 0 "
            "and not a.attisdropped and (a.attnotnull and not a.atthasdef or a.attname in ('queues', 'last_seen_at'))"
        )
    )
    return f"insert into workers ({', '.join(columns)}) values ({', '.join(values[kind] for kind in columns.values())})"


def test_a_gate_opens_below_four_fifths_of_its_threshold_only():
    def look(value, held_by):
        return judge([HealthGate("queue_latency_seconds", value, True, None)], Gates(), held_by).closed

    assert [look(value, None) for value in (9.9, 10.0, 10.1)] == [None, None, "queue_latency_seconds"]
    assert [look(value, "queue_latency_seconds") for value in (10.1, 9.0, 8.1, 8.0)] == [
        "queue_latency_seconds"
    ] * 3 + [None]
    assert look(9.0, "oldest_snapshot_seconds") is None
    assert judge([HealthGate("from_the_future", 1e9, True, None)], Gates(), None).closed is None
    assert judge([HealthGate("queue_latency_seconds", 1e9, True, None)], OPEN, None).closed is None


@given(st.integers(1, 100_000), st.floats(0, 100), st.integers(1, 100_000))
def test_the_next_batch_moves_towards_the_target_and_stays_in_its_bounds(size, took, most):
    size = min(size, most)
    found = next_size(size, took, most)
    assert 1 <= found <= most
    if took > batches.TARGET_SECONDS:
        assert max(1, size // 2) <= found <= size
    elif took < batches.TARGET_SECONDS:
        assert size <= found <= max(size * 1.5 + 1, 2)


# -- the runner ----------------------------------------------------------------------------------
def plan_of(*policies, jobs=()):
    return Plan(tuple(policies), (), tuple(jobs), OPEN, ())


def test_one_task_that_fails_leaves_the_others_alone(database, shop, open_connection):
    shop()
    broken = policy(name="broken", where="no_such_column > 1")
    runner = TaskRunner(open_connection, plan_of(broken, policy()))
    with pytest.raises((InvalidArgument, StoreRejected), match="no_such_column"):
        runner.run("retention.broken", triggered_by="test")
    assert runner.run("retention.orders", triggered_by="test") == "succeeded"
    assert dict(database.query("select task, state from maintenance_health")) == {
        "retention.broken": "failed",
        "retention.orders": "succeeded",
    }
    with pytest.raises(InvalidArgument, match=r"Did you mean 'retention.orders'"):
        runner.run("retention.order", triggered_by="test")


@pytest.mark.parametrize("job", [job for job in JOBS if job.needs is None], ids=lambda job: job.name)
def test_the_jobs_of_the_queue_run_with_the_workers_rights(database, open_connection, job):
    assert TaskRunner(open_connection, plan_of(jobs=[job])).run(job.task, triggered_by="test") == "succeeded"


def test_a_job_is_called_until_it_finds_less_than_a_batch_and_can_be_cancelled(
    database, open_connection, monkeypatch
):
    job = Job("busy", "job_dead_workers", "* * * * *", batch=10)
    counts = iter([10, 10, 3])
    monkeypatch.setattr(
        "packhorse.schedules.maintenance.tasks.store.job", lambda connection, statement, limit: next(counts)
    )
    runner = TaskRunner(open_connection, plan_of(jobs=[job]))
    assert runner.run("job.busy", triggered_by="test") == "succeeded"
    assert last(database, "rows_done") == 23
    counts = iter([10] * 5)
    assert (
        runner.run(
            "job.busy",
            triggered_by="test",
            on_progress=lambda rows, gate: database.query("select cancel_maintenance_run('job.busy')"),
        )
        == "cancelled"
    )
    assert last(database, "state") == "cancelled"


def test_a_job_whose_process_stops_is_paused_and_gone_on_with(database, open_connection, monkeypatch):
    job = Job("busy", "job_dead_workers", "* * * * *", batch=10)
    counts, stop = iter([10, 3]), threading.Event()
    monkeypatch.setattr(
        "packhorse.schedules.maintenance.tasks.store.job", lambda connection, statement, limit: next(counts)
    )
    stop.set()
    assert (
        TaskRunner(open_connection, plan_of(jobs=[job]), stop).run("job.busy", triggered_by="test")
        == "paused"
    )
    stop.clear()
    assert (
        TaskRunner(open_connection, plan_of(jobs=[job]), stop).run("job.busy", triggered_by="test")
        == "succeeded"
    )
    assert database.query("select state, resumed, rows_done from maintenance_runs") == [("succeeded", 1, 13)]


# -- the plan against the database ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"table": "shop.order"}, r"no table 'shop.order'.*Did you mean 'shop.orders'"),
        ({"table": "shop.Orders"}, r"no table 'shop.Orders'.*Did you mean 'shop.orders'"),
        ({"column": "done"}, r"no column 'done'.*Did you mean 'done_at'"),
        ({"column": "note"}, r"note is text, not a time"),
        ({"where": "note = = 'x'"}, r"syntax error"),
        ({"where": "nothing = 1"}, r'column "nothing" does not exist'),
        ({"where": "count(*) > 1"}, r"aggregate functions are not allowed"),
        ({"where": "note = 'x') or (note = 'y'"}, r"where: syntax error at or near"),
        ({"where": "true --"}, r"where: syntax error"),
        ({"where": "true limit 5"}, r"where: syntax error"),
        ({"where": "note"}, r"where: argument of .* must be type boolean"),
    ],
)
def test_a_policy_that_does_not_fit_the_database_is_a_problem_that_names_it(
    database, shop, open_connection, changes, text
):
    shop()
    findings = check_plan(open_connection(), plan_of(policy(**changes)))
    ((task, problem),) = findings.problems
    assert (
        task == "retention.orders" and problem.startswith("[retention.orders]: ") and re.search(text, problem)
    ), problem
    assert left(database) == 1100


def test_one_problem_of_a_policy_with_its_table_hides_no_other(shop, open_connection):
    shop()
    wrong = policy(column="doneat", where="note = = 1", assign="nothing = 1")
    problems = [problem for _, problem in check_plan(open_connection(), plan_of(wrong)).problems]
    assert [problem.split(": ")[1] for problem in problems] == ["column", "where", "assign"], problems
    assert (
        len(check_plan(open_connection(), plan_of(policy(table="shop.order", where="= ="))).problems) == 1
    ), "no table, nothing to compare with"


def test_a_table_that_somebody_has_locked_is_a_warning_and_keeps_no_timetable_from_starting(
    database, shop, open_connection
):
    shop()
    connection = open_connection()
    with database.connect(admin=True) as other, other.transaction():
        other.execute("lock table shop.orders in access exclusive mode")
        findings = check_plan(
            connection, plan_of(policy(), policy(name="dead_letters", table="dead_letters", column="no"))
        )
    assert [task for task, _ in findings.problems] == ["retention.dead_letters"] and findings.absent == set()
    assert re.search(r"\[retention.orders\]: not checked, shop.orders is locked", findings.warnings[0])


def test_a_condition_with_parentheses_of_its_own_does_not_leave_the_cutoff_behind(
    database, shop, open_connection
):
    shop()
    with pytest.raises(InvalidArgument) as caught:
        run(open_connection(), policy(where="false) or (true"))
    assert caught.value.field == "where" and left(database) == 1100


@pytest.mark.parametrize(
    ("assign", "text"), [("notte = 'x'", "notte"), ("note = ", "syntax error"), ("note = 'old'", None)]
)
def test_what_a_policy_assigns_is_parsed_before_its_first_run_and_changes_nothing(
    database, shop, open_connection, assign, text
):
    shop()
    problems = check_plan(open_connection(), Plan((policy(assign=assign),), (), (), Gates(), ())).problems
    assert [task for task, _ in problems] == ([] if text is None else ["retention.orders"]) and (
        text is None or text in problems[0][1]
    )
    assert left(database, "note = 'x'") == 1100


def test_privileges_hidden_rows_and_missing_indexes_are_found(database, shop, open_connection):
    shop()
    database.query("insert into shop.orders (id) select generate_series(2001, 15000)")
    database.query("analyze shop.orders")
    plan = plan_of(policy())
    assert check_plan(open_connection(), plan).warnings == []
    database.query("drop index shop.orders_done_at_idx")
    (warning,) = check_plan(open_connection(), plan).warnings
    assert "create index concurrently on shop.orders (done_at);" in warning
    database.query("revoke delete on shop.orders from packhorse_worker")
    assert "may not change" in check_plan(open_connection(), plan).problems[0][1]
    database.query("grant delete on shop.orders to packhorse_worker")
    database.query("revoke select on shop.orders from packhorse_worker")
    assert "permission denied" in check_plan(open_connection(), plan).problems[0][1]
    database.query("grant select on shop.orders to packhorse_worker")
    database.query("alter table shop.orders enable row level security")
    assert "0 rows visible" in check_plan(open_connection(), plan).problems[0][1]
    database.query("drop table shop.orders")
    findings = check_plan(open_connection(), plan_of(policy(optional=True)))
    assert findings.problems == [] and findings.absent == {"retention.orders"}


def test_forgetting_webhook_ids_before_the_longest_backoff_is_a_problem(database, open_connection):
    database.query("select set_queue('default', '{\"backoff_max\": \"1 hour\"}')")
    short = Retention("processed_messages", column="first_seen_at", keep_seconds=60.0)
    ((task, problem),) = check_plan(open_connection(), plan_of(short)).problems
    assert task == "retention.processed_messages" and "longest backoff" in problem
