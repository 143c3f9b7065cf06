"""Patterns of message types: `order.*` stands for every type that begins with `order.` (SPEC W8).

migrations/functions/gates.sql says the same for the database (stands_for, names_type).
"""

from __future__ import annotations

from collections.abc import Iterable

#: At the end of a name: it is a pattern.
STAR = "*"
#: In front of a name that a claim gives: an exception to the patterns beside it.
EXCEPT = "!"


def is_pattern(name: str) -> bool:
    return name.endswith(STAR)


def stands_for(name: str, message_type: str) -> bool:
    """Is this name the type, or a pattern that it begins like?"""
    return name == message_type or (is_pattern(name) and message_type.startswith(name[:-1]))


def name_for(names: Iterable[str], message_type: str) -> str | None:
    """Which of the names a message of this type goes to: its own, else the longest pattern; None: none."""
    found = [name for name in names if stands_for(name, message_type)]
    return max(found, key=lambda name: (name == message_type, len(name)), default=None)


def claimed_as(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """`names` as a claim takes them: patterns first, then what else fits one and is run as one of `others`.

    Without a pattern these are the names, as they are.
    """
    names = list(names)
    patterns = sorted(name for name in names if is_pattern(name))
    if not patterns:
        return names
    excepted = sorted(
        f"{EXCEPT}{other}"
        for other in others
        if other not in names and any(stands_for(name, other) for name in patterns)
    )
    return [*patterns, *excepted, *(name for name in names if not is_pattern(name))]
