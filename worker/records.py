"""Rows as the rest of the code sees them: plain, frozen, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """Answer of an enqueue: `id` of the message; `duplicate` when a dedup window returned an older one."""

    id: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """What a heartbeat found out about one held message."""

    id: int
    lease_held: bool
    renewed: bool  # False although held: somebody has locked its row
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate of `explain`: its name, whether the message passes it, details, earliest start."""

    gate: str
    passed: bool
    detail: str
    earliest_start: datetime | None


Row = dict[str, Any]
