"""Where a test stands in the calendar, and days that are far enough from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.support.postgres import Database
from tests.support.waiting import wait_until

#: The archive of a database that is as old as the tests has no partition for what was done before midnight.
PARTITION_OF_YESTERDAY = """
do $$ declare v_day constant date := (clock_timestamp() at time zone 'UTC')::date - 1; begin
  execute format('create table if not exists packhorse.message_archive_%s partition of packhorse.message_archive for values from (%L) to (%L)',
    to_char(v_day, 'YYYYMMDD'), v_day::timestamp at time zone 'UTC', (v_day + 1)::timestamp at time zone 'UTC');
end $$
"""


def past_midnight(database: Database) -> None:
    """Nothing, but in the last ten seconds of a day by UTC: there it waits for the next one."""
    day = "((clock_timestamp() + %s * interval '1 second') at time zone 'UTC')::date"
    wait_until(lambda: database.value(f"select {day} = {day}", 0, 10))


def days_to_another_offset(zone: str, direction: int) -> int:
    """How many days away, in the past (-1) or the future (1), the clocks of this zone are ahead of UTC by
    another number of hours than now.
    """
    now = datetime.now(UTC)
    here = now.astimezone(ZoneInfo(zone)).utcoffset()
    return next(
        days
        for days in range(1, 366)
        if (now + direction * timedelta(days=days)).astimezone(ZoneInfo(zone)).utcoffset() != here
    )


def not_soon() -> str:
    """A cron line for one instant a year, half a year away."""
    return f"0 0 1 {(datetime.now(UTC).month + 5) % 12 + 1} *"


def in_utc(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The same with times by UTC: those of one zone are subtracted and compared by what its clocks showed."""
    return [
        tuple(value.astimezone(UTC) if isinstance(value, datetime) else value for value in row)
        for row in rows
    ]
