"""`packhorse worker --burst`: a supervisor that stops when there is nothing to do (SPEC W12).

Whether there is, the database says, asked by a short-lived child: the parent keeps no connection. It is asked
while no child runs a handler, and twice: between the two answers every fetcher has made a turn, so that what
hooks send after an outcome is seen.
"""

from __future__ import annotations

import logging
import mmap
import signal
import time
from datetime import datetime
from typing import Any
from uuid import UUID

from packhorse.worker.config import Settings
from packhorse.worker.db import schema_version
from packhorse.worker.db.errors import translated
from packhorse.worker.db.sessions import open_work
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.fleet.child import STOP_SIGNALS, end_with_parent
from packhorse.worker.fleet.children import Child
from packhorse.worker.fleet.supervisor import Supervisor
from packhorse.worker.observe.process_stats import FINISHED, OUTCOMES, REGISTERED
from packhorse.worker.states import Ended
from packhorse.worker.store import bursts, messages

logger = logging.getLogger("packhorse.supervisor")

#: An idle child looks this often, so that its turns can be waited for.
POLL_SECONDS = 0.5
#: Between two looks; and before the second one, at least.
LOOK_SECONDS = 0.2
#: A look that has said nothing for so long beyond a call's deadline is not waited for.
LOST_LOOK_SECONDS = 5.0
#: So many children in a row that end before they have registered: the next ones would, too.
MOST_FAILED_STARTS = 5

_NUMBER, _SAID, _REMAINING, _FAILED, _DEAD, _CELLS = range(6)
_SOMETHING, _NOTHING = 0, 1


def start_of_burst(settings: Settings) -> datetime:
    """The time in the database. Raises StoreUnavailable, SchemaMismatch: who asks for a burst wants an
    answer, not a process that waits.
    """
    connection = open_work(settings, "burst")
    try:
        schema_version.check(connection)
        with translated():
            return messages.database_now(connection)
    finally:
        connection.close()


class BurstSupervisor(Supervisor):
    """since: when the burst began, by the database's clock."""

    nap_seconds = 0.1

    def __init__(self, settings: Settings, since: datetime, **options: Any) -> None:
        super().__init__(
            settings.model_copy(update={"poll_seconds": min(settings.poll_seconds, POLL_SECONDS)}), **options
        )
        self._since = since
        self._answer = memoryview(mmap.mmap(-1, _CELLS * 8)).cast("d")  # written by the child that looks
        self._workers: set[UUID] = set()  # all that have been
        self._asked = 0  # the number of the look that is on its way; 0: none
        self._looks = 0
        self._lost_at = self._next_look = 0.0
        self._nothing_at = 0.0  # when a look found nothing to do, and nothing has begun since; 0: not so
        self._failed_starts = 0
        # remaining, failed, dead as the last look has it; outcomes that failed by then
        self._end: tuple[int, int, int, int] | None = None

    def run(self) -> int:
        """As a supervisor's, and 1 when a message failed or died; after a signal the code of an ordinary
        stop.
        """
        code = super().run()
        if self._failed_starts >= MOST_FAILED_STARTS:
            return code or EXIT_FAILED
        if self._end is None:
            return code
        remaining, failed, dead, seen = self._end
        # what ended while the children drained
        failed += self._count(Ended.RETRY) + self._count(Ended.DEAD) - seen
        logger.info(
            "burst_finished done=%d failed=%d dead=%d left=%d",
            self._count(Ended.DONE),
            failed,
            dead,
            remaining,
        )
        return EXIT_FAILED if failed or dead else code

    def _look(self) -> None:
        super()._look()
        self._workers |= {child.id for child in self._children if child.pid}
        if self._stops:
            return
        if self._failed_starts >= MOST_FAILED_STARTS:
            logger.error(
                "burst_gave_up count=%d: processes end before they have begun to work", self._failed_starts
            )
            self._finish()
        elif self._asked:
            self._hear(time.monotonic())
        elif self._may_ask(time.monotonic()):
            self._ask()

    def _may_ask(self, now: float) -> bool:
        """Do all children live and wait, and have they made a turn since nothing was found?"""
        quiet = self._all_registered() and not (
            self._recovering or self._preflight or any(child.retiring for child in self._children)
        )
        if not quiet or self._something_runs():
            self._nothing_at = 0.0
            return False
        pairs = zip(self._children, self.fleet_stats.children, strict=True)
        return now >= self._next_look and all(
            stats.ticks().get("fetcher", 0.0) > self._nothing_at for child, stats in pairs if child.pid
        )

    def _something_runs(self) -> bool:
        """Of those that live; what ran in one that died is there until the next one takes its place."""
        return any(child.running.started() for child in self._children if child.pid)

    def _ask(self) -> None:
        self._looks += 1
        if self._fork(self._look_for_work):
            self._asked = self._looks
            self._lost_at = (
                time.monotonic()
                + self.settings.call_deadline_seconds
                + self.settings.connect_timeout_seconds
                + LOST_LOOK_SECONDS
            )

    def _hear(self, now: float) -> None:
        """What the look that is on its way has found."""
        answered = self._answer[_NUMBER] == self._asked
        if not answered and now < self._lost_at:
            return
        self._asked = 0
        self._next_look = now + LOOK_SECONDS
        if not answered or self._answer[_SAID] != _NOTHING or self._something_runs():
            self._nothing_at = 0.0
        elif not self._nothing_at:
            self._nothing_at = now
        else:
            remaining, failed, dead = (int(self._answer[cell]) for cell in (_REMAINING, _FAILED, _DEAD))
            self._end = remaining, failed, dead, self._count(Ended.RETRY) + self._count(Ended.DEAD)
            self._finish()

    def _finish(self) -> None:
        self._stop_children()
        self._stops += 1

    def _look_for_work(self) -> int:
        """In a child: look, and write what was found into the memory that the parent reads; the number of the
        look last.
        """
        signal.set_wakeup_fd(-1)
        for number in (*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        end_with_parent(self.fleet_stats.made_by)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        said = _SOMETHING
        try:
            connection = open_work(self.settings, "burst")
            try:
                workers = list(self._workers)
                with translated():
                    if bursts.has_work(connection, workers) is False:
                        left = bursts.work_left(connection, workers, self._since)
                        self._answer[_REMAINING], self._answer[_FAILED], self._answer[_DEAD] = (
                            left.remaining,
                            left.failed,
                            left.dead,
                        )
                        said = _NOTHING
            finally:
                connection.close()
        except Exception as error:  # an outage: the burst waits for its end, as a worker does
            logger.warning("burst_look_failed error_class=%s", type(error).__name__)
        self._answer[_SAID] = said
        self._answer[_NUMBER] = self._looks
        return EXIT_OK

    def _on_exit(self, index: int, child: Child, code: int) -> None:
        worked = bool(self.fleet_stats.children[index].states[REGISTERED])
        self._failed_starts = 0 if worked else self._failed_starts + 1
        self._nothing_at = 0.0
        super()._on_exit(index, child, code)

    def _count(self, ended: Ended) -> int:
        """Messages of all children, living and ended, that have ended so."""
        queues = self.fleet_stats.read().queues
        return int(sum(cells[FINISHED + OUTCOMES.index(ended)] for cells in queues.values()))
