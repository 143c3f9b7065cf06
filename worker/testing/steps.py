"""The steps of a message in a unit test: in memory, under the same bounds (SPEC W3c, W12)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from packhorse.worker.attempt.stored_steps import MAX_STEPS_BYTES, StepOwner
from packhorse.worker.errors import StepError
from packhorse.worker.store.json_text import dumps


class MemorySteps:
    """What the steps of one message have stored. Give the same one to two calls of run_actor: the second is
    the attempt after the first.

    values: what earlier attempts have stored, by name; JSON. reused: how many steps had their result from
    there.
    """

    def __init__(self, values: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._texts = {name: dumps(value) for name, value in values.items()}
        self._lock = threading.Lock()
        self.reused = 0

    @property
    def values(self) -> dict[str, Any]:
        """The stored results, by name."""
        return {name: json.loads(text) for name, text in self._texts.items()}

    def copy(self) -> MemorySteps:
        return MemorySteps(self.values)

    def take(self, other: MemorySteps) -> None:
        """What the other has, and what it counted."""
        with self._lock:
            self._texts |= other._texts
            self.reused += other.reused

    def as_stored(self) -> str | None:
        """The column `steps` of the message."""
        return (
            dumps({name: {"value": value, "attempt": 1} for name, value in self.values.items()})
            if self._texts
            else None
        )

    # -- StepStore ---------------------------------------------------------------------------------
    def store(self, message: StepOwner, name: str, value: str) -> str:
        with self._lock:
            size = sum(len(text.encode()) for text in (*self._texts.values(), value))
            if size > MAX_STEPS_BYTES:
                raise StepError(
                    f"step {name!r}: the results of a message have at most {MAX_STEPS_BYTES} bytes of JSON together"
                )
            self._texts[name] = value
        return value

    async def store_async(self, message: StepOwner, name: str, value: str) -> str:
        return self.store(message, name, value)

    def is_superseded(self, message_id: int) -> bool:
        """False for every `message_id`: there is no other message."""
        return False

    def count_reused(self) -> None:
        with self._lock:
            self.reused += 1
