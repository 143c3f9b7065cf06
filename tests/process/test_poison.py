"""P5: a message that kills its process is quarantined; its neighbours lose nothing; one bad row is one dead
letter.
"""

from __future__ import annotations

import pytest

from tests.support.accounting import (
    allow_unreadable,
    assert_every_message_ended_once,
    effects,
    quick_backoff,
    wait_for_end,
)
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_a_message_that_kills_its_process_is_quarantined_after_three_crashes(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, threads=4).wait_ready()
    neighbours = effects(database, 30, "before", seconds=0.05)
    (poison,) = effects(database, 1, "poison", "poison")
    neighbours += effects(database, 30, "after", seconds=0.05)
    wait_for_end(database, 60)
    states = assert_every_message_ended_once(database, [poison, *neighbours])
    assert states.pop(poison) == "dead"
    assert set(states.values()) == {"done"}
    assert database.query("select reason, crashes, attempt from dead_letters") == [("quarantined", 3, 0)]
    assert ledger.counts("start")["poison0"] == 3
    # neighbours lost no attempt, and none was taken for the culprit
    assert database.query("select max(attempt), max(crashes) <= 2 from message_archive") == [(1, True)]
    assert daemon.stop() == 0


@pytest.mark.slow
def test_two_poisons_do_not_make_a_neighbour_look_guilty(database, ledger, start_daemon):
    quick_backoff(database)
    daemon = start_daemon(database, ledger, threads=4).wait_ready()
    effects(database, 2, "poison", "poison")
    neighbours = effects(database, 40, "n", seconds=0.02)
    wait_for_end(database, 60)
    states = assert_every_message_ended_once(database, neighbours)
    assert {states[ident] for ident in neighbours} == {"done"}
    assert database.query(
        "select count(*) from dead_letters where reason = 'quarantined' and message_type = 'poison'"
    ) == [(2,)]
    assert daemon.stop() == 0


UNDECODABLE = {
    "deep": """insert into message_queue (queue, message_type, payload) values ('default', 'effect',
               ('{"key": ' || repeat('[', 3000) || repeat(']', 3000) || '}')::jsonb)""",
    "huge number": """insert into message_queue (queue, message_type, payload) values ('default', 'effect',
               ('{"key": ' || repeat('9', 6000) || '}')::jsonb)""",
    "options": """insert into message_queue (queue, message_type, payload, options) values ('default', 'effect', '{"key": "x"}', '{"args": 5}')""",
}


@pytest.mark.slow
def test_rows_that_cannot_be_decoded_are_one_dead_letter_each(database, ledger, start_daemon):
    effects(database, 20, "a")
    allow_unreadable(database)
    for statement in UNDECODABLE.values():
        database.query(statement)
    effects(database, 20, "b")
    daemon = start_daemon(database, ledger).wait_ready()
    wait_for_end(database, 20)
    assert database.query("select reason, count(*) from dead_letters group by reason") == [
        ("undecodable", len(UNDECODABLE))
    ]
    assert database.value("select count(*) from message_archive where state = 'done' and attempt = 1") == 40
    assert "child_exited" not in daemon.log
    assert daemon.stop() == 0


@pytest.mark.slow
def test_options_of_the_wrong_type_do_not_turn_a_failure_into_done(database, ledger, start_daemon):
    """A failing handler whose message carries nonsense where the retry policy looks: the failure is kept."""
    quick_backoff(database)
    daemon = start_daemon(database, ledger).wait_ready()
    for number, options in enumerate(
        [
            '{"max_retries": "many"}',
            '{"min_backoff": "soon"}',
            '{"max_backoff": []}',
            '{"throws": 3}',
            '{"time_limit": "long"}',
            '{"max_age": "old"}',
            '{"on_retry_exhausted": 7}',
            '{"pipe_target": 1}',
        ]
    ):
        database.query(
            "select enqueue_message('default', 'fails', jsonb_build_object('key', %s::text), %s::jsonb)",
            f"k{number}",
            options,
        )
    wait_for_end(database, 30)
    assert database.query("select distinct state, attempt > 0 from all_messages") == [("dead", True)]
    assert daemon.stop() == 0


@pytest.mark.slow
def test_wrong_arguments_in_a_row_fail_that_message_only(database, ledger, start_daemon):
    quick_backoff(database)
    database.query("""select enqueue_message('default', 'effect', '{"unknown": 1}', p_max_attempts => 1)""")
    effects(database, 5, "ok")
    daemon = start_daemon(database, ledger).wait_ready()
    wait_for_end(database, 20)
    assert database.query("select reason, error_class from dead_letters") == [("failed", "TypeError")]
    wait_until(lambda: len(ledger.lines("effect")) == 5)
    assert daemon.stop() == 0
