"""Real processes that run a backfill and are killed at random moments, until one comes to the end."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable

from packhorse.schedules.backfill.base import Backfill
from packhorse.schedules.backfill.engine import BackfillRun
from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.db.connection import connect
from packhorse.worker.store import backfills as store

OPEN = Gates(None, None, None, None, None)
#: The silence after which the next process goes on. The server ends the transaction of a killed client as
#: soon as it sees that it is gone.
SILENT_SECONDS = 0.02


def killed_until_done(
    url: str,
    make: Callable[[], Backfill],
    seed: int,
    *,
    kills: int = 6,
    longest_seconds: float = 0.25,
    ends: tuple[str, ...] = ("verified",),
) -> int:
    """Run `make()` in forked processes; kill so many of them with SIGKILL, each after a random time; let the
    last one end. How many were killed. ends: states of one that has come to the end.
    """
    chance = random.Random(seed)
    killed = 0
    while True:
        pid = os.fork()
        if pid == 0:
            _work(url, make, ends)
        if killed == kills:
            assert _ended(pid, 60.0) == 0, "the last one was not killed, and should have come to its end"
            return killed
        code = _ended(pid, chance.uniform(0.0, longest_seconds if killed else longest_seconds / 10))
        if code is not None:
            assert code == 0, "a process that nobody has killed has failed"
            return killed
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1


def _work(url: str, make: Callable[[], Backfill], ends: tuple[str, ...]) -> None:
    """In the child: never returns."""
    code = 1
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            backfill = make()
            run = BackfillRun(
                lambda: connect(url, deadline_seconds=30),
                backfill,
                OPEN,
                operator="ada",
                silent_after_seconds=SILENT_SECONDS,
            )
            if _is_done(url, backfill.name, ends) or run.run().state == "succeeded":
                code = 0
                break
            time.sleep(0.01)  # busy: the one before has just died
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _is_done(url: str, name: str, ends: tuple[str, ...]) -> bool:
    """The one before was killed when all was done: another run would be a second walk."""
    connection = connect(url, deadline_seconds=30)
    try:
        return any(row["state"] in ends for row in store.progress(connection, name))
    finally:
        connection.close()


def _ended(pid: int, seconds: float) -> int | None:
    """The exit code, when it ends within so long."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)
