"""Counts what the pump sees, for the metrics: plain additions to one array, copied to shared memory per turn.

Everything but `later` belongs to the pump's thread. Half a microsecond per message; no lock, no object per
message, no formatting: rendering happens in another process (worker/exporter.py).
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable

from worker.db.errors import error_counts
from worker.messages import ClaimedMessage
from worker.observe import slab as layout
from worker.observe.slab import CLAIM_BOUNDS, DURATION_BOUNDS, WAIT_BOUNDS, Slab
from worker.runtime.slots import Slot

_DURATION_SUM = layout.DURATION + layout.HISTOGRAM - 1
_WAIT_SUM = layout.WAIT + layout.HISTOGRAM - 1
#: What settle() answers -> outcome.
_OUTCOMES = {name: layout.FINISHED + index for index, name in enumerate(layout.OUTCOMES)}
_OUTCOMES |= {"release": _OUTCOMES["released"], "unstorable": _OUTCOMES["lost"]}
_BY_ACTOR = {"done": 0, "retry": 1, "dead": 1}  # a snoozed or cancelled message says nothing about its actor


class Meter:
    """The totals of this process. queues, actors: the names that get series of their own."""

    def __init__(self, slab: Slab, queues: Iterable[str], actors: Iterable[str], slots: Iterable[Slot], rescued: Callable[[], int]) -> None:
        self.slab = slab
        places, actor_places = slab.name(queues, actors)
        self._queues = {name: layout.BY_QUEUE + place * layout.QUEUE_WIDTH for name, place in places.items()}
        self._actors = {name: layout.BY_ACTOR + place * len(layout.ACTOR_OUTCOMES) for name, place in actor_places.items()}
        self._names: dict[int, list[str]] = {}  # by place; `other` may have many
        for name, place in self._queues.items():
            self._names.setdefault(place, []).append(name)
        self._slots = list(slots)
        self._rescued = rescued
        self._totals = array("d", bytes(layout.TOTALS * 8))
        self._later: deque[tuple[ClaimedMessage, str]] = deque()

    def done(self, messages: Iterable[ClaimedMessage]) -> None:
        """Messages whose completion was written."""
        totals, queues, actors = self._totals, self._queues, self._actors
        for message in messages:
            place = queues.get(message.queue_name, layout.BY_QUEUE)
            totals[place + layout.FINISHED] += 1
            self._observe(place, message)
            totals[actors.get(message.actor_name, layout.BY_ACTOR)] += 1

    def finished(self, message: ClaimedMessage, answer: str) -> None:
        """One message with another ending; `answer` as settle() gives it."""
        place = self._queues.get(message.queue_name, layout.BY_QUEUE)
        self._totals[place + _OUTCOMES[answer]] += 1
        if message.started:
            self._observe(place, message)
        if answer in _BY_ACTOR:
            self._totals[self._actors.get(message.actor_name, layout.BY_ACTOR) + _BY_ACTOR[answer]] += 1

    def finished_elsewhere(self, message: ClaimedMessage, answer: str) -> None:
        """The same from any other thread."""
        self._later.append((message, answer))

    def claimed(self, result: str, seconds: float) -> None:
        """A claim: hit, empty or error, and how long it took."""
        totals = self._totals
        totals[layout.CLAIMS + layout.CLAIM_RESULTS.index(result)] += 1
        totals[layout.CLAIM_SECONDS + bisect_left(CLAIM_BOUNDS, seconds)] += 1
        totals[layout.CLAIM_SECONDS + layout.HISTOGRAM - 1] += seconds
        states = self.slab.states
        states[layout.CLAIM_FAILING] = result == "error"
        if result != "error":
            states[layout.CONTACT_AT] = time.monotonic()

    def publish(self) -> None:
        """Copy the totals to where others read them."""
        while self._later:
            self.finished(*self._later.popleft())
        totals = self._totals
        totals[layout.RESCUED] = self._rescued()
        for index, kind in enumerate(layout.DB_ERRORS):
            totals[layout.ERRORS + index] = error_counts[kind]
        for place, names in self._names.items():
            totals[place + layout.STARTED] = sum([slot.starts.get(name, 0) for slot in self._slots for name in names])
        self.slab.totals[:] = totals

    def _observe(self, place: int, message: ClaimedMessage) -> None:
        totals = self._totals
        ran = message.ran_seconds
        totals[place + layout.DURATION + bisect_left(DURATION_BOUNDS, ran)] += 1
        totals[place + _DURATION_SUM] += ran
        waited = message.due_seconds + message.started_at - message.claimed_at
        totals[place + layout.WAIT + bisect_left(WAIT_BOUNDS, waited)] += 1
        totals[place + _WAIT_SUM] += waited
