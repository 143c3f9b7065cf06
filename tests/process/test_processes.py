"""W5, W7: several processes under one parent; replaced, recycled and restarted without losing anything."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.accounting import assert_every_message_ended_once, effects, quick_backoff, wait_for_end
from tests.support.waiting import wait_until
from tests.support.workers import ROOT


@pytest.mark.slow
def test_a_killed_child_is_replaced_and_its_messages_recovered_at_once(database, ledger, start_daemon):
    """At once: the lease is longer than this test may take, so only the parent can have given them back."""
    quick_backoff(database)
    daemon = start_daemon(
        database, ledger, processes=2, threads=2, lease_seconds=600, heartbeat_seconds=1
    ).wait_ready(2)
    effects(database, 4, "m", seconds=0.5)
    wait_until(lambda: len(ledger.lines("start")) == 4)
    victim = int(ledger.lines("start")[0][2])
    os.kill(victim, signal.SIGKILL)
    wait_for_end(database, 30)
    assert set(assert_every_message_ended_once(database, []).values()) == {"done"}
    assert database.value("select max(attempt) from message_archive") == 1, "a crash spends no attempt"
    wait_until(lambda: len(daemon.children()) == 2 and victim not in daemon.children())
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_process_is_recycled_after_max_messages(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, processes=1, threads=2, max_messages=50).wait_ready()
    (pid,) = daemon.children()
    effects(database, 200, "m", seconds=0.005)
    wait_for_end(database, 30)
    wait_until(lambda: daemon.children() and pid not in daemon.children())
    assert set(ledger.counts("effect").values()) == {1} and len(ledger.counts("effect")) == 200
    assert database.value("select max(attempt) from message_archive") == 1
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_process_is_recycled_above_max_memory(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, processes=1, max_memory_mib=1)
    wait_until(lambda: daemon.log.count("worker_recycled") >= 2, 30)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_sighup_replaces_every_process_and_loses_nothing(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, processes=2, threads=2).wait_ready(2)
    before = set(daemon.children())
    ids = effects(database, 300, "m", seconds=0.01)
    wait_until(lambda: len(ledger.lines("effect")) > 20)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: len(daemon.children()) == 2 and not before & set(daemon.children()), 30)
    wait_for_end(database, 30)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert set(ledger.counts("effect").values()) == {1}
    assert database.query("select max(attempt), max(crashes) from message_archive") == [(1, 0)]
    assert daemon.process.poll() is None and daemon.stop() == 0


@pytest.mark.slow
def test_broken_code_stops_no_process_that_works(database, ledger, start_daemon, tmp_path):
    """A deploy went wrong: the actors on the disk cannot be imported. Reloads and replacements wait until
    they can.
    """
    module = tmp_path / "deployed_actors.py"
    module.write_text("from tests.support.actors import *\n")
    paths = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    daemon = start_daemon(database, ledger, "deployed_actors", paths, processes=2, threads=1).wait_ready(2)
    before = set(daemon.children())
    module.write_text("import nothing_of_this_name\n")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "reload_refused" in daemon.log)
    assert "nothing_of_this_name" in daemon.log, "the reason"
    wait_until(lambda: set(daemon.children()) == before)
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: daemon.log.count("child_exited") >= 3)  # itself, and two that were to replace it
    assert daemon.process.poll() is None and max(before) in daemon.children()
    effects(database, 1, "still")
    wait_until(lambda: ledger.counts("effect")["still0"] == 1)
    module.write_text("from tests.support.actors import *  # repaired\n")
    wait_until(lambda: daemon.log.count("worker_started") == 3)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: daemon.log.count("worker_started") == 5, 30)
    wait_until(lambda: len(daemon.children()) == 2 and not before & set(daemon.children()))
    assert daemon.stop() == 0


@pytest.mark.slow
def test_children_of_a_killed_parent_drain(database, ledger, start_daemon):
    daemon = start_daemon(database, ledger, processes=2, threads=1).wait_ready(2)
    children = daemon.children()
    effects(database, 2, "m", seconds=0.7)
    wait_until(lambda: len(ledger.lines("start")) == 2)
    daemon.process.kill()
    daemon.process.wait(10)
    wait_until(lambda: not any(_runs(pid) for pid in children), 20)
    assert ledger.counts("effect") == {"m0": 1, "m1": 1}
    assert database.query("select state, attempt, crashes, count(*) from all_messages group by 1, 2, 3") == [
        ("done", 1, 0, 2)
    ]
    assert database.value("select count(*) from workers") == 0


@pytest.mark.slow
def test_a_child_that_cannot_start_is_tried_again_with_backoff(database, ledger, start_daemon):
    daemon = start_daemon(
        database, ledger, actors="tests.support.actors", extra={"LEDGER": str(ledger.path)}
    ).wait_ready()
    for count in range(1, 4):
        (pid,) = wait_until(daemon.children)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda count=count: daemon.log.count("child_exited") >= count)
        wait_until(lambda pid=pid: daemon.children() and pid not in daemon.children(), 20)
    effects(database, 1)
    wait_until(lambda: ledger.counts("effect")["m0"] == 1, 20)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_system_that_has_no_process_to_give_ends_nobody(database, ledger, start_daemon, tmp_path):
    """A limit of processes or of memory: fork fails. What lives goes on; what is missing starts when there is
    room again.
    """
    full = tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfork = os.fork\ndef limited():\n"
        f"    if os.path.exists({str(full)!r}): raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return fork()\nos.fork = limited\n"
    )
    daemon = start_daemon(
        database, ledger, extra={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, processes=2, threads=1
    ).wait_ready(2)
    victim, other = daemon.children()
    full.touch()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "fork_failed" in daemon.log)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "reload_refused" in daemon.log)
    effects(database, 1)
    wait_until(lambda: ledger.counts("effect")["m0"] == 1)
    assert daemon.children() == [other] and daemon.process.poll() is None
    full.unlink()
    wait_until(lambda: len(daemon.children()) == 2, 30)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_what_a_handler_printed_to_a_full_disk_changes_no_exit_code(database, ledger, start_daemon, tmp_path):
    """A child's last act is to write what was printed; that fails, and it ends as it would have."""
    (tmp_path / "printing_actors.py").write_text(
        "import os, sys\nfrom tests.support.actors import *\nsys.stdout = open('/dev/full', 'w')\nprint('to nowhere')\n"
    )
    daemon = start_daemon(
        database, ledger, "printing_actors", {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, processes=1
    ).wait_ready()
    assert daemon.stop() == 0
    assert "child_exited" not in daemon.log and "Traceback" not in daemon.log


@pytest.mark.slow
def test_by_default_a_killed_hosts_messages_run_again_within_thirty_seconds(database, ledger, start_daemon):
    """W5 with the settings that a user gets, not the quick ones of these tests."""
    defaults = {
        "heartbeat_seconds": 6,
        "lease_seconds": 20,
        "rescue_seconds": 5,
        "call_deadline_seconds": 10,
        "poll_seconds": 2.5,
    }
    first = start_daemon(database, ledger, **defaults).wait_ready()
    # past its first heartbeat, so that the whole lease lies ahead; beyond the start of the second
    (ident,) = effects(database, 1, "m", "sleeper", seconds=14)
    wait_until(lambda: ledger.lines("start"))
    second = start_daemon(database, ledger, **defaults).wait_ready()
    wait_until(
        lambda: database.value(
            "select lease_expires_at > claimed_at + interval '21 seconds' from message_queue"
        ),
        15,
    )
    first.kill_group()
    killed_at = database.value("select clock_timestamp()")
    wait_until(lambda: ledger.counts("start")["m0"] == 2, 45)
    assert database.value(
        "select claimed_at - %s < interval '30 seconds' from message_queue where id = %s", killed_at, ident
    )
    wait_for_end(database, 25)
    assert second.stop() == 0


def _runs(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:4]
    except FileNotFoundError:
        return False
