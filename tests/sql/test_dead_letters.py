"""Bury, and the dead-letter workbench: groups, redrive, edit, purge; every act is recorded (SPEC Q4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.parking import blocked_behind, in_background
from tests.support.postgres import Database


def dead(sql: Sql, error: str = "ValueError", message: str = "broken", **arguments: object) -> int:
    """A message that failed once and for all; its id."""
    lease = sql.claimed(**arguments)
    assert (
        sql.value(
            "select fail_message(%s, %s, %s, %s, 'trace', 'app.py:1', 1)",
            lease.id,
            lease.token,
            error,
            message,
        )
        == "dead"
    )
    return lease.id


def acts(sql: Sql, *columns: str) -> list[tuple]:
    return sql.rows(f"select {', '.join(columns)} from operator_actions order by id")


def test_a_dead_letter_keeps_the_whole_message(sql: Sql) -> None:
    row = sql.dead(
        dead(
            sql,
            payload={"a": 1},
            options={"b": 2},
            priority=2,
            conversation_key="c",
            concurrency_key="k",
            correlation_id="e",
            trace_context="t",
            max_attempts=1,
        )
    )
    assert [
        row[name]
        for name in (
            "reason",
            "error_class",
            "error_message",
            "traceback",
            "payload",
            "options",
            "priority",
            "attempt",
            "max_attempts",
            "conversation_key",
            "concurrency_key",
            "correlation_id",
            "trace_context",
        )
    ] == ["failed", "ValueError", "broken", "trace", {"a": 1}, {"b": 2}, 2, 1, 1, "c", "k", "e", "t"]
    assert [entry["event"] for entry in row["history"]] == ["failed"]


def test_texts_of_a_dead_letter_are_bounded(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows(
        "select bury_message(%s, %s, 'buried', %s, %s, %s)",
        lease.id,
        lease.token,
        "c" * 1000,
        "m" * 100_000,
        "t" * 100_000,
    )
    row = sql.dead(lease.id)
    assert [len(row[name]) for name in ("error_class", "error_message", "traceback")] == [200, 10_000, 50_000]


def test_an_operator_buries_a_message_that_does_not_run(sql: Sql) -> None:
    message_id = sql.enqueue()
    assert sql.value("select bury_message(%s)", message_id) is True
    assert (sql.state(message_id), sql.dead(message_id)["reason"]) == ("dead", "buried")
    assert sql.value("select bury_message(%s)", message_id) is False


def test_burying_without_a_token_leaves_a_running_message_alone(sql: Sql) -> None:
    lease = sql.claimed()
    assert sql.value("select bury_message(%s)", lease.id) is False
    assert sql.state(lease.id) == "running"


def test_an_unknown_reason_is_refused_by_name(sql: Sql) -> None:
    message_id = sql.enqueue()
    assert sql.refused("select bury_message(%s, p_reason => 'I felt like it')", message_id) == (
        "PH001",
        "reason",
    )
    assert sql.refused("select bury_message(%s, p_reason => null)", message_id) == ("PH001", "reason")


def test_equal_causes_share_a_fingerprint_and_others_do_not(sql: Sql) -> None:
    same = {
        sql.dead(dead(sql, message=text))["fingerprint"]
        for text in ("user 17 of 'ann' at 0xdeadbeef1", "user 4711 of 'bob' at 0x12")
    }
    assert len(same) == 1
    other = {
        sql.dead(dead(sql, **arguments))["fingerprint"]
        for arguments in ({"error": "KeyError"}, {"message": "something else"}, {"message_type": "other"})
    }
    assert len(other) == 3 and not other & same


def test_groups_count_dead_letters_by_cause(sql: Sql) -> None:
    ids = [dead(sql, message=f"user {number}") for number in range(3)]
    dead(sql, error="KeyError")
    rows = sql.rows(
        "select error_class, count, oldest_id, error_message from dead_letter_groups order by count desc"
    )
    assert rows[0] == ("ValueError", 3, ids[0], "user 2") and rows[1][:2] == ("KeyError", 1)


def test_a_redriven_message_has_its_own_id_and_fresh_attempts(sql: Sql) -> None:
    message_id = dead(sql, payload={"a": 1}, conversation_key="c")
    created = sql.dead(message_id)["created_at"]
    assert sql.value(
        "select redrive_dead_letters(array[%s::bigint], p_operator => 'ann', p_reason => 'fixed')", message_id
    ) == [message_id]
    row = sql.live(message_id)
    assert (row["state"], row["attempt"], row["crashes"], row["payload"], row["created_at"]) == (
        "pending",
        0,
        0,
        {"a": 1},
        created,
    )
    assert [entry["event"] for entry in row["history"]] == ["failed", "redrive"]
    assert acts(sql, "action", "operator", "reason", "message_id") == [
        ("redrive", "ann", "fixed", message_id)
    ]
    assert sql.claim_one().attempt == 1


def test_redriving_takes_only_what_matches_every_filter(sql: Sql) -> None:
    first, second = dead(sql, message="a"), dead(sql, message="b")
    sql.rows("select declare_queue('r')")
    other = dead(sql, queue="r", message="a")
    fingerprint = sql.dead(first)["fingerprint"]
    assert (
        sql.value("select redrive_dead_letters(array[%s::bigint], p_fingerprint => %s)", second, fingerprint)
        == []
    )
    assert sql.value("select redrive_dead_letters(p_queue => 'r')") == [other]
    assert sql.value("select redrive_dead_letters(p_fingerprint => %s)", fingerprint) == [first]
    assert sql.state(second) == "dead"


def test_redriving_in_steps_takes_the_oldest_first(sql: Sql) -> None:
    ids = [dead(sql) for _ in range(5)]
    assert [sql.value("select redrive_dead_letters(p_queue => 'q', p_limit => 2)") for _ in range(4)] == [
        ids[:2],
        ids[2:4],
        ids[4:],
        [],
    ]


@pytest.mark.parametrize(
    ("call", "column"),
    [
        ("redrive_dead_letters()", "ids"),
        ("purge_dead_letters()", "ids"),
        ("edit_dead_letter(1, '[]')", "payload"),
        ("edit_dead_letter(1, null)", "payload"),
        ("edit_dead_letter(1, jsonb_build_object('a', repeat('x', 1048577)))", "payload"),
        ("redrive_dead_letters(p_queue => 'q', p_limit => -1)", "limit"),
        ("purge_dead_letters(p_queue => 'q', p_limit => null)", "limit"),
    ],
)
def test_an_act_without_a_target_or_with_absurd_input_is_refused(sql: Sql, call: str, column: str) -> None:
    assert sql.refused(f"select {call}") == ("PH001", column)


def test_an_edit_replaces_the_payload_and_records_which_keys_differ_but_no_value(sql: Sql) -> None:
    message_id = dead(sql, payload={"a": 1})
    assert sql.value("select edit_dead_letter(%s, %s, 'ann', 'typo')", message_id, Jsonb({"a": 2})) is True
    row = sql.dead(message_id)
    assert row["payload"] == {"a": 2} and row["edited_at"] is not None
    assert acts(sql, "action", "operator", "reason", "message_id", "details") == [
        (
            "edit_dead_letter",
            "ann",
            "typo",
            message_id,
            {
                "changed": ["a"],
                **{
                    side: sql.value("select md5(%s::jsonb::text)", Jsonb(payload))
                    for side, payload in (("before", {"a": 1}), ("after", {"a": 2}))
                },
            },
        )
    ]
    assert sql.value("select edit_dead_letter(%s, '{}')", 10**12) is False


def test_a_dead_letter_whose_id_is_taken_holds_up_no_other(sql: Sql) -> None:
    ids = [sql.enqueue() for _ in range(3)]
    sql.rows("select bury_message(n) from unnest(%s::bigint[]) n", ids)
    # of a sequence that was left behind
    sql.rows("insert into message_queue (id, queue, message_type) values (%s, 'q', 'effect')", ids[0])
    assert sql.value("select redrive_dead_letters(p_queue => 'q', p_limit => 2)") == ids[1:]
    assert sql.rows("select id from dead_letters") == [(ids[0],)]
    sql.complete(*sql.claim(10))
    assert sql.value("select redrive_dead_letters(p_queue => 'q')") == ids[:1]


def test_an_edit_of_what_somebody_else_has_edited_meanwhile_changes_nothing(sql: Sql) -> None:
    message_id = sql.enqueue()
    sql.rows("select bury_message(%s)", message_id)
    sql.rows(
        "update dead_letters set payload = '{\"amount\": 12345678901234567.89}' where id = %s", message_id
    )
    seen = sql.value("select payload::text from dead_letters")
    assert (
        sql.value("select edit_dead_letter(%s, '{\"amount\": 2}', p_before => %s::jsonb)", message_id, seen)
        is True
    )
    assert sql.refused(
        "select edit_dead_letter(%s, '{\"amount\": 3}', p_before => %s::jsonb)", message_id, seen
    ) == ("PH005", "payload")
    assert sql.value("select payload from dead_letters") == {"amount": 2}


def test_a_purge_deletes_and_records_what_it_was(sql: Sql) -> None:
    young, old = dead(sql), dead(sql)
    sql.rows("update dead_letters set dead_at = clock_timestamp() - interval '2 days' where id = %s", old)
    assert sql.value("select purge_dead_letters(p_older_than => '1 day', p_operator => 'ann')") == [old]
    assert (sql.state(old), sql.state(young)) == (None, "dead")
    assert acts(sql, "action", "operator", "message_id", "details ->> 'reason'") == [
        ("purge", "ann", old, "failed")
    ]


def test_the_record_of_acts_cannot_be_rewritten_by_a_worker(sql: Sql) -> None:
    sql.rows("select pause_queue('q')")
    assert sql.refused("delete from operator_actions")[0] == "42501"
    assert sql.refused("update operator_actions set operator = 'nobody'")[0] == "42501"


def test_two_operators_who_redrive_at_once_enqueue_once(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    ids = [dead(first) for _ in range(3)]
    with first.connection.transaction():
        assert first.value("select redrive_dead_letters(p_queue => 'q')") == ids
        answer = in_background(lambda: second.value("select redrive_dead_letters(p_queue => 'q')"))
        blocked_behind(watcher, second, first)
    assert answer.result(10) == []
    assert watcher.value("select count(*) from message_queue") == 3


def test_a_redrive_waits_for_a_claim_that_looks_at_the_dead_letter(clients: Callable[..., Sql]) -> None:
    """The claim locks a blocking dead letter for an instant; a redrive that skipped it would silently do
    nothing.
    """
    claimer, operator, watcher = clients(), clients(), clients()
    operator.set_queue(on_dead="block")
    message_id = dead(operator, conversation_key="c")
    with claimer.connection.transaction():
        claimer.enqueue(conversation_key="c")
        assert claimer.claim(10) == []
        answer = in_background(
            lambda: operator.value("select redrive_dead_letters(array[%s::bigint])", message_id)
        )
        blocked_behind(watcher, operator, claimer)
    assert answer.result(10) == [message_id]


def test_a_bulk_redrive_goes_in_batches_and_takes_all_in_order(sql: Sql) -> None:
    sql.rows(
        "select enqueue_payloads('q', 'effect', (select jsonb_agg(jsonb_build_object('n', n)) from generate_series(1, 1203) n))"
    )
    assert (
        sql.value(
            "select cardinality(move_to_dead_letters(array(select id from message_queue), null, 'buried', null, null, null, null))"
        )
        == 1203
    )
    some = sql.value("select redrive_dead_letters(p_queue => 'q', p_limit => 700)")
    assert len(some) == 700 and some == sorted(some)
    rest = sql.value("select redrive_dead_letters(p_queue => 'q', p_limit => 10000)")
    assert len(rest) == 503 and min(rest) > max(some)
    assert sql.value("select count(*) from operator_actions where action = 'redrive'") == 1203


def test_a_bulk_redrive_takes_at_most_500_at_a_time(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    sql = own_clients()
    any_database.query(
        "create table batches (size bigint); grant insert on batches to public; "
        "create function note_batch() returns trigger language plpgsql as "
        "$$ begin insert into batches select count(*) from gone; return null; end $$; "
        "create trigger note_batch after delete on dead_letters referencing old table as gone for each statement execute function note_batch()"
    )
    sql.rows(
        "select enqueue_payloads('q', 'effect', (select jsonb_agg(jsonb_build_object('n', n)) from generate_series(1, 1203) n))"
    )
    sql.rows(
        "select move_to_dead_letters(array(select id from message_queue), null, 'buried', null, null, null, null)"
    )
    assert sql.value("select cardinality(redrive_dead_letters(p_queue => 'q', p_limit => 10000))") == 1203
    assert any_database.query("select size from batches where size > 0") == [(500,), (500,), (203,)]
