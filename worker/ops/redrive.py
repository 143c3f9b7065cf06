"""Redrive many dead letters at a pace, and stop when they fail again (SPEC Q4).

The pace is what makes stopping worth something: at 100 per second a cause that was not mended shows after
a few hundred messages, not after all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, NotFound, StoreRejected
from packhorse.worker.ops.messages import with_settings
from packhorse.worker.ops.payloads import CHANGED_MEANWHILE, read_object
from packhorse.worker.store import dead_letters
from packhorse.worker.store.dead_letters import Selection
from packhorse.worker.store.json_text import to_json

MAX_BATCH = 500
BATCHES_PER_SECOND = 5.0
CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class RedriveResult:
    """What was done: how many were enqueued again, how many of those were dead again at the last look, and
    why it ended: "finished", "failing" (stop_after reached) or "interrupted". unfit: payloads that the
    settings do not fit, or that somebody changed at that moment; they were left as they are."""

    redriven: int
    died_again: int
    ended: str
    unfit: int = 0


def redrive(
    connection: DeadlineConnection,
    selection: Selection,
    dead_by: datetime,
    *,
    operator: str,
    reason: str | None = None,
    fresh: bool = False,
    settings: Sequence[tuple[str, Any]] = (),
    rate: float = 0.0,
    limit: int | None = None,
    stop_after: int = 0,
    report: Callable[[int], Any] = lambda count: None,
    stop: threading.Event | None = None,
) -> RedriveResult:
    """Enqueue again what is selected and was dead at dead_by, oldest first, each letter once.

    fresh: without their steps. settings: values that each payload gets first, at dotted paths. rate: messages
    per second, 0 = as fast as it goes. limit: at most so many. stop_after: end once so many of the redriven
    ones are dead letters again, 0 = never. report: called with the number just redriven. Each batch is a
    transaction of its own; stop ends it between two ("interrupted"). A KeyboardInterrupt does, too, but may
    come when a batch is done and not yet counted. Raises StoreError.
    """
    size = max(1, min(MAX_BATCH, int(rate / BATCHES_PER_SECOND))) if rate else MAX_BATCH
    sent: list[int] = []
    unfit = 0
    again, checked_at, due = 0, time.monotonic(), time.monotonic()
    stop = stop or threading.Event()
    try:
        for page in dead_letters.pages(connection, selection, dead_by, size):
            page = page if limit is None else page[: limit - len(sent)]
            if not page:
                break
            if stop.wait(max(0.0, due - time.monotonic())):
                return RedriveResult(len(sent), again, "interrupted", unfit)
            if stop_after and sent and time.monotonic() - checked_at >= CHECK_SECONDS:
                again, checked_at = dead_letters.dead_again(connection, sent), time.monotonic()
                if again >= stop_after:
                    return RedriveResult(len(sent), again, "failing", unfit)
            fit = (
                [one for one in page if edit(connection, one, settings, operator, reason)]
                if settings
                else page
            )
            unfit += len(page) - len(fit)
            done = dead_letters.redrive(connection, fit, operator, reason, fresh=fresh)
            due = max(due, time.monotonic() - 1.0) + (len(page) / rate if rate else 0.0)
            sent += done
            report(len(done))
    except KeyboardInterrupt:
        return RedriveResult(len(sent), again, "interrupted", unfit)
    if stop_after and sent:
        again = dead_letters.dead_again(connection, sent)
    return RedriveResult(
        len(sent), again, "failing" if stop_after and again >= stop_after else "finished", unfit
    )


def edit(
    connection: DeadlineConnection,
    letter_id: int,
    settings: Sequence[tuple[str, Any]],
    operator: str,
    reason: str | None,
) -> bool:
    """Set these values in the payload of one dead letter, recorded; False when they do not fit it, or
    somebody else was quicker.
    """
    try:
        with translated():
            before = dead_letters.payload(connection, letter_id)
            found = read_object("payload", before)
            wanted = with_settings(found, settings)
            if wanted != found:
                dead_letters.edit(connection, letter_id, to_json("payload", wanted), before, operator, reason)
    except (InvalidArgument, NotFound):
        return False
    except StoreRejected as error:
        if error.sqlstate != CHANGED_MEANWHILE:
            raise
        return False
    return True
