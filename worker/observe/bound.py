"""Values that stand in every log line of a context: structlog's bound values, which our lines have as
well.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from contextvars import Token
from typing import Any

Bound = Mapping[str, "Token[Any]"]


def bind(values: Mapping[str, object]) -> Bound:
    """Add values to the lines of this context from here on; give what comes back to unbind()."""
    import structlog

    return structlog.contextvars.bind_contextvars(**values)


def unbind(bound: Bound) -> None:
    """What was there before is there again. In another context than that of bind() nothing is changed."""
    import structlog

    with suppress(ValueError):
        structlog.contextvars.reset_contextvars(**bound)
