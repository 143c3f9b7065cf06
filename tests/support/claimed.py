"""A claimed message without a database, for tests of what a process does with it."""

from __future__ import annotations

import time

from packhorse.worker.attempt.messages import ClaimedMessage


def claimed(
    message_id: int = 1,
    token: int = 1,
    *,
    actor: str = "effect",
    queue: str = "q",
    payload: str = "{}",
    options: str = "{}",
    conversation: str | None = None,
    lease_seconds: float = 60.0,
) -> ClaimedMessage:
    """One that was claimed now, in the order of a row of complete_and_claim_messages."""
    now = time.monotonic()
    row = (None, message_id, token, queue, actor, payload, options, 5, 1, None, 0, conversation, None, None)
    return ClaimedMessage((*row, "2026-01-01 00:00:00+00", 0.0, 0.0, None), now + lease_seconds, now)
