"""When everything fails: outcomes are written many at a time, and one that cannot be written stops no other
(SPEC P3, Q3).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packhorse.worker.runtime.fetcher import OUTCOMES_IN_A_TURN
from tests.support.postgres import Database
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

pytestmark = pytest.mark.slow

ENQUEUE = "select enqueue_message('default', 'fails', jsonb_build_object('key', n::text), p_max_attempts => 1) from generate_series(1, %s) n"
DEAD = "select count(*) from dead_letters"


def test_messages_that_fail_together_are_written_together(
    database: Database, ledger: Ledger, start_daemon: Callable[..., Daemon]
) -> None:
    database.query("select declare_queue('default')")
    database.query(ENQUEUE, 300)
    start_daemon(database, ledger)
    wait_until(lambda: database.value(DEAD) == 300, 60, "300 dead letters")
    transactions = database.value("select count(distinct xmin::text) from dead_letters")
    assert isinstance(transactions, int) and transactions < 150, transactions
    assert (
        database.value("select count(*) from dead_letters where error_message like 'attempt 1 of %'") == 300
    )


def test_while_many_failures_are_written_others_start(
    database: Database, ledger: Ledger, start_daemon: Callable[..., Daemon]
) -> None:
    database.query("select declare_queue('default')")
    database.query("""create function take_time() returns trigger language plpgsql as $$ begin
        perform pg_sleep(case when exists (select from packhorse.dead_letters) then 0.01 else 2 end);
        return new; end $$""")  # while the first is written all others fail
    database.query(
        "create trigger take_time before insert on dead_letters for each row execute function take_time()"
    )
    database.query(
        "select enqueue_message('default', 'fails_together', jsonb_build_object('key', n::text), p_max_attempts => 1) from generate_series(1, 600) n"
    )
    start_daemon(database, ledger, "tests.support.async_actors")
    wait_until(lambda: len(ledger.lines("start")) == 600, 60, "all run")
    ledger.path.with_suffix(".go").touch()
    wait_until(lambda: int(str(database.value(DEAD))) > 1, 60, "some are written")
    database.query("select enqueue_message('default', 'effect', '{\"key\": \"other\"}')")
    wait_until(lambda: database.value(DEAD) == 600, 90, "all are written")
    wait_until(lambda: database.value("select count(*) from message_archive") == 1, 30, "the other one")
    written_meanwhile = database.value(
        "select count(*) from dead_letters, message_archive m where dead_at between m.created_at and m.claimed_at"
    )
    # the turn in which it came, and one more at most
    assert isinstance(written_meanwhile, int) and written_meanwhile <= 2 * OUTCOMES_IN_A_TURN


def test_an_ending_that_the_database_refuses_stops_no_other(
    database: Database, ledger: Ledger, start_daemon: Callable[..., Daemon]
) -> None:
    database.query("select declare_queue('default')")
    database.query("""create function refuse() returns trigger language plpgsql as $$ begin
        if new.error_message like 'attempt 1 of 7 %' then raise exception 'not this one'; end if; return new; end $$""")
    database.query(
        "create trigger refuse before insert on dead_letters for each row execute function refuse()"
    )
    database.query(ENQUEUE, 60)
    daemon = start_daemon(database, ledger)
    wait_until(lambda: database.value(DEAD) == 60, 60, "60 dead letters")
    assert database.query(
        "select payload ->> 'key', error_message from dead_letters where error_message not like 'attempt%'"
    ) == [("7", "the error could not be stored")]
    assert daemon.process.poll() is None and not ledger.counts("start").keys() - {
        str(n) for n in range(1, 61)
    }
    assert set(ledger.counts("start").values()) == {1}


@pytest.mark.parametrize("actor", ["fails_late", "works_late"])
def test_a_row_that_somebody_keeps_locked_holds_up_no_other(
    database: Database, ledger: Ledger, start_daemon: Callable[..., Daemon], actor: str
) -> None:
    """An operator's open transaction: the outcomes of all others are written, new ones are claimed, leases go
    on; when it ends, this outcome is written as well, and no handler has run twice."""
    database.query("select declare_queue('default')")
    database.query(
        "select enqueue_message('default', %s, jsonb_build_object('key', n::text), p_max_attempts => 1) from generate_series(1, 60) n",
        actor,
    )
    ended = "select (select count(*) from dead_letters) + (select count(*) from message_archive)"
    daemon = start_daemon(database, ledger, lease_seconds=60, threads=64)
    wait_until(lambda: len(ledger.lines("start")) == 60, 30, "all run")
    with database.connect(admin=True) as operator, operator.transaction():
        operator.execute("select from message_queue where payload ->> 'key' = '30' for update")
        ledger.path.with_suffix(".go").touch()
        wait_until(lambda: database.value(ended) == 59, 30, "the other 59")
        database.query(
            "select enqueue_message('default', %s, '{\"key\": \"new\"}', p_max_attempts => 1)", actor
        )
        wait_until(lambda: database.value(ended) == 60, 30, "a new one")
    wait_until(lambda: database.value(ended) == 61, 40, "the one that was locked")
    assert daemon.process.poll() is None and set(ledger.counts("start").values()) == {1}
    assert "outcome_waits" in daemon.log and "StoreUnavailable" not in daemon.log
