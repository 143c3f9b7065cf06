"""Code, context and flags of an error are kept with the failure, bounded, in every place that keeps it (SPEC
W9).
"""

from __future__ import annotations

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql

DETAILS = {"code": "BUSY", "context": {"order": 7}, "recoverable": True, "retryable": True}
KEPT = {"context": {"order": 7}, "recoverable": True, "retryable": True}


def failed(sql: Sql, details: object, **arguments: object) -> tuple[int, str]:
    """A message whose attempt has failed with these details; its id and the answer."""
    lease = sql.claimed(**arguments)
    return lease.id, sql.value(
        "select fail_message(%s, %s, 'E', 'm', p_delay => '0', p_details => %s)",
        lease.id,
        lease.token,
        Jsonb(details),
    )


def shown(sql: Sql, message_id: int) -> tuple[object, object]:
    return sql.rows("select error_code, error_details from all_messages where id = %s", message_id)[0]


def test_a_retry_keeps_them_in_the_row_and_its_code_in_the_history(sql: Sql) -> None:
    message_id, answer = failed(sql, DETAILS)
    assert answer == "retry" and shown(sql, message_id) == ("BUSY", KEPT)
    error = sql.live(message_id)["error"]
    assert (error["class"], error["code"], error["details"]) == ("E", "BUSY", KEPT)
    (entry,) = sql.live(message_id)["history"]
    assert entry["error_code"] == "BUSY" and "context" not in str(entry)


def test_the_archive_keeps_those_of_the_last_failure(sql: Sql) -> None:
    message_id, _ = failed(sql, DETAILS)
    assert sql.complete(sql.claim_one()) == [message_id]
    assert shown(sql, message_id) == ("BUSY", KEPT)


def test_a_dead_letter_keeps_them_in_columns_and_its_group_says_the_last_code(sql: Sql) -> None:
    message_id, answer = failed(sql, DETAILS, max_attempts=1)
    row = sql.dead(message_id)
    assert answer == "dead" and (row["reason"], row["error_code"], row["error_details"]) == (
        "failed",
        "BUSY",
        KEPT,
    )
    assert row["history"][-1]["error_code"] == "BUSY" and shown(sql, message_id) == ("BUSY", KEPT)
    assert sql.value("select error_code from dead_letter_groups") == "BUSY"


@pytest.mark.parametrize("flag", ["retryable", "recoverable"])
def test_an_error_that_no_attempt_can_help_is_dead_at_once(sql: Sql, flag: str) -> None:
    message_id, answer = failed(sql, {flag: False}, max_attempts=10)
    assert answer == "dead" and sql.dead(message_id)["reason"] == "rejected"
    assert failed(sql, {flag: True}, max_attempts=10)[1] == "retry"


def test_the_other_verbs_take_them(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows(
        "select schedule_message_retry(%s, %s, '0', 'E', 'm', p_details => %s)",
        lease.id,
        lease.token,
        Jsonb(DETAILS | {"retryable": False}),
    )
    assert sql.state(lease.id) == "pending" and shown(sql, lease.id) == (
        "BUSY",
        KEPT | {"retryable": False},
    ), "its caller wants a retry"
    sql.rows("select bury_message(%s, p_details => %s)", lease.id, Jsonb(DETAILS))
    assert shown(sql, lease.id) == ("BUSY", KEPT)


def test_without_them_nothing_is_kept(sql: Sql) -> None:
    lease = sql.claimed()
    sql.fail(lease)
    assert shown(sql, lease.id) == (None, None)
    assert (
        set(sql.live(lease.id)["error"]) == {"class", "message", "at"}
        and "error_code" not in sql.live(lease.id)["history"][0]
    )


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, (None, None)),
        ([1, 2], (None, None)),
        ("text", (None, None)),
        (None, (None, None)),
        ({"code": 7, "context": [1], "retryable": "no", "recoverable": 0, "other": {"a": 1}}, (None, None)),
        ({"code": "c" * 1000}, ("c" * 100, None)),
        ({"context": {}}, (None, {"context": {}})),
        ({"code": None, "context": None, "retryable": None}, (None, None)),
        ({"context": {"a": "x" * 20_000}}, (None, {"context": {"left_out": "too large"}})),
        (
            {"code": "C", "context": {"a": None}, "recoverable": True},
            ("C", {"context": {"a": None}, "recoverable": True}),
        ),
    ],
)
def test_what_is_of_another_kind_or_too_large_is_left_out_and_never_refused(
    sql: Sql, details: object, expected: tuple[object, object]
) -> None:
    message_id, answer = failed(sql, details)
    assert answer == "retry" and shown(sql, message_id) == expected
    sql.rows("select bury_message(%s, p_details => %s)", message_id, Jsonb(details))
    assert shown(sql, message_id) == expected


