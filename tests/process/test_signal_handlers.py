"""W10b: a module that sets signal handlers of its own at import, or a hook that does, stops neither drain nor
replacement.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.accounting import effects, wait_for_end
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

HEAD = """\
import os, signal, socket, sys
with open(os.environ["LEDGER"], "a") as ledger: ledger.write(f"import - {os.getpid()}\\n")
def leave(*_): sys.exit(0)
def foreign():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, leave)
    pair = socket.socketpair(); pair[0].setblocking(False)
    signal.set_wakeup_fd(pair[0].fileno()); globals()["kept"] = pair
"""
AT_IMPORT = HEAD + "foreign()\nfrom tests.support.actors import *\n"
IGNORED = (
    HEAD
    + "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)\nfrom tests.support.actors import *\n"
)
IN_HOOK = (
    HEAD
    + """\
import packhorse
from dramatiq.middleware import Middleware
class Hook(Middleware):
    def after_worker_boot(self, broker, worker): foreign()
dramatiq_broker = packhorse.PostgresBroker(); dramatiq_broker.add_middleware(Hook())
import dramatiq; dramatiq.set_broker(dramatiq_broker)
from tests.support.actors import *
"""
)


def started(start_daemon, database, ledger, tmp_path, text, **settings):
    (tmp_path / "foreign_actors.py").write_text(text)
    daemon = start_daemon(
        database, ledger, "foreign_actors", {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, threads=2, **settings
    )
    return daemon.wait_ready(settings.get("processes", 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "named"),
    [(AT_IMPORT, "foreign_actors.leave"), (IGNORED, "SIG_IGN"), (IN_HOOK, "foreign_actors.leave")],
)
def test_a_stop_drains_and_the_foreign_handlers_are_named_once(
    database, ledger, start_daemon, tmp_path, text, named
):
    daemon = started(start_daemon, database, ledger, tmp_path, text, processes=1)
    effects(database, 1, "m", seconds=2)
    wait_until(lambda: ledger.lines("start"))
    (child,) = daemon.children()
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's, to the whole group
        os.kill(child, number)
    assert daemon.stop() == 0
    assert ledger.counts("effect") == {"m0": 1}
    assert database.query("select state, attempt, crashes from all_messages") == [("done", 1, 0)]
    names = {"SIGTERM", "SIGINT", "SIGHUP"} | (set() if named == "SIG_IGN" else {"set_wakeup_fd"})
    lines = [line for line in daemon.log.splitlines() if "foreign_signal_handler" in line]
    assert len(lines) == len(names) and all(any(f'"{name}"' in line for line in lines) for name in names)
    assert f'"{named}"' in lines[0]
    assert "child_exited" not in daemon.log and "messages_recovered" not in daemon.log


@pytest.mark.slow
def test_a_reload_replaces_processes_and_the_parent_imports_no_actors(
    database, ledger, start_daemon, tmp_path
):
    daemon = started(start_daemon, database, ledger, tmp_path, AT_IMPORT, processes=2)
    before = set(daemon.children())
    effects(database, 2, "m", seconds=1)
    wait_until(lambda: len(ledger.lines("start")) == 2)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: len(daemon.children()) == 2 and not before & set(daemon.children()), 40)
    wait_for_end(database)
    assert database.query("select distinct state, attempt, crashes from all_messages") == [("done", 1, 0)]
    assert str(daemon.process.pid) not in {row[2] for row in ledger.lines("import")}
    assert daemon.stop() == 0


@pytest.mark.slow
def test_signals_that_a_module_ignores_are_not_ignored_by_what_handlers_start(
    database, ledger, start_daemon, tmp_path
):
    text = IGNORED + (
        "import subprocess, dramatiq\n"
        "@dramatiq.actor\n"
        "def programs(key):\n"
        "    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "        p = subprocess.Popen(['sleep', '60']); p.send_signal(number)\n"
        "        note('code', p.wait(20))\n"
    )
    daemon = started(start_daemon, database, ledger, tmp_path, text, processes=1)
    effects(database, 1, "m", "programs")
    wait_until(lambda: len(ledger.lines("code")) == 3)
    assert [row[1] for row in ledger.lines("code")] == ["-15", "-2", "-1"]
    assert daemon.stop() == 0


@pytest.mark.slow
def test_the_scheduler_drains_too(database, ledger, start_daemon, tmp_path):
    (tmp_path / "foreign_actors.py").write_text(AT_IMPORT)
    daemon = start_daemon(
        database, ledger, "foreign_actors", {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, command="scheduler"
    ).wait_ready()
    assert str(daemon.process.pid) not in {row[2] for row in ledger.lines("import")}
    assert daemon.stop() == 0
    assert (
        daemon.log.count("worker_stopped") == 1
        and "foreign_signal_handler" in daemon.log
        and "child_failed" not in daemon.log
    )
    assert not Path(f"/proc/{daemon.process.pid}").exists()
