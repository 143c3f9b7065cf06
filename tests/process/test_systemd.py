"""O7: what a real worker tells its service manager (a real boot is in tests/deploy)."""

from __future__ import annotations

import signal

import pytest

from tests.support.accounting import effects, enqueue
from tests.support.notify import Manager
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def manager(tmp_path):
    with Manager(str(tmp_path / "notify")) as manager:
        yield manager


def test_ready_watchdog_status_reload_and_stop(database, ledger, start_daemon, manager):
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000"}
    daemon = start_daemon(database, ledger, processes=2, threads=2, extra=environment).wait_ready(2)
    wait_until(lambda: manager.all("READY") == ["1"] and manager.all("WATCHDOG"))
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: manager.all("RELOADING"))
    wait_until(lambda: manager.all("READY") == ["1", "1"])
    assert daemon.log.count("worker_started") == 4, "ready again when every process was replaced"
    one_after_the_other = {"message_type": "sleeper", "conversation_key": "c"}
    enqueue(
        database,
        [{**one_after_the_other, "payload": {"key": f"m{number}", "seconds": 1}} for number in range(20)],
    )
    wait_until(lambda: any("1 of 4 threads busy" in status for status in manager.all("STATUS")))
    assert daemon.stop() == 0
    assert manager.order("READY", "RELOADING", "STOPPING") == ["READY", "RELOADING", "READY", "STOPPING"]


def test_it_is_not_ready_before_a_process_has_registered_and_asks_for_time(start_daemon, manager):
    daemon = start_daemon("postgresql://nobody@127.0.0.1:1/none", extra={"NOTIFY_SOCKET": manager.address})
    wait_until(lambda: "database_unavailable" in daemon.log)
    wait_until(lambda: len(manager.all("EXTEND_TIMEOUT_USEC")) >= 2)
    assert manager.all("READY") == []
    assert daemon.stop(15) == 0


@pytest.mark.slow
def test_a_missing_manager_harms_nobody(database, ledger, start_daemon):
    daemon = start_daemon(
        database, ledger, extra={"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "1000000"}
    ).wait_ready()
    effects(database, 1)
    wait_until(lambda: ledger.counts("effect")["m0"] == 1)
    assert daemon.stop() == 0
