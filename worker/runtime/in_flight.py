"""What this process has claimed and what became of it: the one place where an outcome is counted and told.

An id is not enough to know a message by: its next attempt, which has the same id, may be here while something
late still speaks of the last one.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.runtime.meter import Meter
from packhorse.worker.runtime.outcome_log import OutcomeLog
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.states import Ended

logger = logging.getLogger("packhorse.fetcher")


class InFlight:
    """Claimed messages by id, and how many ended how (`counts`, by outcome). Changed by the fetcher's thread;
    `drop` by any.

    Its truth value, length and iteration are those of the held messages; iteration works on a copy.
    """

    def __init__(self, meter: Meter, outcomes: OutcomeLog, worker_id: object, running: RunningIds) -> None:
        self._ended = running.ended
        self._places = list(range(running.places))  # that no held message has
        self._meter = meter
        self._outcomes = outcomes
        self._worker_id = worker_id
        self._messages: dict[int, ClaimedMessage] = {}
        self.counts: dict[Ended, int] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[ClaimedMessage]:
        return iter(list(self._messages.values()))

    def ids(self) -> Collection[int]:
        """The ids of the held messages, as they are now."""
        return self._messages.keys()

    def add(self, message: ClaimedMessage) -> None:
        """It was claimed."""
        self._messages[message.id] = message
        message.place = self._places.pop() if self._places else -1

    def owns(self, message: ClaimedMessage) -> bool:
        """Whether this very attempt is held."""
        return self._messages.get(message.id) is message

    def drop(self, message: ClaimedMessage) -> None:
        """It is no longer ours; nothing happens when it was not, or when a later attempt of it is."""
        if (
            self._messages.get(message.id) is message
            and self._messages.pop(message.id, None) is not None
            and message.place >= 0
        ):
            place, message.place = message.place, -1
            self._ended[place] = 0
            self._places.append(place)

    def refused(self, message: ClaimedMessage) -> None:
        """Its handler is done, and the database refuses to write that: it stays ours, and its parent knows
        it.
        """
        if message.place >= 0:
            self._ended[message.place] = -message.id

    def done(self, messages: list[ClaimedMessage], lost: Collection[int] = ()) -> None:
        """The database has completed these, but for the ids in `lost`, whose leases were somebody else's by
        then.
        """
        for message in messages:
            self.drop(message)
            message.end()
        if lost:
            for message in messages:
                if message.id in lost:
                    self.lost(message)
            messages = [message for message in messages if message.id not in lost]
        self._count(Ended.DONE, len(messages))
        self._meter.done(messages)
        self._outcomes.done(messages)

    def ended(self, message: ClaimedMessage, ended: Ended) -> None:
        """The database has answered with another outcome than done."""
        self.drop(message)
        message.end()
        if ended is Ended.LOST:
            self.lost(message)
            return
        self._count(ended)
        self._meter.finished(message, ended)
        self._outcomes.ended(message, ended)

    def lost(self, message: ClaimedMessage) -> None:
        """Somebody else owns it: what its handler did stays done, what it ends as is theirs to say (SPEC
        P2).
        """
        self._count(Ended.LOST)
        self._meter.finished(message, Ended.LOST)
        logger.info("lease_lost message_id=%s worker_id=%s", message.id, self._worker_id)

    def _count(self, ended: Ended, by: int = 1) -> None:
        self.counts[ended] = self.counts.get(ended, 0) + by
