"""A completion that the database refuses is no crash and no failure: the work is done, and is not done again
(SPEC P2, P5).
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.accounting import assert_every_message_ended_once, effects, enqueue, wait_for_end
from tests.support.waiting import wait_until

#: How the database comes to refuse every completion, and how that ends.
REASONS = {
    "no right": (
        "revoke insert on message_archive from packhorse_worker",
        "grant insert on message_archive to packhorse_worker",
    ),
    "a constraint": (
        "alter table message_archive add constraint mine check (id < 0) not valid",
        "alter table message_archive drop constraint mine",
    ),
    "a policy": (
        "create policy mine on message_archive as restrictive for insert to packhorse_worker with check (false)",
        "drop policy mine on message_archive",
    ),
    "a trigger": (
        "create function refuse() returns trigger language plpgsql as $$begin raise 'no'; end$$;"
        " create trigger mine before insert on message_archive for each row execute function refuse()",
        "drop trigger mine on message_archive",
    ),
}


def refused(daemon) -> bool:
    return "outcome_refused" in daemon.log


@pytest.mark.slow
@pytest.mark.parametrize("reason", REASONS)
def test_the_process_keeps_what_it_has_done_until_that_can_be_written(database, ledger, start_daemon, reason):
    refuse, allow = REASONS[reason]
    database.query(refuse)
    daemon = start_daemon(database, ledger, threads=4).wait_ready()
    ids = effects(database, 20, "m")
    wait_until(lambda: refused(daemon))
    wait_until(
        lambda: database.value(
            "select max(lease_expires_at) - min(claimed_at) > interval '8 seconds' from message_queue"
        ),
        30,
        "leases go on",
    )
    assert database.value("select count(*) from message_queue where state = 'running'") < 20, (
        "it does not take what it could not write"
    )
    database.query(allow)
    wait_for_end(database, 60)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert set(ledger.counts("start").values()) == {1} and len(ledger.lines("start")) == 20
    assert database.query("select max(attempt), max(crashes) from message_archive") == [(1, 0)]
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_is_done_when_its_process_ends_is_not_run_again(database, ledger, start_daemon, end):
    refuse, allow = REASONS["no right"]
    database.query(refuse)
    daemon = start_daemon(database, ledger, threads=4, lease_seconds=600, heartbeat_seconds=1).wait_ready()
    effects(database, 3, "m")
    wait_until(lambda: daemon.log.count("outcome_refused") == 3)
    if end == "stop":
        assert daemon.stop() == 0
    else:
        os.kill(daemon.children()[0], signal.SIGKILL)
    marked = "select count(*) from message_queue where completion_refused_at is not null"
    wait_until(lambda: database.value(marked) == 3, 20)
    assert "42501" in database.value("select min(error ->> 'message') from message_queue") or end == "kill"
    if end == "stop":
        start_daemon(database, ledger, threads=4).wait_ready()
    effects(database, 1, "other")
    wait_until(lambda: ledger.counts("start")["other0"] == 1, 20, "others go on")
    database.query(allow)
    wait_for_end(database, 60)
    assert set(ledger.counts("start").values()) == {1}
    assert database.query("select distinct state, attempt, crashes from message_archive") == [("done", 1, 0)]


@pytest.mark.slow
def test_one_completion_that_is_refused_stops_no_other(database, ledger, start_daemon):
    (bad,) = effects(database, 1, "bad")
    database.query(f"alter table message_archive add constraint mine check (id <> {bad})")
    daemon = start_daemon(database, ledger, threads=1).wait_ready()
    effects(database, 40, "good")
    wait_until(lambda: database.value("select count(*) from message_archive") == 40, 30)
    effects(database, 40, "more")
    wait_until(
        lambda: database.value("select count(*) from message_archive") == 80, 30, "and it takes further ones"
    )
    assert database.query("select id, state from message_queue") == [(bad, "running")]
    database.query("alter table message_archive drop constraint mine")
    wait_for_end(database, 40)
    assert ledger.counts("start")["bad0"] == 1
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_transactional_handler_is_not_blamed_for_a_completion_that_is_refused(
    database, ledger, start_daemon
):
    database.query("create table effects (key text); grant all on effects to public")
    refuse, allow = REASONS["no right"]
    database.query(refuse)
    daemon = start_daemon(database, ledger, threads=2).wait_ready()
    (message,) = enqueue(
        database, [{"message_type": "transactional", "payload": {"key": "t"}, "max_attempts": 1}]
    )
    wait_until(lambda: ledger.counts("start")["t"] >= 2, 30)
    assert database.value("select count(*) from dead_letters") == 0
    database.query(allow)
    wait_for_end(database, 40)
    assert assert_every_message_ended_once(database, [message]) == {message: "done"}
    assert database.query("select * from effects") == [("t",)]
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stay", "stop", "kill"])
def test_a_failure_that_is_refused_is_never_taken_for_a_success(database, ledger, start_daemon, end):
    refuse, allow = (
        "revoke insert on dead_letters from packhorse_worker",
        "grant insert on dead_letters to packhorse_worker",
    )
    database.query(refuse)
    daemon = start_daemon(database, ledger, threads=2).wait_ready()
    (bad,) = enqueue(database, [{"message_type": "fails", "payload": {"key": "bad"}, "max_attempts": 1}])
    wait_until(lambda: refused(daemon))
    if end == "stop":
        assert daemon.stop() == 0
        daemon = start_daemon(database, ledger, threads=2).wait_ready()
    elif end == "kill":
        os.kill(daemon.children()[0], signal.SIGKILL)
    effects(database, 5, "good")
    wait_until(lambda: database.value("select count(*) from message_archive") == 5, 30, "others go on")
    database.query(allow)
    wait_for_end(database, 60)
    assert database.query("select id, reason from dead_letters") == [(bad, "failed")]
    assert daemon.stop() == 0


@pytest.mark.slow
def test_messages_that_are_refused_again_and_again_stop_no_other(database, ledger, start_daemon):
    """More of them than the process has threads."""
    database.query("alter table message_archive add constraint mine check (id % 10 <> 0)")
    daemon = start_daemon(database, ledger, threads=2).wait_ready()
    effects(database, 200, "m")
    wait_until(lambda: database.value("select count(*) from message_archive") == 180, 60)
    effects(database, 90, "n")
    wait_until(
        lambda: database.value("select count(*) from message_archive") == 261, 60, "and it takes further ones"
    )
    database.query("alter table message_archive drop constraint mine")
    wait_for_end(database, 90)
    assert len(ledger.lines("start")) == 290 and set(ledger.counts("start").values()) == {1}
    assert daemon.stop() == 0