def test_a_redrive_begins_without_them_and_its_history_has_them(sql: Sql) -> None:
    message_id, _ = failed(sql, DETAILS, max_attempts=1)
    sql.rows("select redrive_dead_letters(array[%s])", message_id)
    assert shown(sql, message_id) == (None, None)
    assert [entry.get("error_code") for entry in sql.live(message_id)["history"]] == ["BUSY", None]


def test_the_health_check_counts_errors_by_class_and_code(sql: Sql) -> None:
    for code, attempts in (("BUSY", 1), ("BUSY", 1), ("CLOSED", 1), ("BUSY", 3)):
        failed(sql, {"code": code}, max_attempts=attempts)
    sql.complete(sql.claim_one())
    summary, details = sql.rows("select summary, details from health_top_errors()")[0]
    assert [
        (row["error_class"], row["error_code"], row["count"], row["dead"]) for row in details["errors"]
    ] == [("E", "BUSY", 3, 2), ("E", "CLOSED", 1, 1)]
    assert summary.startswith("E BUSY in effect: 3 times, 2 gave up")


def test_a_stale_holder_changes_nothing(sql: Sql) -> None:
    lease = sql.claimed()
    assert (
        sql.value(
            "select fail_message(%s, %s, 'E', 'm', p_details => %s)",
            lease.id,
            lease.token + 1,
            Jsonb({"retryable": False}),
        )
        == "lost"
    )
    assert sql.state(lease.id) == "running"


def test_every_failed_attempt_keeps_its_traceback_the_end_of_a_long_one(sql: Sql) -> None:
    lease = sql.claimed(max_attempts=3)
    long = "head " * 2000 + "the end"
    for traceback in ("short", long, "last"):
        sql.rows(
            "select fail_message(%s, %s, 'E', 'm', %s, p_delay => '0')", lease.id, lease.token, traceback
        )
        if traceback != "last":
            lease = sql.claim_one()
    kept = [entry["traceback"] for entry in sql.dead(lease.id)["history"]]
    assert (kept[0], kept[2]) == ("short", "last")
    assert (
        len(kept[1]) == 4096 - 5 + len("[...]")
        and kept[1].startswith("[...]")
        and kept[1].endswith("the end")
    )
    sql.rows("select redrive_dead_letters(array[%s::bigint])", lease.id)
    assert [entry.get("traceback") for entry in sql.live(lease.id)["history"]] == [*kept, None], (
        "also after a redrive"
    )


def test_a_claim_after_a_failure_gives_what_dramatiqs_retries_leave_in_the_options(sql: Sql) -> None:
    lease = sql.claimed(options={"tenant": "a"})
    asked = "select options from claim_messages(%s, array['q'], 1)"
    sql.rows("select fail_message(%s, %s, 'E', 'm', 'Traceback', p_delay => '0')", lease.id, lease.token)
    (options,) = sql.rows(asked, "00000000-0000-0000-0000-000000000001")[0]
    assert options.pop("requeue_timestamp") > 1_700_000_000_000 and options == {
        "tenant": "a",
        "traceback": "Traceback",
    }
    assert sql.live(lease.id)["options"] == {"tenant": "a"}, "they are the attempt's, not the message's"


def test_a_failure_may_change_the_options_of_the_next_attempt(sql: Sql) -> None:
    lease = sql.claimed(options={"tenant": "a"})
    sql.rows(
        "select fail_message(%s, %s, 'E', 'm', p_delay => '0', p_options => '{\"tenant\": \"b\"}')",
        lease.id,
        lease.token,
    )
    assert sql.live(lease.id)["options"] == {"tenant": "b"}
    lease = sql.claim_one()
    sql.rows("select schedule_message_retry(%s, %s, '0', p_options => '[1]')", lease.id, lease.token)
    assert sql.live(lease.id)["options"] == {"tenant": "b"}, "no object: they stay"
    lease = sql.claim_one()
    sql.rows(
        "select schedule_message_retry(%s, %s, '0', p_options => '{\"stale\": 1}')", lease.id, lease.token + 1
    )
    assert sql.live(lease.id)["options"] == {"tenant": "b"}, "fenced"


def test_explain_says_how_the_last_attempt_failed(sql: Sql) -> None:
    lease = sql.claimed()
    assert not sql.rows("select from explain_message(%s) where gate = 'last_error'", lease.id)
    sql.rows(
        "select fail_message(%s, %s, 'CardRefused', 'no money', 'Traceback', p_delay => '1 hour')",
        lease.id,
        lease.token,
    )
    ((passed, detail),) = sql.rows(
        "select passed, detail from explain_message(%s) where gate = 'last_error'", lease.id
    )
    assert passed and detail.startswith("attempt 1 failed at ") and detail.endswith(": CardRefused: no money")
