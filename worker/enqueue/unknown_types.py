"""A type that no worker knows is most often a slip of the pen: said once per process and type, with the near
miss.

The database is asked by the statement that enqueues, and by few of these: the first of a type, and while
nobody knows it one a minute.
"""

from __future__ import annotations

import logging
import math
import time

from packhorse.worker.suggest import near_miss

logger = logging.getLogger("packhorse.enqueue")

ASK_AGAIN_SECONDS = 60.0
#: Types that a program sends are few; one that makes them up does not fill our memory.
MOST_TYPES = 1000

#: (schema, type) -> when to ask again, by the monotonic clock; infinity: never.
_ask_at: dict[tuple[str, str], float] = {}


def is_asked(schema: str, message_type: str) -> bool:
    """Is the next enqueue of this type to ask?"""
    due = _ask_at.get((schema, message_type))
    return len(_ask_at) < MOST_TYPES if due is None else time.monotonic() >= due


def answered(schema: str, message_type: str, instead: str | None) -> None:
    """What the database has said (types_instead): None for a type that is known, or that nobody could know;
    else names, with commas.
    """
    if instead is not None:
        near = near_miss(message_type, [name for name in instead.split(",") if name])
        logger.warning(
            "type_unknown message_type=%s near=%s: it waits, for no worker has registered it",
            message_type,
            near,
        )
    _ask_at[schema, message_type] = math.inf if instead is not None else time.monotonic() + ASK_AGAIN_SECONDS
