"""Numbers of one worker process in memory that it shares with its parent (FAILURES 67-69).

The parent makes the memory before the fork, the child writes it, the process that serves the metrics reads
it: no files, no locks, no messages. A child's totals are added to a stats of the same shape (`fold`) when it
has ended, so a counter never goes back and memory never grows, however often children are replaced.

Layout: STATES (what is so at this moment; written cell by cell by the thread that knows), TOTALS (only ever
grow; copied at once by the fetcher after each turn), then the names of queues and actors. A name beyond the
room shares place 0, `other`; a name never moves, so a number always belongs to the name beside it. A
double is written and read in one step on every machine that we run on.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterable, Mapping
from uuid import uuid4

from packhorse.worker import forks
from packhorse.worker.observe.duties import Duties
from packhorse.worker.states import Ended

#: Services that must tick; a handler's pool ticks through the timekeeper, the scheduler in `packhorse
#: scheduler` only.
LOOPS = ("fetcher", "heartbeat", "timekeeper", "pool", "scheduler")
OUTCOMES = tuple(Ended)
ACTOR_OUTCOMES = ("ok", "failed")
CLAIM_RESULTS = ("hit", "empty", "error")
STEP_RESULTS = ("stored", "reused")
DB_ERRORS = ("unavailable", "conflict", "rejected", "invalid")
#: Upper bounds in seconds; a value beyond the last counts in +Inf. Each bound of the wait costs a line per
#: queue, so there are few of them; the alert rules use the last one.
WAIT_BOUNDS = (0.1, 1.0, 10.0, 60.0)
DURATION_BOUNDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0)
CLAIM_BOUNDS = (0.002, 0.01, 0.05, 0.25, 1.0)

#: Places for names, `other` included: what bounds the series of a process (docs/observability.md).
QUEUES = 32
ACTORS = 64
OTHER = "other"
NAME_BYTES = 128

# -- states HURRY is the parent's: it was told to stop a second time, handlers are not waited for any more.
# ISOLATION, too: the process runs only messages that were there when two processes died; ISOLATED_AT: when
# one saw that such messages wait. ENDED_WITH: the exit code, plus one, of a process that ends in good order;
# see end_with NO_THREADS: all of its actors are `async def`. QUIET: an operator asked it to claim nothing
# more; DRAIN_ASKED: to end with its whole daemon
(
    REGISTERED,
    DRAINING,
    THREADS,
    COROUTINES,
    LISTENING,
    CONTACT_AT,
    CLAIM_FAILING,
    HURRY,
    ISOLATION,
    ISOLATED_AT,
) = range(10)
ENDED_WITH, NO_THREADS, QUIET, DRAIN_ASKED, TICKS = 10, 11, 12, 13, 14
# of a relay, per queue: messages that RabbitMQ has, and their consumers; plus one, for 0 is "not known"
ON_BROKER = TICKS + len(LOOPS)
STATES = ON_BROKER + 2 * QUEUES


def width(bounds: tuple[float, ...]) -> int:
    """Cells of a histogram: one per bound, +Inf, then the sum."""
    return len(bounds) + 2


# -- totals, counted from the first total
RESCUED = 0
TRACING = 1
LOOP_BLOCKED = 2
LOOP_BLOCKED_SECONDS = 3
STEPS = 4
ERRORS = STEPS + len(STEP_RESULTS)
CLAIMS = ERRORS + len(DB_ERRORS)
CLAIM_SECONDS = CLAIMS + len(CLAIM_RESULTS)
DURATION = CLAIM_SECONDS + width(CLAIM_BOUNDS)
BY_ACTOR = DURATION + width(DURATION_BOUNDS)
BY_QUEUE = BY_ACTOR + ACTORS * len(ACTOR_OUTCOMES)
# within a queue
FINISHED = 0
BUSY = FINISHED + len(OUTCOMES)
WAIT = BUSY + 1
QUEUE_WIDTH = WAIT + width(WAIT_BOUNDS)
TOTALS = BY_QUEUE + QUEUES * QUEUE_WIDTH

_NUMBERS = (STATES + TOTALS) * 8
_NAMES = (QUEUES + ACTORS) * NAME_BYTES
SIZE = _NUMBERS + _NAMES


class NameTable:
    """A fixed table of names in shared memory; place 0 is `other`. One writer."""

    def __init__(self, memory: memoryview, places: int) -> None:
        self._memory = memory
        self._places = places

    def read(self) -> list[str]:
        """The names by place, `other` first."""
        found = [OTHER]
        for place in range(1, self._places):
            length = self._memory[place * NAME_BYTES]
            if not length:
                break
            found.append(
                bytes(self._memory[place * NAME_BYTES + 1 : place * NAME_BYTES + 1 + length]).decode(
                    "utf-8", "replace"
                )
            )
        return found

    def place(self, name: str) -> int:
        """The place of a name, given now if there is room; 0 when there is none."""
        text = name.encode("utf-8", "replace")[: NAME_BYTES - 1].decode("utf-8", "ignore")
        known = self.read()
        if text in known:
            return known.index(text)
        if len(known) >= self._places or not text:
            return 0
        encoded = text.encode("utf-8")
        start = len(known) * NAME_BYTES
        self._memory[start + 1 : start + 1 + len(encoded)] = encoded
        self._memory[start] = len(encoded)  # last: from here on the name is there
        return len(known)

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))


class ProcessStats:
    """The numbers of one process, or the sum of those of ended ones. made_by: the process that made the
    memory.
    """

    def __init__(self) -> None:
        self.made_by = os.getpid()
        self.daemon_id = uuid4()  # the same for all that one parent has made: see FleetStats
        self._map = mmap.mmap(-1, SIZE)
        memory = memoryview(self._map)
        numbers = memory[:_NUMBERS].cast("d")
        self.states = numbers[:STATES]
        self.totals = numbers[STATES:]
        self.queues = NameTable(memory[_NUMBERS : _NUMBERS + QUEUES * NAME_BYTES], QUEUES)
        self.actors = NameTable(memory[_NUMBERS + QUEUES * NAME_BYTES :], ACTORS)
        self.duties = Duties()
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """A child that a handler forked counts for itself."""
        if stranger:
            self.states = memoryview(array("d", bytes(STATES * 8)))
            self.totals = memoryview(array("d", bytes(TOTALS * 8)))

    def end_with(self, code: int) -> None:
        """The process is about to end with this exit code, in good order: an end that nobody has noted here
        is a crash.
        """
        self.states[ENDED_WITH] = code + 1

    def ended_with(self, code: int) -> bool:
        """Was this exit code noted?"""
        return code >= 0 and self.states[ENDED_WITH] == code + 1

    def tick(self, loop: str, now: float) -> None:
        """A loop ticked at monotonic `now`; 0 = it has ended in good order."""
        self.states[TICKS + LOOPS.index(loop)] = now

    def ticks(self) -> dict[str, float]:
        """Monotonic time of the last tick of each loop that runs."""
        return {loop: at for loop, at in zip(LOOPS, self.states[TICKS:ON_BROKER], strict=True) if at}

    def show_on_broker(self, found: Mapping[str, tuple[int, int]]) -> None:
        """What RabbitMQ has: (messages, consumers) by queue, of those whose names have places here; nothing
        is known of others.
        """
        cells = array("d", bytes(2 * QUEUES * 8))
        for place, name in enumerate(self.queues.read()):
            if place and name in found:
                messages, consumers = found[name]
                cells[place], cells[QUEUES + place] = messages + 1, consumers + 1
        self.states[ON_BROKER:] = cells

    def on_broker(self) -> dict[str, tuple[int, int]]:
        """The same, read."""
        return {
            name: (int(self.states[ON_BROKER + place]) - 1, int(self.states[ON_BROKER + QUEUES + place]) - 1)
            for place, name in enumerate(self.queues.read())
            if self.states[ON_BROKER + place]
        }

    def name(self, queues: Iterable[str], actors: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Give places to the names of a process; place by name."""
        return {name: self.queues.place(name) for name in queues}, {
            name: self.actors.place(name) for name in actors
        }

    def fold(self, ended: ProcessStats) -> None:
        """Add the totals of an ended process, name by name, and empty its stats."""
        mine, theirs = self.totals, array("d", ended.totals)
        for index in range(BY_ACTOR):
            mine[index] += theirs[index]
        for names, own, first, cells in (
            (ended.actors.read(), self.actors, BY_ACTOR, len(ACTOR_OUTCOMES)),
            (ended.queues.read(), self.queues, BY_QUEUE, QUEUE_WIDTH),
        ):
            for place, name in enumerate(names):
                source = first + place * cells
                target = first + (own.place(name) if place else 0) * cells
                for offset in range(cells):
                    mine[target + offset] += theirs[source + offset]
        ended.clear()

    def clear(self) -> None:
        """Everything zero, no names: ready for the next process, which inherits the duties that its
        predecessor could not do.
        """
        self.duties.ended()
        self.states[:] = array("d", bytes(STATES * 8))
        self.totals[:] = array("d", bytes(TOTALS * 8))
        self.queues.clear()
        self.actors.clear()
