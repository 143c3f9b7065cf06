"""One entry of the timetable, validated: what the code, packhorse.toml and Packhorse itself declare."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from packhorse.schedules.timetable.triggers import Trigger, trigger
from packhorse.worker.config import NAME_PATTERN
from packhorse.worker.errors import InvalidArgument

MISSED = ("skip", "once", "all")
OVERLAP = ("skip", "wait", "allow")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A trigger and the message it enqueues.

    cron (five fields) or every_seconds (1 s to ten years), in time_zone. missed: what happens to planned
    times that passed while no scheduler ran: "skip" them, run "once" for all of them, or run "all" (the
    newest missed_limit, 1..1000). overlap, while the previous run still lives: "skip" the new one, "wait" for
    it, or "allow" both. ("skip" and "all" fight.) jitter_seconds (0..86400): up to so much later, at random.
    source: packhorse, code, toml or sql. Raises InvalidArgument that names the field.
    """

    name: str
    message_type: str
    cron: str | None = None
    every_seconds: float | None = None
    time_zone: str = "UTC"
    queue: str = "default"
    payload: dict[str, Any] = field(default_factory=dict)
    missed: str = "once"
    missed_limit: int = 10
    overlap: str = "skip"
    jitter_seconds: float = 0.0
    priority: int = 5
    max_attempts: int | None = None
    source: str = "code"

    def __post_init__(self) -> None:
        for name, value in (("name", self.name), ("message_type", self.message_type), ("queue", self.queue)):
            if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value):
                raise InvalidArgument(
                    f"{name}: {str(value)[:120]!r} is not a name",
                    field=name,
                    hint="Letters, digits, dot, underscore, dash.",
                )
        for name, value, known in (("missed", self.missed, MISSED), ("overlap", self.overlap, OVERLAP)):
            if value not in known:
                raise InvalidArgument(
                    f"{name}: {str(value)[:40]!r} is not known",
                    field=name,
                    hint=f"One of {', '.join(known)}.",
                )
        if not 1 <= self.missed_limit <= 1000:
            raise InvalidArgument("missed_limit: must be between 1 and 1000", field="missed_limit")
        if not 0 <= self.jitter_seconds <= 86400:
            raise InvalidArgument("jitter_seconds: must be between 0 and 86400", field="jitter_seconds")
        if self.missed == "all" and self.overlap == "skip":
            raise InvalidArgument(
                "overlap: 'skip' would run one of all that were missed",
                field="overlap",
                hint="With missed = all: wait or allow.",
            )
        if not 1 <= self.priority <= 10:
            raise InvalidArgument("priority: must be between 1 and 10", field="priority")
        if self.max_attempts is not None and not 1 <= self.max_attempts <= 1_000_000:
            raise InvalidArgument("max_attempts: must be between 1 and 1000000", field="max_attempts")
        try:
            json.dumps(self.payload, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"payload: is not JSON: {error}", field="payload") from None
        self.trigger()

    def trigger(self) -> Trigger:
        """Its trigger. Raises InvalidArgument."""
        return trigger(self.cron, self.every_seconds, self.time_zone)
