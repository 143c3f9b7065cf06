"""How long an outage the retries of a queue outlast (migrations/functions/retry.sql: retry_span)."""

from __future__ import annotations

from packhorse.worker.records import Row

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def span_sentence(span: Row) -> str:
    """One sentence about a row of store.operations.retry_span."""
    attempts, seconds = span["attempts"], span["seconds"]
    if attempts == 1:
        said = "1 attempt, no retry: every failure makes a dead letter"
    else:
        said = f"{attempts} attempts over {shown(seconds)}: an outage that lasts longer makes dead letters"
    return f"{said}, unless the failure breaker parks it first" if span["breaker"] else said


def shown(seconds: float) -> str:
    """In the largest unit of which there are two: 3 s, 90 s, 8.5 min, 3 d."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds, 3):g} s"
