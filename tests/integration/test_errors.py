"""Errors through both ways to run the broker: outcome, and what is kept in history, dead letter and CLI (SPEC
W9, PLATFORM 8).
"""

from __future__ import annotations

import json

import dramatiq
import pytest
from dramatiq.middleware import AsyncIO

import packhorse
from packhorse.calls import (
    AgentError,
    MessageProcessingError,
    WorkflowError,
    with_error_boundary,
    with_timeout,
)
from packhorse.worker.observe.contexts import MAX_SIZE
from tests.support.cli import Cli
from tests.support.harness import WAYS, House
from tests.unit.test_contexts import ODD

pytestmark = pytest.mark.one_database

SECRET = "+250788123456"


@pytest.fixture(params=WAYS)
def house(request, database, monkeypatch):
    house = House(request.param, database, monkeypatch, threads=2)
    yield house
    house.stop()


def ended(house, *columns):
    """What is known of each message, by its key."""
    rows = house.database.query(f"select payload ->> 'key', {', '.join(columns)} from all_messages")
    return {row[0]: row[1:] for row in rows}


ERRORS = {
    "ours": (lambda: WorkflowError("x", "BUSY", {"order": 7}), "failed", 3, "BUSY"),
    "not retryable": (lambda: WorkflowError("x", retryable=False), "rejected", 1, "WORKFLOW_ERROR"),
    "not recoverable": (lambda: AgentError("x", recoverable=False), "rejected", 1, "AGENT_ERROR"),
    "agent": (lambda: AgentError("x", agent_type="support"), "failed", 3, "AGENT_ERROR"),
    "not to be retried": (
        lambda: MessageProcessingError("x", should_retry=False),
        "rejected",
        1,
        "MESSAGE_PROCESSING_ERROR",
    ),
    "network": (lambda: ConnectionRefusedError("x"), "failed", 3, None),
    "bug": (lambda: KeyError("x"), "rejected", 1, None),
    "buried": (lambda: packhorse.Bury("x"), "buried", 1, None),
}


def test_what_leaves_a_boundary_ends_as_the_contract_says(house):
    @dramatiq.actor(max_attempts=3, min_backoff=10, max_backoff=20)
    @with_error_boundary("charge", workflow_type="order")
    def charge(key):
        raise ERRORS[key][0]()

    house.start()
    for key in ERRORS:
        charge.send(key=key)
    house.drained()
    found = ended(house, "reason", "attempt", "error_code", "error_details", "history")
    for key, (make, reason, attempts, code) in ERRORS.items():
        assert found[key][:3] == (reason, attempts, code), key
        if not isinstance(make(), packhorse.Bury):
            details, history = found[key][3:]
            assert (
                details["context"]["operation_name"] == "charge"
                and details["context"]["workflow_type"] == "order"
            ), key
            assert [entry.get("error_code") for entry in history] == [code] * attempts, key
    assert found["ours"][3]["context"]["order"] == 7 and found["ours"][3]["retryable"] is True
    assert found["agent"][3]["context"]["agent_type"] == "support"
    assert found["bug"][3]["retryable"] is False and found["not recoverable"][3]["recoverable"] is False


def test_every_text_of_an_error_is_masked_where_it_is_kept(house):
    said = "call (650) 555-0106, ann@example.com, token=s3cret-x, order 8f14e45f-ceea-467f-a9b1-123456789012 of 2026-11-21 09:34:08"
    masked = "call 6505***106, a***@example.com, token=***, order 8f14e45f-ceea-467f-a9b1-123456789012 of 2026-11-21 09:34:08"

    @dramatiq.actor(max_attempts=2, min_backoff=10, max_backoff=20)
    def charge(key):
        if key == "failed":
            raise RuntimeError(said)
        raise {"buried": packhorse.Bury, "cancelled": packhorse.Cancel}[key](said)

    house.start()
    for key in ("failed", "buried", "cancelled"):
        charge.send(key=key)
    house.drained()
    dead = dict(house.database.query("select payload ->> 'key', error_message from dead_letters"))
    assert dead == {"failed": masked, "buried": masked}
    traceback, history = house.database.query(
        "select traceback, history from dead_letters where error_class = 'RuntimeError'"
    )[0]
    assert traceback.endswith(f"RuntimeError: {masked}\n")
    assert [entry["error_message"] for entry in history] == [masked] * 2
    everything = house.database.query(
        "select d::text from dead_letters d union all select a::text from message_archive a"
    )
    assert len(everything) == 3 and all(
        "s3cret-x" not in row and "555-0106" not in row for (row,) in everything
    )


