"""An outcome that no column can hold is brought into range: the failure is written, and is no crash (SPEC P5,
FAILURES 13, 19).
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from packhorse.worker.attempt.messages import ClaimedMessage, Outcome
from packhorse.worker.db.connection import connect
from packhorse.worker.db.pool import Link
from packhorse.worker.runtime.outcome_writer import OutcomeWriter
from packhorse.worker.store import messages as store
from tests.support.postgres import Database

pytestmark = pytest.mark.one_database

LATE = "run_at > clock_timestamp() + interval '3659 days'"
SOON = "run_at < clock_timestamp() + interval '31 seconds'"


@pytest.mark.parametrize(
    ("outcome", "answer", "due"),
    [
        (Outcome("snooze", "later", delay_seconds=1e300), "snooze", LATE),
        (Outcome("snooze", "later", delay_seconds=float("nan")), "snooze", SOON),
        (Outcome("retry", "later", delay_seconds=float("inf")), "retry", LATE),
        (Outcome("retry", "earlier", delay_seconds=-1e300), "retry", SOON),
        (Outcome("fail", None, "ValueError", "broken", delay_seconds=float("inf")), "retry", LATE),
        (Outcome("fail", None, "ValueError", "broken", delay_seconds=float("nan")), "retry", SOON),
        (Outcome("fail", None, "ValueError", "broken", backoff_initial=1e30), "retry", LATE),
        (Outcome("fail", None, "ValueError", "broken", backoff_initial=1.0, backoff_max=1e30), "retry", SOON),
        (Outcome("fail", None, "ValueError", "broken", max_attempts=10**12), "retry", SOON),
        (Outcome("fail", None, "ValueError", "broken", max_attempts=-(10**12)), "dead", None),
        (Outcome("fail", None, "ValueError", "broken", max_attempts=2.5), "retry", SOON),  # type: ignore[arg-type] # a producer's max_retries
    ],
)
def test_what_a_handler_asked_for_is_stored_within_bounds(
    database: Database, outcome: Outcome, answer: str, due: str | None
) -> None:
    database.query("select enqueue_message('default', 't')")
    link = Link(lambda: connect(database.url))
    with link.connection() as connection:
        ((row, *_), _) = store.complete_and_claim(
            connection, [], [], uuid4(), ["default"], 1, "30 seconds", None
        )
    message = ClaimedMessage(row, 0.0, 0.0)
    message.outcome = outcome
    assert OutcomeWriter(link, None, lambda message: None).write([message]) == [answer]
    if due is not None:
        assert database.query(f"select state, {due} from message_queue") == [("pending", True)]
    if outcome.verb == "fail":
        ((text,),) = database.query("select coalesce(error_message, '') from all_messages")
        assert text == "broken", "nothing of the failure is lost"
    link.close()
