"""A claimed row as a dramatiq message: its options, whoever wrote them, and those that it keeps."""

from __future__ import annotations

import json
import time

import pytest

from packhorse.worker.attempt.messages import ClaimedMessage

SENT = 1_764_000_000_123


def decoded(options: dict, age_seconds: float = 0.0, attempt: int = 1) -> ClaimedMessage:
    text = json.dumps(options, ensure_ascii=False)  # as PostgreSQL writes jsonb
    message = ClaimedMessage(
        (
            "claimed",
            1,
            1,
            "q",
            "t",
            "{}",
            text,
            5,
            attempt,
            None,
            0,
            None,
            None,
            None,
            "",
            age_seconds,
            0.0,
            None,
        ),
        0.0,
        0.0,
    )
    message.decode()
    return message


@pytest.mark.parametrize(
    "options",
    [
        {"message_id": "0f8fad5b-d9cb-469f-a165-70867728950e", "message_timestamp": SENT},
        {"message_id": "order-1234567890", "time_limit": 5000, "message_timestamp": SENT},
        {"message_id": 'a "quoted" name of thirty-two chars', "message_timestamp": SENT},
        {"message_id": "a\\b, thirty-six characters with one", "message_timestamp": SENT},
        {"message_id": "x" * 36, "message_timestamp": SENT},
        {"message_id": "x" * 36, "message_timestamp": 7},
        {"message_id": "x" * 36, "message_timestamp": SENT, "retries": 0},
        {"message_id": "x" * 35, "message_timestamp": SENT},
    ],
)
def test_whatever_they_look_like_its_options_are_read(options):
    message = decoded(options)
    assert {
        "message_id": message.message_id,
        "message_timestamp": message.message_timestamp,
        **message.options,
    } == options


@pytest.mark.parametrize(
    "said", [{}, {"message_timestamp": "soon"}, {"message_timestamp": True}, {"message_timestamp": None}]
)
def test_without_a_senders_time_the_age_in_the_database_says_it(said):
    before = int(time.time() * 1000)
    found = decoded({"message_id": "m", **said}, age_seconds=5.0).message_timestamp
    assert before - 5001 <= found <= int(time.time() * 1000) - 5000 + 1


def kept(options: dict, **changes: object) -> dict | None:
    """What a message with these options keeps for its next attempt, once they were changed."""
    message = decoded(options, attempt=2)
    message.options |= changes
    text = message.options_to_keep()
    return None if text is None else json.loads(text)


def test_options_are_kept_when_they_have_changed_without_what_each_attempt_has():
    stored = {
        "message_id": "m",
        "message_timestamp": SENT,
        "args": [1],
        "tenant": "a",
        "traceback": "of the last one",
        "requeue_timestamp": 1,
    }
    assert kept(stored) is None
    assert kept(stored, retries=2, traceback="of this one", requeue_timestamp=2) is None
    assert kept(stored, tenant="b", retries=2) == {
        "message_id": "m",
        "message_timestamp": SENT,
        "args": [1],
        "tenant": "b",
    }
    assert kept({}, tenant="b") == {"tenant": "b"}


def test_options_that_cannot_be_stored_are_left_out():
    assert kept({"tenant": "a"}, lock=object(), nan=float("nan"), nul="\0", good=[1]) == {
        "tenant": "a",
        "good": [1],
    }
    assert kept({"tenant": "a"}, one="x" * 700_000, two="x" * 700_000) is None, "together they are too large"
    message = decoded({"tenant": "a"})
    message.options["tenant"] = "b"
    message.keeps_options = False
    assert message.options_to_keep() is None
