"""All numbers below one parent: a stats per child, the sum of ended ones, and the parent's own (SPEC O2, O4).

Made by the parent before its first fork. The parent writes its own cells and folds; the exporter, a child
of its own, writes the cells that begin with EXPORTER and reads everything else. `read` gives totals that
belong together: a fold that happens meanwhile is noticed and the reading repeated.
"""

from __future__ import annotations

import mmap
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packhorse.worker.observe.duties import Duties
from packhorse.worker.observe.process_stats import ACTOR_OUTCOMES as _ACTOR_OUTCOMES
from packhorse.worker.observe.process_stats import (
    ACTORS,
    BY_ACTOR,
    BY_QUEUE,
    QUEUE_WIDTH,
    QUEUES,
    ProcessStats,
)

#: Why a child was replaced: it was killed or crashed, ended by itself with an error, ended to be replaced or
#: recycled, ended itself when a lease was over, did not tick or did not come to its end, was told to by
#: SIGHUP.
RESTARTS = ("crashed", "failed", "replaced", "recycled", "fenced", "hung", "reload")
#: Parts of observability that can fail without stopping any work.
PARTS = ("endpoints", "fleet", "exporter", "systemd", "tracing")

FOLDING, STARTED, DRAINING, ALIVE, PARENT_TICK, EXPORTER_TICK, EXPORTER_PORT, RESTART = range(8)
PART = RESTART + len(RESTARTS)
_CELLS = PART + len(PARTS)


@dataclass
class Totals:
    """Totals of all children, living and ended, by name. Numbers are laid out as in a stats."""

    plain: array[float]
    queues: dict[str, array[float]]
    actors: dict[str, array[float]]


class FleetStats:
    """workers: the stats of all children of the worker processes. stats of all children: these, and that of
    the child for messages that run apart. busy, awaiting: per child, how many of its threads, and of its
    coroutines, run a handler now."""

    def __init__(
        self,
        children: int,
        busy: Sequence[Callable[[], int]] = (),
        awaiting: Sequence[Callable[[], int]] = (),
    ) -> None:
        self.made_by = os.getpid()
        self.workers = [ProcessStats() for _ in range(children)]
        self.children = [*self.workers, ProcessStats()]
        for stats in self.children:
            stats.daemon_id = self.children[0].daemon_id
        self.busy = list(busy)
        self.awaiting = list(awaiting)
        self.duties = Duties()  # the exporter's
        if self.children:
            # it has no row in `workers`: the first child tells of it
            self.children[0].duties.beside = self.duties
        self._ended = ProcessStats()
        self.cells = memoryview(mmap.mmap(-1, _CELLS * 8)).cast("d")

    def fold(self, index: int) -> None:
        """Parent only: a child has ended; its totals stay, its place is free."""
        self.cells[FOLDING] += 1  # odd: in the middle of it
        self._ended.fold(self.children[index])
        self.cells[FOLDING] += 1

    def restarted(self, reason: str) -> None:
        """Parent only."""
        self.cells[RESTART + RESTARTS.index(reason)] += 1

    def failed(self, part: str) -> None:
        """A part of observability failed; `endpoints` and `fleet` belong to the exporter, the others to the
        parent; `tracing` fails in the children, which count it in their stats of all children."""
        self.cells[PART + PARTS.index(part)] += 1

    def read(self) -> Totals:
        """The totals; consistent unless the parent was killed in the middle of a fold."""
        for _ in range(50):
            before = self.cells[FOLDING]
            totals = self._sum()
            if before % 2 == 0 and self.cells[FOLDING] == before:
                return totals
            time.sleep(0.001)  # a fold takes less
        return self._sum()

    def _sum(self) -> Totals:
        found = Totals(array("d", bytes(BY_ACTOR * 8)), {}, {})
        for stats in [self._ended, *self.children]:
            totals = array("d", stats.totals)
            _add(found.plain, totals[:BY_ACTOR])
            for place, name in enumerate(stats.queues.read()[:QUEUES]):
                start = BY_QUEUE + place * QUEUE_WIDTH
                _add(
                    found.queues.setdefault(name, array("d", bytes(QUEUE_WIDTH * 8))),
                    totals[start : start + QUEUE_WIDTH],
                )
            width = len(_ACTOR_OUTCOMES)
            for place, name in enumerate(stats.actors.read()[:ACTORS]):
                start = BY_ACTOR + place * width
                _add(
                    found.actors.setdefault(name, array("d", bytes(width * 8))), totals[start : start + width]
                )
        return Totals(found.plain, _bounded(found.queues, QUEUES), _bounded(found.actors, ACTORS))


def _add(target: array[float], more: array[float]) -> None:
    for index, value in enumerate(more):
        target[index] += value


def _bounded(found: dict[str, array[float]], limit: int) -> dict[str, array[float]]:
    """At most `limit` names (children of different code may have different ones), and `other` only when it
    counts.
    """
    names = list(found)
    for name in names[limit:]:
        _add(found["other"], found.pop(name))
    if not any(found["other"]):
        del found["other"]
    return found
