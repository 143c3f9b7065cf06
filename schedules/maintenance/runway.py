"""Partitions before inserts need them: looked at when a scheduler starts and every minute, not only when
their cron says so (SPEC M5).

At its start a scheduler makes all that is missing: whoever was away over the end of a period finds nothing to
insert into. Later it acts when the current or the next period has no partition; all else is the cron's.
Workers do the same for the tables of Packhorse (worker/store/workers.py): whoever sees it first. Any number
of these may run: making is one run at a time per task.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event

from packhorse.schedules.config import Plan
from packhorse.schedules.maintenance.partitions import PartitionKeeper
from packhorse.schedules.maintenance.policies import Partitions
from packhorse.schedules.maintenance.tasks import TaskRunner
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument, StoreError, StoreUnavailable
from packhorse.worker.service import Service

logger = logging.getLogger("packhorse.maintenance")

LOOK_SECONDS = 60.0
#: A policy whose partitions could not be made is left alone for so long: its failures are in the history,
#: each of them.
DEFER_SECONDS = 300.0


class Runway(Service):
    """One loop over the partition policies of a plan. open_connection: of the role that does maintenance,
    closed after each look.
    """

    name = "runway"

    def __init__(
        self, open_connection: Callable[[], DeadlineConnection], plan: Plan, stop: Event | None = None
    ) -> None:
        super().__init__()
        self._open = open_connection
        self._plan = plan
        self._runner = TaskRunner(open_connection, plan, stop)
        self._looked: set[str] = set()  # policies of which all was made once
        self._deferred: dict[str, float] = {}

    def run_once(self) -> float:
        now = time.monotonic()
        due = [policy for policy in self._plan.partitions if self._deferred.get(policy.name, 0.0) <= now]
        connection = self._open()
        try:
            short = [policy for policy in due if self._is_short(connection, policy)]
        finally:
            connection.close()
        for policy in short:
            self._make(policy)
        return LOOK_SECONDS

    def _is_short(self, connection: DeadlineConnection, policy: Partitions) -> bool:
        keeper = PartitionKeeper(connection, policy)
        try:
            return keeper.can_make() and bool(keeper.missing(1 if policy.name in self._looked else None))
        except StoreUnavailable:
            raise
        except InvalidArgument:  # no such table, or of another shape: the check of the plan has said so
            self._defer(policy)
        except StoreError as error:
            # a right is missing, somebody has locked the table: one table stops no other
            logger.warning(
                "plan_warning problem=%s", f"[partitions.{policy.name}]: left alone for a while: {error}"
            )
            self._defer(policy)
        return False

    def _make(self, policy: Partitions) -> None:
        try:
            if self._runner.run(policy.make_task, triggered_by="runway") == "succeeded":
                self._looked.add(policy.name)
        except StoreUnavailable:
            raise
        except (StoreError, InvalidArgument):  # said and recorded by the runner; one table stops no other
            self._defer(policy)

    def _defer(self, policy: Partitions) -> None:
        self._deferred[policy.name] = time.monotonic() + DEFER_SECONDS
