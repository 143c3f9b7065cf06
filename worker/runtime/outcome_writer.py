"""Writing outcomes other than done: many in one transaction, each alone when the database refuses the lot.

When everything fails (a downstream is away) a commit per message would be the limit of the whole process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from packhorse.worker.attempt.finish import finish, without_details
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.errors import LOCKED
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreConflict, StoreUnavailable
from packhorse.worker.observe.duties import code_of
from packhorse.worker.states import Ended

logger = logging.getLogger("packhorse.fetcher")

BATCH = 50
#: Conflicts that the same call may not meet again.
PASSING = LOCKED | {"40001"}
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.5, 30.0  # until a locked row, or what was refused, is tried again


def _passes(error: Exception) -> bool:
    """Does it say nothing about this outcome? The database is away, or somebody has locked the row. (A key
    that is there already, the id of a dead letter say, is a conflict of another kind: that stays.)"""
    return isinstance(error, StoreUnavailable) or (
        isinstance(error, StoreConflict) and error.sqlstate in PASSING
    )


class Deferred:
    """Outcomes that cannot be written now, and when the next one of them is tried: later each time that it
    fails.
    """

    def __init__(self) -> None:
        self.messages: deque[ClaimedMessage] = deque()
        self.wait_seconds = 0.0
        self._not_before = 0.0

    def due(self) -> ClaimedMessage | None:
        """One of them, to be tried again now."""
        if self.messages and time.monotonic() >= self._not_before:
            return self.messages.popleft()
        return None

    def add(self, message: ClaimedMessage) -> None:
        """It could not be written."""
        self.wait_seconds = min(MAX_WAIT_SECONDS, max(MIN_WAIT_SECONDS, 2 * self.wait_seconds))
        self._not_before = time.monotonic() + self.wait_seconds
        self.messages.append(message)

    def written(self) -> None:
        """One could be: so may the others."""
        self.wait_seconds = self._not_before = 0.0


class OutcomeWriter:
    """Used by the fetcher's thread, on its connection.

    refused: messages whose outcome the database refuses to write (a right, a constraint, a missing
    partition). Their handlers are done, so they are kept, and their leases with them, until it can be
    written; on_refused(message) is told of completions. refusing: so many were refused since the last outcome
    was written.
    """

    def __init__(
        self, link: Link, broker: PostgresBroker, on_refused: Callable[[ClaimedMessage], None]
    ) -> None:
        self._link = link
        self._broker = broker
        self._on_refused = on_refused
        self._alone = 0  # so many go one by one, after a batch was refused
        self._locked = Deferred()  # somebody else has locked their rows
        self._refused = Deferred()
        self.refusing = 0
        self._try_at = self._try_seconds = 0.0
        self.refused_sqlstate = ""
        self.refused_text = ""

    @property
    def waiting(self) -> deque[ClaimedMessage]:
        """Messages whose rows somebody else has locked."""
        return self._locked.messages

    @property
    def refused(self) -> deque[ClaimedMessage]:
        return self._refused.messages

    def refused_completions(self) -> list[ClaimedMessage]:
        """Those of the refused whose handlers have succeeded."""
        return [message for message in self.refused if message.outcome is None and not message.failed]

    def due(self) -> list[ClaimedMessage]:
        """Those that are to be tried again now."""
        return [message for message in (self._locked.due(), self._refused.due()) if message is not None]

    def next(self, messages: deque[ClaimedMessage]) -> list[ClaimedMessage]:
        """Those of these messages that the next write() takes."""
        return list(islice(messages, 1 if self._alone else BATCH))

    def write(self, batch: list[ClaimedMessage]) -> list[Ended | None]:
        """What finish() answers for each, None for one that is to be tried again; empty when they must be
        taken one by one.

        Raises StoreUnavailable: nothing is written, to be tried again.
        """
        if len(batch) == 1:
            return [self._write_alone(batch[0])]
        try:
            with self._link.connection() as connection, connection.transaction():
                return [finish(connection, message, self._broker) for message in batch]
        except StoreUnavailable:
            raise
        except Exception as error:
            # also what is no error of the database: one message must not stop a process
            logger.debug("outcomes_refused count=%d error_class=%s", len(batch), type(error).__name__)
            self._alone = len(batch)
            return []

    def _write_alone(self, message: ClaimedMessage) -> Ended | None:
        try:
            answer = self._write_one(message)
        except StoreConflict as error:  # see _write_one: somebody has locked its row
            logger.warning(
                "outcome_waits message_id=%s error=%s: tried again, others go on", message.id, error
            )
            self._locked.add(message)
            return None
        finally:
            self._alone = max(0, self._alone - 1)
        if answer is not None:
            self.written()
            self._locked.written()
            if message.stage is AttemptStage.REFUSED:  # so may the others be
                self._refused.written()
        return answer

    def written(self) -> None:
        """An outcome was written: what is refused is so for reasons of its own."""
        self.refusing, self._try_seconds = 0, 0.0

    def may_try(self) -> bool:
        """While nothing can be written: may one more message be taken now, to see whether it goes for that
        one, too?
        """
        now = time.monotonic()
        if now < self._try_at:
            return False
        self._try_seconds = min(MAX_WAIT_SECONDS, max(MIN_WAIT_SECONDS, 2 * self._try_seconds))
        self._try_at = now + self._try_seconds
        return True

    def _write_one(self, message: ClaimedMessage) -> Ended | None:
        """As it is; with a fixed text when that cannot be stored; None when it is refused all the same."""
        try:
            return self._finish(message)
        except Exception as error:
            if _passes(error):
                raise
            if message.outcome is None:
                self._refuse(message, error)
                return None
            logger.warning(
                "outcome_not_storable message_id=%s error_class=%s", message.id, type(error).__name__
            )
        without_details(message)
        try:
            return self._finish(message)
        except Exception as error:
            if _passes(error):
                raise
            self._refuse(message, error)
            return None

    def _refuse(self, message: ClaimedMessage, error: Exception) -> None:
        self.refused_sqlstate = code_of(error)
        self.refused_text = str(error)[:500]
        is_new = message.stage is not AttemptStage.REFUSED
        if is_new or not self.refusing:
            self.refusing += 1
        if is_new:
            message.move(AttemptStage.REFUSED)
            logger.error(
                "outcome_refused message_id=%s sqlstate=%s error=%s: kept, and tried again",
                message.id,
                self.refused_sqlstate,
                error,
            )
        self._refused.add(message)
        if message.outcome is None and not message.failed:
            self._on_refused(message)

    def _finish(self, message: ClaimedMessage) -> Ended:
        with self._link.connection() as connection:
            return finish(connection, message, self._broker)
