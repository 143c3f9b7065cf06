"""What the relay publishes, and what comes out of it again on the other side (worker/amqp/envelope.py)."""

from __future__ import annotations

import json
import time
from typing import Any

import dramatiq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.errors import UndecodableMessage
from tests.support.claimed import claimed

pika = pytest.importorskip("pika")
envelope = pytest.importorskip("packhorse.worker.amqp.envelope")

#: Characters that PostgreSQL and AMQP carry: no NUL, no lone surrogates.
CHARACTERS = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
TEXTS = st.text(CHARACTERS, min_size=1, max_size=60)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
PLAIN = {"message_id": "0c9dcd6c-9dbd-4b6c-8a0c-3c3b1c6e3c51", "message_timestamp": 1764500000000}
OPTIONS = st.just(PLAIN) | st.builds(
    lambda extra, args: {**PLAIN, **extra, **({"args": args} if args else {})},
    st.dictionaries(st.sampled_from(["min_backoff", "time_limit", "my_option"]), VALUES, max_size=3),
    st.lists(VALUES, max_size=2),
)
#: What both sides say of a message, once it is decoded.
ALIKE = (
    *("id", "queue_name", "actor_name", "message_type", "priority", "attempt", "max_attempts", "crashes"),
    *("conversation_key", "correlation_id", "trace_context", "run_at"),
    *("args", "kwargs", "options", "message_id", "message_timestamp"),
)


def over_the_wire(properties: Any) -> Any:
    """Encoded and decoded as AMQP frames have them."""
    arrived = pika.BasicProperties()
    arrived.decode(b"".join(properties.encode()))
    return arrived


def arrived(message: ClaimedMessage) -> Any:
    return envelope.RelayedMessage(
        envelope.body_of(message), over_the_wire(envelope.properties_of(message)), time.monotonic()
    )


@given(
    payload=st.dictionaries(TEXTS, VALUES, max_size=4),
    options=OPTIONS,
    columns=st.fixed_dictionaries(
        {
            "priority": st.integers(1, 10),
            "attempt": st.integers(1, 1_000_000),
            "max_attempts": st.none() | st.integers(1, 1_000_000),
            "crashes": st.integers(0, 100),
            "conversation_key": st.none() | st.text(CHARACTERS, min_size=1, max_size=500),
            "correlation_id": st.none() | st.text(CHARACTERS, min_size=1, max_size=500),
            "trace_context": st.none() | TEXTS,
            "age_seconds": st.floats(0, 1e6),
        }
    ),
    expires_at=st.none() | st.floats(0, 4e9),
)
def test_a_message_arrives_as_it_was_claimed(
    payload: dict[str, Any], options: dict[str, Any], columns: dict[str, Any], expires_at: float | None
) -> None:
    message = claimed(2**62, payload=json.dumps(payload), options=json.dumps(options))
    vars(message).update(columns, expires_at=expires_at)
    there = arrived(message)
    message.decode()
    there.decode()
    assert {name: getattr(there, name) for name in ALIKE} == {name: getattr(message, name) for name in ALIKE}
    assert there.expires_at == (None if expires_at is None else pytest.approx(expires_at, abs=1e-5))
    assert there.age_seconds == pytest.approx(columns["age_seconds"], abs=5)
    assert json.loads(there.payload_text) == payload
    assert json.loads(there.options_text) == {
        **options,
        **{k: v for k, v in there.options.items() if k == "retries"},
    }
    assert there.options_to_keep() is None


def test_any_reader_of_dramatiq_understands_the_body() -> None:
    for options in (PLAIN, {**PLAIN, "args": [1], "time_limit": 5}):
        message = claimed(7, actor="a.b", queue="mail", payload='{"to": "ü"}', options=json.dumps(options))
        read = dramatiq.Message.decode(envelope.body_of(message))
        assert (read.queue_name, read.actor_name, read.kwargs) == ("mail", "a.b", {"to": "ü"})
        assert (read.message_id, read.message_timestamp) == (PLAIN["message_id"], PLAIN["message_timestamp"])
        assert (read.args, read.options) == (
            (tuple(options.get("args", ()))),
            {name: value for name, value in options.items() if name not in (*PLAIN, "args")},
        )


def test_the_broker_is_told_that_the_message_must_survive_it() -> None:
    properties = envelope.properties_of(claimed(7))
    assert (properties.delivery_mode, properties.message_id, properties.type) == (2, "7", "effect")
    assert set(properties.headers) <= set(envelope.HEADERS)


def test_a_row_that_cannot_be_decoded_says_so() -> None:
    for payload, options in (("[1]", "{}"), ("{", "{}"), ("{}", "[")):
        with pytest.raises(UndecodableMessage):
            envelope.body_of(claimed(payload=payload, options=options))


@pytest.mark.parametrize(
    "change",
    [
        {"message_id": None},
        {"message_id": "abc"},
        {"type": None},
        {"headers": None},
        {"headers": {"packhorse-queue": "q"}},
    ],
)
def test_a_message_of_somebody_else_is_named_as_such(change: dict[str, Any]) -> None:
    properties = envelope.properties_of(claimed())
    for name, value in change.items():
        setattr(properties, name, value)
    with pytest.raises(UndecodableMessage, match="not a message of a relay"):
        envelope.RelayedMessage(b"{}", properties, 0.0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"args":[],"kwargs":[],"options":{}}'])
def test_a_broken_body_is_found_when_it_is_decoded(body: bytes) -> None:
    message = envelope.RelayedMessage(body, envelope.properties_of(claimed()), 0.0)
    with pytest.raises(UndecodableMessage, match="the body cannot be decoded"):
        message.decode()


def test_a_long_key_is_routed_by_its_digest() -> None:
    assert envelope.routing_key_of("k" * 255) == "k" * 255
    long = envelope.routing_key_of("ü" * 128)
    assert len(long) == 64
    assert long != envelope.routing_key_of("ü" * 129)
