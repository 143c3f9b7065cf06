"""Partitions: made ahead, detached beside readers and writers, exported, dropped; by hand-made mutations of
trouble (SPEC M5, FAILURES 63, 64).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from packhorse.schedules.config import Plan
from packhorse.schedules.maintenance import partitions
from packhorse.schedules.maintenance.checking import check_plan
from packhorse.schedules.maintenance.partitions import PartitionKeeper
from packhorse.schedules.maintenance.periods import partition_name, period_start, runway_seconds, uncovered
from packhorse.schedules.maintenance.policies import Gates, Partitions
from packhorse.schedules.maintenance.runway import Runway
from packhorse.schedules.maintenance.tasks import TaskRunner
from packhorse.schedules.registry import PARTITIONS
from packhorse.schedules.timetable.triggers import trigger
from packhorse.worker.errors import InvalidArgument, StoreConflict, StoreRejected
from packhorse.worker.store import partitions as store
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.calendar]

NOW = datetime.now(UTC)


def approx_until(end):
    """Seconds until then; a busy machine may have taken a while to ask."""
    return pytest.approx((end - datetime.now(UTC)).total_seconds(), abs=600)


def policy(**changes):
    return Partitions(
        **{
            "name": "events",
            "table": "shop.events",
            "column": "at",
            "every": "month",
            "ahead": 3,
            "keep": 2,
            "grace_seconds": 0.0,
            **changes,
        }
    )


@pytest.fixture
def events(database):
    """The partitioned table shop.events, without partitions."""

    def create(columns="id bigint, at timestamptz, note text", key="at"):
        database.query("create schema shop")
        database.query("grant usage on schema shop to packhorse_worker")
        database.query(f"create table shop.events ({columns}) partition by range ({key})")
        database.query("create index on shop.events (at)")
        database.query("grant all on shop.events to packhorse_worker")

    return create


@pytest.fixture
def keep(open_connection):
    def keeper(of=None, role="owner", **options):
        return PartitionKeeper(open_connection(role), of or policy(), **options)

    return keeper


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(partitions, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(partitions, "DETACH_LOCK_TIMEOUT", "200ms")


def add(database, shift, every="month", table="shop.events", name=None):
    """A partition by hand, so many periods from now."""
    lower, upper = (period_start(NOW, every, shift + more) for more in (0, 1))
    name = name or f"shop.{partition_name('events', lower, every)}"
    database.query(
        f"create table {name} partition of {table} for values from ('{lower.isoformat()}') to ('{upper.isoformat()}')"
    )
    return name


def names(database):
    return [
        row[0]
        for row in database.query(
            "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = to_regclass('shop.events') order by 1"
        )
    ]


def expected(*shifts, every="month"):
    return sorted(partition_name("events", period_start(NOW, every, shift), every) for shift in shifts)


def insert(database, shift=0, count=1, every="month", note="x"):
    database.query(
        "insert into shop.events select n, %s + interval '1 hour', %s from generate_series(1, %s) n",
        period_start(NOW, every, shift),
        note,
        count,
    )


# -- periods -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("moment", "every", "shift", "start"),
    [
        ("2026-11-21T10:00", "day", 0, "2026-11-21"),
        ("2026-12-31T23:59", "day", 1, "2027-01-01"),
        ("2028-02-28T12:00", "day", 1, "2028-02-29"),
        ("2026-11-21T10:00", "week", 0, "2026-11-16"),
        ("2027-01-01T00:00", "week", 0, "2026-12-28"),
        ("2026-01-31T10:00", "month", 1, "2026-02-01"),
        ("2026-11-30T10:00", "month", 2, "2027-01-01"),
        ("2026-01-15T10:00", "month", -1, "2025-12-01"),
        ("2026-01-15T10:00", "month", -25, "2023-12-01"),
    ],
)
def test_periods_begin_in_utc_and_go_over_the_ends_of_months_and_years(moment, every, shift, start):
    found = period_start(datetime.fromisoformat(moment).replace(tzinfo=UTC), every, shift)
    assert found == datetime.fromisoformat(start).replace(tzinfo=UTC)


def test_names_fit_into_63_bytes_and_weeks_are_iso():
    assert partition_name("events", datetime(2027, 1, 1, tzinfo=UTC), "week") == "events_2026w53"
    assert len(partition_name("x" * 63, datetime(2026, 1, 1, tzinfo=UTC), "day")) <= 63


# -- making --------------------------------------------------------------------------------------
@pytest.mark.parametrize("every", ["day", "week", "month"])
def test_the_current_period_and_those_ahead_are_made_once(database, events, keep, every):
    events()
    of = policy(every=every)
    assert [step.action for step in keep(of).plan()] == ["make"] * 4
    assert keep(of).make() == 4
    assert keep(of).make() == 0 and keep(of).plan() == []
    assert names(database) == expected(0, 1, 2, 3, every=every)
    for shift in range(4):
        insert(database, shift, every=every)
    status = keep(of).status()
    assert status.partitions == 4 and status.problem is None
    assert status.runway_seconds == approx_until(period_start(NOW, every, 4))


@pytest.mark.parametrize(
    "columns",
    [
        "id int, at timestamp, note text",
        "id int, at date, note text",
        "id int, at timestamptz not null default now(), note text",
    ],
)
def test_columns_without_a_time_zone_are_utc(database, events, keep, columns):
    events(columns)
    connection = database.connect(admin=True)
    connection.execute("alter database " + database.name + " set timezone to 'Asia/Kolkata'")
    connection.close()
    try:
        assert keep().make() == 4 and keep().make() == 0
        assert names(database) == expected(0, 1, 2, 3)
        assert keep().status().runway_seconds == approx_until(period_start(NOW, "month", 4))
    finally:
        database.query("alter database " + database.name + " reset timezone")


def test_a_gap_is_filled_and_partitions_of_other_names_count_by_their_bounds(database, events, keep):
    events()
    add(database, 0, name="shop.whatever")
    add(database, 2)
    # the gap ends it
    assert round(keep().status().runway_seconds) <= round(
        (period_start(NOW, "month", 1) - NOW).total_seconds()
    )
    assert keep().make() == 2
    assert sorted([*expected(1, 2, 3), "whatever"]) == names(database)


@pytest.mark.parametrize(
    ("lower", "upper", "small"),
    [
        # months of a zone west of Greenwich: the next month lacks no more than its first hours
        (timedelta(0), timedelta(hours=5), False),
        (timedelta(hours=-2), timedelta(hours=-2), True),  # east of it: two hours before the next month
        (timedelta(0), timedelta(days=-20), False),
    ],
    ids=["west", "east", "short"],
)
def test_no_hole_is_left_beside_partitions_with_other_bounds(database, events, keep, lower, upper, small):
    """Inserts of a whole December would fail because November ends five hours into it."""
    events()
    month, following = (period_start(NOW, "month", shift) for shift in (0, 1))
    database.query(
        f"create table shop.adopted partition of shop.events for values from ('{(month + lower).isoformat()}') to ('{(following + upper).isoformat()}')"
    )
    keep().make()
    assert keep().status().runway_seconds == approx_until(period_start(NOW, "month", 4))
    for moment in (
        following - timedelta(seconds=1),
        following,
        following + timedelta(hours=6),
        following + timedelta(days=20),
    ):
        database.query("insert into shop.events values (1, %s, 'x')", moment)
    made = set(names(database)) - {"adopted"}
    assert made >= set(expected(1, 2, 3)) and made - set(expected(0, 1, 2, 3)) == (
        {f"events_{following + upper:%Y%m%d_%H%M}"} if small else set()
    )
    assert keep().make() == 0 and keep().plan() == []


def test_a_change_from_days_to_months_leaves_no_hole(database, events, keep):
    events()
    keep(policy(every="day", ahead=2)).make()
    days = names(database)
    keep().make()
    assert keep().status().runway_seconds == approx_until(period_start(NOW, "month", 4))
    assert set(expected(1, 2, 3)) <= set(names(database)) and set(days) <= set(names(database))
    keep(policy(every="day", ahead=60)).make()
    assert (
        len(names(database)) == len(set(names(database))) and keep(policy(every="day", ahead=60)).plan() == []
    )


def test_what_is_uncovered_is_what_no_partition_holds():
    day = [datetime(2026, 11, number, tzinfo=UTC) for number in range(1, 10)]
    assert uncovered([], day[0], day[4]) == [(day[0], day[4])]
    assert (
        uncovered([(day[0], day[4])], day[0], day[4])
        == []
        == uncovered([(day[0], day[2]), (day[2], day[8])], day[1], day[4])
    )
    assert uncovered([(day[3], day[4]), (day[1], day[2])], day[0], day[5]) == [
        (day[0], day[1]),
        (day[2], day[3]),
        (day[4], day[5]),
    ]
    assert uncovered([(day[5], day[6])], day[0], day[4]) == [(day[0], day[4])]


def test_after_a_long_absence_over_the_end_of_a_month_one_run_catches_up(database, events, keep):
    events()
    for shift in (-9, -8, -7, -6):
        add(database, shift)
    assert keep().status().runway_seconds == 0
    with pytest.raises(psycopg.errors.CheckViolation):  # inserts find no partition: the alarm is the runway
        insert(database)
    assert [step.action for step in keep().plan()] == ["make"] * 4 + ["detach"] * 4
    assert keep().make() == 4 and keep().drop() == 4
    insert(database)
    assert names(database) == expected(0, 1, 2, 3)


def test_two_keepers_at_once_make_each_partition_once(database, events, keep):
    events()
    barrier, made, errors = threading.Barrier(3), [], []

    def work(keeper):
        barrier.wait()
        try:
            made.append(keeper.make())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(keep(policy(every="day", ahead=20)),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == [] and names(database) == expected(*range(21), every="day")


def test_a_table_that_has_the_name_is_an_error_and_the_other_periods_are_made(database, events, keep):
    events()
    database.query(f"create table shop.{expected(1)[0]} (id int)")
    with pytest.raises(StoreRejected, match=f"cannot make {expected(1)[0]}"):
        keep().make()
    assert names(database) == expected(0, 2, 3)


def test_making_goes_on_while_a_drop_waits_for_its_lock(database, events, keep, quick, monkeypatch):
    events()
    monkeypatch.setattr(partitions, "TRIES", 2)
    old = add(database, -9)
    keeper = keep()
    reader = database.connect(admin=True)
    reader.execute("begin")
    reader.execute(f"select * from {old}")
    with pytest.raises(StoreConflict):
        keeper.drop()
    assert keep().make() == 4
    reader.close()


def test_rows_in_a_default_partition_stop_only_their_own_period(database, events, keep):
    events()
    database.query("create table shop.rest partition of shop.events default")
    insert(database, 1)
    with pytest.raises(StoreRejected, match="default partition"):
        keep().make()
    assert names(database) == sorted([*expected(0, 2, 3), "rest"])
    assert "drain" in keep().status().problem


def test_partitions_have_the_security_indexes_and_checks_of_their_table(database, events, keep):
    events("id bigint, at timestamptz, note text check (note <> 'no')")
    database.query("alter table shop.events enable row level security")
    keep().make()
    assert database.value(
        "select bool_and(c.relrowsecurity) and count(*) = 4 from pg_inherits i join pg_class c on c.oid = i.inhrelid "
        "where i.inhparent = 'shop.events'::regclass"
    )
    assert (
        database.value(
            "select count(*) from pg_indexes where schemaname = 'shop' and tablename like 'events\\_2%%'" % ()
        )
        == 4
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        insert(database, note="no")


def test_a_partition_of_a_table_of_another_owner_in_its_own_tablespace_is_made_beside_writers(
    database, events, keep, server
):
    events()
    database.query("create role shop_owner")
    database.query(
        "alter table shop.events owner to shop_owner, replica identity full; grant all on schema shop to shop_owner"
    )
    try:
        with database.connect(admin=True) as connection:
            connection.execute("set allow_in_place_tablespaces = on")
            connection.execute("create tablespace shop_fast location ''")
        database.query("alter table shop.events set tablespace shop_fast")
        add(database, 0)
        with database.connect(admin=True) as writer, writer.transaction():
            writer.execute("insert into shop.events values (1, clock_timestamp(), 'x')")
            assert keep().make() == 3
        assert database.query(
            "select relowner::regrole::text, relreplident, t.spcname from pg_class c join pg_tablespace t on t.oid = c.reltablespace "
            "where c.oid = any (select inhrelid from pg_inherits where inhparent = 'shop.events'::regclass) group by 1, 2, 3 order by 2"
        )[-1] == ("shop_owner", "f", "shop_fast")
    finally:
        database.query("drop schema shop cascade")
        database.query("drop tablespace if exists shop_fast")
        database.query("drop role shop_owner")


# -- before inserts need them ----------------------------------------------------------------------
class Clock:
    """What the keepers take for the database's clock."""

    def __init__(self, monkeypatch):
        self.now = None
        original = store.parent

        def parent(connection, table, column):
            found = original(connection, table, column)
            return (found and self.now and replace(found, now=self.now)) or found

        monkeypatch.setattr(store, "parent", parent)


