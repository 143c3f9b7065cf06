"""Work in batches of rows, for retention and backfills: how large the next is, what an error says of it."""

from __future__ import annotations

from abc import abstractmethod

from packhorse.schedules.maintenance.run import Run, Work
from packhorse.worker.errors import StoreConflict, StoreError

TARGET_SECONDS = 0.35
BATCH_TIMEOUT_SECONDS = 10.0
#: Lock conflicts in a row after which a run fails instead of trying on.
MOST_CONFLICTS = 20
QUERY_CANCELED = "57014"  # the batch's statement_timeout
RAISED = "P0001"


class BatchWork(Work):
    """Its steps are batches of `_size` rows. A subclass sets `_run` and `_size` before the first step, and
    `_conflicts` to 0 after each.
    """

    _run: Run
    _size: int
    _conflicts = 0  # in a row

    def of_a_row(self, error: StoreError) -> bool:
        """Does one row refuse what its neighbours may allow: a constraint, or a trigger that raises?"""
        return error.sqlstate is not None and (error.sqlstate.startswith("23") or error.sqlstate == RAISED)

    @abstractmethod
    def pass_by(self, error: StoreError) -> None:
        """The next row refuses: leave it, with what is to be known of it, and go on behind it."""

    def failed(self, error: StoreError) -> None:
        """A row that refuses is found by halves and passed by; after a conflict, or a batch that took too
        long, half as many.
        """
        if self.of_a_row(error):
            if self._size > 1:
                self._size //= 2
            else:
                self.pass_by(error)
            return
        self._conflicts += 1
        if (
            not (isinstance(error, StoreConflict) or error.sqlstate == QUERY_CANCELED)
            or self._conflicts >= MOST_CONFLICTS
        ):
            raise error
        self._size = max(1, self._size // 2)
        self._run.rest(min(5.0, 0.1 * 2**self._conflicts))


def next_size(size: int, took_seconds: float, most: int, target_seconds: float = TARGET_SECONDS) -> int:
    """The batch after one of `size` that took so long: towards target_seconds, by half at most up, to a half
    down.
    """
    factor = target_seconds / max(took_seconds, 0.001)
    return max(1, min(most, int(size * min(1.5, max(0.5, factor))) + (1 if factor > 1 else 0)))
