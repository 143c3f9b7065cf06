"""When is the next planned time? APScheduler's cron fields, with daylight saving time said once (SPEC M1).

A planned time follows from the trigger alone, so that every scheduler process computes the same ones. Cron
lines are matched against the wall clock of their zone:

- A wall time that does not exist (clocks go forward) happens as many minutes later as the clock jumped.
- A wall time that exists twice (clocks go back) happens once, at its first occurrence.
- A line whose hour field is `*` means "in every hour": it goes by real time, neither skips nor repeats.

APScheduler computes in UTC here: its own arithmetic with zones repeats and skips (FAILURES 34). Weekdays are
cron's (0 and 7 are Sunday), not APScheduler's (0 is Monday).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.suggest import did_you_mean

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
#: No clock moves by more, but for islands that change their date (Samoa in 2011: a day that never was).
LARGEST_SHIFT = timedelta(hours=3)
#: What never happens in these years never happens: every date of a calendar does, but for weekdays of
#: February 29, which no line can name.
BEGINNING, HORIZON = datetime(2000, 1, 1, tzinfo=UTC), datetime(2008, 12, 31, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Every:
    """A fixed interval, counted from the epoch: the same instants for everybody."""

    def __init__(self, seconds: float) -> None:
        if not 1 <= seconds <= 3660 * 86400:
            raise InvalidArgument("every: must be between 1 second and ten years", field="every")
        self._step = timedelta(seconds=seconds)

    def after(self, moment: datetime) -> datetime:
        """The first planned time later than `moment` (aware)."""
        return EPOCH + ((moment - EPOCH) // self._step + 1) * self._step


class Cron:
    """Five fields (minute hour day month weekday) on the wall clock of a zone."""

    def __init__(self, line: str, time_zone: str = "UTC") -> None:
        self._zone = zone(time_zone)
        fields = line.split()
        if len(fields) != 5:
            raise InvalidArgument(
                f"cron: {line[:60]!r} has {len(fields)} fields, not five",
                field="cron",
                hint="minute hour day month weekday",
            )
        if fields[2] != "*" and fields[4] != "*":
            raise InvalidArgument(
                f"cron: {line[:60]!r} names days of the month and of the week; programs disagree whether one or both must match",
                field="cron",
                hint="Make two schedules.",
            )
        minute, hour, day, month, weekday = (field.lower() for field in fields)
        self._every_hour = hour in ("*", "*/1", "0-23")
        try:
            # APScheduler reads the beginning and ignores the rest
            if day.startswith("last") and day != "last":
                raise ValueError(f"{day!r} is not a day of the month")
            named = {
                "minute": minute,
                "hour": hour,
                "day": day,
                "month": _months(month),
                "day_of_week": _weekdays(weekday),
                "timezone": UTC,
            }
            self._fields = CronTrigger(**named)
            soon = CronTrigger(**named, end_date=HORIZON)
        except (ValueError, TypeError) as error:
            raise InvalidArgument(
                f"cron: {line[:60]!r}: {error}", field="cron", hint="minute hour day month weekday"
            ) from None
        if soon.get_next_fire_time(None, BEGINNING) is None:
            raise InvalidArgument(
                f"cron: {line[:60]!r} never happens", field="cron", hint="No month has that day."
            )

    def after(self, moment: datetime) -> datetime:
        """The first planned time later than `moment` (aware), in UTC."""
        plain = self._next_wall(_wall(moment, self._zone))
        if (
            plain is not None
            and self._calm(moment)
            and self._calm(instant := plain.replace(tzinfo=self._zone).astimezone(UTC))
        ):
            return instant
        wall = self._next_wall(_wall(moment, self._zone) - LARGEST_SHIFT)
        best: datetime | None = None
        while wall is not None:
            for instant in self._instants(wall):
                if instant > moment and (best is None or instant < best):
                    best = instant
            if best is not None and wall > _wall(best, self._zone) + LARGEST_SHIFT:
                break
            wall = self._next_wall(wall)
        if best is None:
            raise InvalidArgument("cron: has no planned time after this one", field="cron")
        return best

    def _calm(self, moment: datetime) -> bool:
        """No clock change near this instant: wall times and instants go together."""
        offsets = {
            (moment + shift).astimezone(self._zone).utcoffset()
            for shift in (-LARGEST_SHIFT, timedelta(0), LARGEST_SHIFT)
        }
        return len(offsets) == 1

    def _next_wall(self, wall: datetime) -> datetime | None:
        after = wall.replace(tzinfo=UTC) + timedelta(microseconds=1)
        found = self._fields.get_next_fire_time(None, after)
        return found.replace(tzinfo=None) if found is not None else None

    def _instants(self, wall: datetime) -> Iterator[datetime]:
        """The instants at which the wall clock shows this time, by the rules above."""
        first = wall.replace(tzinfo=self._zone).astimezone(UTC)
        exists = _wall(first, self._zone) == wall
        if exists or not self._every_hour:
            yield first  # a time that does not exist: `first` lies as far behind the jump as the clock jumped
        second = wall.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        if exists and self._every_hour and second != first:
            yield second


Trigger = Cron | Every


@lru_cache(maxsize=1024)
def trigger(cron: str | None, every_seconds: float | None, time_zone: str = "UTC") -> Trigger:
    """The trigger of a schedule. Raises InvalidArgument that names the field."""
    if (cron is None) == (every_seconds is None):
        raise InvalidArgument("cron: give either cron or every", field="cron")
    return Cron(cron, time_zone) if cron is not None else Every(every_seconds or 0)


def upcoming(
    of: Trigger, after: datetime, until: datetime | None = None, limit: int = 1000
) -> list[datetime]:
    """Planned times after `after`, at most `limit`, and none later than `until`; ascending."""
    found: list[datetime] = []
    while len(found) < limit:
        after = of.after(after)
        if until is not None and after > until:
            break
        found.append(after)
    return found


def newest(of: Trigger, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """The newest planned times after `after` and not after `until`, at most `limit`; however long ago `after`
    was.
    """
    oldest = upcoming(of, after, until, limit)
    if len(oldest) < limit:
        return oldest
    span = max(oldest[-1] - oldest[0], timedelta(minutes=1))
    # jump over what nobody asks for: look back from the end, twice as far each time, until there are enough
    while True:
        start = max(after, until - span)
        found: deque[datetime] = deque(maxlen=limit)
        moment = start
        while (moment := of.after(moment)) <= until:
            found.append(moment)
        if len(found) == limit or start == after:
            return list(found)
        span *= 2


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name. Raises InvalidArgument with a near miss."""
    try:
        found = ZoneInfo(name)  # the list of all zones is a walk through a directory: for the near miss only
        # a directory also holds posixrules, localtime and the like
        if name == "UTC" or "/" in name or name in available_timezones():
            return found
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    raise InvalidArgument(
        f"time_zone: {name[:60]!r} is not a time zone",
        field="time_zone",
        hint=did_you_mean(name, available_timezones(), "For example Africa/Kigali."),
    )


