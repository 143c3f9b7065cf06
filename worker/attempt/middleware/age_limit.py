"""max_age by the database's clock (SPEC P6): dramatiq compares the clock of whoever sent the message with
that of whoever runs it.
"""

from __future__ import annotations

import time
from typing import Any

from dramatiq.middleware import AgeLimit as StockAgeLimit
from dramatiq.middleware import SkipMessage

from packhorse.worker.attempt.messages import ClaimedMessage


class AgeLimit(StockAgeLimit):
    """dramatiq's. Most messages that are too old end at the claim, as expired; here those whose delay alone
    is longer than their max_age.
    """

    def before_process_message(self, broker: Any, message: Any) -> None:
        if not isinstance(message, ClaimedMessage):
            super().before_process_message(broker, message)
            return
        max_age = message.options.get("max_age") or broker.get_actor(message.actor_name).options.get(
            "max_age", self.max_age
        )
        if max_age and 1000 * (message.age_seconds + time.monotonic() - message.claimed_at) >= max_age:
            self.logger.warning("Message %r has exceeded its age limit.", message.message_id)
            message.fail()
            raise SkipMessage("Message age limit exceeded")
