"""What users and Packhorse configure: one retention or partition policy is one line (SPEC M5, M6)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from packhorse.schedules.timetable.triggers import trigger
from packhorse.worker.errors import InvalidArgument

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,79}")
TABLE = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_$]{0,62}\.)?[A-Za-z_][A-Za-z0-9_$]{0,62}")
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
PERIODS = ("day", "week", "month")


@dataclass(frozen=True, slots=True)
class Retention:
    """Delete (or change) rows whose `column` is older than keep_seconds, in batches.

    table: [schema.]table, default the policy's name. where: SQL that narrows it down; {cutoff} in it is the
    time before which rows go. assign: `column = value, …`: update instead of delete (where must then exclude
    what is done). batch: most rows of one transaction, 1..100000. budget_seconds: a run pauses after that and
    the next one goes on. pause_ratio: rest after a batch, as a share of the batch's time. optional: left out
    while the table does not exist. Raises InvalidArgument.
    """

    name: str
    column: str
    keep_seconds: float
    table: str = ""
    where: str | None = None
    assign: str | None = None
    batch: int = 1000
    cron: str = "0 3 * * *"
    time_zone: str = "UTC"
    budget_seconds: float = 600.0
    pause_ratio: float = 5.0
    optional: bool = False
    source: str = "packhorse"

    def __post_init__(self) -> None:
        if not self.table:
            object.__setattr__(self, "table", self.name)
        _check_names(self.name, self.table, self.column)
        _range("keep", self.keep_seconds, 0, 3660 * 86400)
        _range("batch", self.batch, 1, 100_000)
        _range("budget_seconds", self.budget_seconds, 1, 86400)
        _range("pause_ratio", self.pause_ratio, 0, 100)
        for field, text in (("where", self.where), ("assign", self.assign)):
            if text is not None and (";" in text or not text.strip()):
                raise InvalidArgument(
                    f"{field}: must be one SQL expression, without a semicolon", field=field
                )
        trigger(self.cron, None, self.time_zone)

    @property
    def task(self) -> str:
        return f"retention.{self.name}"


@dataclass(frozen=True, slots=True)
class Partitions:
    """Range partitions of a table on a time column: made ahead, detached when old, dropped after a grace.

    every: day, week or month (UTC). ahead: periods beyond the current one, 1..400. keep: whole periods before
    the current one that stay, 1..10000; keep_setting: for message_archive, the longest keep_done of the
    queues when that is more. grace_seconds: between detach and drop. export_dir: write each partition there
    as gzipped CSV before its drop. Raises InvalidArgument.
    """

    name: str
    column: str
    every: Literal["day", "week", "month"]
    ahead: int
    keep: int
    table: str = ""
    grace_seconds: float = 86400.0
    export_dir: str | None = None
    make_cron: str = "20 */6 * * *"
    drop_cron: str = "50 1 * * *"
    time_zone: str = "UTC"
    keep_setting: bool = False
    optional: bool = False
    source: str = "packhorse"

    def __post_init__(self) -> None:
        if not self.table:
            object.__setattr__(self, "table", self.name)
        _check_names(self.name, self.table, self.column)
        if self.every not in PERIODS:
            raise InvalidArgument(
                f"every: {str(self.every)[:40]!r} is not known",
                field="every",
                hint=f"One of {', '.join(PERIODS)}.",
            )
        _range("ahead", self.ahead, 1, 400)
        _range("keep", self.keep, 1, 10_000)
        _range("grace", self.grace_seconds, 0, 366 * 86400)
        for field, line in (("make_cron", self.make_cron), ("drop_cron", self.drop_cron)):
            try:
                trigger(line, None, self.time_zone)
            except InvalidArgument as error:
                if error.field == "cron":
                    raise InvalidArgument(str(error).replace("cron", field, 1), field=field) from None
                raise

    @property
    def make_task(self) -> str:
        return f"partitions.{self.name}.make"

    @property
    def drop_task(self) -> str:
        return f"partitions.{self.name}.drop"


@dataclass(frozen=True, slots=True)
class Gates:
    """When a long run waits: each value is the most that still lets it go on; None (in TOML: inf) switches a
    gate off.

    Raises InvalidArgument.
    """

    replication_lag_seconds: float | None = 10.0
    autovacuum_on_table: float | None = 0.0
    oldest_snapshot_seconds: float | None = 900.0
    connections_ratio: float | None = 0.85
    queue_latency_seconds: float | None = 10.0

    def __post_init__(self) -> None:
        for field in self.__dataclass_fields__:
            value = getattr(self, field)
            if value is not None and not value >= 0:
                raise InvalidArgument(
                    f"{field}: must be 0 or more", field=field, hint="inf switches a gate off."
                )


def _check_names(name: str, table: str, column: str) -> None:
    for field, pattern, text in (("name", NAME, name), ("table", TABLE, table), ("column", COLUMN, column)):
        if not pattern.fullmatch(text):
            raise InvalidArgument(
                f"{field}: {text[:80]!r} is not a name",
                field=field,
                hint="Letters, digits and underscores; [schema.]table.",
            )


def _range(field: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidArgument(f"{field}: must be between {low:g} and {high:.10g}", field=field)