@pytest.fixture
def runway(open_connection):
    def start(*policies, role="owner"):
        return Runway(lambda: open_connection(role), Plan((), policies, (), Gates(), ()))

    return start


def test_all_that_is_missing_is_made_at_the_start_and_nothing_more(database, events, runway):
    events()
    keeper = runway(policy())
    keeper.run_once()
    assert names(database) == expected(0, 1, 2, 3)
    assert database.query("select task, state, triggered_by from maintenance_runs") == [
        ("partitions.events.make", "succeeded", "runway")
    ]
    keeper.run_once()
    assert database.value("select count(*) from maintenance_runs") == 1


def test_a_partition_that_is_gone_is_made_again_without_traffic(database, events, runway):
    events()
    keeper = runway(policy())
    keeper.run_once()
    for shift in (1, 0):
        database.query(f"drop table shop.{expected(shift)[0]}")
        keeper.run_once()
        assert names(database) == expected(0, 1, 2, 3)


def test_inserts_go_on_over_midnight(database, events, runway, monkeypatch):
    clock = Clock(monkeypatch)
    events()
    keeper = runway(policy(every="day", ahead=1))
    midnight = period_start(NOW, "day", 1)
    for moment in (
        midnight - timedelta(seconds=5),
        midnight + timedelta(seconds=1),
        midnight + timedelta(days=1, seconds=1),
    ):
        clock.now = moment
        # before anybody has looked
        database.query("insert into shop.events select 1, %s", moment) if moment > midnight else None
        keeper.run_once()
        database.query("insert into shop.events select 1, %s", moment)
    assert names(database) == expected(0, 1, 2, 3, every="day")