def test_without_a_boundary_the_usual_policy_holds_and_the_classes_are_kept(house):
    @dramatiq.actor(max_attempts=2, min_backoff=10, max_backoff=20)
    def charge(key):
        raise ERRORS[key][0]()

    house.start()
    for key in ("bug", "ours", "not recoverable"):
        charge.send(key=key)
    house.drained()
    found = ended(house, "reason", "attempt", "error_code", "error_details")
    assert found["bug"] == ("failed", 2, None, None)
    assert found["ours"] == (
        "failed",
        2,
        "BUSY",
        {"context": {"order": 7}, "recoverable": True, "retryable": True},
    )
    assert found["not recoverable"][:3] == ("rejected", 1, "AGENT_ERROR")


def test_coroutines_have_the_same(house):
    house.broker.add_middleware(AsyncIO())

    @dramatiq.actor(max_attempts=2, min_backoff=10, max_backoff=20)
    @with_error_boundary("ask", agent_type="support")
    async def ask(key):
        import asyncio

        if key == "slow":
            await with_timeout(asyncio.Event().wait(), 20, "the model")
        async with with_error_boundary("inner", user_phone=SECRET):
            if key == "snooze" and packhorse.current_message().run_at is not None and not done:  # type: ignore[union-attr]
                done.append(key)
                raise packhorse.Snooze(0.01)
            if key == "bug":
                raise KeyError(SECRET)

    done: list[str] = []
    house.start()
    for key in ("slow", "snooze", "bug", "good"):
        ask.send(key=key)
    house.drained()
    found = ended(house, "state", "reason", "attempt", "error_code", "error_details", "error_message")
    assert found["good"][:3] == ("done", None, 1) and found["snooze"][:3] == ("done", None, 1), (
        "a snooze spends no attempt"
    )
    assert found["slow"][:4] == ("dead", "failed", 2, "TIMEOUT")
    assert found["slow"][4]["context"] | {"correlation_id": None} == {
        "timeout_ms": 20,
        "operation_name": "the model",
        "agent_type": "support",
        "correlation_id": None,
    }
    assert found["bug"][:3] == ("dead", "rejected", 1)
    assert (
        found["bug"][4]["context"]["user_phone"] == "+250788***456" and found["bug"][5] == "'+250788***456'"
    )


def test_a_function_with_a_timeout_is_left_and_its_handler_fails(house):
    import threading

    goes_on = threading.Event()

    @dramatiq.actor(max_attempts=1)
    def waits(key):
        with_timeout(lambda: goes_on.wait(30), 20, "the bank")

    house.start()
    waits.send(key="a")
    house.drained()
    goes_on.set()
    found = ended(house, "reason", "error_code", "error_details")["a"]
    assert found == (
        "failed",
        "TIMEOUT",
        {"context": {"timeout_ms": 20, "operation_name": "the bank"}, "recoverable": True, "retryable": True},
    )


def test_whatever_stands_in_a_context_is_one_bounded_outcome(house):
    @dramatiq.actor(max_attempts=1)
    def odd(key):
        if key.startswith("around "):
            with with_error_boundary("odd", **{"given": ODD[key[7:]]}):
                raise ValueError
        raise WorkflowError("x", f"C\x00{key}", ODD[key])  # type: ignore[arg-type]

    house.start()
    for key in ODD:
        odd.send(key=key)
        odd.send(key=f"around {key}")
    house.drained(60)
    found = ended(house, "state", "attempt", "error_class", "error_details")
    assert len(found) == 2 * len(ODD)
    for key, (state, attempt, error_class, details) in found.items():
        assert (state, attempt, error_class) == (
            "dead",
            1,
            "ValueError" if key.startswith("around ") else "WorkflowError",
        ), key
        assert (
            details is not None and len(json.dumps(details.get("context"), ensure_ascii=False)) < 4 * MAX_SIZE
        ), key


