"""What an enqueue takes over from the code around it, where that does not say it itself.

Handlers and error boundaries are above this room: worker/attempt/context.py sets the function when it is imported. A producer that
has never imported it has neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _nothing_runs() -> str | None:
    return None


#: The correlation id of the running message, else of the error boundary around the caller, else None: then the database makes one.
correlation_id: Callable[[], str | None] = _nothing_runs


def inherit(extra: dict[str, Any]) -> None:
    """Add the correlation id of the code around the caller to checked options that have none."""
    if "correlation_id" not in extra and (found := correlation_id()):
        extra["correlation_id"] = found
