"""The units on a booted systemd: ready, reload, watchdog, drain, crash, refusal (SPEC O7)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from packhorse.worker.exits import EXIT_USAGE
from tests.deploy.machine import CannotBoot, Machine, missing
from tests.support.accounting import effects, wait_for_end
from tests.support.postgres import Database, Server, available_servers, open_for_everyone
from tests.support.waiting import wait_until
from tests.support.workers import Ledger

UNIT = "packhorse-worker@tests.deploy.booted"
QUICK = "PACKHORSE_PROCESSES=2\nPACKHORSE_THREADS=2\nPACKHORSE_POLL_SECONDS=0.5\n"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"cannot boot a machine: {missing()}"),
]


@pytest.fixture(scope="module")
def postgres():
    name = next(iter(available_servers()))
    open_for_everyone(available_servers()[name])
    # the unit for migrations finds no role of ours
    server = Server(name, available_servers()[name], bare=True)
    server.socket_dir.chmod(0o711)  # the units run as users that do not exist yet
    yield server
    server.close()


@pytest.fixture(scope="module")
def app(postgres) -> Database:
    return postgres.create_empty_database()


@pytest.fixture(scope="module")
def machine(postgres, app, tmp_path_factory):
    """A machine after `systemctl start packhorse-migrate`, with a login for the worker."""
    try:
        machine = Machine(tmp_path_factory.mktemp("machine"), {str(postgres.socket_dir): "/srv/postgres"})
    except CannotBoot as error:
        pytest.skip(f"cannot boot a machine: {error}")
    try:
        url = f"postgresql://{{}}@/{app.name}?host=/srv/postgres\n"
        machine.write("/etc/packhorse/credentials/database_url_owner", url.format("postgres"), 0o600)
        machine.write("/etc/packhorse/credentials/database_url", url.format("packhorse_test"), 0o600)
        machine.systemctl("start", "packhorse-migrate")
        app.query("create role packhorse_test login in role packhorse_worker")
        yield machine
    finally:
        machine.close()


@pytest.fixture
def running(machine):
    """The worker, started and ready; stopped afterwards."""
    machine.write("/etc/packhorse/tests.deploy.booted.env", QUICK)
    machine.systemctl("start", UNIT)
    yield machine
    machine.run("systemctl", "stop", UNIT)
    machine.run("systemctl", "reset-failed", UNIT)


@pytest.fixture
def notes(machine) -> Ledger:
    """The ledger of the units, empty."""
    path = machine.root / "var/lib/private/packhorse-ledger/ledger"
    path.unlink(missing_ok=True)
    return _LedgerInside(path)


class _LedgerInside(Ledger):
    """Written by the service's own user, read from outside; it appears with the first line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, event: str | None = None) -> list[list[str]]:
        return super().lines(event) if self.path.exists() else []


def _main_pid(machine: Machine) -> int:
    return int(machine.show(UNIT, "MainPID"))


def _children(machine: Machine) -> set[str]:
    """Worker processes below the supervisor, without its exporter."""
    return set(machine.run("pgrep", "-P", str(_main_pid(machine))).stdout.split())


def test_the_migration_ran_and_ended(machine, app):
    assert machine.show("packhorse-migrate", "Result") == "success"
    assert "applied 0001" in machine.log("packhorse-migrate")
    assert app.value("select count(*) from packhorse_migrations") > 0


def test_started_means_ready(running, app, notes):
    assert running.state(UNIT) == "active"
    assert app.value("select count(*) from workers") > 0, (
        "READY=1 came after the first process had registered"
    )
    assert running.show(UNIT, "StatusText")
    effects(app, 5, "m", "works")
    wait_until(lambda: len(notes.lines("effect")) == 5)


def test_a_handler_is_confined(running, app, notes):
    effects(app, 1, "m", "confined")
    ((_, facts, _pid),) = wait_until(lambda: notes.lines("confined"))
    assert facts == "writes_tmp"


def test_reload_replaces_the_processes_and_nothing_else(running):
    main, before = _main_pid(running), _children(running)
    running.systemctl("reload", UNIT)
    wait_until(
        lambda: len(_children(running) - before) >= 2 and running.log(UNIT).count("child_retiring") >= 2, 60
    )
    assert (_main_pid(running), running.show(UNIT, "NRestarts")) == (main, "0")
    wait_until(lambda: running.state(UNIT) == "active")


def test_stop_drains(running, app, notes):
    effects(app, 2, "m", "works", seconds=2.0)
    wait_until(lambda: len(notes.lines("start")) == 2)
    running.systemctl("stop", UNIT)
    assert notes.counts("effect") == {"m0": 1, "m1": 1}
    assert (running.state(UNIT), running.show(UNIT, "Result")) == ("inactive", "success")
    assert (
        app.value("select count(*) from message_queue") == 0
        and app.value("select count(*) from workers") == 0
    )


def test_a_crash_is_restarted_and_its_messages_run_again(running, app, notes):
    effects(app, 1, "m", "works", seconds=1.0)
    wait_until(lambda: notes.lines("start"))
    running.run("systemctl", "kill", "--signal=KILL", UNIT)  # every process of the service
    wait_until(lambda: running.show(UNIT, "NRestarts") == "1" and running.state(UNIT) == "active", 60)
    wait_for_end(app, 60)
    assert notes.counts("effect") == {"m0": 1}


def test_a_hung_supervisor_is_killed_by_the_watchdog_and_restarted(machine, app):
    machine.write(
        "/etc/systemd/system/packhorse-worker@.service.d/watchdog.conf", "[Service]\nWatchdogSec=3\n"
    )
    machine.systemctl("daemon-reload")
    try:
        machine.systemctl("start", UNIT)
        machine.run("kill", f"-{int(signal.SIGSTOP)}", str(_main_pid(machine)))
        wait_until(lambda: machine.show(UNIT, "NRestarts") == "1" and machine.state(UNIT) == "active", 90)
        assert "watchdog" in machine.log(UNIT).lower()
    finally:
        machine.run("systemctl", "stop", UNIT)
        os.unlink(machine.root / "etc/systemd/system/packhorse-worker@.service.d/watchdog.conf")
        machine.systemctl("daemon-reload")


def test_a_wrong_setting_is_not_tried_again(machine):
    machine.write("/etc/packhorse/tests.deploy.booted.env", "PACKHORSE_THREADS=0\n")
    machine.run("systemctl", "start", UNIT)
    try:
        wait_until(lambda: machine.state(UNIT) == "failed")
        assert (machine.show(UNIT, "ExecMainStatus"), machine.show(UNIT, "NRestarts")) == (
            str(EXIT_USAGE),
            "0",
        )
        assert "threads" in machine.log(UNIT)
    finally:
        machine.run("systemctl", "reset-failed", UNIT)


def test_the_scheduler_becomes_ready_and_knows_the_schedules_in_code(machine, app):
    unit = "packhorse-scheduler@tests.deploy.booted"
    machine.write("/etc/packhorse/tests.deploy.booted.env", QUICK)
    machine.systemctl("start", unit)
    assert machine.state(unit) == "active"
    wait_until(lambda: app.query("select 1 from packhorse.schedules where name = 'yearly'"))
    machine.systemctl("stop", unit)
    assert machine.show(unit, "Result") == "success"
