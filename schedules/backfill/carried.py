"""A backfill as messages of the maintenance queue: workers carry it in slices, so that other maintenance gets
its turn (SPEC M8).

One message lives until the backfill ends or is paused: after a slice it snoozes, which spends no attempt;
what fails is tried again from its cursor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event

from packhorse.schedules.backfill.declare import find
from packhorse.schedules.backfill.engine import BackfillRun
from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store import backfills as store

logger = logging.getLogger("packhorse.backfill")

PREFIX = "backfill."
SLICE_SECONDS = 60.0


def carry(
    open_connection: Callable[[], DeadlineConnection],
    task: str,
    gates: Gates,
    stop: Event,
    message_id: int | None,
) -> bool:
    """Work on the backfill of a task for a slice; True when it is to be gone on with.

    Raises InvalidArgument when this process does not know it, or what its check refuses; StoreError.
    """
    name = task.removeprefix(PREFIX)
    connection = open_connection()
    try:
        with translated():
            begun = store.progress(connection, name)
    finally:
        connection.close()
    if not begun:
        raise InvalidArgument(
            f"name: nobody has begun the backfill {name[:100]!r}",
            field="name",
            hint="packhorse backfill start begins it.",
        )
    if begun[0]["paused_at"] is not None or not begun[0]["carried"]:
        return False  # resume_backfill enqueues another one
    backfill = find(name, begun[0]["settings"])
    run = BackfillRun(
        open_connection,
        backfill,
        gates,
        operator=str(begun[0]["requested_by"]),
        budget_seconds=SLICE_SECONDS,
        stop=stop,
        message_id=message_id,
    )
    ended = run.run()
    if ended.state in ("succeeded", "cancelled"):
        logger.info("backfill_ended backfill=%s state=%s rows=%d", name, ended.state, ended.rows)
        return False
    if ended.state == "paused" and not stop.is_set():
        connection = open_connection()
        try:
            with translated():
                return store.progress(connection, name)[0]["paused_at"] is None
        finally:
            connection.close()
    # paused by its slice or by the end of the process; or another process works on it, and may die
    return True