def test_nothing_that_is_masked_stands_anywhere_in_the_database(house):
    @dramatiq.actor(max_attempts=2, min_backoff=10, max_backoff=20)
    def careless(key):
        with with_error_boundary(
            f"call {SECRET}", user_phone=SECRET, user_id="ada@example.org", note=[SECRET], password="hunter2"
        ):
            try:
                raise LookupError(f"no {SECRET}")
            except LookupError as error:
                raise WorkflowError(
                    f"nobody answers at {SECRET}", f"NO_{SECRET}", {"phone": 250788123456, "api_key": "k-123"}
                ) from error

    house.start()
    careless.send(key="a")
    house.drained()
    (row,) = house.database.query("select to_jsonb(d) - 'payload' from dead_letters d")
    text = json.dumps(row[0])
    assert "788123456" not in text and "ada@" not in text and "hunter2" not in text and "k-123" not in text
    assert (
        row[0]["error_message"] == "nobody answers at +250788***456"
        and "no +250788***456" in row[0]["traceback"]
    ), "the cause's text as well"
    assert (
        row[0]["error_code"] == "NO_+250788***456"
        and row[0]["error_details"]["context"]["phone"] == "250788***456"
    )


def test_a_transactional_handler_whose_statement_is_refused_is_judged_too(database, monkeypatch):
    house = House("runtime", database, monkeypatch, threads=2)

    @dramatiq.actor(max_attempts=3, min_backoff=10, max_backoff=20, transactional=True)
    @with_error_boundary("write")
    def writes(key):
        packhorse.current_connection().execute("select 1 / 0")

    try:
        house.start()
        writes.send(key="a")
        house.drained()
        assert ended(house, "reason", "attempt")["a"] == ("rejected", 1)
    finally:
        house.stop()


def test_what_is_sent_inside_a_boundary_inherits_its_correlation_id(house):
    @dramatiq.actor
    def reply(key):
        pass

    @dramatiq.actor
    def hears(key):
        with with_error_boundary("hear", correlation_id="from-the-request"):
            reply.send(key="reply")

    house.start()
    hears.send(key="a")
    house.drained()
    found = ended(house, "correlation_id")
    assert found["a"] == found["reply"] != ("from-the-request",), (
        "every message has one, which goes before that of a boundary in its handler"
    )


@pytest.mark.slow
def test_the_command_line_shows_finds_and_counts_by_code(database, monkeypatch, tmp_path):
    house = House("runtime", database, monkeypatch, threads=2)

    @dramatiq.actor(max_attempts=1)
    def fails(key):
        raise WorkflowError("x", key, {"phone": SECRET}) from ValueError("the cause")

    try:
        house.start()
        for key in ("BUSY", "BUSY", "CLOSED"):
            fails.send(key=key)
        house.drained()
    finally:
        house.stop()
    cli = Cli(tmp_path, database.url)
    (closed,) = cli("dead-letter", "list", "--code", "CLOSED", "--json").document
    assert closed["error_code"] == "CLOSED" and len(cli("dead-letter", "list", "--json").document) == 3
    shown = cli("dead-letter", "show", closed["id"], "--json").document
    assert (
        shown["error_details"]["context"] == {"phone": "+250788***456"}
        and "ValueError: the cause" in shown["traceback"]
    )
    assert cli("message", "show", closed["id"], "--json").document["error_details"] == shown["error_details"]
    text = cli("message", "show", closed["id"]).out
    assert "error code" in text and "CLOSED" in text and "+250788***456" in text
    assert [(row["error_code"], row["count"]) for row in cli("stats", "--json").document["dead_by_code"]] == [
        ("BUSY", 2),
        ("CLOSED", 1),
    ]
    assert "BUSY" in cli("stats").out
    assert {row["error_code"] for row in cli("dead-letter", "groups", "--json").document} <= {
        "BUSY",
        "CLOSED",
    }
    assert cli("dead-letter", "redrive", "--code", "NONE", "--yes").code == 1
    assert cli("dead-letter", "redrive", "--code", "BUSY", "--yes", "--json").document["redriven"] == 2
    assert [row["error_code"] for row in cli("dead-letter", "list", "--json").document] == ["CLOSED"]
    exported = json.loads(cli("dead-letter", "export", "--code", "CLOSED").out)
    assert exported["error_code"] == "CLOSED" and exported["error_details"] == shown["error_details"]
    assert cli("dead-letter", "purge", "--code", "CLOSED", "--yes").code == 0
