"""The self-test at the start: a role for which the queue would seem empty does not begin to work (SPEC O9,
FAILURES 72).
"""

from __future__ import annotations

import pytest

from packhorse.worker.exits import EXIT_SCHEMA
from tests.support.accounting import effects

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "breakage",
    [
        "alter policy message_queue_worker on message_queue using (false)",
        "drop policy message_queue_worker on message_queue",
        "drop policy message_queue_worker on message_queue; create policy look on message_queue for select to packhorse_worker using (true); "
        "create policy added on message_queue for insert to packhorse_worker with check (true)",
        "revoke update on message_queue from packhorse_worker",
        "revoke delete on message_queue from packhorse_worker",
    ],
)
def test_a_worker_from_whom_policies_hide_the_queue_does_not_start(database, ledger, start_daemon, breakage):
    """Enqueues worked, nothing ran, nothing said so."""
    database.query("select declare_queue('default')")
    database.query(breakage)
    daemon = start_daemon(database, ledger)
    assert daemon.process.wait(30) == EXIT_SCHEMA, daemon.log
    assert (
        ("row-level security" in daemon.log or "permission denied" in daemon.log)
        and "packhorse_worker" in daemon.log
        and "Traceback" not in daemon.log
    )
    assert "worker_started" not in daemon.log and database.value("select count(*) from all_messages") == 0, (
        "the probe left nothing behind"
    )
    database.query("drop policy if exists message_queue_worker on message_queue")
    database.query(
        "create policy message_queue_worker on message_queue to packhorse_worker using (true) with check (true)"
    )
    database.query("grant update, delete on message_queue to packhorse_worker")
    assert start_daemon(database, ledger).wait_ready().stop() == 0, (
        "the same with the policy as the migration made it"
    )


def test_a_role_without_rights_does_not_start(database, ledger, start_daemon):
    database.query(
        "do $$ begin create role packhorse_stranger login; exception when duplicate_object then null; end $$"
    )
    effects(database, 1)
    daemon = start_daemon(database.server.url(database.name, "packhorse_stranger"), ledger)
    code = daemon.process.wait(30)
    assert code == EXIT_SCHEMA, daemon.log
    assert (
        "packhorse_worker" in daemon.log
        and "worker_started" not in daemon.log
        and "Traceback" not in daemon.log
    )
