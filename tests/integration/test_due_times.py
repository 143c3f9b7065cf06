"""The delay written is the delay waited: an idle worker sets its own alarm (SPEC Q3, Q10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.postgres import Database
from tests.support.waiting import wait_until
from tests.support.workers import Ledger


@pytest.mark.slow
def test_a_delayed_message_starts_when_it_is_due_and_not_at_the_next_poll(
    database: Database, ledger: Ledger, start_daemon: Callable[..., Any]
) -> None:
    start_daemon(database, ledger, poll_seconds=60).wait_ready()
    wait_until(
        lambda: database.value("select count(*) from queue_wakeups where wake_until is not null") == 1,
        20,
        "it sleeps",
    )
    statement = (
        "select enqueue_message('default', 'effect', jsonb_build_object('key', %s::text), p_delay => '0.3 s')"
    )
    for key in ("a", "b", "c"):
        database.query(statement, key, admin=False)
        wait_until(lambda key=key: ledger.counts("start")[key] == 1, 15)  # type: ignore[misc]


@pytest.mark.slow
def test_a_retry_starts_when_its_backoff_is_over_and_not_at_the_next_poll(
    database: Database, ledger: Ledger, start_daemon: Callable[..., Any]
) -> None:
    database.query("""select set_queue('default', '{"backoff_initial": "0.2 s"}')""")
    start_daemon(database, ledger, poll_seconds=60).wait_ready()
    wait_until(
        lambda: database.value("select count(*) from queue_wakeups where wake_until is not null") == 1,
        20,
        "it sleeps",
    )
    database.query("""select enqueue_message('default', 'fails', '{"key": "a", "times": 2}')""", admin=False)
    wait_until(lambda: ledger.counts("effect")["a"] == 1, 15)
