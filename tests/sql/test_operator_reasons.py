"""Each act of an operator is recorded with who did it and why, and so is a look at what a message carries
(SPEC O5, O6).
"""

from __future__ import annotations

import pytest

from tests.support.postgres import Database

SCHEDULE = "insert into schedules (name, message_type, queue, every, source) values ('nightly', 'effect', 'default', '1 hour', 'sql')"


@pytest.mark.parametrize(
    ("prepare", "call", "action"),
    [
        ("select 1", "set_queue('default', '{\"max_concurrency\": 3}', 'ann', 'the why')", "set_queue"),
        ("select 1", "pause_queue('default', 'ann', 'the why')", "pause_queue"),
        ("select pause_queue('default')", "resume_queue('default', 'ann', 'the why')", "resume_queue"),
        (SCHEDULE, "pause_schedule('nightly', 'ann', 'the why')", "pause_schedule"),
        (
            SCHEDULE.replace("source)", "source, paused_at, paused_by)").replace(
                "'sql')", "'sql', now(), 'bob')"
            ),
            "resume_schedule('nightly', 'ann', 'the why')",
            "resume_schedule",
        ),
        ("select park_scope('openai', '5 minutes')", "lift_scope('openai', 'ann', 'the why')", "lift_scope"),
    ],
)
def test_the_record_has_who_and_why(any_database: Database, prepare: str, call: str, action: str) -> None:
    any_database.query(prepare)
    any_database.query(f"select {call}")
    assert any_database.query("select operator, reason from operator_actions where action = %s", action)[
        -1
    ] == ("ann", "the why")


@pytest.mark.parametrize("state", ["pending", "dead", "done"])
def test_a_look_at_what_a_message_carries_is_recorded_wherever_it_is(
    any_database: Database, state: str
) -> None:
    number = any_database.value(
        "select message_id from enqueue_message('default', 'effect', '{\"secret\": 7}', '{\"o\": 1}')"
    )
    if state == "dead":
        any_database.query("select bury_waiting_message(%s)", number)
    elif state == "done":
        any_database.query("select cancel_message(%s)", number)
    found = any_database.query(
        "select state, payload, options from reveal_message(%s, 'ann', 'a call of the customer')", number
    )
    assert [row[1:] for row in found] == [({"secret": 7}, {"o": 1})]
    recorded = any_database.query(
        "select operator, reason, message_id, details from operator_actions where action = 'reveal_message'"
    )
    assert recorded == [("ann", "a call of the customer", number, None)]


def test_a_look_at_nothing_is_not_recorded(any_database: Database) -> None:
    assert any_database.query("select * from reveal_message(4711, 'ann', 'why')") == []
    assert any_database.value("select count(*) from operator_actions") == 0
