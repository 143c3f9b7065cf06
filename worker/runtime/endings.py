"""Writing endings other than done: many in one transaction, each alone when the database refuses the lot.

When everything fails (a downstream is away) a commit per message would be the limit of the whole process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from itertools import islice
from typing import Any

from worker.db.pool import Link
from worker.errors import StoreConflict, StoreUnavailable
from worker.messages import ClaimedMessage
from worker.observe.duties import code_of
from worker.settle import settle, without_details

logger = logging.getLogger("packhorse.pump")

BATCH = 50
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.5, 30.0  # until a locked row is tried again, which costs half a second of waiting


class EndingWriter:
    """Used by the pump's thread, on its connection. waiting: messages whose row somebody else has locked, see due()."""

    def __init__(self, link: Link, broker: Any) -> None:
        self._link = link
        self._broker = broker
        self._alone = 0  # so many go one by one, after a batch was refused
        self.waiting: deque[ClaimedMessage] = deque()
        self.refusal = ""  # why the database refused an outcome last: SQLSTATE or class
        self._wait_seconds = 0.0
        self._not_before = 0.0

    def due(self) -> ClaimedMessage | None:
        """One of the waiting messages, to be tried again now."""
        if self.waiting and time.monotonic() >= self._not_before:
            return self.waiting.popleft()
        return None

    def next(self, messages: deque[ClaimedMessage]) -> list[ClaimedMessage]:
        """Those of these messages that the next write() takes."""
        return list(islice(messages, 1 if self._alone else BATCH))

    def write(self, batch: list[ClaimedMessage]) -> list[str | None]:
        """What settle() answers for each, None for one that is now waiting; empty when they must be taken one by one.

        Raises StoreUnavailable: nothing is written, to be tried again.
        """
        if len(batch) == 1:
            return [self._write_alone(batch[0])]
        try:
            with self._link.connection() as connection, connection.transaction():
                return [settle(connection, message, self._broker) for message in batch]
        except StoreUnavailable:
            raise
        except Exception as error:  # also what is no error of the database: one message must not stop a process
            logger.debug("endings_refused count=%d error_class=%s", len(batch), type(error).__name__)
            self._alone = len(batch)
            return []

    def _write_alone(self, message: ClaimedMessage) -> str | None:
        try:
            answer = self._write_one(message)
        except StoreConflict as error:
            logger.warning("outcome_waits message_id=%s error=%s: tried again, others go on", message.id, error)
            self._wait_seconds = min(MAX_WAIT_SECONDS, max(MIN_WAIT_SECONDS, 2 * self._wait_seconds))
            self._not_before = time.monotonic() + self._wait_seconds
            self.waiting.append(message)
            return None
        else:
            self._wait_seconds = 0.0
            return answer
        finally:
            self._alone = max(0, self._alone - 1)

    def _write_one(self, message: ClaimedMessage) -> str:
        """As it is; with a fixed text when that cannot be stored; a lease that runs out is the last resort."""
        try:
            return self._settle(message)
        except (StoreUnavailable, StoreConflict):
            raise
        except Exception as error:
            logger.warning("outcome_not_storable message_id=%s error_class=%s", message.id, type(error).__name__)
        without_details(message)
        try:
            return self._settle(message)
        except (StoreUnavailable, StoreConflict):
            raise
        except Exception as error:
            self.refusal = code_of(error)
            logger.error("outcome_refused message_id=%s error=%s: its lease will run out", message.id, error)
            return "unstorable"

    def _settle(self, message: ClaimedMessage) -> str:
        with self._link.connection() as connection:
            return settle(connection, message, self._broker)