def test_a_scheduler_that_was_away_over_the_end_of_a_period_makes_it_at_its_start(database, events, runway):
    events()
    add(database, -1)
    runway(policy(ahead=1)).run_once()
    insert(database)
    assert names(database) == expected(-1, 0, 1)


def test_one_table_that_cannot_be_made_stops_no_other_and_is_left_alone_for_a_while(
    database, events, runway, quick
):
    events()
    database.query(f"create table shop.{expected(0)[0]} (note text)")
    database.query("create table shop.others (id bigint, at timestamptz) partition by range (at)")
    keeper = runway(
        policy(), policy(name="absent", table="shop.absent"), policy(name="others", table="shop.others")
    )
    for _ in range(2):
        keeper.run_once()
    assert database.value("select count(*) from pg_inherits where inhparent = 'shop.others'::regclass") == 4
    assert database.query("select task, state from maintenance_runs order by id") == [
        ("partitions.events.make", "failed"),
        ("partitions.others.make", "succeeded"),
    ]


def test_whoever_may_not_make_partitions_does_not_try(database, events, runway):
    events()
    runway(policy(), role="worker").run_once()
    assert names(database) == [] and database.value("select count(*) from maintenance_runs") == 0


def test_two_schedulers_at_once_make_each_partition_once(database, events, runway):
    events()
    keepers = [runway(policy()) for _ in range(3)]
    threads = [threading.Thread(target=keeper.run_once) for keeper in keepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert names(database) == expected(0, 1, 2, 3)
    assert {row[0] for row in database.query("select state from maintenance_runs")} == {"succeeded"}


# -- dropping ------------------------------------------------------------------------------------
def test_what_is_too_old_is_detached_rests_for_its_grace_and_is_dropped(database, events, keep):
    events()
    keep().make()
    for shift in (-4, -3, -2, -1):
        add(database, shift)
        insert(database, shift)
    of = policy(grace_seconds=3600.0)
    assert keep(of).drop() == 0
    assert names(database) == expected(-2, -1, 0, 1, 2, 3)  # two whole months before the current one
    assert database.value("select count(*) from shop.events") == 2
    assert [step.action for step in keep(of).plan()] == []
    database.query("update detached_partitions set detached_at = detached_at - interval '2 hours'")
    assert [step.action for step in keep(of).plan()] == ["drop", "drop"]
    assert keep(of).drop() == 2
    assert database.query(
        "select parent, partition, dropped_at is not null from detached_partitions order by lower_bound"
    ) == [("shop.events", f"shop.{name}", True) for name in expected(-4, -3)]
    assert database.value("select to_regclass('shop.' || %s)", expected(-4)[0]) is None


def test_open_ends_are_never_too_old(database, events, keep):
    events()
    edge = period_start(NOW, "month", 1).isoformat()
    database.query(
        f"create table shop.begin partition of shop.events for values from (minvalue) to ('{period_start(NOW, 'month', -5).isoformat()}')"
    )
    database.query(
        f"create table shop.rest partition of shop.events for values from ('{edge}') to (maxvalue)"
    )
    assert [(step.action, step.partition) for step in keep().plan()] == [
        ("make", expected(0)[0]),
        ("detach", "shop.begin"),
    ]
    assert keep().make() == 1 and keep().drop() == 1
    assert names(database) == sorted([expected(0)[0], "rest"])
    assert keep().status().runway_seconds > 10**9


def test_bounds_beyond_the_years_of_python_are_open_ends(database, events, keep):
    """One partition up to the year 10000 ended every run for its table with a ValueError."""
    events()
    edges = [period_start(NOW, "month", shift).isoformat() for shift in (-9, -8, 3)]
    database.query(
        f"create table shop.begin partition of shop.events for values from ('0044-03-15 BC') to ('{edges[0]}')"
    )
    database.query(
        f"create table shop.old partition of shop.events for values from ('{edges[0]}') to ('{edges[1]}')"
    )
    database.query(
        f"create table shop.rest partition of shop.events for values from ('{edges[2]}') to ('10000-01-01')"
    )
    assert keep().make() == 3 and keep().drop() == 2
    assert names(database) == sorted([*expected(0, 1, 2), "rest"])


def test_capitals_and_partitions_in_other_schemas_go_whole(database, keep, open_connection):
    database.query("create schema shop")
    database.query('create table shop."Events" (id int, at timestamptz) partition by range (at)')
    of = policy(table="shop.Events")
    old = add(database, -9, table='shop."Events"', name='public."Old One"')
    assert keep(of).make() == 4
    assert keep(of).drop() == 1
    assert database.value("select to_regclass(%s)", old) is None
    assert database.query("select partition, dropped_at is not null from detached_partitions") == [
        (old, True)
    ]
    with pytest.raises(InvalidArgument, match="no partitioned table"):
        keep(policy(table="shop.events")).make()


def test_a_detach_goes_through_beside_writers_of_other_partitions(database, events, keep):
    events()
    keep().make()
    add(database, -9)
    writer = database.connect(admin=True)
    writer.execute("begin")
    writer.execute("insert into shop.events values (1, now(), 'x')")
    done = []
    thread = threading.Thread(target=lambda: done.append(keep().drop()))
    thread.start()
    # it waits for transactions that may still see the old shape, and holds up no new one
    wait_until(
        lambda: database.value(
            "select bool_or(inhdetachpending) from pg_inherits where inhparent = 'shop.events'::regclass"
        )
    )
    insert(database)
    assert database.value("select count(*) from shop.events") == 1
    writer.execute("commit")
    thread.join(30)
    writer.close()
    assert done == [1] and database.value("select count(*) from shop.events") == 2


def test_a_detach_that_a_reader_interrupts_is_finalized_later(database, events, keep, quick, open_connection):
    events()
    old = add(database, -9)
    insert(database, -9)
    reader = database.connect(admin=True)
    reader.execute("begin")
    reader.execute("select count(*) from shop.events")
    connection = open_connection("owner")
    parent = store.parent(connection, "shop.events", "at")
    (found,) = store.partitions(connection, "shop.events")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        store.detach(connection, parent, found, lock_timeout="200ms")
    assert store.partitions(connection, "shop.events")[0].detach_pending
    assert connection.execute("show lock_timeout").fetchone() == ("0",)
    assert keep().status().runway_seconds == 0 and [step.action for step in keep().plan()][-1] == "detach"
    reader.close()
    assert keep().drop() == 1
    assert database.value("select to_regclass(%s)", old) is None


def test_a_process_that_dies_between_detach_and_its_record_leaves_no_orphan(
    database, events, keep, monkeypatch, open_connection
):
    events()
    old = add(database, -9)
    connection = open_connection("owner")
    parent = store.parent(connection, "shop.events", "at")
    (found,) = store.partitions(connection, "shop.events")
    # before the detach
    monkeypatch.setattr(store, "_do", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.detach(connection, parent, found, lock_timeout="1s")
    monkeypatch.undo()
    # recorded, and still attached: the grace may pass, it is not dropped and not forgotten
    assert store.droppable(connection, parent, 0) == []
    database.query(f"alter table shop.events detach partition {old}")  # and this is where the other one died
    assert [row["partition"] for row in store.droppable(connection, parent, 0)] == [old]
    assert keep().drop() == 1
    assert database.query("select count(*), count(dropped_at) from detached_partitions") == [(1, 1)]


def test_a_detached_partition_that_was_attached_again_stays(database, events, keep):
    events()
    old = add(database, -9)
    of = policy(grace_seconds=3600.0)
    keep(of).drop()
    lower, upper = (period_start(NOW, "month", shift).isoformat() for shift in (-9, -8))
    database.query(
        f"alter table shop.events attach partition {old} for values from ('{lower}') to ('{upper}')"
    )
    database.query("update detached_partitions set detached_at = detached_at - interval '2 hours'")
    assert keep(policy(keep=20)).drop() == 0
    assert len(names(database)) == 1


def test_one_partition_that_cannot_be_dropped_keeps_no_other(database, events, keep, quick, monkeypatch):
    events()
    monkeypatch.setattr(partitions, "TRIES", 1)
    old = [add(database, shift) for shift in (-9, -8)]
    keep(policy(grace_seconds=3600.0)).drop()
    database.query("update detached_partitions set detached_at = detached_at - interval '2 hours'")
    reader = database.connect(admin=True)
    reader.execute("begin")
    reader.execute(f"select * from {old[0]}")
    with pytest.raises(StoreConflict):
        keep().drop()
    assert [database.value("select to_regclass(%s) is null", name) for name in old] == [False, True]
    reader.close()
    assert keep().drop() == 1


# -- exporting -----------------------------------------------------------------------------------
def test_the_export_holds_every_row_with_its_checksum_before_the_drop(database, events, keep, tmp_path):
    events()
    old = add(database, -9)
    notes = ["plain", 'quo"te', "two\nlines", "cr\r\nlf", "comma,", "", None, '"\n"', "ünï", "\\N"]
    with database.connect(admin=True) as connection:
        for number, note in enumerate(notes):
            connection.execute(
                "insert into shop.events values (%s, %s, %s)", (number, period_start(NOW, "month", -9), note)
            )
    of = policy(export_dir=str(tmp_path / "deep" / "export"))
    assert [step.action for step in keep(of).plan()] == ["make"] * 4 + ["detach"]
    assert keep(of).drop() == 1
    path, rows, digest = database.query(
        "select export_path, export_rows, export_sha256 from detached_partitions"
    )[0]
    data = (tmp_path / "deep" / "export" / f"{old}.csv.gz").read_bytes()
    assert path == str(tmp_path / "deep" / "export" / f"{old}.csv.gz")
    assert (rows, digest) == (len(notes), hashlib.sha256(data).hexdigest())
    found = list(csv.reader(gzip.decompress(data).decode().splitlines(keepends=True)))
    assert found[0] == ["id", "at", "note"] and [row[2] for row in found[1:]] == [
        note or "" for note in notes
    ]
    # no partial one
    assert [entry.name for entry in (tmp_path / "deep" / "export").iterdir()] == [f"{old}.csv.gz"]


def test_a_second_partition_of_a_name_does_not_replace_the_export_of_the_first(
    database, events, keep, tmp_path
):
    """Late rows of a month that was exported and dropped: somebody makes the month again, and the policy ends
    it again.
    """
    events()
    of = policy(export_dir=str(tmp_path))
    for note in ("first", "second", "third"):
        add(database, -9)
        insert(database, -9, note=note)
        assert keep(of).drop() == 1
    found = database.query("select export_path, export_sha256 from detached_partitions order by detached_at")
    assert len({path for path, _ in found}) == 3
    for (path, digest), note in zip(found, ("first", "second", "third"), strict=True):
        data = Path(path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest and note in gzip.decompress(data).decode()


def test_a_directory_that_cannot_be_written_keeps_the_partition(database, events, keep, tmp_path):
    events()
    old = add(database, -9)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="export_dir"):
        keep(policy(export_dir=str(tmp_path / "file"))).drop()
    assert database.value("select to_regclass(%s) is not null", old)
    assert keep(policy(export_dir=str(tmp_path))).drop() == 1


def test_forced_row_security_does_not_make_an_export_of_half_the_rows(database, events, keep, tmp_path):
    events()
    old = add(database, -9)
    insert(database, -9, count=10)
    database.query(f"alter table {old} enable row level security")
    database.query(f"alter table {old} force row level security")
    database.query(f"create policy half on {old} using (id < 5)")
    database.query("create role shop_owner login")
    try:
        for thing in ("schema shop", "table shop.events", f"table {old}"):
            database.query(f"alter {thing} owner to shop_owner")
        database.query("grant packhorse_worker to shop_owner")
        from packhorse.worker.db.connection import connect

        connection = connect(database.server.url(database.name, "shop_owner"))
        with pytest.raises(StoreRejected, match="row-level security"):
            PartitionKeeper(connection, policy(export_dir=str(tmp_path))).drop()
        connection.close()
        assert database.value("select to_regclass(%s) is not null", old) and list(tmp_path.iterdir()) == []
    finally:
        database.query("drop owned by shop_owner cascade")
        database.query("drop role shop_owner")


# -- an adopted table ----------------------------------------------------------------------------
def test_a_default_partition_is_drained_while_a_writer_inserts(database, events, keep, quick):
    events()
    database.query("create table shop.rest partition of shop.events default")
    for shift in (-2, -1, 0, 1):
        insert(database, shift, count=200)
    stop, written, errors = threading.Event(), [0], []

    def write():
        try:
            with database.connect(admin=True) as connection:
                while not stop.is_set():
                    connection.execute(
                        "insert into shop.events values (%s, %s, 'live')",
                        (written[0], period_start(NOW, "month", written[0] % 4 - 2) + timedelta(days=1)),
                    )
                    written[0] += 1
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    wait_until(lambda: written[0] > 20)
    moved = keep().drain_default()
    before = written[0]
    wait_until(lambda: written[0] > before + 20)
    stop.set()
    thread.join(20)
    assert errors == [] and moved >= 800
    assert database.value("select count(*) from shop.events") == 800 + written[0]
    assert database.value("select count(*) from shop.rest") == 0
    assert keep().drain_default() == 0
    database.query("alter table shop.events detach partition shop.rest")
    assert keep().make() == 2 and keep().status().problem is None


def test_a_period_that_has_no_place_ends_the_drain_with_an_error(database, events, keep):
    events()
    database.query("create table shop.rest partition of shop.events default")
    insert(database)
    database.query(f"create table shop.{expected(0)[0]} (id int)")
    with pytest.raises(StoreRejected, match="already exists"):
        keep().drain_default()
    assert database.value("select count(*) from shop.rest") == 1


@pytest.mark.parametrize(
    "order",
    [
        "id bigint, at timestamptz, a text, b text",
        "id bigint, at timestamptz, b text, a text",
        "b text, at timestamptz, id bigint, a text",
    ],
)
def test_the_drain_moves_columns_by_name_and_computes_generated_ones(database, events, keep, order):
    """A default partition that was attached has its columns in an order of its own: by place, a and b would
    change places.
    """
    events(
        "id bigint generated always as identity, at timestamptz, gone int, a text, b text, c text generated always as (a || b) stored"
    )
    database.query("alter table shop.events drop gone")
    database.query(f"create table shop.rest ({order}, c text generated always as (a || b) stored)")
    database.query("alter table shop.rest alter id set not null")
    database.query("alter table shop.events attach partition shop.rest default")
    database.query("insert into shop.events (at, a, b) select now(), 'A', 'B' from generate_series(1, 3)")
    assert keep().drain_default() == 3
    assert database.query("select id, a, b, c from shop.events order by 1") == [
        (n, "A", "B", "AB") for n in (1, 2, 3)
    ]
    assert database.value("select count(*) from shop.rest") == 0


def test_rows_without_a_time_are_said_before_somebody_drops_them(database, events, keep):
    events()
    database.query("create table shop.rest partition of shop.events default")
    insert(database, count=5)
    database.query("insert into shop.events values (6, null, 'x'), (7, null, 'x')")
    with pytest.raises(StoreRejected, match=r"2 rows in shop\.rest have no at"):
        keep().drain_default()
    assert (
        database.value("select count(*) from shop.rest") == 2
        and database.value("select count(*) from shop.events") == 7
    )


# -- rights and shapes ---------------------------------------------------------------------------
def test_who_is_not_the_owner_is_told_what_to_do(database, events, keep, open_connection):
    events()
    for act in (keep(role="worker").make, keep(role="worker").drop, keep(role="worker").drain_default):
        with pytest.raises(StoreRejected, match=r"only its owner.*maintenance_url"):
            act()
    findings = check_plan(open_connection(), Plan((), (policy(),), (), Gates(), ()))
    assert [task for task, _ in findings.problems] == ["partitions.events.make", "partitions.events.drop"]
    assert "maintenance_url" in findings.problems[0][1]
    assert check_plan(open_connection("owner"), Plan((), (policy(),), (), Gates(), ())).problems == []


@pytest.mark.parametrize(
    ("columns", "key", "column", "text"),
    [
        ("id int, at timestamptz", "id", "id", "not range-partitioned by the time id"),
        ("id int, at timestamptz", "id", "at", "not range-partitioned"),
        ("id int, at timestamptz", "at, id", "at", "not range-partitioned"),
        ("id int, at timestamptz", "at", "created", "not range-partitioned"),
    ],
)
def test_a_table_of_another_shape_is_refused(database, keep, open_connection, columns, key, column, text):
    database.query("create schema shop")
    database.query(f"create table shop.events ({columns}) partition by range ({key})")
    of = policy(column=column)
    with pytest.raises(InvalidArgument, match=text):
        keep(of).make()
    assert text in check_plan(open_connection("owner"), Plan((), (of,), (), Gates(), ())).problems[0][1]


def test_the_archive_is_looked_after_by_functions_where_the_role_does_not_own_it(database, keep):
    archive = Partitions(
        "message_archive", column="finished_at", every="day", ahead=9, keep=7, keep_setting=True
    )
    before = keep(archive, "worker").status().partitions
    assert keep(archive, "worker").make() >= 1
    assert keep(archive, "worker").status().runway_seconds > 8 * 86400
    assert keep(archive, "worker").drop() == 0
    assert keep(archive, "worker").status().partitions >= before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"export_dir": "exports"}, "export_dir"),
        ({"keep": 30}, "keep"),
        ({"grace_seconds": 7 * 86400.0}, "grace"),
    ],
)
def test_without_the_owner_nothing_goes_that_is_to_be_exported_or_kept(
    database, keep, open_connection, changes, field
):
    archive = Partitions(
        **{
            "name": "message_archive",
            "column": "finished_at",
            "every": "day",
            "ahead": 7,
            "keep": 7,
            "keep_setting": True,
            "source": "toml",
            **changes,
        }
    )
    lower, upper = (period_start(NOW, "day", shift) for shift in (-12, -11))
    name = partition_name("message_archive", lower, "day")
    database.query(
        f"create table {name} partition of message_archive for values from ('{lower.isoformat()}') to ('{upper.isoformat()}')"
    )
    try:
        with pytest.raises(StoreRejected, match=f"^{field}: only the owner.*maintenance_url"):
            keep(archive, "worker").drop()
        assert database.value("select to_regclass(%s) is not null", name)
        problems = check_plan(open_connection(), Plan((), (archive,), (), Gates(), ())).problems
        assert [task for task, _ in problems] == ["partitions.message_archive.drop"] and field in problems[0][
            1
        ]
        assert check_plan(open_connection("owner"), Plan((), (archive,), (), Gates(), ())).problems == []
        shipped = next(of for of in PARTITIONS if of.name == "message_archive")
        assert check_plan(open_connection(), Plan((), (shipped,), (), Gates(), ())).problems == []
        assert keep(shipped, "worker").drop() == 1
    finally:
        database.query(f"drop table if exists {name}")


