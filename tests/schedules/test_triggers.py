"""When is the next planned time? DST in a table, everything else against a slow reference (SPEC M1, FAILURES
34).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.schedules.timetable.triggers import Cron, Every, newest, trigger, upcoming, zone
from packhorse.worker.errors import InvalidArgument

MINUTE = timedelta(minutes=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def shown(line: str, time_zone: str, day: str, days: int = 1) -> list[str]:
    """Planned times from midnight UTC of a day on, as UTC `day hour:minute`."""
    start = at(day)
    return [
        f"{moment:%d %H:%M}"
        for moment in upcoming(
            Cron(line, time_zone), start - MINUTE / 2, start + timedelta(days=days) - MINUTE
        )
    ]


#: zone, the UTC day of the switch, cron line, planned times in UTC on that day. The comments say what the
#: wall clock does.
SWITCHES = [
    # 02:00 -> 03:00 at 01:00 UTC
    ("Europe/Berlin", "2026-03-29", "30 2 * * *", ["29 01:30"]),  # 03:30 in summer time
    ("Europe/Berlin", "2026-03-29", "0 2 * * *", ["29 01:00"]),
    ("Europe/Berlin", "2026-03-29", "0 3 * * *", ["29 01:00"]),
    ("Europe/Berlin", "2026-03-29", "30 2,3 * * *", ["29 01:30"]),  # two wall times, one instant: once
    (
        "Europe/Berlin",
        "2026-03-29",
        "0 */2 * * *",
        ["29 01:00", *[f"29 {hour:02}:00" for hour in range(2, 23, 2)]],
    ),
    # 03:00 -> 02:00 at 01:00 UTC
    ("Europe/Berlin", "2026-10-25", "30 2 * * *", ["25 00:30"]),  # the first 02:30
    ("Europe/Berlin", "2026-10-25", "0 3 * * *", ["25 02:00"]),
    ("Europe/Berlin", "2026-10-25", "0 2,3 * * *", ["25 00:00", "25 02:00"]),
    ("Europe/Berlin", "2026-10-25", "0 * * * *", [f"25 {hour:02}:00" for hour in range(24)]),
    ("Europe/Berlin", "2026-03-29", "0 * * * *", [f"29 {hour:02}:00" for hour in range(24)]),
    # 02:00 -> 03:00 at 07:00 UTC; 02:00 -> 01:00 at 06:00 UTC
    ("America/New_York", "2026-03-08", "30 2 * * *", ["08 07:30"]),
    ("America/New_York", "2026-03-08", "15 3 * * *", ["08 07:15"]),
    ("America/New_York", "2026-11-01", "30 1 * * *", ["01 05:30"]),
    ("America/New_York", "2026-11-01", "30 0-23 * * *", [f"01 {hour:02}:30" for hour in range(24)]),
    # half an hour: 02:00 -> 02:30 at 15:30 UTC; 02:00 -> 01:30 at 15:00 UTC
    ("Australia/Lord_Howe", "2026-10-03", "15 2 * * *", ["03 15:45"]),  # 02:45
    ("Australia/Lord_Howe", "2026-10-03", "30 2 * * *", ["03 15:30"]),
    ("Australia/Lord_Howe", "2026-04-04", "45 1 * * *", ["04 14:45"]),
    ("Australia/Lord_Howe", "2026-04-04", "0 2 * * *", ["04 15:30"]),
    # Ramadan: 03:00 -> 02:00 at 02:00 UTC; 02:00 -> 03:00 at 02:00 UTC
    ("Africa/Casablanca", "2026-02-15", "30 2 * * *", ["15 01:30"]),
    ("Africa/Casablanca", "2026-03-22", "30 2 * * *", ["22 02:30"]),
    # midnight itself did not exist: 00:00 -> 01:00 at 03:00 UTC; and came twice: 00:00 -> 23:00 at 02:00 UTC
    ("America/Sao_Paulo", "2018-11-04", "0 0 * * *", ["04 03:00"]),
    ("America/Sao_Paulo", "2018-11-04", "30 0 * * *", ["04 03:30"]),
    ("America/Sao_Paulo", "2019-02-17", "30 23 * * sat", ["17 01:30"]),
    ("America/Sao_Paulo", "2019-02-17", "0 0 * * sun", ["17 03:00"]),
    # never
    ("Africa/Kigali", "2026-03-29", "30 2 * * *", ["29 00:30"]),
    ("Africa/Kigali", "2026-10-25", "30 2 * * *", ["25 00:30"]),
]


@pytest.mark.parametrize(
    ("time_zone", "day", "line", "expected"), SWITCHES, ids=lambda value: str(value)[:30]
)
def test_both_switches_of_the_clock(time_zone, day, line, expected):
    assert shown(line, time_zone, day) == expected


@pytest.mark.parametrize(
    "time_zone",
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Africa/Kigali"],
)
def test_a_daily_time_happens_once_on_every_day_of_a_year(time_zone):
    local = ZoneInfo(time_zone)
    for line in ("30 2 * * *", "0 0 * * *", "59 1 * * *"):
        times = upcoming(Cron(line, time_zone), at("2025-12-31T12:00"), at("2026-12-31T11:00"))
        days = [moment.astimezone(local).date() for moment in times]
        assert len(days) == len(set(days)) == 365


# -- the slow reference --------------------------------------------------------------------------
class Line:
    """A cron line as sets of values, written by the test itself, so that no parser checks itself."""

    def __init__(
        self, minutes: set[int], hours: set[int], day: int | None, weekdays: set[int] | None, every_hour: bool
    ) -> None:
        self.minutes, self.hours, self.day, self.weekdays, self.every_hour = (
            minutes,
            hours,
            day,
            weekdays,
            every_hour,
        )
        self.text = " ".join(
            [
                ",".join(map(str, sorted(minutes))),
                "*" if every_hour else ",".join(map(str, sorted(hours))),
                "*" if day is None else str(day),
                "*",
                "*" if weekdays is None else ",".join(map(str, sorted(weekdays))),
            ]
        )

    def __repr__(self) -> str:
        return self.text

    def matches(self, wall: datetime) -> bool:
        return (
            wall.minute in self.minutes
            and (self.every_hour or wall.hour in self.hours)
            and self.day in (None, wall.day)
            and (self.weekdays is None or wall.isoweekday() % 7 in self.weekdays)
        )


def walked(line: Line, time_zone: str, after: datetime, until: datetime) -> list[datetime]:
    """Planned times by looking at the wall clock at each real minute; the rules of docs/schedules.md, said
    once more.
    """
    local = ZoneInfo(time_zone)
    seen: set[datetime] = set()
    found: set[datetime] = set()
    moment = (after - timedelta(hours=4)).replace(second=0, microsecond=0)
    before = (moment - MINUTE).astimezone(local).replace(tzinfo=None)
    while moment <= until:
        wall = moment.astimezone(local).replace(tzinfo=None)
        if line.matches(wall) and (line.every_hour or wall not in seen):
            found.add(moment)
        missing = before + MINUTE
        while not line.every_hour and missing < wall:  # the clock jumped over these
            if line.matches(missing):
                found.add(moment + (missing - before - MINUTE))
            missing += MINUTE
        seen.add(wall)
        before = wall
        moment += MINUTE
    return sorted(moment for moment in found if after < moment <= until)


lines = st.builds(
    Line,
    st.sets(st.integers(0, 59), min_size=1, max_size=4),
    st.sets(st.integers(0, 23) | st.integers(0, 3), min_size=1, max_size=4),
    st.none() | st.integers(1, 31),
    st.none(),
    st.booleans(),
) | st.builds(
    Line,
    st.sets(st.integers(0, 59), min_size=1, max_size=4),
    st.sets(st.integers(0, 23), min_size=1),
    st.none(),
    st.sets(st.integers(0, 6), min_size=1),
    st.booleans(),
)
#: the night of a switch, at any second around it; or any time
SWITCH_TIMES = [
    at("2026-03-29T01:00"),
    at("2026-10-25T01:00"),
    at("2026-03-08T07:00"),
    at("2026-11-01T06:00"),
    at("2026-10-03T15:30"),
    at("2026-04-04T15:00"),
    at("2026-02-15T02:00"),
    at("2026-03-22T02:00"),
    at("2018-11-04T03:00"),
    at("2019-02-17T02:00"),
]
moments = st.builds(
    lambda base, seconds: base + timedelta(seconds=seconds),
    st.sampled_from(SWITCH_TIMES),
    st.integers(-20_000, 20_000),
) | st.datetimes(datetime(2015, 1, 1), datetime(2030, 1, 1)).map(lambda naive: naive.replace(tzinfo=UTC))
zones = st.sampled_from(
    [
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Africa/Casablanca",
        "America/Sao_Paulo",
        "Africa/Kigali",
        "Asia/Kathmandu",
        "UTC",
    ]
)


@settings(max_examples=120, deadline=None)
@given(lines, zones, moments)
@pytest.mark.slow
def test_planned_times_are_those_of_the_slow_reference_and_ascend(line, time_zone, moment):
    until = moment + timedelta(hours=30)
    times = upcoming(Cron(line.text, time_zone), moment, until)
    assert times == walked(line, time_zone, moment, until)
    assert all(earlier < later for earlier, later in zip(times, times[1:], strict=False))


@settings(max_examples=120, deadline=None)
@given(lines, zones, moments)
@pytest.mark.slow
def test_the_fast_path_and_the_careful_one_agree(line, time_zone, moment):
    fast, careful = Cron(line.text, time_zone), Cron(line.text, time_zone)
    careful._calm = lambda moment: False  # type: ignore[method-assign]
    assert upcoming(fast, moment, limit=4) == upcoming(careful, moment, limit=4)


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 10**6), moments)
def test_intervals_are_counted_from_the_epoch_for_everybody(seconds, moment):
    of = Every(seconds)
    first, second, third = upcoming(of, moment, limit=3)
    assert moment < first < second < third
    assert (
        second - first
        == third - second
        == first - of.after(first - (second - first) - timedelta(microseconds=1))
    )
    assert of.after(first - timedelta(microseconds=1)) == first


# -- fields --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "days"),
    [
        ("0", "Sun"),
        ("7", "Sun"),
        ("1", "Mon"),
        ("6", "Sat"),
        ("sun", "Sun"),
        ("SUN", "Sun"),
        ("1-5", "Mon Tue Wed Thu Fri"),
        ("5-7", "Sun Fri Sat"),
        ("mon-fri", "Mon Tue Wed Thu Fri"),
        ("6-1", "Sun Mon Sat"),
        ("fri-mon", "Sun Mon Fri Sat"),
        ("0-7", "Sun Mon Tue Wed Thu Fri Sat"),
        ("*/2", "Sun Tue Thu Sat"),
        ("mon-fri/2", "Mon Wed Fri"),
        ("1,sat", "Mon Sat"),
        ("sun-tue", "Sun Mon Tue"),
    ],
)
def test_weekdays_are_those_of_cron(field, days):
    # Saturday to Saturday
    times = upcoming(Cron(f"0 12 * * {field}"), at("2026-11-21T12:00"), at("2026-11-28T12:00"))
    assert sorted(f"{moment:%a}" for moment in times) == sorted(days.split())


@pytest.mark.parametrize(
    ("field", "months"),
    [("1", [1]), ("jan", [1]), ("jan-mar/2", [1, 3]), ("nov-feb", [1, 2, 11, 12]), ("*/6", [1, 7])],
)
def test_months_have_names_and_ranges_over_the_end_of_the_year(field, months):
    times = upcoming(Cron(f"0 0 1 {field} *"), at("2025-12-31"), at("2026-12-31"))
    assert sorted({moment.month for moment in times}) == months


def test_the_last_day_of_a_month_and_leap_days():
    assert [f"{moment:%m-%d}" for moment in upcoming(Cron("0 0 last * *"), at("2028-01-15"), limit=3)] == [
        "01-31",
        "02-29",
        "03-31",
    ]
    assert [f"{moment:%Y}" for moment in upcoming(Cron("0 0 29 2 *"), at("2026-01-15"), limit=2)] == [
        "2028",
        "2032",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 0 *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "5-1 * * * *",
        "0,,5 * * * *",
        "a * * * *",
        "0 0 30 2 *",
        "0 0 31 2,4,6,9,11 *",
        "0 0 1 * mon",
        "0 0 */2 * 1",
        "0 7 * * monx",
        "0 7 * * mon-fri/x",
        "0 7 * jan-mar/ *",
        "0 7 lastx * *",
        "0 7 ? * *",
        "0 7 L * *",
        "0 7 * * mon#1",
        "@daily",
        "-1 * * * *",
        "0 7 * * 1,",
        "1e1 * * * *",
        "* * * * *; drop table schedules",
        "0 7 * janx *",
        "*/100 * * * *",
    ],
)
def test_lines_that_make_no_sense_are_refused_and_name_the_field(line):
    with pytest.raises(InvalidArgument) as refused:
        Cron(line)
    assert refused.value.field == "cron" and str(refused.value).startswith("cron: ")


def test_whether_a_line_ever_happens_is_known_at_once():
    """The search went to the year 9999: a second for each look at such a line, at the start and in each
    loop.
    """
    began = time.process_time()
    for line in ("0 0 31 2,4,6,9,11 *", "* * 30,31 2 *", "0 0 31 4 *", "*/5 * 31 11 *"):
        with pytest.raises(InvalidArgument, match="never happens"):
            Cron(line)
    assert time.process_time() - began < 0.3
    assert [f"{moment:%Y-%m-%d}" for moment in upcoming(Cron("0 0 29 2 *"), at("2096-03-01"), limit=2)] == [
        "2104-02-29",
        "2108-02-29",
    ]


def test_a_trigger_is_cron_or_an_interval_and_not_both():
    for cron, every in ((None, None), ("* * * * *", 60)):
        with pytest.raises(InvalidArgument, match="either cron or every"):
            trigger(cron, every)
    for every in (0, 0.5, -1, float("nan"), float("inf"), 3661 * 86400):
        with pytest.raises(InvalidArgument, match="every"):
            trigger(None, every)


def test_an_unknown_zone_is_refused_with_a_near_miss():
    with pytest.raises(InvalidArgument, match="Did you mean 'Africa/Kigali'"):
        zone("Africa/Kigaly")
    for name in ("", "../etc/passwd", "CEST+2", "x" * 5000, "Europe/\0"):
        with pytest.raises(InvalidArgument, match="time_zone"):
            zone(name)


# -- a long absence ------------------------------------------------------------------------------
@lru_cache
def all_of(line: str) -> tuple[datetime, datetime, list[datetime]]:
    """A year of planned times, or two weeks when there is one in each minute; computed once for every
    limit.
    """
    after, until = (
        at("2025-11-20T10:00"),
        at("2025-12-04T10:00") if line == "* * * * *" else at("2026-11-21T10:00"),
    )
    return after, until, upcoming(Cron(line, "Africa/Kigali"), after, until, 10**9)


@pytest.mark.parametrize("line", ["* * * * *", "* 9 1 * *", "0 7 * * mon-fri", "*/7 3,4 * * 1", "* * 1 1 *"])
@pytest.mark.parametrize("limit", [1, 7, 1000])
@pytest.mark.slow
def test_newest_after_a_year_of_absence_is_the_tail_of_all(line, limit):
    after, until, everything = all_of(line)
    assert newest(Cron(line, "Africa/Kigali"), after, until, limit) == everything[-limit:]


def test_newest_with_an_interval_of_a_second_does_not_count_a_year():
    of = Every(1)
    until = at("2026-11-21T10:00")
    assert newest(of, at("2016-11-21"), until, 3) == [
        until - timedelta(seconds=seconds) for seconds in (2, 1, 0)
    ]


def test_newest_is_bounded_work_over_a_switch_of_the_clock(monkeypatch):
    """An endless or quadratic search would show here: each planned time costs a bounded number of looks."""
    looks = 0
    of = Cron("*/5 * * * *", "Europe/Berlin")
    look = of._next_wall

    def counted(wall):
        nonlocal looks
        looks += 1
        return look(wall)

    monkeypatch.setattr(of, "_next_wall", counted)
    times = newest(of, at("2020-01-01"), at("2026-03-29T02:00"), 100)
    assert len(times) == 100
    assert looks < 100 * 200
