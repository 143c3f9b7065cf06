"""W7: a child that hangs while it ends is killed and replaced, also when nobody stops the parent; a slow
reload is said.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

#: A real parent with a margin of a second. Its first child hangs at its end; how it comes to that is argument
#: 1.
PARENT = """
import os, pathlib, signal, sys, time
from packhorse.worker.fleet import supervisor
from packhorse.worker.fleet.child import STOP_SIGNALS
from packhorse.worker.config import Settings
from packhorse.worker.observe.logging import configure
from packhorse.worker.observe.process_stats import DRAINING, REGISTERED

first = pathlib.Path(sys.argv[2])
supervisor.KILL_MARGIN_SECONDS = 0.3

def child(settings, running, id, stats):
    hangs = not first.exists()
    first.touch()
    signal.signal(signal.SIGTERM, (lambda number, frame: None) if hangs else (lambda number, frame: os._exit(0)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    stats.states[REGISTERED] = 1.0
    if hangs and sys.argv[1] == "recycle":
        stats.states[DRAINING] = 1.0
    print("hangs" if hangs else "works", os.getpid(), flush=True)
    while True:
        time.sleep(3600)

supervisor.preflight = lambda settings, parent, make: time.sleep(3600) if sys.argv[1] == "slow import" else 0
configure(log_format="json")
settings = Settings(drain_seconds=0.2, call_deadline_seconds=0.5, connect_timeout_seconds=1, hang_seconds=3.5)
sys.exit(supervisor.Supervisor(settings, child).run())
"""


@pytest.fixture
def start_parent(tmp_path):
    """Start PARENT with its argument 1; killed with its children at the end."""
    started = []

    def start(what):
        with (tmp_path / "log").open("wb") as stream:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", PARENT, what, str(tmp_path / "first")],
                    cwd=ROOT,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
            )
        return started[0], tmp_path / "log"

    yield start
    for parent in started:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait(10)


@pytest.mark.parametrize("reason", ["recycle", "reload"])
def test_a_child_that_hangs_at_its_end_is_killed_and_replaced(start_parent, reason):
    parent, log = start_parent(reason)
    wait_until(lambda: "hangs" in log.read_text(), 20)
    if reason == "reload":
        parent.send_signal(signal.SIGHUP)
    wait_until(lambda: "works" in log.read_text(), 20, "the one that hung was replaced")
    killed = log.read_text().split("hangs ")[1].split()[0]
    assert not os.path.exists(f"/proc/{killed}")
    parent.terminate()
    assert parent.wait(20) == 0, log.read_text()


@pytest.mark.slow
def test_a_reload_whose_import_takes_long_is_said_and_harms_nobody(start_parent):
    parent, log = start_parent("slow import")
    wait_until(lambda: "hangs" in log.read_text(), 20)
    parent.send_signal(signal.SIGHUP)
    wait_until(lambda: "the new code is still being imported" in log.read_text(), 20)
    parent.terminate()
    assert parent.wait(20) == 0, "neither the import nor the child is waited for"
    assert "works" not in log.read_text()
