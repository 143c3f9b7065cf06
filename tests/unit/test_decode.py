"""A claimed row as a dramatiq message: the short cut for messages without options takes nothing else for one."""

from __future__ import annotations

import json

import pytest

from packhorse.worker.attempt.messages import ClaimedMessage


def decoded(options: dict) -> ClaimedMessage:
    text = json.dumps(options, ensure_ascii=False)  # as PostgreSQL writes jsonb
    message = ClaimedMessage(("claimed", 1, 1, "q", "t", "{}", text, 5, 1, None, 0, None, None, None, "", 0.0, 0.0, None), 0.0, 0.0)
    message.decode()
    return message


@pytest.mark.parametrize(
    "options",
    [
        {"message_id": "0f8fad5b-d9cb-469f-a165-70867728950e"},
        {"message_id": "order-1234567890", "time_limit": 5000},  # as long as a uuid alone
        {"message_id": 'a "quoted" name of thirty-two chars'},
        {"message_id": "a\\b, thirty-six characters with one"},
        {"message_id": "x" * 36},
    ],
)
def test_whatever_the_length_of_an_id_its_options_are_read(options):
    message = decoded(options)
    assert {"message_id": message.message_id, **message.options} == options


def test_the_lengths_above_are_those_of_the_short_cut():
    assert len(json.dumps({"message_id": "order-1234567890", "time_limit": 5000})) == len(json.dumps({"message_id": "x" * 36}))
    assert len(json.dumps({"message_id": "a\\b, thirty-six characters with one"})) == len(json.dumps({"message_id": "x" * 36}))
