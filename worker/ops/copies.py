"""What a restored copy would start, as a sentence says it (SPEC O11)."""

from __future__ import annotations

from packhorse.worker.records import Row


def what_waits(status: Row) -> str:
    """`4 messages and 1 schedule`; status: of worker/store/copies.py."""
    messages, schedules = status["waiting"] + status["running"], status["schedules"]
    return f"{messages:,} message{'' if messages == 1 else 's'} and {schedules:,} schedule{'' if schedules == 1 else 's'}"
