"""The overview: problems first, then speed, then queues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from packhorse.worker.records import Row
from packhorse.worker.store import web_overview
from packhorse.worker.web.reading import NoAnswer, Reader
from packhorse.worker.web.render import number, seconds
from packhorse.worker.web.screens import Query

PATH = "/"
TITLE = "Overview"
NAV = "Overview"
TEMPLATE = "overview.html"

#: The screen that shows more of a check.
SCREENS = {
    "queue_health": "/queues",
    "dead_letters": "/dead-letters",
    "conversation_state": "/conversations",
    "system_summary": "/workers",
    "circuit_breakers": "/services",
    "error_rate": "/dead-letters",
    "processing_latency": "/queues",
    "stale_locks": "/workers",
}
CHECK_SECONDS = 10.0
QUEUE_SECONDS = 2.0
#: So many queues the check of queues tells, those that need it most first.
MOST_QUEUES = 50
#: Of each check at most so many problems have a line of their own.
MOST_LINES = 10
MINUTES = 60


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that is not as it should be. status: warn or fail. what: the thing, in two or three words.
    path: of the screen that shows more.
    """

    status: str
    what: str
    text: str
    path: str


@dataclass(frozen=True, slots=True)
class Speed:
    """What was done in the last hour. whole: or only the newest of it.

    wait, run: p50, p95, p99 in seconds. minutes: messages per minute, oldest first, None where not known.
    starts: of workers, (place from 0 to 1, words).
    """

    done: int
    per_second: float
    whole: bool
    wait: list[float | None]
    run: list[float | None]
    minutes: list[float | None]
    starts: list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class QueuePace:
    """A queue. row: of the check of queues. per_second: done lately.

    drain_seconds: until what is due is done at this speed; None when nothing is due or nothing moves.
    """

    row: Row
    per_second: float
    wait: float | None
    run: float | None
    drain_seconds: float | None


@dataclass(frozen=True, slots=True)
class OverviewPage:
    """unknown: checks that did not answer. queues: None when their check did not; are_all: there are no more
    than those.
    """

    concerns: list[Concern]
    unknown: list[str]
    speed: Speed | None
    queues: list[QueuePace] | None
    are_all: bool


async def load(reader: Reader, query: Query) -> OverviewPage:
    """No parameters. Raises NoAnswer when nothing at all is known."""
    ends, starts, *answers = await asyncio.gather(
        _or_none(reader, "recent ends", CHECK_SECONDS, web_overview.recent_ends),
        _or_none(reader, "worker starts", CHECK_SECONDS, web_overview.worker_starts),
        *(
            _or_none(
                reader,
                "check",
                QUEUE_SECONDS if name == "queue_health" else CHECK_SECONDS,
                web_overview.check,
                name,
            )
            for name in web_overview.CHECKS
        ),
    )
    checks: dict[str, Row | None] = dict(zip(web_overview.CHECKS, answers, strict=True))
    if all(found is None for found in checks.values()):
        raise NoAnswer("the checks: none of them was answered")
    concerns = [concern for name, found in checks.items() for concern in _concerns(name, found)]
    by_queue = {row["queue"]: row for row in ends or []}
    health = checks["queue_health"]
    queues: list[Row] | None = None if health is None else _details(health).get("queues") or []
    return OverviewPage(
        sorted(concerns, key=lambda concern: concern.status),  # fail before warn
        [name.replace("_", " ") for name, found in checks.items() if found is None],
        _speed(by_queue[None], starts or []) if None in by_queue else None,
        None if queues is None else [_line(row, by_queue.get(row["queue"])) for row in queues],
        queues is None or len(queues) < MOST_QUEUES,
    )


async def _or_none(reader: Reader, name: str, ttl: float, function: Any, *args: str) -> Any:
    """An answer that the overview can do without."""
    try:
        return await reader.ask(name, ttl, function, *args)
    except NoAnswer:
        return None


def _details(check: Row) -> dict[str, Any]:
    return check["details"] if isinstance(check["details"], dict) else {}


def _speed(row: Row, starts: list[Row]) -> Speed:
    counts = dict(row["minutes"] or [])
    # what is older was not read
    known = min(MINUTES, int(row["seconds"] / 60)) if row["seconds"] else MINUTES
    minutes = [float(counts.get(ago, 0)) if ago < known else None for ago in reversed(range(MINUTES))]
    marks = [
        (
            1 - start["minutes_ago"] / (MINUTES - 1),
            f"{number(start['processes'])} of version {start['version']} started {start['minutes_ago']} min ago",
        )
        for start in starts
        if start["minutes_ago"] < MINUTES
    ]
    nothing: list[float | None] = [None] * 3
    per_second = row["done"] / row["seconds"] if row["seconds"] else 0.0
    return Speed(
        row["done"],
        per_second,
        row["whole"] is not False,
        row["wait"] or nothing,
        row["run"] or nothing,
        minutes,
        marks,
    )


