"""What one attempt knows of the steps of its message, and what stores them (SPEC W3c). steps.py is what
handlers call.
"""

from __future__ import annotations

import json
from typing import Protocol

from packhorse.worker.errors import StepError

#: The bounds of migrations/functions/steps.sql. Those that can be known before a step runs are checked
#: before: nothing is paid for in vain.
MAX_NAME_LENGTH = 100
MAX_STEPS = 100
MAX_STEP_BYTES = 262_144
MAX_STEPS_BYTES = 1_048_576


class StepOwner(Protocol):
    """What a store needs of a message: its row, its lease, and whether the lease is known to be lost."""

    @property
    def id(self) -> int: ...
    @property
    def lease_token(self) -> int: ...
    @property
    def lost(self) -> bool: ...


class StepStore(Protocol):
    """Where the steps of a message are stored, and where it asks: values are JSON texts, and come back as a
    later attempt will see them.

    Both stores raise LeaseLost, StepError, and StoreUnavailable or StoreConflict when the database could not
    be asked for a while.
    """

    def store(self, message: StepOwner, name: str, value: str) -> str: ...
    async def store_async(self, message: StepOwner, name: str, value: str) -> str: ...
    def count_reused(self) -> None: ...
    def is_superseded(self, message_id: int) -> bool: ...


class AttemptSteps:
    """The steps of one attempt: what earlier ones have stored (as JSON text, None: nothing), and which names
    this one has used.

    Any thread of the handler.
    """

    def __init__(self, message_id: int, stored_steps: str | None) -> None:
        try:
            found = json.loads(stored_steps) if stored_steps else {}
            self.stored = {name: entry["value"] for name, entry in found.items()}
        except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
            raise StepError(
                f"the stored steps of message {message_id} cannot be read: {type(error).__name__}: {str(error)[:200]}"
            ) from error
        self._used: dict[str, object] = {}

    def use(self, name: str) -> None:
        """Take a name for one step. Raises StepError when this attempt has used it, and for one step too
        many.
        """
        mine = object()
        if self._used.setdefault(name, mine) is not mine:
            raise StepError(
                f"step {name!r}: this attempt has used the name already; give each step a name of its own"
            )
        if name not in self.stored and len(self.stored.keys() | self._used.keys()) > MAX_STEPS:
            self.leave(name)
            raise StepError(f"step {name!r}: one too many; a message has at most {MAX_STEPS} steps")

    def leave(self, name: str) -> None:
        """The step did not come to an end: the name is free again."""
        self._used.pop(name, None)
