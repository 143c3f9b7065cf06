"""Error boundaries in a real worker: log lines, outcomes, and no phone number in either (SPEC W9, O3)."""

from __future__ import annotations

import json

import pytest

from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PHONE = "+250788123456"


def run(database, start_daemon, *messages: tuple[str, dict[str, str]]) -> list[dict[str, object]]:
    """The log lines of a worker that has ended these messages (actor, arguments); each has the correlation id
    `c-` and its number.
    """
    database.query("select declare_queue('default')")
    daemon = start_daemon(
        database, None, "tests.support.boundary_actors", log_format="json", threads=2, processes=1
    ).wait_ready()
    for number, (actor, arguments) in enumerate(messages):
        database.query(
            "select enqueue_message('default', %s, %s::jsonb, p_correlation_id => %s)",
            actor,
            json.dumps(arguments),
            f"c-{number}",
        )
    wait_until(lambda: not database.value("select exists (select from message_queue)"), 30, "all have ended")
    assert daemon.stop() == 0
    assert "788123456" not in daemon.log
    return [json.loads(line) for line in daemon.log.splitlines()]


@pytest.mark.parametrize("actor", ["charges", "answers"])
def test_each_operation_is_one_masked_line_and_its_error_is_kept(database, start_daemon, actor):
    hows = ["good", "bug", "agent"]
    lines = run(database, start_daemon, *((actor, {"phone": PHONE, "how": how}) for how in hows))
    of = {
        how: [line for line in lines if line.get("correlation_id") == f"c-{number}"]
        for number, how in enumerate(hows)
    }
    events = {
        how: [line["event"] for line in found if line["event"] != "inside"] for how, found in of.items()
    }
    assert events["good"] == ["operation_done"]
    assert events["bug"] == ["operation_failed", "message_failed"], "dead at once"
    assert events["agent"] == ["operation_failed", "agent_error", "message_failed"] * 2
    inside = next(line for line in lines if line["event"] == "inside")
    assert inside["operation_name"] and inside["actor"] == actor and isinstance(inside["message_id"], int)
    if actor == "charges":
        assert (inside["user_phone"], inside["context"]) == ("+250788***456", {"note": "for +250788***456"})
    failed = next(line for line in of["agent"] if line["event"] == "operation_failed")
    assert (failed["code"], failed["error_class"], failed["retryable"], failed["attempt"]) == (
        "BUSY",
        "AgentError",
        True,
        1,
    )
    assert [line["error_code"] for line in of["agent"] if line["event"] == "message_failed"] == [
        "BUSY",
        "BUSY",
    ]
    dead = {
        row[0]: row[1:]
        for row in database.query(
            "select payload ->> 'how', reason, attempt, error_code, error_message from dead_letters"
        )
    }
    assert dead == {
        "bug": ("rejected", 1, None, "nothing known of +250788***456"),
        "agent": ("failed", 2, "BUSY", "the agent does not answer +250788***456"),
    }
    assert "788123456" not in json.dumps(
        database.query("select to_jsonb(d) - 'payload' from dead_letters d")[0][0]
    )


def test_a_timeout_is_retried_and_then_a_dead_letter(database, start_daemon):
    lines = run(database, start_daemon, ("answers", {"phone": PHONE, "how": "slow"}))
    assert [line["code"] for line in lines if line["event"] == "operation_failed"] == ["TIMEOUT", "TIMEOUT"]
    assert database.query(
        "select reason, attempt, error_code, error_details #>> '{context,timeout_ms}' from dead_letters"
    ) == [("failed", 2, "TIMEOUT", "50")]


def test_a_time_limit_reaches_a_handler_that_waits_for_a_function_in_a_thread(database, start_daemon):
    lines = run(database, start_daemon, ("waits_long", {"phone": PHONE}))
    events = [line["event"] for line in lines]
    assert (
        "time_limit_exceeded" in events and "operation_left" in events and "operation_failed" not in events
    ), "an interrupt is no error of the boundary"
    assert "hard_limit_exceeded" not in events
    assert database.value("select error_class from dead_letters") == "TimeLimitExceeded"


def test_a_time_limit_reaches_a_coroutine_inside_boundaries_and_timeouts(database, start_daemon):
    lines = run(
        database,
        start_daemon,
        ("awaits_long", {"phone": PHONE}),
        ("answers", {"phone": PHONE, "how": "good"}),
    )
    events = [line["event"] for line in lines]
    assert (
        "time_limit_exceeded" in events
        and "operation_failed" not in events
        and "hard_limit_exceeded" not in events
    )
    assert database.query("select error_class, error_code, attempt from dead_letters") == [
        ("TimeLimitExceeded", None, 1)
    ]
    (done,) = [line for line in lines if line["event"] == "operation_done"]
    assert (done["operation_name"], done["correlation_id"]) == ("answer", "c-1"), (
        "nothing of the other is left behind"
    )
