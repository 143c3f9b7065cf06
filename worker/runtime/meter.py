"""Counts what the fetcher sees, for the metrics: plain additions to one array, copied to shared memory per
turn.

Everything belongs to the fetcher's thread, which asks what the pools run. No lock, nothing kept per message,
no formatting: rendering happens in another process (worker/fleet/exporter.py).
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.db.errors import error_counts
from packhorse.worker.observe import process_stats as layout
from packhorse.worker.observe import tracing
from packhorse.worker.observe.process_stats import CLAIM_BOUNDS, DURATION_BOUNDS, WAIT_BOUNDS, ProcessStats
from packhorse.worker.states import Ended

_OUTCOMES = {ended: layout.FINISHED + index for index, ended in enumerate(layout.OUTCOMES)}
# a snoozed or cancelled message says nothing about its actor
_BY_ACTOR = {Ended.DONE: 0, Ended.RETRY: 1, Ended.DEAD: 1}


class Meter:
    """The totals of this process. queues, actors: the names that get series of their own. begun(): messages
    whose handlers have begun, and not ended as far as one knows; more than once is no harm. steps(): stored
    and reused so far."""

    def __init__(
        self,
        stats: ProcessStats,
        queues: Iterable[str],
        actors: Iterable[str],
        begun: Callable[[], list[ClaimedMessage]],
        rescued: Callable[[], int],
        steps: Callable[[], tuple[int, int]] = lambda: (0, 0),
        loop_blocked: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
    ) -> None:
        self.stats = stats
        self.duties = stats.duties
        places, actor_places = stats.name(queues, actors)
        self._queues = {name: layout.BY_QUEUE + place * layout.QUEUE_WIDTH for name, place in places.items()}
        self._actors = {
            name: layout.BY_ACTOR + place * len(layout.ACTOR_OUTCOMES) for name, place in actor_places.items()
        }
        self._begun = begun
        self._rescued = rescued
        self._steps = steps
        self._loop_blocked = loop_blocked
        self._totals = array("d", bytes(layout.TOTALS * 8))

    def done(self, messages: list[ClaimedMessage]) -> None:
        """Messages whose completion was written. By the batch: sorting and counting at once cost half of one
        by one.
        """
        if not messages:
            return
        totals = self._totals
        ran = [message.ran_seconds for message in messages]
        for place, group in self._by_queue(messages):
            totals[place + layout.FINISHED] += len(group)
            totals[place + layout.BUSY] += sum(
                ran if group is messages else [message.ran_seconds for message in group]
            )
        self._spread(layout.DURATION, DURATION_BOUNDS, ran)
        self._waited([message for message in messages if not message.wait_counted])
        names = [message.actor_name for message in messages]
        for name in names[:1] if _alike(names) else set(names):
            totals[self._actors.get(name, layout.BY_ACTOR)] += names.count(name)

    def _by_queue(self, messages: list[ClaimedMessage]) -> Iterable[tuple[int, list[ClaimedMessage]]]:
        if _alike([message.queue_name for message in messages]):
            return [(self._queues.get(messages[0].queue_name, layout.BY_QUEUE), messages)]
        groups: dict[int, list[ClaimedMessage]] = {}
        for message in messages:
            groups.setdefault(self._queues.get(message.queue_name, layout.BY_QUEUE), []).append(message)
        return groups.items()

    def finished(self, message: ClaimedMessage, ended: Ended) -> None:
        """One message with another outcome than those of done()."""
        place = self._queues.get(message.queue_name, layout.BY_QUEUE)
        self._totals[place + _OUTCOMES[ended]] += 1
        if message.started_at:
            self._totals[place + layout.BUSY] += message.ran_seconds
            self._spread(layout.DURATION, DURATION_BOUNDS, [message.ran_seconds])
            self._waited([] if message.wait_counted else [message])
        if ended in _BY_ACTOR:
            self._totals[self._actors.get(message.actor_name, layout.BY_ACTOR) + _BY_ACTOR[ended]] += 1

    def fenced(self, messages: list[ClaimedMessage]) -> None:
        """The process ends itself: the leases of these are over. Called by the timekeeper's thread, and by
        nothing after it.
        """
        for message in messages:
            self._totals[self._queues.get(message.queue_name, layout.BY_QUEUE) + _OUTCOMES[Ended.LOST]] += 1
        self.publish()

    def claimed(self, result: str, seconds: float, error: BaseException | None = None) -> None:
        """A claim: hit, empty or error, and how long it took. error: what speaks against claiming, not
        against a completion with it.
        """
        totals = self._totals
        totals[layout.CLAIMS + layout.CLAIM_RESULTS.index(result)] += 1
        self._spread(layout.CLAIM_SECONDS, CLAIM_BOUNDS, [seconds])
        states = self.stats.states
        states[layout.CLAIM_FAILING] = result == "error"
        if error is not None:
            self.duties.failing("claim", error, began=time.monotonic() - seconds)
        if result != "error":
            self.duties.well("claim")
            states[layout.CONTACT_AT] = time.monotonic()

    def publish(self) -> None:
        """Copy the totals to where others read them."""
        running = [message for message in self._begun() if not message.wait_counted]
        if running:  # their wait is over, and counts now: a handler may run for hours, or end the process
            self._waited(running)
            for message in running:
                message.wait_counted = True
        totals = self._totals
        totals[layout.RESCUED] = self._rescued()
        totals[layout.STEPS : layout.STEPS + 2] = array("d", self._steps())
        totals[layout.LOOP_BLOCKED], totals[layout.LOOP_BLOCKED_SECONDS] = self._loop_blocked()
        totals[layout.TRACING] = tracing.failures.count
        for index, kind in enumerate(layout.DB_ERRORS):
            totals[layout.ERRORS + index] = error_counts[kind]
        self.stats.totals[:] = totals

    def _waited(self, messages: list[ClaimedMessage]) -> None:
        if messages:
            for place, group in self._by_queue(messages):
                self._spread(
                    place + layout.WAIT,
                    WAIT_BOUNDS,
                    [m.due_seconds + m.started_at - m.claimed_at for m in group],
                )

    def _spread(self, start: int, bounds: tuple[float, ...], values: list[float]) -> None:
        """Add values to the cells of a histogram: a count per bucket, then the sum. Buckets hold values up to
        their bound.
        """
        totals = self._totals
        totals[start + len(bounds) + 1] += sum(values)
        for value in values:
            totals[start + bisect_left(bounds, value)] += 1


def _alike(names: list[str]) -> bool:
    return names.count(names[0]) == len(names)
