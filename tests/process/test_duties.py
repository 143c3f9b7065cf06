"""O4, P8: a loop that turns and cannot work is named by readiness (or its warnings), by a metric and by
health, within 30 s.

Each duty is broken alone, in the database or on its connection; the loop goes on ticking. Broken again by
nobody, all is well.
"""

from __future__ import annotations

import json
import os
import signal
import time
from types import SimpleNamespace

import pytest

from packhorse.worker.observe.duties import DUTIES
from tests.process.test_endpoints import worker_pids
from tests.support.accounting import effects, enqueue, quick_backoff
from tests.support.cli import Cli
from tests.support.http import free_port, get, metric
from tests.support.notes import nap
from tests.support.postgres import ROLE
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

#: As the defaults: what the names must appear within is counted from the fault on.
WITHIN_SECONDS = 30
INTERVALS = {"heartbeat_seconds": 5, "lease_seconds": 20, "rescue_seconds": 5, "fleet_seconds": 2}
VITAL = {duty.name for duty in DUTIES if duty.vital}
LOOPS = {duty.name: duty.loop for duty in DUTIES}


def probe(port):
    """(status, what is wrong, what is said besides)."""
    status, body = get(port, "/readyz")
    answer = json.loads(body) if body else {}
    return status, answer.get("problems", []), answer.get("warnings", [])


def health(database):
    ((status, details),) = database.query("select status, details from health_checks('system_summary')")
    return status, [row["problem"] for row in details["worker_problems"]]


def wait_until_named(database, port, duty, code, of_health=None):
    """All three name it; the time is counted from now on."""
    began = time.monotonic()
    words = f"{duty} has failed for "
    vital = duty in VITAL

    def named():
        status, problems, warnings = probe(port)
        judged, told = health(database)
        return SimpleNamespace(
            ready=status == (503 if vital else 200)
            and any(words in text and f"({code})" in text for text in (problems if vital else warnings)),
            metric=(metric(port, "duty_failing_seconds", duty=duty, loop=LOOPS[duty]) or 0) > 5,
            health=judged == ("fail" if vital else "warn")
            and any(text.startswith(of_health or words) for text in told),
        )

    seen = {}
    while len(seen) < 3 and time.monotonic() - began < WITHIN_SECONDS:
        for name, found in vars(named()).items():
            if found:
                seen.setdefault(name, round(time.monotonic() - began, 1))
        nap(0.2)
    assert len(seen) == 3, (seen, probe(port), health(database))


def wait_until_well(database, port, duty):
    wait_until(
        lambda: metric(port, "duty_failing_seconds", duty=duty, loop=LOOPS[duty]) is None, 30, "well again"
    )
    wait_until(lambda: probe(port) == (200, [], []), 30, "ready again")
    wait_until(lambda: health(database) == ("ok", []), 30, "healthy again")


@pytest.fixture
def worker(database, ledger, start_daemon):
    port = free_port()
    daemon = start_daemon(database, ledger, metrics_port=port, **INTERVALS).wait_ready()
    wait_until(lambda: probe(port) == (200, [], []) and (metric(port, "fleet_age_seconds") is not None))
    yield SimpleNamespace(daemon=daemon, port=port)
    assert get(port, "/livez")[0] == 200, "the loop turned all the while"


def test_a_refused_beat_is_named_and_stays_named_when_the_process_is_replaced(database, ledger, worker):
    """What a process cannot write is seen from outside: it is silent. The next one knows since when, and says
    so as it registers.
    """
    effects(database, 1, "m", "sleeper", seconds=60)
    wait_until(lambda: ledger.counts("start")["m0"] == 1)
    signature = database.value("select oid::regprocedure::text from pg_proc where proname = 'beat_worker'")
    database.query(f"revoke execute on function {signature} from packhorse_worker")
    wait_until_named(database, worker.port, "beat", "42501", of_health="silent for ")
    os.kill(worker_pids(worker.daemon)[0], signal.SIGKILL)
    wait_until(
        lambda: (
            health(database)[0] == "fail"
            and any("beat has failed for" in text for text in health(database)[1])
        ),
        20,
    )
    assert metric(worker.port, "duty_failing_seconds", duty="beat", loop="heartbeat") > 10
    database.query("update message_queue set cancel_requested_at = clock_timestamp()")
    database.query(f"grant execute on function {signature} to packhorse_worker")
    wait_until_well(database, worker.port, "beat")


@pytest.mark.parametrize(
    ("duty", "function"),
    [
        ("rescue", "rescue_expired_messages"),
        ("expire", "expire_messages"),
        ("claim", "complete_and_claim_messages"),
        ("fleet", "refresh_fleet_statistics"),
    ],
)
def test_what_the_role_may_not_do_is_named(database, worker, duty, function):
    signature = database.value("select oid::regprocedure::text from pg_proc where proname = %s", function)
    database.query(f"revoke execute on function {signature} from packhorse_worker")
    wait_until_named(database, worker.port, duty, "42501")
    database.query(f"grant execute on function {signature} to packhorse_worker")
    wait_until_well(database, worker.port, duty)


def test_a_step_of_the_upkeep_that_a_lock_keeps_waiting_is_named(database, ledger, start_daemon):
    port = free_port()
    with database.connect(admin=True) as other, other.transaction():
        other.execute("lock table message_dedup in access exclusive mode")
        start_daemon(database, ledger, metrics_port=port, **INTERVALS).wait_ready()
        wait_until_named(database, port, "upkeep_windows", "55P03")
    wait_until_well(database, port, "upkeep_windows")


