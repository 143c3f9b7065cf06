"""What a worker's packhorse.toml says of retention and partitions, told to the database before the upkeep
begins.

An actor module like packhorse.schedules.actors, which `packhorse worker` loads when the file has such
sections: an installation of workers alone, or one whose workers start before its scheduler, keeps what its
configuration keeps (declare_policies in migrations/functions/maintenance.sql).
"""

from __future__ import annotations

import logging
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware

from packhorse.schedules.config import Plan, read_plan
from packhorse.schedules.maintenance.tasks import tell
from packhorse.worker.errors import ConfigError

logger = logging.getLogger("packhorse.schedules")


class Declaration(Middleware):
    """Before the heartbeat's first upkeep; the database answers by then."""

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        problems: list[str] = []
        plan: Plan | None = None
        try:
            plan, problems = read_plan()
        except ConfigError as error:
            problems = [str(error)]
        for problem in problems:
            logger.error("plan_problem task=%s problem=%s", None, problem)
        connection = broker.open_connection("start")
        try:
            tell(connection, None if problems else plan)
        finally:
            connection.close()


dramatiq.get_broker().add_middleware(Declaration())
