"""The correlation id of what runs now, for an enqueue that does not say one itself (SPEC O3).

Running messages and error boundaries are rooms of their own: worker/attempt/context.py sets the function when
it is imported. A producer that has never imported it has neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _nothing_runs() -> str | None:
    return None


#: That of the running message, else of the error boundary around the caller, else None: then the database
#: makes one.
current: Callable[[], str | None] = _nothing_runs


def inherit(extra: dict[str, Any]) -> None:
    """Add it to checked options that have none."""
    if "correlation_id" not in extra and (found := current()):
        extra["correlation_id"] = found
