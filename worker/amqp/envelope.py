"""A claimed row as a message of RabbitMQ, and such a message as a claimed one.

The body is dramatiq's own encoding (JSON), so that any reader of dramatiq understands it. What stands in
columns of the row, and not in dramatiq's message, goes into properties and headers; HEADERS names them all.
Left behind: the lease (RabbitMQ holds the message now), stored steps, and the history of earlier attempts.
"""

from __future__ import annotations

import json
import re
import time
from hashlib import sha256
from typing import Any

from pika import BasicProperties

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.errors import UndecodableMessage

#: Header -> what it says. Texts, but for the numbers attempt, max_attempts, crashes and priority.
HEADERS = {
    "packhorse-queue": "the queue of message_queue that it comes from",
    "packhorse-attempt": "which attempt this is, from 1",
    "packhorse-max-attempts": "attempts that the message allows; absent: the policy of actor and queue decides",
    "packhorse-crashes": "how many processes have died with it",
    "packhorse-priority": "1 (first) to 10",
    "packhorse-conversation-key": "its conversation; absent: none",
    "packhorse-correlation-id": "as the property correlation_id, when that one cannot hold it",
    "packhorse-trace-context": "traceparent of whoever sent it",
    "packhorse-run-at": "when it was due, as PostgreSQL writes it",
    "packhorse-created-at": "when it was enqueued: Unix seconds, by the clock of the relay's host",
    "packhorse-expires-at": "not worth doing after: Unix seconds, by the clock of the database",
}
PERSISTENT = 2
#: AMQP's short string: routing keys and most properties, in bytes.
MOST_SHORT = 255

#: What dramatiq's producers write when there are no options.
_PLAIN = re.compile(r'\{"message_id": ("[^"\\]{36}"), "message_timestamp": (\d{13})\}')
_ESCAPED = json.encoder.encode_basestring_ascii


def body_of(message: ClaimedMessage) -> bytes:
    """The message as dramatiq encodes it. Raises UndecodableMessage."""
    plain = _PLAIN.fullmatch(message.options_text)
    if plain is not None and message.attempt == 1 and message.payload_text.startswith("{"):
        # jsonb's own text is JSON already: 1.6 µs, where a decoder and an encoder take 6, and 20 for 1.4 KB
        return (
            f'{{"queue_name":{_ESCAPED(message.queue_name)},"actor_name":{_ESCAPED(message.message_type)},'
            f'"args":[],"kwargs":{message.payload_text},"options":{{}},"message_id":{plain[1]},'
            f'"message_timestamp":{plain[2]}}}'
        ).encode()
    message.decode()
    return json.dumps(
        {
            "queue_name": message.queue_name,
            "actor_name": message.message_type,
            "args": message.args,
            "kwargs": message.kwargs,
            "options": message.options,
            "message_id": message.message_id,
            "message_timestamp": message.message_timestamp,
        },
        separators=(",", ":"),
    ).encode()


def properties_of(message: ClaimedMessage) -> BasicProperties:
    """Properties and headers of a claimed message."""
    headers: dict[str, Any] = {
        "packhorse-queue": message.queue_name,
        "packhorse-attempt": message.attempt,
        "packhorse-crashes": message.crashes,
        "packhorse-priority": message.priority,
        "packhorse-run-at": message.run_at,
        "packhorse-created-at": f"{time.time() - message.age_seconds:.6f}",
    }
    if message.max_attempts is not None:
        headers["packhorse-max-attempts"] = message.max_attempts
    if message.conversation_key is not None:
        headers["packhorse-conversation-key"] = message.conversation_key
    if message.trace_context is not None:
        headers["packhorse-trace-context"] = message.trace_context
    if message.expires_at is not None:
        headers["packhorse-expires-at"] = f"{message.expires_at:.6f}"
    correlation_id = message.correlation_id
    if correlation_id is not None and len(correlation_id.encode()) > MOST_SHORT:
        headers["packhorse-correlation-id"], correlation_id = correlation_id, None
    return BasicProperties(
        content_type="application/json",
        delivery_mode=PERSISTENT,
        message_id=str(message.id),
        type=message.message_type,
        correlation_id=correlation_id,
        timestamp=int(time.time() - message.age_seconds),
        headers=headers,
    )


