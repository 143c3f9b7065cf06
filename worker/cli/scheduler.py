"""packhorse scheduler: the timetable and maintenance, as worker processes with one actor of their own."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Annotated

import typer
from pydantic import SecretStr

from packhorse.schedules.config import read_plan
from packhorse.schedules.maintenance.checking import check_plan
from packhorse.schedules.registry import QUEUE
from packhorse.worker.cli.common import configure_logging, database_url
from packhorse.worker.cli.maintenance import owner
from packhorse.worker.config import load_settings
from packhorse.worker.errors import ConfigError, StoreUnavailable

#: The module whose import adds the scheduler to a worker process; last, so that it joins the broker of users'
#: modules.
MODULE = "packhorse.schedules.actors"

Modules = Annotated[
    list[str] | None,
    typer.Argument(
        help="Modules that declare schedules; default: the setting `actors`.", metavar="[MODULES]..."
    ),
]


def scheduler(modules: Modules = None) -> int:
    """Fire schedules and run maintenance. Any number of these may run: none leads. Signals as for `packhorse
    worker`.
    """
    from packhorse.worker.db.embedded import Embedded
    from packhorse.worker.fleet.supervisor import Supervisor
    from packhorse.worker.observe.systemd import Notifier

    settings = load_settings(actors=",".join(modules) if modules else None)
    url = database_url(settings)
    configure_logging(settings)
    refuse_bad_plan()
    embedded = Embedded(settings.data_dir) if settings.database_url is None else None
    chosen = settings.model_copy(
        update={
            "actors": (*settings.actors, MODULE),
            "queues": (QUEUE,),
            "processes": 1,
            "threads": 4,
            # NOTIFY starts what is due; the poll behind it can be slow
            "poll_seconds": max(settings.poll_seconds, 10.0),
            "database_url": SecretStr(url),
            # on the embedded server the owner is known
            "maintenance_url": settings.maintenance_url
            or (SecretStr(database_url(settings, owner=True)) if embedded is not None else None),
        }
    )
    with embedded or nullcontext():
        return Supervisor(chosen, notifier=Notifier(os.environ)).run()


def refuse_bad_plan() -> None:
    """Raise ConfigError with everything that is wrong in the plan; a database that does not answer yet is
    waited for later.

    Raises SchemaMismatch.
    """
    plan, problems = read_plan()
    try:
        with owner() as connection:
            problems += [problem for _, problem in check_plan(connection, plan).problems]
    except StoreUnavailable:
        pass
    if problems:
        raise ConfigError(problems)
