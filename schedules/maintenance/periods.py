"""The calendar of partitions: periods in UTC, names, the bounds of the catalogue as instants, what is not
covered.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from packhorse.worker.store import partitions as store


def period_start(moment: datetime, every: str, shift: int = 0) -> datetime:
    """The first instant (UTC) of the period in which `moment` lies, `shift` periods on."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if every == "day":
        return day + timedelta(days=shift)
    if every == "week":
        return day - timedelta(days=day.weekday()) + timedelta(weeks=shift)
    months = day.year * 12 + day.month - 1 + shift
    return day.replace(year=months // 12, month=months % 12 + 1, day=1)


def partition_name(table: str, start: datetime, every: str, whole: bool = True) -> str:
    """table_20261121, table_2026w47 or table_2026_11, by UTC; the part of the table is cut to keep 63 bytes.

    whole: False for what fills a small hole in a period, table_20261130_2200: the period's name may be
    somebody's.
    """
    suffix = start.astimezone(UTC).strftime(
        {"day": "%Y%m%d", "week": "%Gw%V", "month": "%Y_%m"}[every] if whole else "%Y%m%d_%H%M"
    )
    return f"{table[: 62 - len(suffix)]}_{suffix}"


def uncovered(
    ranges: list[tuple[datetime, datetime]], start: datetime, end: datetime
) -> list[tuple[datetime, datetime]]:
    """What is left of a period when these ranges are taken out of it; ascending.

    Partitions of an adopted table begin where another time zone's months begin, or at days: a period is
    rarely there or not.
    """
    left = []
    for lower, upper in sorted(ranges):
        if lower < end and start < upper:
            if start < lower:
                left.append((start, lower))
            start = upper
    return [*left, (start, end)] if start < end else left


def runway_seconds(found: list[store.Partition], now: datetime) -> float:
    """How long inserts at the database's clock go on finding a partition; 0 when there is none for now."""
    end = now
    for lower, upper in sorted(
        (lower_bound(p), upper_bound(p)) for p in found if not p.is_default and not p.detach_pending
    ):
        if lower <= end < upper:
            end = upper
    return (end - now).total_seconds()


def lower_bound(of: store.Partition) -> datetime:
    """Where a partition begins; MINVALUE is the beginning of time."""
    return datetime.min.replace(tzinfo=UTC) if of.lower is None else _instant(of.lower)


def upper_bound(of: store.Partition) -> datetime:
    """Where a partition ends; MAXVALUE is the end of time."""
    return datetime.max.replace(tzinfo=UTC) if of.upper is None else _instant(of.upper)


def _instant(bound: str) -> datetime:
    """A bound of the catalogue; one without a time zone is UTC."""
    if bound == "-infinity":
        return datetime.min.replace(tzinfo=UTC)
    if bound == "infinity":
        return datetime.max.replace(tzinfo=UTC)
    try:
        found = datetime.fromisoformat(bound)
    except ValueError:  # the server's years go from 4713 BC to 294276, Python's from 1 to 9999
        return (datetime.min if bound.endswith("BC") else datetime.max).replace(tzinfo=UTC)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
