"""The actor that runs maintenance, and the scheduler beside it: what `packhorse scheduler` gives its worker
processes.

An ordinary actor module: a scheduled run is a message with attempts, history and a dead letter (SPEC M). The
middleware starts the scheduler's loop when the worker process has booted and stops it first when that drains.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import BoundedSemaphore, Event, Lock
from typing import Any

import dramatiq

from packhorse.schedules.backfill.carried import PREFIX, carry
from packhorse.schedules.config import Plan, load_plan
from packhorse.schedules.maintenance.checking import check_plan
from packhorse.schedules.maintenance.policies import Retention
from packhorse.schedules.maintenance.runway import Runway
from packhorse.schedules.maintenance.tasks import TaskRunner, tell
from packhorse.schedules.registry import MESSAGE_TYPE, QUEUE
from packhorse.schedules.timetable.schedule import Schedule
from packhorse.schedules.timetable.scheduler import Scheduler
from packhorse.worker.attempt.context import current_message
from packhorse.worker.attempt.middleware import Checked
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import Snooze, StoreError, StoreRejected
from packhorse.worker.observe.duties import Duties, code_of
from packhorse.worker.store.operations import list_workers
from packhorse.worker.suggest import near_miss

logger = logging.getLogger("packhorse.schedules")

#: Deadline of a statement of maintenance; batches have shorter ones of their own.
MAINTENANCE_CALL_SECONDS = 120.0
MAINTENANCE_SECONDS = 6 * 3600
#: A run that its process had to pause waits so long: no longer claimed by that process.
HANDOVER_SECONDS = 1.0
#: Retention and backfills may wait at closed gates for their whole budget: half of the threads at most, the
#: rest is for due reminders, locks and partitions. Who comes when those are taken asks again after so long.
QUEUE_UP_SECONDS = 5.0


class Timetable(Checked):
    """Hosts the scheduler in a worker process, and what maintenance runs need."""

    def __init__(self) -> None:
        self.stop = Event()
        self.plan: Plan | None = None
        self.scheduler: Scheduler | None = None
        self.runway: Runway | None = None
        self.broker: Any = None
        self.waiters = BoundedSemaphore(1)
        self.duties = Duties()
        self._failed: dict[str, str] = {}  # maintenance tasks whose last run here failed: code
        self._noting = Lock()
        self.unserved: set[str] = set()  # schedules of which it was said; the scheduler's loop only
        self.said: set[str] = set()  # of the plan; the same

    def check(self) -> None:
        """Read the plan. Raises ConfigError."""
        self.plan = load_plan()

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        """What this configuration keeps, workers and cleanup_old_messages() keep, too: before the first
        upkeep.
        """
        if self.plan is None:  # dramatiq's own Worker asked nobody
            self.check()
        connection = broker.open_connection("start")
        try:
            tell(connection, self.plan)
        finally:
            connection.close()

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        """Start the loop."""
        self.broker = broker
        self.waiters = BoundedSemaphore(max(1, broker.settings.threads // 2))
        packages = {module.partition(".")[0] for module in broker.settings.actors if module != __name__}
        stats = getattr(worker, "stats", None)  # dramatiq's own Worker has none
        self.duties = stats.duties if stats is not None else self.duties
        self.scheduler = Scheduler(
            lambda: broker.open_connection("scheduler"), self.declared, origin=packages, duties=self.duties
        )
        if stats is not None:
            # a loop that hangs is seen by the probes and replaced (SPEC O4)
            self.scheduler.ticked = partial(stats.tick, "scheduler")
        self.scheduler.start()
        assert self.plan is not None
        self.runway = Runway(self.open_connection, self.plan, self.stop)
        self.runway.noted = partial(self.duties.note, "runway")
        self.runway.start()

    def declared(self) -> list[Schedule]:
        """The timetable that fits this database: tasks whose table is absent or whose policy is wrong are
        left out, and said.

        Raises StoreUnavailable.
        """
        assert self.plan is not None
        connection = self.open_connection()
        try:
            findings = check_plan(connection, self.plan)
            self._warn_of_unserved(connection)
        finally:
            connection.close()
        for warning in [*findings.warnings, *findings.left_out.values()]:
            if warning not in self.said:
                logger.warning("plan_warning problem=%s", warning)
        for task, problem in findings.problems:
            if problem not in self.said:
                logger.error("plan_problem task=%s problem=%s", task, problem)
        self.said |= {
            *findings.warnings,
            *findings.left_out.values(),
            *(problem for _, problem in findings.problems),
        }
        return self.plan.timetable(
            findings.absent | findings.left_out.keys() | {task for task, _ in findings.problems}
        )

    def _warn_of_unserved(self, connection: Any) -> None:
        """Schedules whose messages nobody would take, said once: a queue is made by its name, also by one
        with a slip in it.
        """
        assert self.plan is not None
        try:
            with translated():
                live = [row for row in list_workers(connection) if not row["silent"]]
        except StoreRejected:  # a role that may not look: no reason to keep the timetable from starting
            return
        actors = [actor for actor in self.broker.actors.values() if actor.queue_name != QUEUE]
        served = [
            (
                {*(actor.actor_name for actor in actors), *self.broker.aliases},
                {actor.queue_name for actor in actors},
            )
        ]
        served += [(set(row["message_types"]) - {MESSAGE_TYPE}, set(row["queues"])) for row in live]
        served = [(types, queues) for types, queues in served if types]
        for entry in self.plan.schedules:
            if (
                not served
                or entry.name in self.unserved
                or any(entry.message_type in types and entry.queue in queues for types, queues in served)
            ):
                continue
            self.unserved.add(entry.name)
            theirs = sorted(set().union(*(queues for types, queues in served if entry.message_type in types)))
            near = theirs[0] if len(theirs) == 1 else near_miss(entry.queue, theirs)
            logger.warning(
                "schedule_unserved schedule=%s message_type=%s queue=%s near=%s",
                entry.name,
                entry.message_type,
                entry.queue,
                near,
            )

    def before_worker_shutdown(self, broker: Any, worker: Any) -> None:
        """No further planned time is decided here; maintenance pauses after its batch."""
        self.stop.set()
        for service in (self.scheduler, self.runway):
            if service is not None:
                service.stop()

    def after_worker_shutdown(self, broker: Any, worker: Any) -> None:
        for service in (self.scheduler, self.runway):
            if service is not None:
                service.wait(5)

    @contextmanager
    def noted(self, task: str) -> Iterator[None]:
        """A run of a maintenance task: `maintenance` fails as long as the last run of some task did."""
        try:
            yield
        except Exception as error:
            self._note(task, code_of(error))
            raise
        self._note(task, "")

    def _note(self, task: str, code: str) -> None:
        with self._noting:
            self._failed.pop(task, None)
            if code:
                self._failed[task] = code
            if self._failed:
                self.duties.failing("maintenance", next(reversed(self._failed.values())))
            else:
                self.duties.well("maintenance")

    def open_connection(self) -> Any:
        """A connection of the role that owns the tables, where one is configured."""
        from packhorse.worker.db.sessions import open_owner

        return open_owner(
            self.broker.settings, url=self.broker.url, deadline_seconds=MAINTENANCE_CALL_SECONDS
        )


timetable = Timetable()
dramatiq.get_broker().add_middleware(timetable)


@dramatiq.actor(actor_name=MESSAGE_TYPE, queue_name=QUEUE, time_limit=MAINTENANCE_SECONDS * 1000)
def run_maintenance(task: str) -> None:
    """Run one maintenance task, or a slice of a backfill; a run that was interrupted goes on with its
    cursor.
    """
    if timetable.plan is None:
        raise StoreError("the worker process has not booted")
    with ExitStack() as held:
        if task.startswith(PREFIX) or isinstance(timetable.plan.tasks().get(task), Retention):
            if not timetable.waiters.acquire(blocking=False):
                raise Snooze(QUEUE_UP_SECONDS, "other long runs wait at their gates")
            held.callback(timetable.waiters.release)
        message = current_message()
        message_id = message.id if message else None
        held.enter_context(timetable.noted(task))
        if task.startswith(PREFIX):
            goes_on = carry(timetable.open_connection, task, timetable.plan.gates, timetable.stop, message_id)
            state = "slice" if goes_on else "succeeded"
        else:
            schedule = message.options.get("schedule") if message is not None else None
            runner = TaskRunner(timetable.open_connection, timetable.plan, timetable.stop)
            state = runner.run(
                task, triggered_by="schedule" if schedule else "message", message_id=message_id
            )
    if state == "slice":
        raise Snooze(HANDOVER_SECONDS, "the next slice of the backfill")
    # not by its budget: the next process goes on, not the next planned time
    if state == "paused" and timetable.stop.is_set():
        raise Snooze(HANDOVER_SECONDS, "the process stops: another one goes on with the run")
    if state == "busy":
        logger.info("maintenance_busy task=%s: another process works on it", task)
