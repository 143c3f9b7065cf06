"""The scheduler's loop, turn by turn: missed times, broken schedules, what is declared, what idling costs
(SPEC M1, P7).
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from packhorse.schedules.timetable.schedule import Schedule
from packhorse.schedules.timetable.scheduler import MOST_PLANNED, POLL_SECONDS, Scheduler, declare
from packhorse.worker.db.connection import connect
from packhorse.worker.errors import InvalidArgument
from tests.support.calendar import in_utc, not_soon


@pytest.fixture
def put(database):
    """Make a schedule by SQL whose newest decided time lies `ago` in the past."""

    def make(name="s", cron="* * * * *", ago="1 minute", **arguments):
        named = "".join(f", p_{key} => %s" for key in arguments)
        trigger = "p_every" if cron.startswith("every ") else "p_cron"
        database.query(
            f"select set_schedule(%s, 'effect', {trigger} => %s{named})",
            name,
            cron.removeprefix("every "),
            *arguments.values(),
        )
        database.query(
            "update schedules set last_planned_at = clock_timestamp() - %s::interval where name = %s",
            ago,
            name,
        )

    return make


def turn(scheduler, most=20):
    """Turns until nothing is due."""
    for _ in range(most):
        if scheduler.run_once() > 0:
            return
    raise AssertionError("it never rests")


def runs(database, columns="outcome, missed_count", name="s"):
    return in_utc(
        database.query(f"select {columns} from schedule_runs where schedule = %s order by planned_at", name)
    )


def schedule(name="s", **options):
    return Schedule(name, "effect", **{"cron": not_soon(), "source": "toml", **options})


# -- missed times --------------------------------------------------------------------------------
def test_once_runs_one_time_for_all_that_were_missed(database, put, make_scheduler):
    put(ago="100 minutes", missed="once")
    scheduler = make_scheduler()
    turn(scheduler)
    ((outcome, missed),) = runs(database)
    assert outcome == "enqueued" and 98 <= missed <= 100
    database.query("select refresh_fleet_statistics('0')")
    assert database.value("select statistics from fleet_statistics()")["schedule_missed_total"] == [
        {"schedule": "s", "value": missed}
    ]
    assert scheduler.fired == 1


def test_skip_records_what_is_older_than_a_minute_and_runs_what_is_not(database, put, make_scheduler):
    put("hourly", "every 1 hour", ago="30 hours", missed="skip")
    database.query("update schedules set every = interval '1 hour'")
    # the newest planned hour may be seconds old, and an hour may begin meanwhile: both outcomes are right
    age = "select extract(epoch from clock_timestamp() - date_trunc('hour', clock_timestamp(), 'UTC'))"
    before = database.value(age)
    turn(make_scheduler())
    after = database.value(age)
    ((outcome, missed, message),) = runs(database, "outcome, missed_count, message_id", "hourly")
    if 1 < before < after < 59:
        assert outcome == "enqueued"
    elif 61 < before < after:
        assert outcome == "missed" and message is None
    assert missed in (28, 29, 30)


def test_all_runs_the_newest_ones_up_to_its_limit_in_order(database, put, make_scheduler, caplog):
    put(ago="100 minutes", missed="all", missed_limit=4, overlap="allow")
    turn(make_scheduler())
    found = runs(database, "planned_at, outcome, missed_count, message_id")
    assert [outcome for _, outcome, *_ in found] == ["enqueued"] * len(found)
    assert len(found) in (4, 5)  # the fifth when a minute ended meanwhile
    assert found[-1][0] > database.value("select clock_timestamp() - interval '2 minutes'"), (
        "the newest ones, not the oldest"
    )
    assert 94 <= found[0][2] <= 97 and all(row[2] == 0 for row in found[1:])
    assert all(later[0] - earlier[0] == timedelta(minutes=1) for earlier, later in pairwise(found))
    assert [row[3] for row in found] == sorted(row[3] for row in found)
    assert (
        "schedule_missed schedule=s count=99 policy=all" in caplog.text
        or "schedule_missed schedule=s count=98" in caplog.text
    )


def test_all_with_skip_would_run_one_and_is_refused():
    with pytest.raises(InvalidArgument, match="overlap"):
        schedule(missed="all", overlap="skip")


def test_a_scheduler_that_dies_while_it_makes_up_leaves_the_rest_due(
    database, put, make_scheduler, monkeypatch
):
    put(cron="0 0 1 * *", ago="100 days", missed="all", missed_limit=10, overlap="allow")
    dying = make_scheduler()
    fire = dying._fire
    calls = iter([None])

    def one_then_none(*args, **kwargs):
        next(calls)
        fire(*args, **kwargs)

    monkeypatch.setattr(dying, "_fire", one_then_none)
    with pytest.raises(StopIteration):
        dying.run_once()
    assert len(runs(database)) == 1
    turn(make_scheduler())  # not in a month: now
    assert len(runs(database)) in (3, 4)


@pytest.mark.slow
def test_a_year_of_absence_costs_one_turn_and_bounded_rows(database, put, make_scheduler):
    put(ago="366 days", missed="all", missed_limit=3, overlap="wait")
    put("once", ago="366 days")
    turn(make_scheduler())
    assert len(runs(database)) in (3, 4)
    assert runs(database, name="once")[0][1] == MOST_PLANNED - 1
    assert database.value(
        "select bool_and(next_planned_at > clock_timestamp() - interval '5 seconds') from schedules"
    )


def test_after_the_clock_was_ahead_a_schedule_goes_on_and_runs_nothing_twice(database, put, make_scheduler):
    """A clock five hours ahead for a moment (a failover, a restored machine): nothing fired for five hours
    after it was put right.
    """
    put(cron="every 1 hour", ago="1 minute", overlap="allow")
    ahead = "clock_timestamp() + interval '5 hours'"
    ran = database.value(f"select date_trunc('hour', {ahead})")
    database.query(
        f"update schedules set last_planned_at = %s, next_planned_at = {ahead} + interval '1 hour'", ran
    )
    database.query(
        "insert into schedule_runs (schedule, planned_at, outcome, triggered_by) values ('s', %s, 'missed', 'schedule')",
        ran,
    )
    scheduler = make_scheduler()
    turn(scheduler)
    found = "select last_planned_at <= clock_timestamp(), next_planned_at <= clock_timestamp() + interval '1 hour', next_planned_at > last_planned_at from schedules"
    assert database.query(found) == [(True, True, True)] and len(runs(database)) == 1
    database.query(
        "update schedules set last_planned_at = %s - interval '1 hour', next_planned_at = clock_timestamp()",
        ran,
    )
    assert database.value("select fire_schedule('s', %s, null)", ran) == "taken", (
        "what ran while the clock was ahead"
    )


def test_a_schedule_that_was_ahead_and_cannot_be_computed_does_not_make_the_loop_spin(
    database, put, make_scheduler
):
    put("s", "99 * * * *", ago="-5 hours")
    turn(make_scheduler(), most=3)


def test_nothing_is_due_before_its_time_and_a_new_schedule_does_not_make_up(database, put, make_scheduler):
    put(cron=not_soon(), ago="0 seconds")
    turn(make_scheduler())
    assert runs(database) == []
    assert database.value("select next_planned_at > clock_timestamp() from schedules")


# -- broken schedules ----------------------------------------------------------------------------
def test_a_queue_that_is_gone_is_recorded_as_failed_and_the_others_go_on(database, put, make_scheduler):
    database.query("select declare_queue('short')")
    put("a-broken", "every 1 hour", ago="2 hours", queue="short")
    put("b-good", ago="2 minutes")
    database.query("delete from queue_wakeups where queue = 'short'")
    database.query("delete from queues where name = 'short'")
    scheduler = make_scheduler()
    turn(scheduler)
    ((outcome, error),) = runs(database, "outcome, error", "a-broken")
    assert outcome == "failed" and "short" in error
    assert "short" in database.value("select problem from schedule_health where name = 'a-broken'")
    assert runs(database, "outcome", "b-good")[0] == ("enqueued",)
    assert database.value("select next_planned_at > clock_timestamp() from schedules where name = 'a-broken'")


@pytest.mark.parametrize("cron", ["99 * * * *", "0 0 30 2 *", "0 0 1 * mon", "a b c d e"])
def test_a_line_that_only_python_can_judge_is_shown_as_a_problem_and_asked_for_once(
    database, put, make_scheduler, cron
):
    put("a-broken", cron, ago="1 hour")
    put("b-good", ago="2 minutes")
    scheduler = make_scheduler()
    turn(scheduler)
    assert "cron: " in database.value("select problem from schedule_health where name = 'a-broken'")
    assert runs(database, name="a-broken") == [] and len(runs(database, name="b-good")) >= 1
    database.query("select set_schedule('a-broken', 'effect', '* * * * *')")
    assert database.value("select problem from schedules where name = 'a-broken'") is None
    turn(scheduler)
    assert database.value("select next_planned_at is not null from schedules where name = 'a-broken'")


def test_what_another_host_could_not_compute_is_tried_again_and_made_up(database, put, make_scheduler):
    """A host without time zone data would stop a schedule for the whole fleet, and for good: declaring it
    again changes nothing.
    """
    put("s", "0 12 * * *", ago="2 days", time_zone="Africa/Kigali")
    give_up = "select plan_schedule(name, last_planned_at, null, 'time_zone: unknown here') from schedules where name = 's'"
    database.query(give_up)
    assert (
        database.value("select set_schedule('s', 'effect', '0 12 * * *', p_time_zone => 'Africa/Kigali')")
        == "unchanged"
    )
    first = make_scheduler()
    turn(first)
    assert runs(database) == [("enqueued", 1)]
    assert database.query("select problem, next_planned_at > clock_timestamp() from schedules") == [
        (None, True)
    ]
    database.query(give_up)
    # not at every turn
    assert (
        first.run_once() == POLL_SECONDS and database.value("select next_planned_at from schedules") is None
    )
    first._unusable_after = 0.0
    turn(first)
    assert database.query("select problem, next_planned_at > clock_timestamp() from schedules") == [
        (None, True)
    ]


def test_what_stays_unusable_is_said_once_and_does_not_make_the_loop_spin(put, make_scheduler, caplog):
    put("s", "99 * * * *")
    scheduler = make_scheduler()
    for _ in range(3):
        scheduler._unusable_after = 0.0
        turn(scheduler, most=2)
    assert caplog.text.count("schedule_unusable") == 1


def test_a_schedule_that_cannot_even_be_recorded_does_not_make_the_loop_spin(database, put, make_scheduler):
    put("a-broken", ago="2 minutes")
    put("b-good", ago="2 minutes")
    database.query("""create function refuse_a() returns trigger language plpgsql as $$ begin
        if new.name = 'a-broken' then raise 'no'; end if; return new; end $$""")
    database.query(
        "create trigger refuse_a before update on schedules for each row execute function refuse_a()"
    )
    try:
        scheduler = make_scheduler()
        turn(scheduler, most=3)
        assert scheduler.run_once() > 0
        assert len(runs(database, name="b-good")) >= 1
    finally:
        database.query("drop trigger refuse_a on schedules")
        database.query("drop function refuse_a()")


@pytest.mark.slow
def test_a_schedule_whose_row_somebody_holds_stops_no_other_and_fires_when_it_is_free(
    database, put, make_scheduler, caplog
):
    """A transaction left open in psql: the timetable of the whole fleet stood still behind it."""
    caplog.set_level("INFO", "packhorse.schedules")
    put("a-held", ago="2 minutes")
    put("b-good", ago="2 minutes")
    scheduler = make_scheduler()
    with database.connect(admin=True) as other, other.transaction():
        other.execute("select from schedules where name = 'a-held' for update")
        turn(scheduler, most=3)
        assert runs(database, name="a-held") == [] and runs(database, "outcome", "b-good")[0] == ("enqueued",)
        assert "schedule_waits schedule=a-held error_class=55P03" in caplog.text
    scheduler._deferred["a-held"] = 0.0  # a poll later
    turn(scheduler)
    assert runs(database, "outcome", "a-held")[0] == ("enqueued",)


@pytest.mark.slow
def test_a_schedule_that_waits_for_its_row_does_not_slow_the_others_down(database, put, make_scheduler):
    """While one was held, every turn was a poll apart: what runs each second missed four of five."""
    put("a-held", ago="2 minutes")
    put("b-good", "every 1 second", ago="1 second", overlap="allow")
    scheduler = make_scheduler()
    with database.connect(admin=True) as other, other.transaction():
        other.execute("select from schedules where name = 'a-held' for update")
        scheduler.run_once()
        assert [scheduler.run_once() <= 1 for _ in range(5)] == [True] * 5, (
            "until the next planned time of the other, not a poll"
        )
        assert runs(database, name="a-held") == []


@pytest.mark.slow
def test_a_declaration_whose_row_somebody_holds_is_written_later_and_stops_no_planned_time(
    database, put, make_scheduler
):
    make_scheduler([schedule("a-held"), schedule("c")]).run_once()
    put("b-good", ago="2 minutes")
    scheduler = make_scheduler([schedule("a-held", priority=1), schedule("c", priority=1)])
    with database.connect(admin=True) as other, other.transaction():
        other.execute("select from schedules where name = 'a-held' for update")
        scheduler.run_once()
        assert database.query("select name, priority from schedules where source = 'toml' order by 1") == [
            ("a-held", 5),
            ("c", 1),
        ]
        assert runs(database, "outcome", "b-good")[0] == ("enqueued",)
    scheduler.run_once()
    assert database.value("select priority from schedules where name = 'a-held'") == 1


@pytest.mark.slow
def test_a_declaration_that_is_gone_and_whose_row_somebody_holds_stops_no_planned_time(
    database, put, make_scheduler
):
    """The delete waited for the row until its deadline, each turn anew: nothing else was fired meanwhile."""
    make_scheduler([schedule("a-held"), schedule("c")]).run_once()
    put("b-good", ago="2 minutes")
    scheduler = make_scheduler([])
    with database.connect(admin=True) as other, other.transaction():
        other.execute("select from schedules where name = 'a-held' for update")
        scheduler.run_once()
        assert database.query("select name from schedules where source = 'toml'") == [("a-held",)]
        assert runs(database, "outcome", "b-good")[0] == ("enqueued",)
    scheduler.run_once()
    assert database.query("select name from schedules") == [("b-good",)]


@pytest.mark.slow
@pytest.mark.parametrize("table", ["message_archive", "dead_letters"])
def test_a_lock_on_where_ends_are_read_stops_no_planned_time(database, put, make_scheduler, table):
    put("s", "every 1 second", ago="5 seconds", overlap="allow")
    scheduler = make_scheduler()
    turn(scheduler)
    database.query("select cancel_message(message_id, 'ada') from schedule_runs")
    scheduler._finish_after = 0.0
    with database.connect(admin=True) as other, other.transaction():
        other.execute(f"lock table {table} in access exclusive mode")
        assert scheduler.run_once() <= POLL_SECONDS
        assert runs(database, "outcome")[0] == ("enqueued",)
    scheduler._finish_after = 0.0
    scheduler.run_once()
    assert runs(database, "outcome")[0] == ("cancelled",)


# -- pause, change, run --------------------------------------------------------------------------
def test_a_pause_is_not_made_up(database, put, make_scheduler):
    put(ago="2 minutes")
    database.query("select pause_schedule('s')")
    scheduler = make_scheduler()
    turn(scheduler)
    assert runs(database) == []
    database.query(
        "update schedules set last_planned_at = clock_timestamp() - interval '3 days', next_planned_at = clock_timestamp()"
    )
    database.query("select resume_schedule('s')")
    turn(scheduler)
    assert database.value("select coalesce(sum(missed_count), 0) from schedule_runs") == 0


def test_another_trigger_takes_effect_and_the_old_one_fires_no_more(database, put, make_scheduler):
    put(cron="every 1 second", ago="5 seconds", overlap="allow")
    scheduler = make_scheduler()
    turn(scheduler)
    database.query("select set_schedule('s', 'effect', %s)", not_soon())
    count = len(runs(database))
    turn(scheduler)
    assert len(runs(database)) == count
    assert database.value("select next_planned_at > clock_timestamp() + interval '1 hour' from schedules")


def test_ends_reach_the_history_through_the_loop(database, put, make_scheduler):
    put(ago="2 minutes")
    turn(make_scheduler())
    message = runs(database, "message_id")[0][0]
    database.query("select cancel_message(%s, 'ada')", message)
    make_scheduler().run_once()  # finishes in its first turn
    assert runs(database, "outcome")[0] == ("cancelled",)


# -- declaring -----------------------------------------------------------------------------------
def test_declaring_creates_changes_and_removes_but_never_what_sql_made(database, open_connection, put):
    connection = open_connection()
    put("by-hand")
    assert declare(connection, [schedule("a"), schedule("b", queue="new")]) == {
        "a": "created",
        "b": "created",
    }
    assert database.value("select count(*) from queues where name = 'new'") == 1
    database.query("select pause_schedule('a', 'ada')")
    assert declare(connection, [schedule("a"), schedule("c")]) == {
        "a": "unchanged",
        "c": "created",
        "b": "removed",
    }
    assert declare(connection, [schedule("a", priority=1)]) == {"a": "changed", "c": "removed"}
    assert database.query("select name, paused_by from schedules order by name") == [
        ("a", "ada"),
        ("by-hand", None),
    ]


def test_two_applications_on_one_database_keep_each_others_schedules(database, open_connection):
    connection = open_connection()
    shipped = schedule("retention.events", source="packhorse")
    assert declare(connection, [schedule("invoices"), shipped], ["shop"]) == {
        "invoices": "created",
        "retention.events": "created",
    }
    assert declare(connection, [schedule("drips"), shipped], ["mail"]) == {
        "drips": "created",
        "retention.events": "unchanged",
    }
    assert declare(connection, [], []) == {}, "a scheduler for maintenance only has declared none of these"
    assert declare(connection, [schedule("refunds")], ["shop", "backoffice"]) == {
        "refunds": "created",
        "invoices": "removed",
        "retention.events": "removed",
    }
    assert declare(connection, [schedule("drips")], ["letters"]) == {"drips": "changed"}, (
        "the package has a new name"
    )
    assert declare(connection, [], ["letters"]) == {"drips": "removed"}
    assert database.query("select name, origin from schedules") == [("refunds", ["backoffice", "shop"])]


def test_one_declaration_that_the_server_refuses_stops_no_other(database, make_scheduler, monkeypatch):
    bad, good = schedule("bad"), schedule("good", cron="* * * * *")
    object.__setattr__(bad, "time_zone", "Mars/Olympus")  # Python's tzdata may be newer than the server's
    scheduler = make_scheduler([bad, good])
    turn(scheduler)
    assert database.query("select name from schedules") == [("good",)]


def test_a_refused_declaration_does_not_remove_what_stands_there(database, open_connection):
    connection = open_connection()
    declare(connection, [schedule("s")])
    bad = schedule("s")
    object.__setattr__(bad, "time_zone", "Mars/Olympus")
    assert declare(connection, [bad]) == {"s": "refused"}
    assert database.value("select time_zone from schedules") == "UTC"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a b"},
        {"name": "x" * 101},
        {"message_type": ""},
        {"queue": "a b"},
        {"missed": "no"},
        {"overlap": "no"},
        {"missed_limit": 0},
        {"jitter_seconds": -1},
        {"jitter_seconds": float("nan")},
        {"priority": 0},
        {"max_attempts": 0},
        {"payload": {"a": datetime.now(UTC)}},
        {"payload": {"a": float("nan")}},
        {"cron": None},
        {"every_seconds": 5},
        {"time_zone": "Mars/Olympus"},
    ],
)
def test_a_bad_declaration_is_refused_before_it_reaches_the_database(changes):
    name = next(iter(changes))
    with pytest.raises(InvalidArgument, match="cron" if name == "every_seconds" else name):
        Schedule(**{"name": "s", "message_type": "effect", "cron": "* * * * *", **changes})


# -- many at once, and idling --------------------------------------------------------------------
def test_many_schedulers_in_threads_decide_each_planned_time_once(database, put):
    for number in range(5):
        put(
            f"s{number}", "every 1 second", ago="30 seconds", missed="all", missed_limit=1000, overlap="allow"
        )
    barrier = threading.Barrier(4)

    def work():
        scheduler = Scheduler(lambda: connect(database.url))
        barrier.wait()
        for _ in range(30):
            scheduler.run_once()
        scheduler.on_stop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = in_utc(database.query("select schedule, planned_at, outcome from schedule_runs order by 1, 2"))
    assert {outcome for *_, outcome in found} == {"enqueued"}
    for number in range(5):
        times = [planned for name, planned, _ in found if name == f"s{number}"]
        assert len(times) >= 30
        assert all(later - earlier == timedelta(seconds=1) for earlier, later in pairwise(times))
    assert database.value("select count(*) from message_queue") == len(found)


def test_an_idle_scheduler_asks_one_question_per_turn_and_writes_nothing(
    database, put, make_scheduler, monkeypatch
):
    put(cron=not_soon(), ago="0 seconds")
    scheduler = make_scheduler()
    turn(scheduler)
    connection = scheduler._link._connection
    statements = []
    execute = connection.execute
    monkeypatch.setattr(
        connection,
        "execute",
        lambda *args, **kwargs: (statements.append(str(args[0])), execute(*args, **kwargs))[1],
    )
    waits = [scheduler.run_once() for _ in range(20)]
    assert waits == [POLL_SECONDS] * 20
    assert len(statements) == 20 and {text.split()[0] for text in statements} == {"select"}


def test_a_turn_sleeps_exactly_until_the_next_planned_time_when_that_comes_first(
    database, put, make_scheduler
):
    put(cron="every 1 hour", ago="0 seconds")
    scheduler = make_scheduler()
    turn(scheduler)
    database.query("update schedules set next_planned_at = clock_timestamp() + interval '2 seconds'")
    assert 0 < scheduler.run_once() <= 2
