"""An exception without its text: classes, frames, causes and groups (SPEC P8, FAILURES 75).

What code writes into an exception may be a message's payload, which no mask can know. So the lines that we log about the
code of others carry where it happened and what kind of error it was; the text is kept with the message in the
database. Notes and local variables are texts as well. Bounded in every direction.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

#: Frames of one exception, counted from the innermost.
FRAMES = 30
#: Exceptions of one chain, and of one group.
CHAIN, MEMBERS, DEPTH = 10, 5, 3
MAX_NAME = 200

_BECAUSE = "\nThe above exception was the direct cause of the following exception:\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n"


def outline(error: BaseException, depth: int = 0) -> str:
    """Like a traceback, the root cause first, each exception as its class alone."""
    lines: list[str] = []
    for one, link in reversed(list(_chain(error))):
        lines += [*_frames(one), *_members(one, depth)]
        if link:
            lines.append(link)
    return "\n".join(lines)


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """An exception and what led to it, each with the words that link it to the one before."""
    one: BaseException | None = error
    link, seen = "", set[int]()
    while one is not None and id(one) not in seen and len(seen) < CHAIN:
        seen.add(id(one))
        yield one, link
        if one.__cause__ is not None:
            one, link = one.__cause__, _BECAUSE
        else:
            one, link = None if one.__suppress_context__ else one.__context__, _DURING


def _frames(error: BaseException) -> list[str]:
    where = traceback.format_tb(error.__traceback__, limit=-FRAMES)
    head = ["Traceback (most recent call last):"] if where else []
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    return [*head, *(part.rstrip("\n") for part in where), name[:MAX_NAME]]


def _members(error: BaseException, depth: int) -> list[str]:
    """The exceptions of a group, each behind a margin."""
    if not isinstance(error, BaseExceptionGroup):
        return []
    if depth >= DEPTH:
        return [f"  ({len(error.exceptions)} exceptions)"]
    lines: list[str] = []
    for number, member in enumerate(error.exceptions[:MEMBERS], 1):
        lines.append(f"  +- {number} of {len(error.exceptions)}")
        lines += [f"  | {line}" for line in outline(member, depth + 1).split("\n")]
    return lines
