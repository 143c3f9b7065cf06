"""Run one maintenance task by name, whoever asked: the scheduler's message, the command line, a test (SPEC
M7).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event
from typing import Any

from packhorse.schedules.config import Plan, nothing_to_delete
from packhorse.schedules.maintenance.partitions import PartitionKeeper
from packhorse.schedules.maintenance.policies import Partitions, Retention
from packhorse.schedules.maintenance.retention import RetentionRun
from packhorse.schedules.maintenance.run import Run, Step, Task, Work
from packhorse.schedules.registry import Job
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreError
from packhorse.worker.store import maintenance as store
from packhorse.worker.suggest import did_you_mean

logger = logging.getLogger("packhorse.maintenance")

JOB_BUDGET_SECONDS = 60.0


class TaskRunner:
    """Runs tasks of a plan, one at a time per connection. stop: ends a run after its batch; it is gone on
    with later.
    """

    def __init__(
        self, open_connection: Callable[[], DeadlineConnection], plan: Plan, stop: Event | None = None
    ) -> None:
        self._open = open_connection
        self._plan = plan
        self._stop = stop or Event()

    def run(
        self,
        task: str,
        *,
        triggered_by: str,
        message_id: int | None = None,
        on_progress: Callable[[int, str | None], Any] = lambda rows, gate: None,
    ) -> str:
        """Run a task to its end; succeeded, paused, cancelled, lost, or busy (another process works on it).

        Raises InvalidArgument for an unknown task; what the task raised, after recording it as failed.
        """
        policy = find(self._plan, task)
        connection = self._open()
        options: dict[str, Any] = {
            "triggered_by": triggered_by,
            "message_id": message_id,
            "stop": self._stop,
            "on_progress": on_progress,
        }
        try:
            if isinstance(policy, Retention):
                return RetentionRun(connection, policy, self._plan.gates, **options).run()
            if isinstance(policy, Job):
                work = JobSteps(connection, policy)
                return Run(connection, Task(task, "job", {}), **options).execute(lambda run: run.steps(work))
            keeper = PartitionKeeper(connection, policy, self._stop)
            act = keeper.make if task == policy.make_task else keeper.drop
            return Run(connection, Task(task, "partitions", {"table": policy.table}), **options).execute(
                lambda run: run.alone(act)
            )
        finally:
            connection.close()


class JobSteps(Work):
    """The function of a job until it finds less than a batch, or its time is over; the next run goes on."""

    def __init__(self, connection: DeadlineConnection, job: Job) -> None:
        self._connection = connection
        self._job = job
        self._deadline = time.monotonic() + JOB_BUDGET_SECONDS

    def step(self) -> Step:
        """One call."""
        count = store.job(self._connection, self._job.statement, self._job.batch)
        return Step(count, more=count >= self._job.batch and time.monotonic() < self._deadline)


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
    """Write what the plan says of the tasks that work without it; None (it is wrong): nothing is to be
    deleted until it is mended.

    A schema of an older release knows no policies, and a role without the right may not write them: said, and
    no reason to do no work.
    """
    try:
        with translated():
            store.declare_policies(connection, nothing_to_delete() if plan is None else plan.policies())
    except StoreError as error:
        logger.warning("plan_warning problem=%s", f"the upkeep does not know this configuration: {error}")
