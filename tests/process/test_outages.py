"""A service that handlers call is too slow, or down: what waits for it rests, all else goes on, nothing is
lost (SPEC W10, Q8d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.accounting import assert_every_message_ended_once, effects, enqueue, wait_for_end
from tests.support.postgres import Database
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

ATTEMPTS = "select max(attempt) from all_messages where message_type = any (%s)"


class Service:
    """What the handlers of resting_actors find."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.says("ok")

    def says(self, state: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(state)
        new.rename(self.path)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "service")


@pytest.fixture
def start(
    database: Database, ledger: Ledger, service: Service, start_daemon: Callable[..., Daemon]
) -> Iterator[Callable[..., Daemon]]:
    def started(processes: int = 1, **settings: object) -> Daemon:
        return start_daemon(
            database,
            ledger,
            actors="tests.support.resting_actors",
            extra={"SERVICE": str(service.path)},
            processes=processes,
            **{"threads": 4, **settings},
        ).wait_ready(processes)

    yield started


def parked(database: Database, scope: str) -> bool:
    return bool(database.value("select count(*) from parked_scopes where scope = %s", scope))


def calls(ledger: Ledger) -> int:
    return len(ledger.lines("called"))


@pytest.mark.slow
def test_one_429_parks_every_message_of_the_service_in_the_fleet_and_no_other(
    database, ledger, service, start
):
    daemons = [start(processes=2), start()]
    service.says("busy 3")
    ids = effects(database, 1, prefix="first", message_type="ask")
    wait_until(lambda: parked(database, "api"), 10)
    before = calls(ledger)
    ids += effects(database, 100, prefix="a", message_type="ask") + effects(
        database, 100, prefix="b", message_type="also"
    )
    others = effects(database, 50, prefix="p", message_type="plain")
    wait_until(lambda: sum(ledger.counts("effect").values()) >= 50, 10, "others go on")
    assert calls(ledger) == before, "a message of a parked service was started"
    service.says("ok")
    wait_for_end(database, 30)
    assert set(assert_every_message_ended_once(database, ids + others).values()) == {"done"}
    assert database.value(ATTEMPTS, ["ask", "also"]) == 1
    assert [daemon.stop() for daemon in daemons] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("message_type", ["ask", "learns", "async_ask"])
def test_hundreds_that_meet_the_same_429_spend_no_attempt_and_park_it_once(
    database, ledger, service, start, message_type
):
    daemons = [start(processes=2, threads=16), start(threads=16)]
    service.says("busy 1")
    ids = effects(database, 300, message_type=message_type)
    wait_until(lambda: parked(database, "api"), 10)
    service.says("ok")
    wait_for_end(database, 30)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert database.value(ATTEMPTS, [message_type]) == 1
    assert 1 <= sum(daemon.log.count("scope_parked") for daemon in daemons) <= 20
    assert [daemon.stop() for daemon in daemons] == [0, 0]


@pytest.mark.slow
def test_an_idle_fleet_wakes_when_the_park_ends_and_when_it_is_lifted(database, ledger, start):
    """Polls are far apart: only the hint, and the notification, can wake it."""
    daemon = start(poll_seconds=60, heartbeat_seconds=20, lease_seconds=60)
    database.query("select park_scope('api', interval '2 seconds')")
    ids = effects(database, 5, message_type="ask")
    wait_for_end(database, 20)
    database.query("select park_scope('api', interval '1 hour')")
    ids += effects(database, 5, prefix="n", message_type="ask")
    wait_until(
        lambda: database.value(
            "select coalesce(max(wake_until) > clock_timestamp(), false) from queue_wakeups"
        ),
        20,
        "it sleeps",
    )
    assert calls(ledger) == 5
    database.query("select lift_scope('api')")
    wait_for_end(database, 20)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert daemon.stop() == 0


@pytest.mark.slow
def test_an_outage_of_seconds_with_hundreds_in_flight_makes_no_dead_letter_and_ends_by_itself(
    database, ledger, service, start
):
    daemons = [start(processes=2, threads=16), start(threads=16)]
    service.says("down")
    ids = effects(database, 300, message_type="guarded")
    others = effects(database, 20, prefix="p", message_type="plain")
    wait_until(lambda: parked(database, "actor:guarded"), 20)
    wait_until(lambda: ledger.counts("effect").total() == 20, 20, "others go on")
    wait_until(
        lambda: any(daemon.log.count("failure_breaker_parked") > 1 for daemon in daemons),
        20,
        "a probe has failed",
    )
    service.says("ok")
    wait_for_end(database, 60)
    assert set(assert_every_message_ended_once(database, ids + others).values()) == {"done"}
    assert database.value("select count(*) from dead_letters") == 0
    assert calls(ledger) < 300 + 300, "what was parked was not called again and again"
    assert [daemon.stop() for daemon in daemons] == [0, 0]


@pytest.mark.slow
def test_a_queue_breaker_needs_nothing_of_its_actors(database, ledger, service, start):
    database.query(
        """select set_queue('default', '{"failure_breaker": 4, "max_attempts": 2, "backoff_initial": "10 milliseconds"}')"""
    )
    daemon = start(threads=8)
    service.says("down")
    ids = effects(database, 60, prefix="a", message_type="ask") + effects(
        database, 60, prefix="b", message_type="learns"
    )
    wait_until(lambda: parked(database, "queue:default"), 20)
    service.says("ok")
    wait_for_end(database, 40)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_killed_probe_does_not_keep_its_scope_parked(database, ledger, service, start):
    daemons = [start(), start()]
    database.query("select park_scope('api', interval '0', p_probing => true)")
    ids = effects(database, 3, message_type="ask")
    wait_until(lambda: calls(ledger) >= 1, 10)
    daemons[0].kill_group()
    wait_for_end(database, 60)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert parked(database, "api"), "nobody has lifted it: it goes one by one"
    assert daemons[1].stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "scope"),
    [("nan", "api"), ("-1", "api"), ("inf", "api"), ("1", ""), ("1", "x" * 300)],
    ids=["nan", "negative", "endless", "empty", "long"],
)
def test_nonsense_is_one_failure_that_says_what_is_wrong(database, ledger, start, seconds, scope):
    daemon = start()
    (message,) = enqueue(
        database,
        [{"message_type": "asks_nonsense", "payload": {"key": "k", "seconds": seconds, "scope": scope}}],
    )
    wait_for_end(database, 20)
    reason, error_class, text = database.query(
        "select reason, error_class, error_message from dead_letters where id = %s", message
    )[0]
    assert (reason, error_class) == ("failed", "ValueError")
    assert ("scope must have" if seconds == "1" else "seconds must be a finite number") in text
    assert effects(database, 1, message_type="plain") and wait_for_end(database, 20) is None
    assert daemon.stop() == 0
