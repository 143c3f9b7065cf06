"""W10b: the release folder may be a link that moves, and a folder that goes away and comes back."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

from tests.support.accounting import effects, wait_for_end
from tests.support.waiting import wait_until

MODULE = """\
import dramatiq, os, signal
from tests.support.notes import note
@dramatiq.actor
def which(key): note("release", "{n}")
@dramatiq.actor
def crash(key): os.kill(os.getpid(), signal.SIGKILL)
"""


class Releases:
    """releases/1, releases/2 … and the link `current`."""

    def __init__(self, home):
        self.home, self.link = home, home / "current"
        for n in (1, 2):
            self.write(n)
        self.move(1)

    def write(self, n, text=MODULE):
        (self.home / f"releases/{n}").mkdir(parents=True, exist_ok=True)
        (self.home / f"releases/{n}/shop_actors.py").write_text(text.replace("{n}", str(n)))

    def move(self, n):
        (self.home / "new").symlink_to(f"releases/{n}")
        (self.home / "new").rename(self.link)

    def remove(self, n):
        shutil.rmtree(self.home / f"releases/{n}")


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path)


@pytest.fixture
def asked(database, ledger):
    """Which release answers now?"""

    def ask():
        before = len(ledger.lines("release"))
        effects(database, 1, "which", "which")
        wait_until(lambda: len(ledger.lines("release")) > before, 30)
        return ledger.lines("release")[-1][1]

    return ask


def crash(database, daemon):
    before = daemon.log.count("child_exited")
    effects(database, 1, "crash", "crash")
    wait_until(lambda: daemon.log.count("child_exited") > before)
    database.query("delete from message_queue")


def reload(daemon):
    before = daemon.log.count("worker_started")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: daemon.log.count("worker_started") > before and len(daemon.children()) == 1, 40)


FOUND_BY = {
    "PWD": lambda releases: {"cwd": releases.link, "extra": {"PWD": str(releases.link)}},
    "nothing": lambda releases: {"cwd": releases.link, "extra": {"PWD": ""}},  # as under systemd
    "wrong PWD": lambda releases: {"cwd": releases.link, "extra": {"PWD": "/usr"}},
    "app_dir": lambda releases: {"cwd": "/", "extra": {"PWD": "/"}, "app_dir": releases.link},
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["worker", "up", "scheduler"])
@pytest.mark.parametrize("by", FOUND_BY)
def test_a_reload_and_a_replacement_load_what_the_link_names_now(
    database, ledger, start_daemon, releases, asked, by, command
):
    if command != "worker" and by not in ("PWD", "nothing"):
        pytest.skip("the same parent")
    daemon = start_daemon(
        database, ledger, "shop_actors", command=command, processes=1, **FOUND_BY[by](releases)
    ).wait_ready()
    assert f'"app_dir": "{releases.link}"' in daemon.log
    if command == "scheduler":  # it runs no actors of its own accord; the module that it has imported tells
        releases.write(2, MODULE + "note('release', '{n}')\n")
        releases.move(2)
        releases.remove(1)
        reload(daemon)
        wait_until(lambda: ledger.lines("release"))
        assert daemon.stop() == 0
        return
    assert asked() == "1"
    releases.move(2)
    assert asked() == "1", "a process stays with its release"
    reload(daemon)
    assert asked() == "2"
    releases.remove(1)
    crash(database, daemon)
    assert asked() == "2"
    releases.write(3)
    releases.move(3)
    releases.remove(2)
    crash(database, daemon)
    assert asked() == "3"
    assert daemon.stop() == 0 and "child_failed" not in daemon.log and "app_dir_missing" not in daemon.log


@pytest.mark.slow
def test_a_folder_that_is_gone_is_said_once_and_found_when_it_is_back(
    database, ledger, start_daemon, releases, asked
):
    daemon = start_daemon(
        database, ledger, "shop_actors", processes=2, cwd=releases.link, extra={"PWD": str(releases.link)}
    ).wait_ready(2)
    releases.remove(1)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "reload_refused" in daemon.log)
    assert f"app_dir: {releases.link}: No such file or directory" in daemon.log
    for pid in daemon.children():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "app_dir_missing" in daemon.log)
    used = cpu_seconds(daemon.process.pid)
    time.sleep(3)
    assert daemon.process.poll() is None and not daemon.children()
    assert daemon.log.count("app_dir_missing") == 1 and daemon.log.count("child_exited") == 2
    assert cpu_seconds(daemon.process.pid) - used < 1, "it does not spin"
    releases.move(2)
    assert asked() == "2"
    assert (
        "app_dir_found" in daemon.log
        and "recover_failed" not in daemon.log
        and "child_failed" not in daemon.log
    )
    wait_for_end(database)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_plain_folder_that_a_deploy_makes_anew_is_found_again(
    database, ledger, start_daemon, releases, asked, tmp_path
):
    app = tmp_path / "releases/1"
    daemon = start_daemon(
        database, ledger, "shop_actors", processes=1, cwd=app, extra={"PWD": str(app)}
    ).wait_ready()
    app.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "releases/2", app)
    reload(daemon)
    assert asked() == "2"
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_setting_that_names_no_folder_is_refused_at_the_door(database, start_daemon, tmp_path):
    daemon = start_daemon(database, None, "shop_actors", app_dir=tmp_path / "nowhere")
    assert daemon.process.wait(30) == 2
    assert "app_dir" in daemon.log and "nowhere" in daemon.log and "Traceback" not in daemon.log


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