def test_one_run_without_the_owner_drops_all_that_is_old_after_a_long_absence(database, keep):
    archive = PARTITIONS[0]
    for shift in range(-60, -37):
        lower, upper = (period_start(NOW, "day", shift + more) for more in (0, 1))
        name = f"message_archive_{lower:%Y%m%d}"
        database.query(
            f"create table {name} partition of message_archive for values from ('{lower.isoformat()}') to ('{upper.isoformat()}')"
        )
    assert keep(archive, "worker").drop() == 23
    assert keep(archive, "worker").drop() == 0


def test_the_archive_is_tried_again_soon_when_a_dump_kept_its_old_partitions(database, keep):
    """Tried once a night, beside the nightly dump, they stayed for ever."""
    archive = PARTITIONS[0]
    lower, upper = (period_start(NOW, "day", shift) for shift in (-40, -39))
    name = f"message_archive_{lower:%Y%m%d}"
    database.query(
        f"create table {name} partition of message_archive for values from ('{lower.isoformat()}') to ('{upper.isoformat()}')"
    )
    with database.connect(admin=True) as dump, dump.transaction():
        dump.execute("select from message_archive")
        assert keep(archive, "worker").drop() == 0
    assert trigger(archive.drop_cron, None).after(NOW) - NOW <= timedelta(hours=1)
    assert keep(archive, "worker").drop() == 1


