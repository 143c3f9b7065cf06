"""Which messages the next claim shall look at first: those whose conversation went on (SPEC P4).

They are older than what a claim looks at (cursor.py). A claim that completes messages learns their successors
with its answer; what ended by other statements, or in its handler's own transaction, is asked for by
conversation.
"""

from __future__ import annotations

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.store import messages as store

MAX_FIRST = 1000


class Successors:
    """Used by the fetcher's thread. ids: of messages that could start and were not claimed, as the last claim
    knew.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._keys: set[str] = set()

    @property
    def unasked(self) -> bool:
        """Whether conversations went on since the last claim whose next message nobody has named."""
        return bool(self._keys)

    def ended(self, message: ClaimedMessage) -> None:
        """It has left its conversation, by a statement that did not tell what comes next."""
        if message.conversation_key is not None:
            self._keys.add(message.conversation_key)

    def first(self, connection: DeadlineConnection, *, ask: bool) -> list[int]:
        """The ids for the next claim, at most MAX_FIRST. One statement when there is something to ask for and
        `ask` says so.
        """
        if ask and self._keys:
            keys = list(self._keys)[:MAX_FIRST]
            self.ids += store.next_of_conversations(connection, keys)
            self._keys.difference_update(keys)
        return self.ids[:MAX_FIRST]
