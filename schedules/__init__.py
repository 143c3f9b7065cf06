"""Schedules and maintenance: what is to be done again and again, and what keeps the database healthy (SPEC
M).

`schedules.schedule(actor, cron=…)` declares a schedule beside an actor; TOML and SQL do the same for people
without Python. Imports have no effect on the outside.
"""

from typing import TYPE_CHECKING

from packhorse.worker.lazy import names_of

if TYPE_CHECKING:
    from packhorse.schedules.registry import schedule
    from packhorse.schedules.timetable.schedule import Schedule

__all__ = ["Schedule", "schedule"]

if not TYPE_CHECKING:  # a worker looks whether there is a plan, and needs no triggers for that
    __getattr__, __dir__ = names_of(
        __name__,
        __all__,
        {"Schedule": "timetable.schedule", "schedule": "registry"},
        package="packhorse.schedules",
    )