def test_the_archive_keeps_what_the_longest_queue_setting_asks_for(database, keep):
    archive = Partitions(
        "message_archive", column="finished_at", every="day", ahead=7, keep=7, keep_setting=True
    )
    lower, upper = (period_start(NOW, "day", shift).isoformat() for shift in (-12, -11))
    database.query(
        f"create table message_archive_old partition of message_archive for values from ('{lower}') to ('{upper}')"
    )
    try:
        database.query("""select set_queue('default', '{"keep_done": "20 days"}')""")
        assert [step for step in keep(archive).plan() if step.action == "detach"] == []
        database.query("""select set_queue('default', '{"keep_done": "7 days"}')""")
        assert [step.partition for step in keep(archive).plan() if step.action == "detach"] == [
            "public.message_archive_old"
        ]
    finally:
        database.query("drop table message_archive_old")


def test_the_runway_ends_at_the_first_gap():
    def one(lower, upper):
        return store.Partition("s", "p", "s.p", "", lower, upper, False, False, 0.0, 0)

    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert runway_seconds([], now) == 0
    assert runway_seconds([one("2026-11-22", "2026-11-23")], now) == 0
    assert runway_seconds([one("2026-11-21", "2026-11-22"), one("2026-11-23", "2026-11-24")], now) == 86400
    assert (
        runway_seconds(
            [one("2026-11-22 00:00:00+00", "2026-11-23 05:30:00+05:30"), one("2026-11-20", "2026-11-22")], now
        )
        == 2 * 86400
    )
    assert runway_seconds([one(None, "2026-11-22")], now) == 86400


def test_the_runway_of_a_table_of_a_policy_is_a_number_of_the_fleet_wherever_it_lies(
    database, events, open_connection
):
    """Only the queue's own schema had one: the alarm for everybody else's tables could not ring."""
    events()
    plan = Plan((), (policy(),), (), Gates(), ())
    assert (
        TaskRunner(lambda: open_connection("owner"), plan).run("partitions.events.make", triggered_by="test")
        == "succeeded"
    )
    assert database.value("select plan from maintenance_runs") == {"table": "shop.events"}
    database.query("create table shop.theirs (at timestamptz) partition by range (at)")
    database.query(
        "create table shop.theirs_1 partition of shop.theirs for values from ('2020-01-01') to ('2021-01-01')"
    )
    database.query(f"drop table shop.{expected(2)[0]}")
    database.query("select refresh_fleet_statistics('0')")
    shown = {
        row["table"]: row["value"]
        for row in database.value("select statistics from fleet_statistics()")["partition_runway_seconds"]
    }
    assert shown["shop.events"] == approx_until(period_start(NOW, "month", 2)) and "shop.theirs" not in shown
