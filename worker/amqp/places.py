"""Which pool runs which message, and when it may be given to it.

An actor with `max_in_flight` has a place of its own. A message that was there when two processes died runs
alone: it waits until nothing else runs, and nothing else begins meanwhile. So what kills a process takes no
other message to its crash limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.patterns import name_for
from packhorse.worker.runtime.claims import Kind

#: So many crashes, and a message runs alone.
ALONE_FROM = 2


class Place:
    """One kind of handler: what waits for it here, and how many of its messages its pool has."""

    __slots__ = ("given", "kind", "waiting")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.waiting: deque[ClaimedMessage] = deque()
        self.given = 0

    def take(self) -> list[ClaimedMessage]:
        """Those that may be given to the pool now."""
        room = len(self.waiting) if self.kind.most is None else self.kind.most - self.given
        taken = [self.waiting.popleft() for _ in range(min(max(room, 0), len(self.waiting)))]
        self.given += len(taken)
        return taken


class Places:
    """Used by the consumer's thread. closed: nothing is given to a pool (a drain, or an operator's quiet)."""

    def __init__(self, kinds: Iterable[Kind], types: Iterable[str]) -> None:
        self._types = list(types)
        self._places = [Place(kind) for kind in kinds]
        self._by_type = {name: place for place in self._places for name in place.kind.types}
        self._suspects: deque[ClaimedMessage] = deque()
        self._alone: ClaimedMessage | None = None
        self.closed = False

    def put(self, message: ClaimedMessage) -> bool:
        """It waits for its pool until feed(); False when this process does not know its type."""
        name = name_for(self._types, message.message_type)
        if name is None:
            return False
        message.actor_name = name
        if message.crashes >= ALONE_FROM:
            self._suspects.append(message)
        else:
            self._by_type[name].waiting.append(message)
        return True

    def feed(self) -> None:
        """Give to the pools what may begin."""
        if self.closed or self._alone is not None:
            return
        if self._suspects:
            if not self.given:
                message = self._alone = self._suspects.popleft()
                place = self._by_type[message.actor_name]
                place.given += 1
                place.kind.pool.put([message])
            return
        for place in self._places:
            if place.waiting and (taken := place.take()):
                place.kind.pool.put(taken)

    def finished(self, message: ClaimedMessage) -> None:
        """Its pool has handed it back."""
        self._by_type[message.actor_name].given -= 1
        if message is self._alone:
            self._alone = None

    @property
    def given(self) -> int:
        """How many the pools have."""
        return sum(place.given for place in self._places)

    def take_back(self) -> list[ClaimedMessage]:
        """Everything that has not begun."""
        taken = [*self._suspects]
        self._suspects.clear()
        for place in self._places:
            taken += place.waiting
            place.waiting.clear()
            ready = place.kind.pool.ready
            while True:
                try:
                    message = ready.pop()
                except IndexError:
                    break
                self.finished(message)
                taken.append(message)
        return taken
