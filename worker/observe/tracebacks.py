"""Exceptions for log lines: classes, frames, causes and groups, with or without their texts (SPEC P8, W13,
FAILURES 75).

What code writes into an exception may be a message's payload, which no mask can know. So the lines that we
log about the code of others carry where it happened and what kind of error it was; the text is kept with the
message in the database. Notes and local variables are texts as well. Bounded in every direction.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType

#: Frames of one exception, counted from the innermost.
FRAMES = 30
#: Exceptions of one chain, and of one group.
CHAIN, MEMBERS, DEPTH = 10, 5, 3
MAX_NAME = 200
MAX_TEXT = 2000

#: Set once by logging.configure: lines go to somebody who reads them on a console, so that each failed
#: attempt is shown.
on_console = False

_BECAUSE = "\nThe above exception was the direct cause of the following exception:\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n"
#: Where frames are nobody's business but ours: our code, dramatiq's, and Python's own import.
_OURS = str(Path(__file__).parent.parent.parent) + "/"
_MACHINERY = ("/site-packages/dramatiq/", "<frozen importlib", "/importlib/__init__.py")


def outline(error: BaseException, depth: int = 0) -> str:
    """Like a traceback, the root cause first, each exception as its class alone."""
    lines: list[str] = []
    for one, link in reversed(list(_chain(error))):
        lines += [*_frames(one), _name(one), *_members(one, depth)]
        if link:
            lines.append(link)
    return "\n".join(lines)


def folded(error: BaseException, *, texts: bool = False) -> str:
    """An outline for people: what is ours, dramatiq's or of Python's import is folded to a line. texts: with
    those of the exceptions, for code that knows no payload."""
    lines: list[str] = []
    for one, link in reversed(list(_chain(error))):
        lines += [*_own_frames(one), *(_said(one) if texts else [_name(one), *_members(one, 0)])]
        if link:
            lines.append(link)
    return "\n".join(lines)


def has_own_frames(error: BaseException) -> bool:
    """Is there a place in somebody's code to point at?"""
    return isinstance(error, SyntaxError) or any(
        not _is_machinery(part) for one, _ in _chain(error) for part in _walk(one.__traceback__)
    )


def _walk(found: TracebackType | None) -> Iterator[str]:
    while found is not None:
        yield found.tb_frame.f_code.co_filename
        found = found.tb_next


def _is_machinery(path: str) -> bool:
    return path.startswith(_OURS) or any(part in path for part in _MACHINERY)


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
    return [*head, *(part.rstrip("\n") for part in where)]


def _own_frames(error: BaseException) -> list[str]:
    found = traceback.extract_tb(error.__traceback__, limit=-FRAMES)
    if not found:
        return []
    lines = ["Traceback (most recent call last):"]
    for machinery, frames in groupby(found, lambda frame: _is_machinery(frame.filename)):
        some = list(frames)
        if machinery:
            lines.append(f"  ... {len(some)} of packhorse, dramatiq or import")
        else:
            lines += [part.rstrip("\n") for part in traceback.format_list(some)]
    return lines


def _name(error: BaseException) -> str:
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return name[:MAX_NAME]


def _said(error: BaseException) -> list[str]:
    """Its class and its text; of a syntax error the place as well."""
    try:
        return "".join(traceback.format_exception_only(error))[:MAX_TEXT].rstrip("\n").split("\n")
    except Exception:  # __str__ is the code of others
        return [_name(error)]


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
