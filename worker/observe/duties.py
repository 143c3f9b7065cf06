"""Duties: what each loop has to do again and again, and since when it cannot (SPEC P8, O4).

A loop that turns is not yet a loop that works: the heartbeat may tick while the database refuses every beat.
Whoever does a duty notes how it went; the probes, the metrics and the process's row in `workers` name what
has failed for longer than its budget. The numbers stand in memory that is shared with the parent, in fixed
places: writing one is a few stores, nothing is kept per failure, and a reader may see a code beside the age
of another failure for an instant.

A process that replaces another goes on with its duties as they stood: a fault that ends processes would
otherwise begin anew with each of them, and never last longer than a budget.
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: How long a duty may fail before it is a problem. With an interval of 6 s between heartbeats both are named
#: within 30 s.
VITAL_BUDGET_SECONDS = 10.0
BUDGET_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Duty:
    """vital: a process that cannot do it is not ready. recurs: it is done again without being asked to, so
    that a success will come when the fault is gone; what does not recur is forgotten when its process ends.
    told_seconds: after the last failure it is told for so long; there may be nothing left to try it with."""

    name: str
    loop: str
    vital: bool = False
    recurs: bool = True
    told_seconds: float = math.inf

    @property
    def budget_seconds(self) -> float:
        return VITAL_BUDGET_SECONDS if self.vital else BUDGET_SECONDS


#: The code of a loop that does not tick at all, as its parent sees it.
STANDS_STILL = "does not tick"

#: A duty that has the name of its loop stands for all that the loop does; it is named when none of the loop's
#: others is.
DUTIES = (
    Duty("fetcher", "fetcher", vital=True),
    Duty("claim", "fetcher", vital=True),
    Duty("complete", "fetcher", vital=True, recurs=False, told_seconds=300.0),
    Duty("publish", "relay", vital=True),
    Duty("heartbeat", "heartbeat"),
    Duty("beat", "heartbeat", vital=True),
    Duty("rescue", "heartbeat"),
    Duty("expire", "heartbeat"),
    Duty("upkeep_partitions", "heartbeat"),
    Duty("upkeep_messages", "heartbeat"),
    Duty("upkeep_unknown_types", "heartbeat"),
    Duty("upkeep_workers", "heartbeat"),
    Duty("upkeep_conversations", "heartbeat"),
    Duty("upkeep_windows", "heartbeat"),
    Duty("upkeep_archive", "heartbeat"),
    Duty("upkeep", "heartbeat"),  # a step without a place of its own
    Duty("timekeeper", "timekeeper", vital=True),
    Duty("pool", "pool", vital=True),
    Duty("listen", "listener"),
    Duty("scheduler", "scheduler", vital=True),
    Duty("declare", "scheduler"),
    Duty("fire", "scheduler"),
    Duty("finish_runs", "scheduler", told_seconds=300.0),
    Duty("runway", "runway"),
    Duty("maintenance", "maintenance", recurs=False),
    Duty("fleet", "fleet"),
)
_PLACES = {duty.name: place for place, duty in enumerate(DUTIES)}
#: Per duty: when the first of the failures in a row began (0: it is well), when the last one was, when it was
#: last done (0: not watched), how often it must be (0: no interval), how many messages wait for it. Times are
#: CLOCK_MONOTONIC.
_SINCE, _FAILED_AT, _DONE_AT, _EVERY, _WAITING, _WIDTH = range(6)
CODE_BYTES = 32
_NUMBERS = len(DUTIES) * _WIDTH * 8


@dataclass(frozen=True, slots=True)
class Problem:
    """A duty that has not been done within its budget. code: SQLSTATE, else the class of the error; "" when
    nothing failed.
    """

    duty: Duty
    seconds: float
    code: str
    waiting: int = 0

    @property
    def text(self) -> str:
        """For people: `beat has failed for 31 s (42501)`."""
        waiting = f", {self.waiting} messages wait" if self.waiting else ""
        if not self.code:
            return f"{self.duty.name} was last done {self.seconds:.0f} s ago{waiting}"
        return f"{self.duty.name} has failed for {self.seconds:.0f} s ({self.code}){waiting}"


class Duties:
    """The duties of one process. One writer per duty; readers in any process that shares the memory.

    beside: duties of others that this process tells of (those of the exporter, which has no row in
    `workers`).
    """

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, _NUMBERS + len(DUTIES) * CODE_BYTES))
        self._cells = memory[:_NUMBERS].cast("d")
        self._codes = memory[_NUMBERS:]
        self.beside: Duties | None = None

    def expect(self, name: str, every_seconds: float) -> None:
        """From now on the duty must be done at least this often."""
        start = _place(name) * _WIDTH
        self._cells[start + _DONE_AT] = time.monotonic()
        self._cells[start + _EVERY] = every_seconds

    def well(self, name: str) -> None:
        """It was done."""
        start = _place(name) * _WIDTH
        cells = self._cells
        if cells[start + _SINCE]:
            cells[start + _SINCE] = cells[start + _FAILED_AT] = cells[start + _WAITING] = 0.0
        if cells[start + _EVERY]:
            cells[start + _DONE_AT] = time.monotonic()

    def failing(
        self, name: str, cause: BaseException | str, waiting: int = 0, began: float | None = None
    ) -> None:
        """It could not be done. cause: an error, or a code. waiting: messages that wait for it. began: when
        the try did (monotonic).
        """
        place = _place(name)
        start = place * _WIDTH
        cells = self._cells
        code = (cause if isinstance(cause, str) else code_of(cause)).encode("ascii", "replace")[:CODE_BYTES]
        self._codes[place * CODE_BYTES : (place + 1) * CODE_BYTES] = code.ljust(CODE_BYTES, b"\0")
        now = time.monotonic()
        if not self._fails(place, now):
            cells[start + _SINCE] = now if began is None else began
        cells[start + _FAILED_AT] = now
        cells[start + _WAITING] = waiting

    @contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """Note how the block went; what it raises goes on."""
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            self.failing(name, error, began=began)
            raise
        self.well(name)

    def note(self, name: str, error: Exception | None, began: float) -> None:
        """How one turn of a loop went; see Service.noted."""
        if error is None:
            self.well(name)
        else:
            self.failing(name, error, began=began)

    def judge_tick(self, name: str, ticked_at: float, late: bool) -> None:
        """The parent looked at a loop. What it says so is over with the first tick; what the loop itself
        notes, it leaves alone.
        """
        if late:
            self.failing(name, STANDS_STILL, began=ticked_at)
        elif self._code(_place(name)) == STANDS_STILL and self._cells[_place(name) * _WIDTH + _SINCE]:
            self.well(name)

    def failing_seconds(self, now: float) -> dict[Duty, float]:
        """Duties that fail, or are overdue, and since when, whatever their budget."""
        return {problem.duty: problem.seconds for problem in self._found(now)}

    def problems(self, now: float) -> list[Problem]:
        """What this process tells of itself, and of `beside`; the vital ones first."""
        found = self.own_problems(now) + (self.beside.own_problems(now) if self.beside is not None else [])
        return sorted(found, key=lambda problem: not problem.duty.vital)

    def own_problems(self, now: float) -> list[Problem]:
        """Duties that have failed, or are overdue, for longer than their budget."""
        found = [problem for problem in self._found(now) if problem.seconds > problem.duty.budget_seconds]
        named = {problem.duty.loop for problem in found if problem.duty.name != problem.duty.loop}
        return [
            problem
            for problem in found
            if problem.duty.name != problem.duty.loop or problem.duty.loop not in named
        ]

    def forget(self) -> None:
        """The process has ended, and no other one takes its place."""
        self.ended()
        for place in range(len(DUTIES)):
            start = place * _WIDTH
            self._cells[start + _SINCE] = self._cells[start + _FAILED_AT] = self._cells[start + _WAITING] = (
                0.0
            )

    def ended(self) -> None:
        """The process has ended; the next one goes on with what recurs."""
        for place, duty in enumerate(DUTIES):
            start = place * _WIDTH
            self._cells[start + _DONE_AT] = self._cells[start + _EVERY] = 0.0
            if not duty.recurs:
                self._cells[start + _SINCE] = self._cells[start + _FAILED_AT] = self._cells[
                    start + _WAITING
                ] = 0.0

    def _found(self, now: float) -> Iterator[Problem]:
        cells = self._cells
        for place, duty in enumerate(DUTIES):
            since, _, done_at, every, waiting = cells[place * _WIDTH : (place + 1) * _WIDTH]
            if self._fails(place, now):
                yield Problem(duty, max(0.0, now - since), self._code(place) or "no code", int(waiting))
            elif done_at and every and now - done_at > every + duty.budget_seconds:
                yield Problem(duty, now - done_at, "", int(waiting))

    def _fails(self, place: int, now: float) -> bool:
        start = place * _WIDTH
        return (
            bool(self._cells[start + _SINCE])
            and now - self._cells[start + _FAILED_AT] <= DUTIES[place].told_seconds
        )

    def _code(self, place: int) -> str:
        return (
            bytes(self._codes[place * CODE_BYTES : (place + 1) * CODE_BYTES])
            .rstrip(b"\0")
            .decode("ascii", "replace")
        )


def _place(name: str) -> int:
    """The place of a duty. Steps of the upkeep that have none share one."""
    return _PLACES[name] if name in _PLACES else _PLACES["upkeep"]


def code_of(error: BaseException) -> str:
    """SQLSTATE where there is one, else the class of the error (StoreUnavailable: no server answered)."""
    return str(getattr(error, "sqlstate", None) or type(error).__name__)
