"""Schedules and maintenance: what is to be done again and again, and what keeps the database healthy (SPEC M).

`schedules.schedule(actor, cron=…)` declares a schedule beside an actor; TOML and SQL do the same for people
without Python. Imports have no effect on the outside.
"""

from packhorse.schedules.registry import schedule
from packhorse.schedules.timetable.schedule import Schedule

__all__ = ["Schedule", "schedule"]
