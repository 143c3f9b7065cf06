"""A service that is down, and several processes that call it: one breaker, one probe at a time, no attempt
spent (SPEC W10).
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from packhorse.calls import CircuitOpen, ServiceFailed, ServiceRegistry
from tests.support.accounting import effects
from tests.support.fake_service import FakeService
from tests.support.harness import quick_settings
from tests.support.postgres import Database, Server
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

pytestmark = pytest.mark.slow
pytest.importorskip("httpx")
Start = Callable[..., Daemon]


@pytest.fixture
def fake() -> Iterator[FakeService]:
    found = FakeService()
    yield found
    found.close()


def worker(
    start_daemon: Start,
    database: Database,
    ledger: Ledger,
    fake: FakeService,
    reset_seconds: float = 0.5,
    **settings: Any,
) -> Daemon:
    breaker = {"least_calls": 5, "reset_seconds": reset_seconds, "trials": 2}
    extra = {"SERVICE_URL": fake.url, "SERVICE": json.dumps(breaker)}
    return start_daemon(database, ledger, actors="tests.support.service_actors", extra=extra, **settings)


def state(database: Database) -> str:
    return str(database.value("select coalesce(forced, state) from service_endpoints"))


def attempts_spent(database: Database) -> int:
    """On failures."""
    return int(
        database.value("select sum(attempt - (state in ('running', 'done'))::integer) from all_messages")
    )  # type: ignore[call-overload]


def all_done(database: Database) -> bool:
    return bool(database.value("select not exists (select from message_queue)"))


@pytest.mark.parametrize("actor", ["ask", "ask_async"])
def test_an_outage_opens_one_breaker_for_all_and_work_goes_on_after_it(
    database: Database, ledger: Ledger, start_daemon: Start, fake: FakeService, actor: str
) -> None:
    daemons = [worker(start_daemon, database, ledger, fake, reset_seconds=2, threads=4) for _ in range(2)]
    for daemon in daemons:
        daemon.wait_ready()
    fake.mode = "500"
    effects(database, 60, "m", actor)
    wait_until(lambda: state(database) == "half_open", 20, "open, known to all, and the first probe")
    wait_until(lambda: fake.at_once == 0)
    asked, spent = len(fake.requests), attempts_spent(database)
    assert asked < 60 or actor == "ask_async", (
        "not everybody has to find out, but for coroutines that all wait already"
    )
    fake.slow, fake.most_at_once = 0.1, 0
    wait_until(lambda: len(fake.requests) >= asked + 3, 30, "probes")
    assert fake.most_at_once == 1, "one probe at a time in the fleet"
    fake.mode, fake.slow = "ok", 0.0
    wait_until(lambda: all_done(database), 30, "done")
    assert len(ledger.counts("effect")) == 60 and database.value("select count(*) from dead_letters") == 0
    assert state(database) == "closed" and database.value("select opened_total from service_endpoints") == 1
    said = [daemon.log.count("circuit_opened") for daemon in daemons]
    assert sum(said) == 1, "by the process that decided it"
    assert attempts_spent(database) == spent, "probes and refusals spend none"


def test_messages_of_an_actor_that_names_the_service_are_not_claimed_while_it_is_open(
    database: Database, ledger: Ledger, start_daemon: Start, fake: FakeService
) -> None:
    daemons = [worker(start_daemon, database, ledger, fake, threads=4) for _ in range(2)]
    for daemon in daemons:
        daemon.wait_ready()
    fake.mode = "500"
    effects(database, 80, "m", "ask_gated")
    wait_until(lambda: state(database) != "closed", 20, "open")
    wait_until(lambda: fake.at_once == 0)
    asked = len(fake.requests)
    wait_until(lambda: len(fake.requests) >= asked + 3, 30, "probes")
    probes = len(fake.requests) - asked
    effects(database, 10, "n", "other")
    wait_until(lambda: sum(key.startswith("n") for key in ledger.counts("effect")) == 10, 10, "others go on")
    assert "scope" in str(
        database.query(
            "select gate, passed from explain_message((select max(id) from message_queue where message_type = 'ask_gated'))"
        )
    )
    starts = len(ledger.lines("start"))
    assert starts < 80 + 4 * (probes + 20), "a gate holds them"
    fake.mode = "ok"
    wait_until(lambda: all_done(database), 30, "done")
    assert len(ledger.counts("effect")) == 90 and database.value("select count(*) from dead_letters") == 0
    assert state(database) == "closed" and database.value("select count(*) from parked_scopes") == 0
    assert database.value("select max(attempt) from message_archive") <= 2


def test_a_429_parks_the_service_for_as_long_as_it_asks(
    database: Database, ledger: Ledger, start_daemon: Start, fake: FakeService
) -> None:
    worker(start_daemon, database, ledger, fake, threads=1).wait_ready()
    fake.mode, fake.answer_headers = "429", {"Retry-After": "600"}
    effects(database, 20, "m", "ask_gated")
    wait_until(lambda: database.value("select count(*) from parked_scopes") == 1, 20, "parked")
    parked = "select parked_until between clock_timestamp() + interval '8 minutes' and clock_timestamp() + interval '11 minutes' from scopes"
    assert database.value(parked) and len(fake.requests) <= 2
    fake.mode = "ok"
    database.query("select lift_scope('ai')")
    wait_until(lambda: all_done(database), 20, "done")
    assert database.value("select max(attempt) from message_archive") == 1, "no attempt is spent"


def test_what_is_open_in_one_process_is_open_in_the_others(
    database: Database, ledger: Ledger, start_daemon: Start, fake: FakeService
) -> None:
    known = ServiceRegistry(quick_settings(database))
    worker(start_daemon, database, ledger, fake, reset_seconds=60).wait_ready()
    service = known.register(
        "ai", fake.url, timeout=1000, breaker={"least_calls": 5, "reset_seconds": 60, "trials": 2}
    )
    try:
        assert service.request("GET", "/mine").status_code == 200
        fake.mode = "reset"
        effects(database, 10, "m", "ask")
        wait_until(lambda: known.get_circuit_breaker_stats()[0].state == "open", 20, "it was told")
        asked = len(fake.requests)
        with pytest.raises(CircuitOpen):
            service.request("GET", "/mine")
        assert len(fake.requests) == asked
    finally:
        known.stop()


def test_a_probe_whose_process_is_killed_is_over_by_time(
    database: Database, ledger: Ledger, start_daemon: Start, fake: FakeService
) -> None:
    daemon = worker(start_daemon, database, ledger, fake, threads=8).wait_ready()
    fake.mode = "500"
    effects(database, 20, "m", "ask")
    wait_until(lambda: state(database) == "open", 20, "open")
    fake.mode, fake.slow = "ok", 0.8
    wait_until(
        lambda: fake.at_once == 1 and database.value("select probe_token is not null from service_endpoints"),
        20,
        "a probe",
    )
    os.kill(daemon.children()[0], signal.SIGKILL)
    fake.slow = 0.0
    wait_until(lambda: all_done(database), 40, "the next probe began")
    assert state(database) == "closed" and database.value("select count(*) from dead_letters") == 0


def test_work_goes_on_while_the_database_is_away(own_server: Server, fake: FakeService) -> None:
    database = own_server.create_database()
    known = ServiceRegistry(quick_settings(database))
    service = known.register(
        "ai", fake.url, timeout=1000, breaker={"least_calls": 5, "reset_seconds": 0.3, "trials": 2}
    )
    try:
        assert service.request("GET", "/x").status_code == 200
        wait_until(lambda: not service.breakers.unknown, 10, "known")
        own_server.kill()
        wait_until(lambda: known.away, 20, "away")
        for _ in range(20):
            assert service.request("GET", "/x").status_code == 200
        fake.mode = "500"
        for _ in range(40):
            with pytest.raises((ServiceFailed, CircuitOpen)):
                service.request("POST", "/x")
        assert len(fake.requests) < 50, "its own breaker"
        fake.mode = "ok"

        def closed() -> bool:
            try:
                service.request("GET", "/x")
            except CircuitOpen:
                return False
            return known.get_circuit_breaker_stats()[0].state == "closed"

        wait_until(closed, 10, "by its own probes")
        own_server.start()
        wait_until(lambda: not known.away, 20, "back")
        calls = len(fake.requests)
        wait_until(
            lambda: database.value("select calls_total from service_endpoints") >= calls - 10,
            10,
            "and what happened meanwhile is told",
        )
    finally:
        known.stop()


def test_each_message_has_an_idempotency_key_and_every_call_is_counted(
    database: Database, ledger: Ledger, start_daemon: Start, fake: FakeService
) -> None:
    daemon = worker(start_daemon, database, ledger, fake).wait_ready()
    effects(database, 3, "m", "ask")
    wait_until(lambda: len(ledger.counts("effect")) == 3)
    headers = [request.headers for request in fake.requests]
    assert len({found["idempotency-key"] for found in headers}) == 3
    assert daemon.stop() == 0
    assert database.value("select calls_total from service_endpoints") == 3, (
        "what was counted last is told at the end"
    )


def test_the_idempotency_key_is_the_same_in_every_attempt(
    database: Database, ledger: Ledger, start_daemon: Start, fake: FakeService
) -> None:
    worker(start_daemon, database, ledger, fake).wait_ready()
    fake.mode = "500"
    effects(database, 1, "m", "ask")
    wait_until(lambda: len(fake.requests) >= 2)
    fake.mode = "ok"
    wait_until(lambda: all_done(database), 20)
    assert (
        len({request.headers["idempotency-key"] for request in fake.requests}) == 1
        and len(fake.requests) <= 3
    )