def routing_key_of(conversation_key: str) -> str:
    """Decides the partition of a conversation: its key, or the digest of one that is too long for AMQP."""
    if len(conversation_key.encode()) <= MOST_SHORT:
        return conversation_key
    return sha256(conversation_key.encode()).hexdigest()


class RelayedMessage(ClaimedMessage):
    """A message that comes from RabbitMQ. It has no lease: the broker holds it until it is acknowledged, and
    lease_until is the end of time.

    Raises UndecodableMessage when the properties are not those of a relay; what is in the body is looked at
    by decode(), inside the guarded block, as of a row.
    """

    def __init__(self, body: bytes, properties: BasicProperties, claimed_at: float) -> None:
        headers: dict[str, Any] = properties.headers or {}
        try:
            self.id = int(properties.message_id)
            self.queue_name = _text(headers["packhorse-queue"])
            self.attempt = int(headers["packhorse-attempt"])
            self.crashes = int(headers["packhorse-crashes"])
            self.priority = int(headers["packhorse-priority"])
            created_at = float(headers["packhorse-created-at"])
            self.run_at = _text(headers["packhorse-run-at"])
            most, expires = headers.get("packhorse-max-attempts"), headers.get("packhorse-expires-at")
            self.max_attempts = None if most is None else int(most)
            self.expires_at = None if expires is None else float(expires)
            self.actor_name = self.message_type = _text(properties.type)
        except (KeyError, TypeError, ValueError) as error:
            raise UndecodableMessage(
                f"not a message of a relay: {type(error).__name__}: {str(error)[:200]}"
            ) from error
        self.conversation_key = headers.get("packhorse-conversation-key")
        self.correlation_id = properties.correlation_id or headers.get("packhorse-correlation-id")
        self.trace_context = headers.get("packhorse-trace-context")
        self.age_seconds = max(0.0, time.time() - created_at)
        self.due_seconds = 0.0
        self.lease_token = 0
        self.lease_until = float("inf")
        self.claimed_at = claimed_at
        self.stored_steps = None
        self._body = body

    @property
    def payload_text(self) -> str:
        """Its keyword arguments, as JSON text. Raises UndecodableMessage."""
        return json.dumps(self._parsed()["kwargs"])

    @property
    def options_text(self) -> str:
        """Its options as they stand in a row, as JSON text. Raises UndecodableMessage."""
        found = self._parsed()
        own = {
            name: found[name] for name in ("message_id", "message_timestamp") if found.get(name) is not None
        }
        args = {"args": list(found["args"])} if found["args"] else {}
        return json.dumps({**found["options"], **args, **own})

    def decode(self) -> None:
        """Parse the body; raises UndecodableMessage with the reason, never anything else."""
        found = self._parsed()
        self.args, self.kwargs, self.options = tuple(found["args"]), found["kwargs"], found["options"]
        self.message_id = found.get("message_id") or str(self.id)
        sent = found.get("message_timestamp")
        self.message_timestamp = sent if type(sent) is int else int((time.time() - self.age_seconds) * 1000)
        if self.attempt > 1:
            self.options["retries"] = self.attempt - 1

    def _parsed(self) -> dict[str, Any]:
        try:
            found = json.loads(self._body)
            if (
                type(found["kwargs"]) is dict
                and type(found["options"]) is dict
                and type(found["args"]) is list
            ):
                return found  # type: ignore[no-any-return]
            what = "kwargs and options must be objects, args an array"
        except (ValueError, RecursionError, TypeError, MemoryError, KeyError) as error:
            what = f"{type(error).__name__}: {str(error)[:200]}"
        raise UndecodableMessage(f"the body cannot be decoded: {what}")


def _text(value: Any) -> str:
    """A text that is there. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a text")
    return value