def _wall(moment: datetime, of: ZoneInfo) -> datetime:
    return moment.astimezone(of).replace(tzinfo=None, fold=0)


def _weekdays(field: str) -> str:
    """cron's weekday field in names: 0 and 7 are Sunday, ranges may go over the end of the week."""
    return (
        field
        if field == "*"
        else ",".join(WEEKDAYS[day % 7] for day in _named(field, "weekday", WEEKDAYS, 0, 7))
    )


def _months(field: str) -> str:
    """cron's month field in numbers; ranges may go over the end of the year."""
    return (
        field
        if field == "*"
        else ",".join(str((month - 1) % 12 + 1) for month in _named(field, "month", MONTHS, 1, 12))
    )


def _named(field: str, what: str, names: tuple[str, ...], low: int, high: int) -> list[int]:
    """The values of a field whose values have names; those past the end stand for the beginning. Raises
    ValueError.
    """

    def number(text: str) -> int:
        found = int(text) if text.isdigit() else names.index(text) + low if text in names else -1
        if not low <= found <= high:
            raise ValueError(f"{text!r} is not a {what}")
        return found

    values: set[int] = set()
    for part in field.split(","):
        matched = re.fullmatch(r"(?:(\*)|(\d+|[a-z]+)(?:-(\d+|[a-z]+))?)(?:/(\d+))?", part)
        if matched is None:
            raise ValueError(f"{part!r} is not a {what}")
        star, first, last, step = matched.groups()
        begin, end = (low, low + len(names) - 1) if star else (number(first), number(last or first))
        if step is not None and not 1 <= int(step) <= len(names):
            raise ValueError(f"{part!r}: the step must be between 1 and {len(names)}")
        if end < begin:
            end += len(names)
        values.update((value - low) % len(names) + low for value in range(begin, end + 1, int(step or 1)))
    return sorted(values)
