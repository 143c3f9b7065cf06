"""Where the next claim looks (migrations/functions/claim_pick.sql): per queue and priority, the last run_at
claimed.

Under an old snapshot every claimed row leaves a dead entry at the left end of the claim index, and whoever
looks from the start walks them all. So a claim looks at the FRONT, from its cursor on. What appears behind
the cursor (late commits, released messages) is found by a sweep from the start, now and then and whenever the
front is short. Nobody waits for a sweep: it goes in slices, one claim each, cut where we claimed MARK_EVERY
messages. What each stretch between two cuts costs is remembered: a slice takes as many as are within
DEAR_SECONDS together, cheap ones are joined, down to a single look at everything, and dear ones keep their
distance. Cost is what a look takes longer than a quick one of these seconds, and than the usual one at the
front: a slow connection makes every look slow, and that is no reason to look seldom.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

PRIORITIES = 10
# from the end of a sweep to the next one, at least; and between looks at the front while it goes on, at most
SWEEP_SECONDS = 1.0
SOON_SECONDS = 0.02  # the same when the front is short
REST_FACTOR = 20.0  # a look behind the front is followed by this many times its cost without one
RISE = 0.1  # the usual cost of a look at the front: quick to fall, slow to rise
# the quickest look of this and of the last ten seconds is what one costs that finds nothing in its way
FLOOR_SECONDS = 10.0
MARK_EVERY = 4_000
CHEAP_SECONDS = 0.002
DEAR_SECONDS = 0.004
NEVER = "-infinity"

Bounds = list[str | None]


@dataclass(frozen=True, slots=True)
class Look:
    """The window of one claim: per queue and priority from `since` (None: the start) up to, not including,
    `until`.

    front: it has no end, so what was just enqueued is in it. whole: after it, all that is due has been looked
    at.
    """

    since: Bounds | None
    until: Bounds | None
    front: bool
    whole: bool


#: Everything, from the start.
ALL = Look(None, None, front=True, whole=True)


class ClaimCursor:
    """Used by the fetcher thread only."""

    def __init__(self, queues: Iterable[str]) -> None:
        self._since: dict[str, Bounds] = {queue: [None] * PRIORITIES for queue in queues}
        self._marks: list[str] = []  # ascending: where slices may be cut
        self._unmarked = 0  # claimed since the last mark
        # of the stretches between them, one more than marks; None: not known
        self._costs: list[float | None] = [None]
        self._new_cost = DEAR_SECONDS  # what a new stretch turned out to cost when one was last looked at
        self._at = 0  # the stretch that the next slice starts with
        self._swept_seconds = 0.0
        self._last_seconds = 0.0  # what the look behind the front before this one cost
        self._front_seconds = inf  # what a look at the front takes
        self._floors = (inf, inf)  # the quickest look of this period and of the last
        self._next_floor = 0.0
        # of the last look at the front; never: none since the last sweep, which needs one
        self._front_at = -inf
        self._next_sweep = 0.0

    def look(self, queues: list[str]) -> Look:
        """What the next claim looks at; bounds for these queues, in this order."""
        now = time.monotonic()
        if now < self._next_sweep or (self._marks and now - self._front_at > SWEEP_SECONDS):
            return Look(
                [since for queue in queues for since in self._since[queue]], None, front=True, whole=False
            )
        if not self._marks:
            return ALL
        return self._slice(queues)

    def _slice(self, queues: list[str]) -> Look:
        start = self._marks[self._at - 1] if self._at else None
        end = self._end()
        last = end > len(self._marks)
        until: Bounds = []
        for queue in queues:
            for since in self._since[queue]:
                if since is None:
                    until.append(NEVER)  # the front has not begun: it looks from the start itself
                else:
                    until.append(since if last else min(since, self._marks[end - 1]))
        return Look([start] * len(until), until, front=False, whole=last)

    def _end(self) -> int:
        """Behind the last stretch of the next slice; there is one at least."""
        end = self._at
        seconds = 0.0
        while end < len(self._costs):
            cost = self._costs[end]
            seconds += self._new_cost if cost is None else cost
            if end > self._at and seconds > DEAR_SECONDS:
                break
            end += 1
        return end

    def looked(self, look: Look, took_seconds: float, *, exhausted: bool) -> None:
        """A claim has looked there. exhausted: it found less than it could take; took_seconds: the whole
        statement.
        """
        now = time.monotonic()
        if now >= self._next_floor:
            self._floors, self._next_floor = (took_seconds, self._floors[0]), now + FLOOR_SECONDS
        else:
            self._floors = (min(took_seconds, self._floors[0]), self._floors[1])
        if look.front:
            self._front_at = now
            if look.whole:
                self._next_sweep = now + max(SWEEP_SECONDS, self._cost(took_seconds) * REST_FACTOR)
            else:
                self._front_done(took_seconds, now)
        elif not exhausted:
            self._next_sweep = now  # there is more in this slice
        else:
            self._slice_done(look, took_seconds, now)

    def _front_done(self, took_seconds: float, now: float) -> None:
        if took_seconds < self._front_seconds:
            self._front_seconds = took_seconds
        else:
            self._front_seconds += RISE * (took_seconds - self._front_seconds)
        # what made the last look behind it dear (somebody's lock, say) does not lie there
        if took_seconds > self._last_seconds:
            self._next_sweep = min(self._next_sweep, now + SWEEP_SECONDS)

    def _cost(self, took_seconds: float) -> float:
        """What this look cost more than one at the front, and no more than the one before it.

        Dead entries make every look dear. A single one also takes long on a new connection, or when the
        machine was busy; to rest for that would leave what lies behind the front, like the next message of a
        conversation whose last one died, to wait for seconds.
        """
        seconds = max(0.0, took_seconds - min(self._front_seconds, *self._floors))
        cost = min(seconds, self._last_seconds)
        self._last_seconds = seconds
        return cost

    def _slice_done(self, look: Look, took_seconds: float, now: float) -> None:
        cost = self._cost(took_seconds)
        self._swept_seconds += cost
        end = self._end()
        each = self._last_seconds / (end - self._at)
        if None in self._costs[self._at : end]:
            self._new_cost = each
        if self._last_seconds < CHEAP_SECONDS:
            del self._marks[self._at : end - 1]  # the cuts inside it
            self._costs[self._at : end] = [self._last_seconds]
            end = self._at + 1
        else:
            self._costs[self._at : end] = [each] * (end - self._at)
        self._at = end
        if look.whole:
            self._next_sweep = now + max(SWEEP_SECONDS, self._swept_seconds)
            self._at, self._swept_seconds, self._front_at = 0, 0.0, -inf
        else:
            self._next_sweep = now + cost * REST_FACTOR

    def look_again_soon(self) -> None:
        """The front is short: the next sweep, but not in a tight loop."""
        now = time.monotonic()
        if self._next_sweep - now <= SWEEP_SECONDS:  # else the last look was dear: keep its distance
            self._next_sweep = min(self._next_sweep, now + SOON_SECONDS)

    @property
    def next_sweep(self) -> float:
        """Monotonic time of the next look behind the front."""
        return self._next_sweep

    def claimed(self, look: Look, last: dict[tuple[str, int], str], count: int) -> None:
        """These were claimed: per (queue, priority) the last run_at, as the database writes it in one time
        zone.

        A look at everything may take the front back, for what it left is behind it; a slice is looked at
        again until it is exhausted. The next message of a conversation, claimed by its id, takes nothing back
        either.
        """
        if not look.front:
            return
        for (queue, priority), run_at in last.items():
            bounds = self._since[queue]
            before = bounds[priority - 1]
            if look.whole or before is None or run_at > before:
                bounds[priority - 1] = run_at
        self._unmarked += count
        mark = max(last.values(), default="")
        if self._unmarked >= MARK_EVERY and (not self._marks or mark > self._marks[-1]):
            self._marks.append(mark)
            self._costs[-1:] = [None, None]  # it has grown since it was looked at
            self._unmarked = 0