def test_completions_that_the_archive_refuses_are_named(database, worker):
    """A trigger stands for whatever refuses: a constraint, a policy, a missing partition."""
    quick_backoff(database)
    database.query(
        "create function no() returns trigger language plpgsql as $$ begin raise 'no' using errcode = '23514'; end $$"
    )
    database.query("create trigger no before insert on message_archive for each row execute function no()")
    effects(database, 200)
    wait_until(
        lambda: metric(worker.port, "duty_failing_seconds", duty="complete", loop="fetcher") is not None, 20
    )
    wait_until_named(database, worker.port, "complete", "23514")
    database.query("drop trigger no on message_archive")
    effects(database, 1, "later")
    wait_until(
        lambda: metric(worker.port, "duty_failing_seconds", duty="complete", loop="fetcher") is None, 40
    )


@pytest.mark.parametrize(
    ("duty", "name"),
    [("beat", "packhorse heartbeat"), ("listen", "packhorse listen"), ("claim", "packhorse fetcher")],
)
def test_one_connection_that_is_cut_is_named(server, database, ledger, start_daemon, duty, name):
    port, proxy = free_port(), Proxy(server.socket_dir)
    try:
        daemon = start_daemon(
            proxy.url(database.name, ROLE), ledger, metrics_port=port, **INTERVALS
        ).wait_ready()
        wait_until(lambda: probe(port) == (200, [], []))
        effects(database, 1, "m", "sleeper", seconds=60)
        wait_until(lambda: ledger.counts("start")["m0"] == 1)
        proxy.refuse_named(name)
        wait_until_named(
            database, port, duty, "StoreUnavailable", of_health="silent for " if duty == "beat" else None
        )
        proxy.refuse_named("")
        database.query("update message_queue set cancel_requested_at = clock_timestamp()")
        wait_until_well(database, port, duty)
        assert daemon.stop() == 0
    finally:
        proxy.close()


def test_a_loop_that_stands_still_is_named_long_before_its_process_is_replaced(
    database, ledger, start_daemon
):
    port = free_port()
    settings = {**INTERVALS, "hang_seconds": 3600, "actors": "tests.support.breaking"}
    daemon = start_daemon(database, ledger, metrics_port=port, **settings).wait_ready()
    wait_until(lambda: probe(port) == (200, [], []))
    enqueue(database, [{"message_type": "break", "payload": {"what": "block fetcher"}}])
    wait_until(lambda: ledger.counts("start")["block-fetcher"] >= 1)
    wait_until_named(database, port, "fetcher", "does not tick")
    assert get(port, "/livez")[0] == 200 and "child_hung" not in daemon.log


# -- the scheduler
@pytest.fixture
def scheduler(database, tmp_path):
    """A `packhorse scheduler` with a schedule of every second, ready."""
    database.query(
        "select set_schedule('tick', 'effect', p_every => interval '1 second', p_overlap => 'allow')"
    )
    port = free_port()
    settings = {**INTERVALS, "call_deadline_seconds": 3, "metrics_port": port}
    process = Cli(
        tmp_path, database.url, **{f"PACKHORSE_{key.upper()}": str(value) for key, value in settings.items()}
    ).start("scheduler", output=tmp_path / "log")
    wait_until(
        lambda: probe(port)[:2] == (200, []) and database.value("select count(*) from schedule_runs") >= 2, 40
    )
    yield port
    assert get(port, "/livez")[0] == 200
    process.terminate()
    assert process.wait(30) == 0


def test_a_timetable_that_is_locked_is_named(database, scheduler):
    with database.connect(admin=True) as other, other.transaction():
        other.execute("lock table schedules in access exclusive mode")
        words = "scheduler has failed for"
        wait_until(lambda: any(words in text for text in probe(scheduler)[1]), 30)
        assert metric(scheduler, "duty_failing_seconds", duty="scheduler", loop="scheduler") > 5
        wait_until(
            lambda: health(database)[0] == "fail" and any(words in text for text in health(database)[1]), 15
        )
    wait_until(lambda: probe(scheduler)[:2] == (200, []), 30)


def test_a_schedule_that_cannot_be_fired_is_named(database, scheduler):
    # only the one that is due every second: of what is due once an hour, just now, the process tells for
    # minutes
    database.query("select pause_schedule(name, 'test') from schedules where name <> 'tick'")
    signature = database.value("select oid::regprocedure::text from pg_proc where proname = 'fire_schedule'")
    database.query(f"revoke execute on function {signature} from packhorse_worker")
    wait_until(
        lambda: any("fire has failed for" in text and "(42501)" in text for text in probe(scheduler)[2]), 30
    )
    assert metric(scheduler, "duty_failing_seconds", duty="fire", loop="scheduler") > 5
    wait_until(lambda: any("fire has failed" in text for text in health(database)[1]), 15)
    database.query(f"grant execute on function {signature} to packhorse_worker")
    wait_until(lambda: metric(scheduler, "duty_failing_seconds", duty="fire", loop="scheduler") is None, 30)


def test_maintenance_that_fails_is_named(database, scheduler):
    database.query(
        "create function no() returns trigger language plpgsql as $$ begin raise 'no' using errcode = 'P0001'; end $$"
    )
    database.query("create trigger no before delete on workers for each row execute function no()")
    database.query(
        "insert into workers (id, hostname, pid, version, queues, message_types, threads, lease_duration, last_seen_at) "
        "values (gen_random_uuid(), 'h', 1, '1', '{}', '{}', 1, '1 hour', clock_timestamp() - interval '30 minutes')"
    )
    database.query("select run_schedule_now('job.dead_workers', 'ann')")
    wait_until(lambda: any("maintenance has failed for" in text for text in probe(scheduler)[2]), 60)
    wait_until(lambda: any("maintenance has failed" in text for text in health(database)[1]), 15)
