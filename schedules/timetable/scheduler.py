"""The scheduler: decides what is due, enqueues it, sleeps until the next planned time (SPEC M1, P6, P7).

Any number of these may run; none leads. Each reads what is due by the database clock, computes the planned
times itself and lets `fire_schedule` decide. Local time is used for sleeping only: it cannot fire anything
early. A schedule that cannot be computed or enqueued is recorded with its problem; the others go on.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial

from packhorse.schedules.timetable.schedule import Schedule
from packhorse.schedules.timetable.triggers import newest, trigger
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import InvalidArgument, StoreConflict, StoreError, StoreUnavailable
from packhorse.worker.observe.duties import Duties, code_of
from packhorse.worker.service import Service
from packhorse.worker.store import messages
from packhorse.worker.store import schedules as store

logger = logging.getLogger("packhorse.schedules")

#: Changes made by SQL and the command line are seen after so many seconds at the latest.
POLL_SECONDS = 5.0
#: A planned time that is older counts as missed under the policy `skip`.
GRACE_SECONDS = 60.0
FINISH_SECONDS = 10.0
#: A schedule that could not be computed is tried again: its host lacked a time zone that this one has, or has
#: by now.
UNUSABLE_SECONDS = 30.0
#: A planned time whose message the database refused is in the history; the process tells of it for so long.
FAILED_SECONDS = 300.0
LOCK_NOT_AVAILABLE = "55P03"
#: Planned times computed at once for one schedule; what is older than the newest of these was missed by
#: weeks.
MOST_PLANNED = 1000


class Scheduler(Service):
    """One loop over the timetable.

    declared: asked once, in the loop, for what to write into it; origin: the packages whose declarations
    these are, see declare(). `fired` counts what this process enqueued. `duties` notes what cannot be done:
    `scheduler` for the loop as a whole.
    """

    name = "scheduler"

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        declared: Callable[[], Iterable[Schedule]] | None = None,
        poll_seconds: float = POLL_SECONDS,
        origin: Iterable[str] = (),
        duties: Duties | None = None,
    ) -> None:
        super().__init__()
        self._link = Link(open_connection)
        self._declared = declared
        self._origin = tuple(origin)
        self._poll_seconds = poll_seconds
        self._finish_after = 0.0
        self._unusable_after = 0.0
        #: Schedules that could not be decided, and until when they are left alone (monotonic); the loop's
        #: own.
        self._deferred: dict[str, float] = {}
        # schedules whose message could not be enqueued: code, until when that is told
        self._failed_fires: dict[str, tuple[str, float]] = {}
        self.duties = duties or Duties()
        self.noted = partial(self.duties.note, "scheduler")
        self.fired = 0

    def run_once(self) -> float:
        with self._link.connection() as connection:
            if self._declared is not None:
                # checking the plan may wait for locks on every table of it, each wait bounded
                self.judged = False
                self.ticked(0.0)
                try:
                    self._declare(connection)
                finally:
                    self.judged = True
            unusable = time.monotonic() >= self._unusable_after
            self._deferred = {
                name: until for name, until in self._deferred.items() if until > time.monotonic()
            }
            due, wait, open_runs = store.due(connection, unusable=unusable, deferred=list(self._deferred))
            if unusable:
                self._unusable_after = time.monotonic() + UNUSABLE_SECONDS
            for entry in due:
                self.ticked(time.monotonic())
                try:
                    with translated():
                        self._decide(connection, entry)
                except StoreUnavailable:
                    raise
                except StoreConflict as error:
                    # somebody's transaction has its row: one that is held stops no other, either
                    self._defer(entry.name, error)
                    logger.info("schedule_waits schedule=%s error_class=%s", entry.name, error.sqlstate)
                except StoreError as error:  # one broken schedule stops no other
                    self._defer(entry.name, error)
                    logger.error(
                        "schedule_failed schedule=%s error_class=%s error=%s",
                        entry.name,
                        type(error).__name__,
                        error,
                    )
            self._note_failed()
            self.ticked(time.monotonic())
            if open_runs and time.monotonic() >= self._finish_after:
                self._finish_after = time.monotonic() + FINISH_SECONDS
                self._finish_runs(connection)
            elif not open_runs:
                self.duties.well("finish_runs")
        if due:
            return 0.0  # look again: what was computed may be due by now
        return min(self._poll_seconds, max(0.0, wait)) if wait is not None else self._poll_seconds

    def _defer(self, name: str, error: StoreError) -> None:
        """Until the next poll: the turns between belong to the others, which may run every second."""
        self._deferred[name] = time.monotonic() + self._poll_seconds
        self._failed_fires[name] = code_of(error), time.monotonic() + 2 * self._poll_seconds

    def _note_failed(self) -> None:
        """`fire` fails as long as some schedule cannot be fired; one that is gone, or that another process
        has fired, is not told for long.
        """
        self._failed_fires = {
            name: (code, until)
            for name, (code, until) in self._failed_fires.items()
            if until > time.monotonic()
        }
        if self._failed_fires:
            self.duties.failing("fire", next(iter(self._failed_fires.values()))[0])
        else:
            self.duties.well("fire")

    def _declare(self, connection: DeadlineConnection) -> None:
        assert self._declared is not None
        began = time.monotonic()
        try:
            outcome = declare(connection, self._declared(), self._origin)
        except Exception as error:
            self.duties.failing("declare", error, began=began)
            raise
        if "held" in outcome.values():
            self.duties.failing("declare", LOCK_NOT_AVAILABLE, began=began)
            return
        self.duties.well("declare")
        self._declared = None

    def _finish_runs(self, connection: DeadlineConnection) -> None:
        try:
            with translated(), self.duties.watching("finish_runs"):
                store.finish_runs(connection)
        except StoreConflict as error:
            # the history waits for somebody's lock on archive or dead letters; the timetable does not
            logger.info("schedule_waits schedule=%s error_class=%s", None, error.sqlstate)

    def _decide(self, connection: DeadlineConnection, entry: store.Due) -> None:
        """Decide every planned time of one schedule up to now."""
        try:
            of = trigger(entry.cron, entry.every_seconds, entry.time_zone)
            times = newest(of, entry.last_planned_at, entry.now, MOST_PLANNED)
            following = of.after(entry.now)
        except InvalidArgument as error:
            store.plan(connection, entry.name, entry.last_planned_at, None, str(error))
            if entry.problem != str(error):  # said once
                logger.error("schedule_unusable schedule=%s error=%s", entry.name, error)
            return
        if not times:
            store.plan(connection, entry.name, entry.last_planned_at, following)
            return
        late = [time for time in times[:-1] or times if (entry.now - time).total_seconds() > GRACE_SECONDS]
        if late:
            logger.warning(
                "schedule_missed schedule=%s count=%d policy=%s since=%s",
                entry.name,
                len(late),
                entry.missed,
                late[0].isoformat(),
            )
        if entry.missed == "all":
            chosen = times[-entry.missed_limit :]
            beyond = len(times) - len(chosen)
            # whoever dies in between leaves the next one due
            for time, next_time in zip(chosen, [*chosen[1:], following], strict=True):
                self._fire(connection, entry, time, next_time, missed_count=beyond)
                beyond = 0
            return
        last = times[-1]
        missed = entry.missed == "skip" and (entry.now - last).total_seconds() > GRACE_SECONDS
        self._fire(connection, entry, last, following, missed_count=len(times) - 1, missed=missed)

    def _fire(
        self,
        connection: DeadlineConnection,
        entry: store.Due,
        planned_at: datetime,
        following: datetime,
        *,
        missed_count: int = 0,
        missed: bool = False,
    ) -> None:
        self.ticked(time.monotonic())  # a thousand planned times at once take longer than a loop has
        try:
            with translated():
                outcome = store.fire(
                    connection,
                    entry.name,
                    planned_at,
                    following,
                    missed_count=missed_count,
                    missed=missed,
                    jitter=random.random(),
                )
        except (StoreUnavailable, StoreConflict):
            raise
        except StoreError as error:
            self._failed_fires[entry.name] = code_of(error), time.monotonic() + FAILED_SECONDS
            if store.fail(connection, entry.name, planned_at, following, f"{type(error).__name__}: {error}"):
                logger.error(
                    "schedule_failed schedule=%s error_class=%s error=%s",
                    entry.name,
                    type(error).__name__,
                    error,
                )
            return
        self._failed_fires.pop(entry.name, None)
        self.fired += outcome == "enqueued"
        if outcome == "overlapped":
            logger.warning("schedule_overlapped schedule=%s planned_at=%s", entry.name, planned_at)
        elif outcome == "enqueued":
            logger.debug("schedule_fired schedule=%s planned_at=%s", entry.name, planned_at)

    def on_stop(self) -> None:
        self._link.close()


def declare(
    connection: DeadlineConnection, declared: Iterable[Schedule], origin: Iterable[str] = ()
) -> dict[str, str]:
    """Write declared schedules into the timetable, and remove those of code and TOML that are declared no
    longer.

    origin: the packages that were loaded. Two applications may share a database: what a scheduler with other
    packages has declared is not missed here, and stays; so do schedules made by SQL. Returns what became of
    each: created, changed, unchanged, held (its row is locked: try again), refused, removed.
    """
    outcome = {}
    names = []
    packages = sorted(origin)
    for entry in declared:
        names.append(entry.name)
        try:
            with translated():
                messages.declare_queue(connection, entry.queue)
                outcome[entry.name] = store.set_schedule(
                    connection,
                    {name: getattr(entry, name) for name in Schedule.__dataclass_fields__}
                    | {"origin": packages},
                )
        except StoreConflict as error:
            outcome[entry.name] = "held"
            logger.info("schedule_waits schedule=%s error_class=%s", entry.name, error.sqlstate)
        except InvalidArgument as error:
            # a time zone that this server does not know, say: one stops no other
            outcome[entry.name] = "refused"
            logger.error("schedule_refused schedule=%s error=%s", entry.name, error)
    for name, removed in store.remove_undeclared(
        connection, ["packhorse", "code", "toml"], packages, names
    ).items():
        outcome[name] = "removed" if removed else "held"
    changed = {name: what for name, what in outcome.items() if what != "unchanged"}
    if changed:
        logger.info("timetable_declared schedules=%d changed=%d", len(names), len(changed))
    return outcome
