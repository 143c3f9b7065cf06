"""Time limits by actor and by class (SPEC W4): `default` 30 s, `ai_agent` 120 s, `payment` 60 s, `media` 300
s.

Under Packhorse's runtime this only writes the deadline into the message; the runtime's timekeeper
interrupts the handler (soft) and replaces the process (hard). Under dramatiq's own Worker it behaves
like dramatiq's TimeLimit.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from dramatiq.middleware import TimeLimit
from dramatiq.middleware import TimeLimitExceeded as TimeLimitExceeded

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store.options import MAX_DELAY_SECONDS

logger = logging.getLogger("packhorse.time_limits")

#: Seconds by class; `default` is the setting time_limit_seconds.
CLASSES = {"ai_agent": 120.0, "payment": 60.0, "media": 300.0}
DEFAULT_SECONDS = 30.0
DEFAULT_HARD_SECONDS = 10.0


def check_class(options: dict[str, Any]) -> None:
    """Called by the broker: dramatiq logs what a middleware raises for an actor, and declares it. Raises
    InvalidArgument.
    """
    name = options.get("time_limit_class")
    if name is not None and name != "default" and name not in CLASSES:
        raise InvalidArgument(
            f"time_limit_class: {name!r} is not one of default, {', '.join(CLASSES)}",
            field="time_limit_class",
        )


class TimeLimits(TimeLimit):
    """Soft limit in `time_limit` (ms) or `time_limit_class`; hard limit `hard_time_limit` (ms) after it."""

    def __init__(
        self, *, default_seconds: float = DEFAULT_SECONDS, hard_seconds: float = DEFAULT_HARD_SECONDS
    ) -> None:
        super().__init__(time_limit=default_seconds * 1000)
        self.default_seconds = default_seconds
        self.hard_seconds = hard_seconds
        self._seconds: dict[str, tuple[float, float]] = {}  # by actor name; any thread, values never change

    @property
    def actor_options(self) -> set[str]:
        return {"time_limit", "time_limit_class", "hard_time_limit"}

    def limits(self, broker: Any, actor_name: str) -> tuple[float, float]:
        """(soft seconds, hard seconds after the soft limit) of an actor."""
        known = self._seconds.get(actor_name)
        if known is None:
            options = broker.get_actor(actor_name).options
            soft = CLASSES.get(options.get("time_limit_class", ""), self.default_seconds)
            if options.get("time_limit") is not None:
                soft = options["time_limit"] / 1000
            hard = (
                options["hard_time_limit"] / 1000
                if options.get("hard_time_limit") is not None
                else self.hard_seconds
            )
            known = self._seconds[actor_name] = (soft, hard)
        return known

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._check(message)
        if not isinstance(message, ClaimedMessage) or not message.started_at:
            super().before_process_message(broker, message)
            return
        soft, hard = self.limits(broker, message.actor_name)
        own = message.options.get("time_limit")
        if own is not None:
            soft = own / 1000
        message.hard_deadline = (time.monotonic() + soft) + hard
        message.deadline = message.hard_deadline - hard

    def _check(self, message: Any) -> None:
        """A message may choose its limit and not switch it off: a value that is no limit is dropped, and the
        actor's holds.
        """
        own = message.options.get("time_limit")
        if own is not None and (
            isinstance(own, bool)
            or not isinstance(own, (int, float))
            or not 0 < own <= MAX_DELAY_SECONDS * 1000
        ):
            logger.warning(
                "time_limit_refused message_id=%s actor=%s: not a number of milliseconds; that of the actor holds",
                message.message_id,
                message.actor_name,
            )
            del message.options["time_limit"]

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if not isinstance(message, ClaimedMessage) or not message.started_at:
            super().after_process_message(broker, message, result=result, exception=exception)
        else:
            message.deadline = message.hard_deadline = None

    after_skip_message = after_process_message

    def after_process_boot(self, broker: Any) -> None:
        if not getattr(broker, "runtime", None):
            super().after_process_boot(broker)
