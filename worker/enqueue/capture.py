"""Where messages go instead of the database while a test looks at what is sent (worker/testing/captured.py;
SPEC W12).

The broker and the producer check and encode a message as ever; then, when `active` is set, they hand it over
here and ask no database.
"""

from __future__ import annotations

from typing import Protocol

from packhorse.worker.enqueue.encoding import Encoded
from packhorse.worker.records import EnqueueResult


class Capture(Protocol):
    """Takes what is sent; any thread."""

    def take(self, messages: list[Encoded]) -> list[EnqueueResult]:
        """All of them, in order, with the ids that they get."""


#: Set by a test, for the whole process: an application under test sends from its own threads.
active: Capture | None = None
