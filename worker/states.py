"""The states of a message and every way from one to another, and how an attempt can end; said once.

The diagram in docs/lifecycle.md, the property test and the check of the SQL functions derive from
TRANSITIONS. `pending`, `blocked` and `running` live in message_queue, `done` and `cancelled` in
message_archive, `dead` in dead_letters.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a message is in its life."""

    PENDING = "pending"  # may be claimed from run_at on
    BLOCKED = "blocked"  # waits behind an earlier message of its conversation
    RUNNING = "running"  # leased to a holder
    DONE = "done"
    CANCELLED = "cancelled"
    DEAD = "dead"


#: from -> verb -> to. Each verb is one SQL function; the comment says when it happens in life.
TRANSITIONS: dict[State, dict[str, State]] = {
    State.PENDING: {
        "claim": State.RUNNING,  # a worker takes it
        "block": State.BLOCKED,  # a claim found an earlier message of its conversation
        "cancel": State.CANCELLED,  # an operator or a producer gave the order
        "expire": State.CANCELLED,  # expires_at passed: not worth doing
        "bury": State.DEAD,  # an operator gave it up, or no worker registers its type
    },
    State.BLOCKED: {
        "promote": State.PENDING,  # the message before it left the conversation
        "cancel": State.CANCELLED,
        "expire": State.CANCELLED,
        "bury": State.DEAD,
    },
    State.RUNNING: {
        "complete": State.DONE,  # the handler returned
        "retry": State.PENDING,  # the handler failed and attempts are left
        "snooze": State.PENDING,  # the handler asked for later; no attempt spent
        "park": State.PENDING,  # what it calls asked for a pause: it and its scope rest; no attempt spent
        "release": State.PENDING,  # claimed but not started: drain, shutdown; no attempt spent
        "rescue": State.PENDING,  # its holder was lost; a crash is counted, no attempt
        "cancel": State.CANCELLED,  # an operator asked and the holder agreed, or the handler said so
        "bury": State.DEAD,  # attempts exhausted, not retryable, undecodable, too many crashes
    },
    State.DEAD: {
        "redrive": State.PENDING  # an operator enqueued it again on purpose
    },
    State.DONE: {},
    State.CANCELLED: {},
}

#: States that need nobody's attention any more.
FINAL = frozenset({State.DONE, State.CANCELLED})
#: States of rows in message_queue.
LIVE = frozenset({State.PENDING, State.BLOCKED, State.RUNNING})


class Verb(StrEnum):
    """What is to be written for an attempt that is not done. Each is one SQL function."""

    FAIL = "fail"  # a retry or a dead letter, as the database decides
    RETRY = "retry"
    SNOOZE = "snooze"
    PARK = "park"  # a snooze, and its scope rests
    CANCEL = "cancel"
    BURY = "bury"
    RELEASE = "release"
    # the transaction of its handler could not be committed: a snooze, now and then a failure
    UNCOMMITTED = "uncommitted"

    @property
    def expected(self) -> str:
        """How the attempt ends, as far as one knows before the database has answered: packhorse.outcome of
        its span.
        """
        return _EXPECTED[self]


class Ended(StrEnum):
    """How an attempt has ended: what the database has made of it, or that it was no longer ours. The label
    `outcome` of metrics and log lines.
    """

    DONE = "done"
    RETRY = "retry"
    SNOOZE = "snooze"
    DEAD = "dead"
    CANCELLED = "cancelled"
    RELEASED = "released"
    LOST = "lost"

    @property
    def gone(self) -> bool:
        """The message has left message_queue by this."""
        return self in (Ended.DONE, Ended.DEAD, Ended.CANCELLED)


_EXPECTED = {
    Verb.FAIL: "failed",
    Verb.RETRY: "failed",
    Verb.SNOOZE: Ended.SNOOZE.value,
    Verb.PARK: Ended.SNOOZE.value,
    Verb.CANCEL: Ended.CANCELLED.value,
    Verb.BURY: Ended.DEAD.value,
    Verb.RELEASE: Ended.RELEASED.value,
    Verb.UNCOMMITTED: Ended.SNOOZE.value,
}
