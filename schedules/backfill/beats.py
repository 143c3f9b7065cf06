"""Signs of life while one long statement runs: an index build, a validation, a comparison of millions of rows
(SPEC M8).

A run that does not beat is taken over by the next process. The statement has the connection, so the beat has
one of its own; and what an operator asks meanwhile (pause, cancel) ends the statement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import StoreError
from packhorse.worker.store import maintenance as store

logger = logging.getLogger("packhorse.backfill")

BEAT_SECONDS = 2.0


class Beats:
    """`with Beats(open, run_id, busy) as beats:` busy: the connection whose statement ends when the answer is
    not go. asked: that answer, or None.

    stop: set from outside, a drain for example, which ends the statement as a pause does. Thread: reads and
    writes `asked`; joined at the end.
    """

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        run_id: int,
        busy: DeadlineConnection,
        stop: Event,
    ) -> None:
        self._open = open_connection
        self._run_id = run_id
        self._busy = busy
        self._stop = stop
        self._over = Event()
        self._thread = Thread(target=self._beat, name="backfill beats")
        self.asked: str | None = None

    def __enter__(self) -> Beats:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        connection: DeadlineConnection | None = None
        try:
            while not self._over.wait(BEAT_SECONDS):
                try:
                    connection = connection or self._open()
                    with translated():
                        answer = store.beat(connection, self._run_id)
                except StoreError as error:  # the statement may go on; who takes over finds its traces
                    logger.warning(
                        "maintenance_not_recorded run_id=%s error_class=%s",
                        self._run_id,
                        type(error).__name__,
                    )
                    if connection is not None:
                        connection.close()
                    connection = None
                    continue
                if self._stop.is_set() and answer == "go":
                    answer = "pause"
                if answer != "go":
                    self.asked = answer
                    self._busy.cancel_safe()
                    return
        finally:
            if connection is not None:
                connection.close()
