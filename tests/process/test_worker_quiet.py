"""An operator takes one daemon out of work: quiet, resume, drain (SPEC O5)."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from tests.support.accounting import effects, live, wait_for_end
from tests.support.cli import Cli
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def states(database: Any) -> list[str]:
    return [row[0] for row in database.query("select state from workers order by started_at")]


def ask(database: Any, request: str) -> str:
    return database.value(
        "select ask_worker(id, %s, 'ann', 'disk') from workers order by started_at limit 1", request
    )


def test_a_quiet_daemon_claims_nothing_also_after_a_crash_of_its_processes_until_it_is_resumed_or_ends(
    database, ledger, start_daemon
):
    daemon = start_daemon(database, ledger, processes=2, threads=1).wait_ready(2)
    effects(database, 1, "running", seconds=1.5)
    wait_until(lambda: ledger.lines("start"))
    assert ask(database, "quiet") == "asked"
    wait_until(lambda: states(database) == ["quiet", "quiet"], message="both processes have learnt it")
    effects(database, 3, "waiting")
    wait_until(
        lambda: len(ledger.lines("effect")) == 1 and live(database) == 3,
        message="what runs goes on, and is written",
    )
    os.kill(daemon.children()[0], signal.SIGKILL)
    wait_until(lambda: daemon.log.count("worker_started") == 3)
    for _ in range(2):  # two beats of each: had one of them claimed anything, it would have started
        now = database.value("select clock_timestamp()")
        wait_until(
            lambda now=now: database.value(
                "select bool_and(state = 'quiet' and last_seen_at > %s) and count(*) = 2 from workers", now
            )
        )
    assert (
        database.query("select distinct state from message_queue") == [("pending",)]
        and len(ledger.lines("start")) == 1
    )
    assert ask(database, "resume") == "asked"
    wait_for_end(database)
    assert len(ledger.lines("effect")) == 4
    wait_until(lambda: states(database) == ["running", "running"], message="both claim again")
    assert ask(database, "drain") == "asked" and ask(database, "resume") == "draining"
    assert daemon.process.wait(20) == 0, daemon.log
    assert "drain_asked" in daemon.log and "worker_quiet" in daemon.log and "worker_resumed" in daemon.log
    start_daemon(database, ledger, threads=1).wait_ready()
    effects(database, 1, "after")
    wait_for_end(database)
    assert states(database)[-1] == "running", "what was asked ended with its daemon"
    actions = database.query("select action, operator, reason from operator_actions order by id")
    assert actions == [(f"{request}_worker", "ann", "disk") for request in ("quiet", "resume", "drain")]


def test_the_command_line_takes_a_live_daemon_out_of_work_and_back_and_ends_it(
    database, ledger, start_daemon, tmp_path
):
    daemon = start_daemon(database, ledger, threads=1).wait_ready()
    cli = Cli(tmp_path, database.url)
    (row,) = cli("workers", "list", "--json").document
    answer = {"id": row["id"], "daemon": row["daemon"], "pids": [row["pid"]]}
    assert row["pid"] in daemon.children() and row["asked"] is None

    asked = cli("workers", "quiet", row["id"], "--reason", "disk", "--operator", "ann", "--json")
    assert (asked.code, asked.document) == (EXIT_OK, answer | {"request": "quiet", "changed": True})
    wait_until(lambda: cli("workers", "--json").document[0]["state"] == "quiet")
    assert (
        "quiet" in cli("workers", "list").out
        and "were asked before" in cli("workers", "quiet", row["id"]).out
    )
    effects(database, 1, "waiting")
    now = database.value("select clock_timestamp()")
    wait_until(
        lambda: database.value("select last_seen_at > %s + interval '1 second' from workers", now),
        message="two beats, and polls between them",
    )
    assert ledger.lines("start") == []

    assert f"claim again with their next heartbeat: {row['pid']}" in cli("workers", "resume", row["id"]).out
    wait_for_end(database)
    database.query("select enqueue_message('default', 'works_late', '{\"key\": \"last\"}')")
    wait_until(lambda: "last" in ledger.counts("start"), message="it cannot end before it is told")
    assert cli("workers", "drain", row["id"], "--json").document == answer | {
        "request": "drain",
        "changed": True,
    }
    taken_back = cli("workers", "resume", row["id"], "--json")
    assert (taken_back.code, taken_back.error["code"]) == (EXIT_FAILED, "not_possible")
    ledger.path.with_suffix(".go").touch()
    assert daemon.process.wait(20) == EXIT_OK, daemon.log
    assert database.query("select action, operator, reason from operator_actions order by id")[0] == (
        "quiet_worker",
        "ann",
        "disk",
    )
    for nobody in (row["id"], "worker-3"):
        refused = cli("workers", "quiet", nobody, "--json")
        assert (
            refused.code == EXIT_USAGE
            and refused.error["field"] == "id"
            and "packhorse workers list" in refused.error["hint"]
        )
