"""P8: payloads are not in logs, whatever goes wrong. P6: a host's wrong clock changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.accounting import (
    allow_unreadable,
    assert_every_message_ended_once,
    effects,
    enqueue,
    quick_backoff,
    wait_for_end,
)
from tests.support.http import free_port, metric
from tests.support.waiting import wait_until

SECRET = "+250788123456-and-more"
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


@pytest.mark.slow
def test_payloads_are_not_in_logs_whatever_goes_wrong(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, threads=4, log_level="debug").wait_ready()
    enqueue(
        database,
        [
            {"message_type": "leaks", "payload": {"secret": SECRET}},
            {"message_type": "leaks", "payload": {"wrong": SECRET}, "max_attempts": 1},
            {"message_type": "poison", "payload": {"key": SECRET}},
            {
                "message_type": "sleeper",
                "payload": {"key": SECRET},
                "max_attempts": 1,
                "options": {"time_limit": 100},
            },
            {"message_type": "effect", "payload": {"key": SECRET}, "options": {"on_success": "effect"}},
            {
                "message_type": "fails",
                "payload": {"key": SECRET},
                "max_attempts": 1,
                "options": {"on_failure": "nobody"},
            },
            {
                "message_type": "outcome",
                "payload": {"key": SECRET, "kind": "dead"},
                "conversation_key": SECRET,
            },
        ],
    )
    allow_unreadable(database)
    database.query(
        "insert into message_queue (queue, message_type, payload) values ('default', 'effect', ('{\"key\": \"' || %s || '\", \"n\": '"
        " || repeat('9', 6000) || '}')::jsonb)",
        SECRET,
    )
    wait_for_end(database, 40)
    assert daemon.stop() == 0
    assert database.value("select count(*) from all_messages") >= 8
    assert SECRET not in daemon.log and SECRET[1:13] not in daemon.log
    assert "message_failed" in daemon.log, "the failures themselves are logged"


@pytest.mark.slow
@pytest.mark.skipif(
    FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install faketime)"
)
@pytest.mark.parametrize("offset", ["-400d", "+400d"])
def test_a_worker_whose_host_clock_is_wrong_keeps_every_promise(database, ledger, start_daemon, offset):
    """Leases, backoff, delays and ages follow the database clock; beside it works a host whose clock is
    right.
    """
    wrong = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    daemon = start_daemon(database, ledger, extra=wrong, threads=2).wait_ready()
    right = start_daemon(database, ledger, threads=2).wait_ready()
    quick_backoff(database)
    ids = effects(database, 60, "m", seconds=0.05)
    ids += effects(database, 4, "long", "sleeper", seconds=6)  # longer than the lease: heartbeats count
    ids += enqueue(
        database,
        [{"message_type": "outcome", "payload": {"key": f"r{n}", "kind": "retried"}} for n in range(10)],
    )
    ids += enqueue(
        database,
        [{"message_type": "effect", "payload": {"key": f"d{n}"}, "delay": "1 second"} for n in range(10)],
    )
    ids += enqueue(
        database,
        [
            {"message_type": "effect", "payload": {"key": f"a{n}"}, "options": {"max_age": 60_000}}
            for n in range(10)
        ],
    )
    wait_for_end(database, 60)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert set(ledger.counts("effect").values()) == {1}
    assert ledger.counts("start")["long0"] == 1
    assert database.value("select max(crashes) from message_archive") == 0
    assert database.value(
        "select bool_and(claimed_at >= created_at + interval '0.9 seconds') from message_archive where payload ->> 'key' like 'd%%'"
    )
    assert database.value(
        "select bool_and(finished_at between created_at and clock_timestamp()) from message_archive"
    )
    assert daemon.stop() == 0 and right.stop() == 0
    years = {json.loads(line)["timestamp"][:4] for line in daemon.log.splitlines() if line.startswith("{")}
    assert years and not years & {
        wait_until(lambda: database.value("select to_char(clock_timestamp(), 'YYYY')"))
    }, "its clock really was wrong"


@pytest.mark.slow
@pytest.mark.skipif(
    FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install faketime)"
)
@pytest.mark.parametrize(("offset", "seconds"), [("-30s", -30), ("+30s", 30)])
def test_a_wrong_clock_of_a_host_is_a_metric(database, ledger, start_daemon, offset, seconds):
    wrong = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    ports = [free_port(), free_port()]
    start_daemon(database, ledger, extra=wrong, metrics_port=ports[0], fleet_seconds=1)
    start_daemon(database, ledger, metrics_port=ports[1], fleet_seconds=1)
    wait_until(lambda: abs((metric(ports[0], "clock_skew_seconds") or 0) - seconds) < 5, 30)
    wait_until(lambda: metric(ports[1], "clock_skew_seconds") == 0, 30)
