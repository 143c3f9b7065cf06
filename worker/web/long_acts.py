"""Acts that take longer than a request: each in a thread of the page's process, with a connection of its own
(SPEC O6).

They go on when the tab is closed. When the process ends they stop after the batch they are in: what is done
is done and recorded, the rest is as it was. Nothing begins again by itself: a person looks and starts the
rest.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, WorkerError
from packhorse.worker.web.forms import LongWork
from packhorse.worker.web.reading import Site

logger = logging.getLogger("packhorse.web")

#: Of a database so many run at once; so many that have ended are remembered.
AT_ONCE, REMEMBERED = 4, 100
STATEMENT_SECONDS = 60.0
#: A comparison reads a table, and a drop waits for its last one.
OWNER_STATEMENT_SECONDS = 3600.0


@dataclass(slots=True)
class LongAct:
    """One of them. done: of total, as far as it is told. state: waits, runs, done, failed or stopped; only
    its thread writes what changes.

    sentence: how it ended.
    """

    id: str
    act: str
    operator: str
    reason: str | None
    work: LongWork
    begun_at: datetime
    total: int
    done: int = 0
    state: str = "waits"
    sentence: str = ""
    ended_at: datetime | None = None
    stop: Event = field(default_factory=Event)
    connection: DeadlineConnection | None = None

    def end(self) -> None:
        """Ask it to end: after its batch, or, where there are none, by ending its statement."""
        self.stop.set()
        connection = self.connection
        if not self.has_batches and connection is not None and not self.is_over:
            connection.cancel()

    @property
    def is_over(self) -> bool:
        return self.ended_at is not None

    @property
    def ratio(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def has_batches(self) -> bool:
        """Can it be said how far it is, and does it stop between two of them?"""
        return self.work.total > 0


class LongActs:
    """Those of one database, newest last."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._acts: OrderedDict[str, LongAct] = OrderedDict()
        self._threads = ThreadPoolExecutor(AT_ONCE, f"web-long-{site.name}")
        self._closed = False

    def begin(self, act: str, work: LongWork, operator: str, reason: str | None) -> LongAct:
        """Start it. Raises InvalidArgument when as many run as may, or the page ends."""
        running = sum(not each.is_over for each in self._acts.values())
        if running >= AT_ONCE or self._closed:
            raise InvalidArgument(
                "the page ends" if self._closed else f"{running} long acts run already, and no more may",
                hint="Wait for one of them, or stop it",
            )
        found = LongAct(secrets.token_hex(6), act, operator, reason, work, datetime.now(UTC), work.total)
        self._acts[found.id] = found
        over = [each.id for each in self._acts.values() if each.is_over]
        for old in over[: max(0, len(self._acts) - REMEMBERED)]:
            del self._acts[old]
        self._threads.submit(self._run, found)
        return found

    def get(self, name: str) -> LongAct | None:
        return self._acts.get(name)

    def all(self) -> list[LongAct]:
        """Newest first."""
        return list(reversed(self._acts.values()))

    def stop(self) -> None:
        """Ask all of them to end, and take no more."""
        self._closed = True
        for each in self._acts.values():
            each.stop.set()

    def close(self) -> None:
        """stop(), and wait for the batches; one without batches may begin a statement after another."""
        self.stop()
        while left := [each for each in self._acts.values() if not each.is_over]:
            for each in left:
                each.end()
            time.sleep(0.1)
        self._threads.shutdown(wait=True)

    def _run(self, act: LongAct) -> None:
        act.state = "runs"
        try:
            connection = (
                self._site.open_owner(OWNER_STATEMENT_SECONDS)
                if act.work.as_owner
                else self._site.open_long(STATEMENT_SECONDS)
            )
            act.connection = connection
            try:
                with translated():
                    act.sentence, is_good = act.work.run(connection, _Counter(act), act.stop)
            finally:
                act.connection = None
                connection.close()
            act.state = "done" if is_good else "stopped" if act.stop.is_set() else "failed"
        except WorkerError as error:
            act.state, act.sentence = (
                "stopped" if act.stop.is_set() and not act.has_batches else "failed",
                f"It has ended by an error after {act.done:,}; what was done is done. {error}",
            )
        except Exception:
            act.state, act.sentence = (
                "failed",
                f"It has failed after {act.done:,}, by an error of the page; its log says which. What was done is done.",
            )
            logger.error("web_request_failed path=%s", act.act, exc_info=True)
        act.ended_at = datetime.now(UTC)
        self._site.forget()


@dataclass(frozen=True, slots=True)
class _Counter:
    act: LongAct

    def __call__(self, count: int) -> None:
        self.act.done += count

    def begins(self, count: int) -> None:
        self.act.total = count