def _line(row: Row, ends: Row | None) -> QueuePace:
    if ends is None or not ends["lately_seconds"]:
        return QueuePace(row, 0.0, None, None, None)
    per_second = ends["done_lately"] / ends["lately_seconds"]
    drain = row["due"] / per_second if row["due"] and per_second and not row["paused"] else None
    wait, run = (percentiles[1] if percentiles else None for percentiles in (ends["wait"], ends["run"]))
    return QueuePace(row, per_second, wait, run, drain)


def _concerns(name: str, row: Row | None) -> Iterator[Concern]:
    """Problems of one check: the queues, workers and so on that are at fault, each by itself where the check
    names them; else its sentence.
    """
    if row is None or row["status"] not in ("warn", "fail"):
        return
    whole = Concern(row["status"], name.replace("_", " "), row["summary"], SCREENS[name])
    details = _details(row)
    parts = {
        "queue_health": _late_queues,
        "dead_letters": _dead_letters,
        "system_summary": _system,
        "circuit_breakers": _breakers,
    }
    yield from list(parts.get(name, _nothing_more)(whole, details)) or [whole]


def _nothing_more(whole: Concern, details: dict[str, Any]) -> Iterator[Concern]:
    yield from ()


def _dead_letters(whole: Concern, details: dict[str, Any]) -> Iterator[Concern]:
    yield whole
    if details.get("quarantined"):
        text = f"{number(details['quarantined'])} in the last hour: the process died each time while one of them ran"
        yield Concern("fail", "quarantined", text, "/dead-letters?where=error%3DWorkerLost")


def _late_queues(whole: Concern, details: dict[str, Any]) -> Iterator[Concern]:
    late = [queue for queue in details.get("queues") or [] if queue["status"] != "ok"]
    for queue in late[:MOST_LINES]:
        said = [
            f"{'~' if 'pending' in queue['estimates'] else ''}{number(queue['due'])} due",
            queue["oldest_due_seconds"] is not None
            and f"the oldest for {seconds(queue['oldest_due_seconds'])}",
            queue["paused"] and "paused",
            not queue["has_worker"] and queue["declared"] and "no live worker",
            not queue["declared"] and "nobody has declared it",
        ]
        yield Concern(
            queue["status"],
            f"queue {queue['queue']}",
            ", ".join(text for text in said if text),
            "/queues/" + quote(queue["queue"], safe=""),
        )
    if details.get("refused"):
        yield Concern(
            "warn",
            "not written",
            f"{number(details['refused'])} done messages whose end the database refuses",
            "/messages",
        )
    if details.get("parked"):
        yield Concern("warn", "parked", f"scopes that rest: {', '.join(details['parked'][:5])}", "/services")
    if len(late) > MOST_LINES:
        yield replace(whole, text=f"{len(late) - MOST_LINES} more queues are late")


def _system(whole: Concern, details: dict[str, Any]) -> Iterator[Concern]:
    problems = details.get("worker_problems") or []
    for problem in problems[:MOST_LINES]:
        status = "fail" if problem["vital"] else "warn"
        yield Concern(
            status, f"worker {problem['hostname']} pid {problem['pid']}", problem["problem"], "/workers"
        )
    if len(problems) > MOST_LINES:
        yield replace(whole, text=f"{len(problems) - MOST_LINES} more problems of workers", status="warn")
    runway = details.get("archive_runway_seconds")
    if runway is None or runway <= 2 * 86400:
        left = (
            "there is no partition for today"
            if runway is None or runway <= 0
            else f"the archive has partitions for {seconds(runway)}"
        )
        yield Concern(
            "fail" if runway is None or runway <= 86400 else "warn", "partition runway", left, "/partitions"
        )
    snapshot = details.get("oldest_snapshot_seconds")
    if snapshot is not None and snapshot >= 900:
        text = f"somebody holds one for {seconds(snapshot)}: dead rows stay"
        yield Concern("fail" if snapshot >= 7200 else "warn", "oldest snapshot", text, "/database")
    used = details.get("connections", 0) / max(1, details.get("max_connections", 1))
    if used >= 0.8:
        text = f"{details['connections']} of {details['max_connections']}"
        yield Concern("fail" if used >= 0.95 else "warn", "connections", text, "/database")
    if details.get("late_schedules"):
        yield Concern(
            "warn", "schedules", f"{details['late_schedules']} late by more than five minutes", "/schedules"
        )
    if details.get("failed_maintenance_tasks"):
        yield Concern(
            "warn", "maintenance", f"{details['failed_maintenance_tasks']} tasks failed", "/maintenance"
        )


def _breakers(whole: Concern, details: dict[str, Any]) -> Iterator[Concern]:
    wrong = [
        each
        for each in details.get("breakers") or []
        if each["state"] != "closed" or each["forced"] or each["healthy"] is False
    ]
    for each in wrong[:MOST_LINES]:
        said = [
            each["state"].replace("_", " "),
            each["forced"] and "forced by an operator",
            each["healthy"] is False and "unhealthy",
        ]
        yield Concern(
            whole.status,
            f"service {each['service']}",
            f"{each['endpoint']}: {', '.join(filter(None, said))}",
            "/services",
        )
