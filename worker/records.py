"""Rows as the rest of the code sees them: plain, frozen, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict
from uuid import UUID


class EnqueueOptions(TypedDict, total=False):
    """What enqueue() takes besides the payload; None, where it is allowed, is as if nothing was said.

    Those down to trace_context are the table of options (worker/store/options.py), the others what dramatiq's
    middleware reads. For a type checker this is all; at run time options of other middleware pass, too
    (`**{"my_option": 1}`).
    """

    delay: float | timedelta | None  # seconds from now; not beside run_at
    run_at: datetime | None
    expires_in: float | None  # seconds from now: not worth doing after
    priority: int  # 1 (first) to 10
    max_attempts: int | None
    conversation_key: str | None
    concurrency_key: str | None
    fairness_key: str | None
    dedup_key: str | None
    dedup_window: float | None  # seconds
    pending_key: str | None
    when_pending: Literal["return", "replace", "append"] | None
    debounce: float | timedelta | None  # seconds, as the next one
    max_wait: float | timedelta | None
    correlation_id: str | None
    trace_context: str | None
    max_retries: int | None
    min_backoff: int  # milliseconds, as the next three
    max_backoff: int
    time_limit: int
    max_age: int
    on_retry_exhausted: str
    on_success: str
    on_failure: str
    group_callback_uuid: str
    pipe_target: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hints:
    """What a claim has to say besides its messages.

    lost: ids whose completion came too late. promoted: ids whose conversation went on, to be looked at next
    time. next_in: seconds until a look may find something, when nothing was claimed; 0 or less: at once.
    isolated: messages that run apart could start. To a relay only: forwarded: all queues that go where it
    publishes; expires: by id of a claimed message, when it is not worth doing any more (Unix seconds).
    """

    lost: frozenset[int] = frozenset()
    promoted: tuple[int, ...] = ()
    next_in: float | None = None
    isolated: bool = False
    forwarded: tuple[str, ...] = ()
    expires: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """Answer of an enqueue: `id` of the message; `duplicate` when it is an older one, by its dedup or pending
    key; `merged` when the payload went into that one.
    """

    id: int
    duplicate: bool = False
    merged: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """What a heartbeat found out about one held message."""

    id: int
    lease_held: bool
    renewed: bool  # False although held: somebody has locked its row
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat has learnt.

    attention: messages that need it. known: is the process still known? asked: "quiet", "drain" or None.
    peers: processes that could do the same work now, this one among them. before: the one before this one on
    the ring of their ids.
    """

    attention: list[Attention]
    known: bool
    asked: str | None
    peers: int
    before: UUID | None


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate of `explain`: its name, whether the message passes it, details, earliest start."""

    gate: str
    passed: bool
    detail: str
    earliest_start: datetime | None


Row = dict[str, Any]
