"""Run one maintenance task by name, whoever asked: the scheduler's message, the command line, a test (SPEC M7)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event
from typing import Any

from packhorse.schedules.config import Plan, nothing_to_delete
from packhorse.schedules.partitions import PartitionKeeper
from packhorse.schedules.policies import Partitions, Retention
from packhorse.schedules.registry import Job
from packhorse.schedules.retention import RetentionRun
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreError
from packhorse.worker.store import maintenance as store
from packhorse.worker.suggest import did_you_mean

logger = logging.getLogger("packhorse.maintenance")

JOB_BUDGET_SECONDS = 60.0


class TaskRunner:
    """Runs tasks of a plan, one at a time per connection. stop: ends a run after its batch; it is gone on with later."""

    def __init__(self, open_connection: Callable[[], DeadlineConnection], plan: Plan, stop: Event | None = None) -> None:
        self._open = open_connection
        self._plan = plan
        self._stop = stop or Event()

    def run(
        self, task: str, *, triggered_by: str, message_id: int | None = None, on_progress: Callable[[int, str | None], Any] = lambda rows, gate: None
    ) -> str:
        """Run a task to its end; succeeded, paused, cancelled, lost, or busy (another process works on it).

        Raises InvalidArgument for an unknown task; what the task raised, after recording it as failed.
        """
        policy = find(self._plan, task)
        connection = self._open()
        try:
            if isinstance(policy, Retention):
                return RetentionRun(
                    connection, policy, self._plan.gates, triggered_by=triggered_by, message_id=message_id, stop=self._stop, on_progress=on_progress
                ).run()
            with translated():
                kind = "job" if isinstance(policy, Job) else "partitions"
                run = store.start(connection, task, kind, triggered_by, message_id, {} if isinstance(policy, Job) else {"table": policy.table})
            if run is None:
                return "busy"
            return self._recorded(connection, run.id, task, policy, on_progress)
        finally:
            connection.close()

    def _recorded(
        self, connection: DeadlineConnection, run_id: int, task: str, policy: Partitions | Job, on_progress: Callable[[int, str | None], Any]
    ) -> str:
        try:
            state = "succeeded"
            if isinstance(policy, Job):
                count, asked = self._job(connection, run_id, policy, on_progress)
                state = {"cancel": "cancelled", "lost": "lost", "stop": "paused"}.get(asked, state)
            else:
                keeper = PartitionKeeper(connection, policy, self._stop)
                count = keeper.make() if task == policy.make_task else keeper.drop()
                with translated():
                    store.beat(connection, run_id, rows_done=count)
            with translated():
                if state != "lost" and not store.end(connection, run_id, state):
                    state = "lost"
        except (StoreError, InvalidArgument) as error:
            logger.error("maintenance_failed task=%s run_id=%s error_class=%s error=%s", task, run_id, type(error).__name__, error)
            try:
                with translated():
                    store.end(connection, run_id, "failed", str(error))
            except StoreError as second:  # the connection is gone: the next run takes this one over
                logger.warning("maintenance_not_recorded run_id=%s error_class=%s", run_id, type(second).__name__)
            raise
        if count:
            logger.info("maintenance_ended task=%s run_id=%s state=%s rows=%d", task, run_id, state, count)
        return state

    def _job(self, connection: DeadlineConnection, run_id: int, job: Job, on_progress: Callable[[int, str | None], Any]) -> tuple[int, str]:
        """Call the job's function until it finds less than a batch; each call is a transaction.

        Rows, and what the last beat said; "stop" when the process ends before the job does.
        """
        total = 0
        deadline = time.monotonic() + JOB_BUDGET_SECONDS
        while True:
            with translated(), connection.transaction():
                count = store.job(connection, job.statement, job.batch)
                asked = store.beat(connection, run_id, rows_done=count)
            total += count
            on_progress(count, None)
            if count < job.batch or asked != "go" or time.monotonic() > deadline:
                return total, asked
            if self._stop.is_set():
                return total, "stop"


def find(plan: Plan, task: str) -> Retention | Partitions | Job:
    """The policy or job of a task. Raises InvalidArgument with a near miss."""
    tasks = plan.tasks()
    if task not in tasks:
        raise InvalidArgument(
            f"task: there is no maintenance task {task[:100]!r}",
            field="task",
            hint=did_you_mean(task, tasks, "`packhorse maintenance list` names them."),
        )
    return tasks[task]


def tell(connection: DeadlineConnection, plan: Plan | None) -> None:
    """Write what the plan says of the tasks that work without it; None (it is wrong): nothing is to be deleted until it is mended.

    A schema of an older release knows no policies, and a role without the right may not write them: said, and no reason to do no work.
    """
    try:
        with translated():
            store.declare_policies(connection, nothing_to_delete() if plan is None else plan.policies())
    except StoreError as error:
        logger.warning("plan_warning problem=%s", f"the upkeep does not know this configuration: {error}")
