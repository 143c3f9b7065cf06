"""packhorse worker --burst (SPEC W12): it ends when nothing is left to do, and says by its exit code how it
went.
"""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.one_database]


@pytest.fixture
def burst(database, ledger, start_daemon):
    """Start one; settings as of start_daemon."""
    return lambda actors="tests.support.actors", **settings: start_daemon(
        database, ledger, actors, options=("--burst",), threads=4, **settings
    )


def send(database, message_type, options="", **payload):
    database.query(
        f"select enqueue_message('default', %s, %s{options})", message_type, json.dumps(payload), admin=False
    )


def said(daemon):
    """What the last line says of the burst."""
    lines = [json.loads(line) for line in daemon.log.splitlines() if '"burst_finished"' in line]
    assert len(lines) == 1, daemon.log
    return {name: lines[0][name] for name in ("done", "failed", "dead", "left")}


def test_it_ends_well_when_all_is_done_and_leaves_what_is_not_due(database, ledger, burst):
    for number in range(30):
        send(database, "effect", f", p_conversation_key => 'k{number % 3}'", key=str(number))
    send(database, "effect", ", p_delay => interval '1 hour'", key="later")
    send(database, "of_nobody", key="unknown")
    daemon = burst()
    assert daemon.process.wait(30) == 0, daemon.log
    assert said(daemon) == {"done": 30, "failed": 0, "dead": 0, "left": 1}
    assert len(ledger.counts("effect")) == 30 and "later" not in ledger.counts("start")


def test_an_empty_queue_ends_it_at_once(burst):
    daemon = burst(processes=2)
    assert daemon.process.wait(30) == 0, daemon.log
    assert (
        said(daemon) == {"done": 0, "failed": 0, "dead": 0, "left": 0}
        and daemon.log.count("worker_started") == 2
    )


@pytest.mark.parametrize("how", ["dies", "will be retried"])
def test_a_failure_is_its_exit_code(database, burst, how):
    send(database, "effect", key="good")
    send(
        database,
        "fails",
        f""", p_options => '{{"min_backoff": 3600000, "max_backoff": 3600000}}', p_max_attempts => {1 if how == "dies" else 3}""",
        key="bad",
    )
    daemon = burst()
    assert daemon.process.wait(30) == 1, daemon.log
    assert said(daemon) == {
        "done": 1,
        "failed": int(how != "dies"),
        "dead": int(how == "dies"),
        "left": int(how != "dies"),
    }


def test_a_replaced_process_and_what_follows_a_failure_are_in_the_burst(database, ledger, burst):
    database.query("select pause_queue('default', 'me')", admin=True)
    send(database, "effect", key="kept")
    daemon = burst(processes=2)
    assert daemon.process.wait(30) == 0, daemon.log
    assert said(daemon) == {"done": 0, "failed": 0, "dead": 0, "left": 1}
    database.query("select resume_queue('default', 'me')", admin=True)
    send(database, "stuck_once", key="stuck")
    daemon = burst(processes=2)
    assert daemon.process.wait(60) == 1, daemon.log
    assert said(daemon)["dead"] == 1 and ledger.counts("effect")["kept"] == 1
    assert database.query("select state from all_messages where message_type = 'gave_up'") == [("done",)], (
        "what follows its failure was in the burst, too"
    )


def test_a_child_that_is_killed_is_replaced_and_the_burst_goes_on(database, ledger, burst):
    for number in range(12):
        send(database, "effect", key=str(number), seconds=0.5)
    daemon = burst(processes=2)
    victim = int(wait_until(lambda: ledger.lines("start"))[0][2])
    os.kill(victim, signal.SIGKILL)
    assert daemon.process.wait(60) == 0, daemon.log
    assert set(ledger.counts("effect")) == {str(number) for number in range(12)}
    assert (
        database.query("select distinct state from all_messages") == [("done",)] and said(daemon)["left"] == 0
    )


def test_a_message_that_kills_its_process_ends_as_a_dead_letter(database, burst):
    send(database, "poison", key="bad")
    send(database, "effect", key="good")
    daemon = burst()
    assert daemon.process.wait(60) == 1, daemon.log
    assert said(daemon)["dead"] == 1 and said(daemon)["left"] == 0
    assert database.query("select reason from dead_letters") == [("quarantined",)]


def test_a_signal_stops_it_as_any_worker(database, ledger, burst):
    send(database, "effect", key="long", seconds=1.0)
    daemon = burst()
    wait_until(lambda: ledger.lines("start"))
    assert daemon.stop() == 0
    assert ledger.counts("effect")["long"] == 1 and "burst_finished" not in daemon.log


def test_processes_that_cannot_start_end_it(database, burst, tmp_path):
    (tmp_path / "broken_actors.py").write_text("import os\nos._exit(3)\n")
    daemon = burst("broken_actors", cwd=tmp_path)
    assert daemon.process.wait(60) == 1, daemon.log
    assert "burst_gave_up" in daemon.log and "burst_finished" not in daemon.log


def test_a_database_that_is_not_there_is_an_error_at_once(start_daemon):
    daemon = start_daemon("postgresql://nobody@127.0.0.1:1/none", options=("--burst",))
    assert daemon.process.wait(30) == 69, daemon.log
