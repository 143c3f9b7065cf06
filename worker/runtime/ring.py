"""Whose turn it is to look for a message that all sleepers have heard of (SPEC Q10).

The ids of a fleet's processes are points on a ring, and the number that comes with a wake-up is another one:
the next process on the ring is to look. Each knows from its heartbeat which one is before it, so nobody
writes down who sleeps, and a producer has nothing to choose. Views that differ for a moment make two look, or
nobody: then a poll finds the message. So it is with the part of a process that was killed, until its lease is
over and the next one has beaten.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from uuid import UUID

#: So few all look.
FEW = 5
ALL = "!"  # after the name of a queue: whoever hears it looks
POINTS = 2**32
SPREAD = 0x9E3779B1  # of consecutive numbers each goes far from the ones before (2^32 / golden ratio)


@dataclass(frozen=True, slots=True)
class Word:
    """What is heard: `queue`, `queue!`, `queue@number` or `queue@number+passed`.

    number: None: for all, or for nobody in particular. passed: how often it has been passed on.
    """

    queue: str
    all: bool = False
    number: int | None = None
    passed: int = 0

    @classmethod
    def read(cls, text: str) -> Word:
        """One that cannot be read is for nobody in particular."""
        if text.endswith(ALL):
            return cls(text.removesuffix(ALL), all=True)
        queue, _, rest = text.partition("@")
        number, _, passed = rest.partition("+")
        if not _is_number(number):
            return cls(queue)
        return cls(queue, number=int(number), passed=int(passed) if _is_number(passed) else 0)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def some_number() -> int:
    """A point of nobody in particular."""
    return random.randrange(POINTS)


def ours(word: Word, own: UUID, before: UUID | None, peers: int) -> bool:
    """Is this process to look? before: the one before it on the ring, of so many peers."""
    if word.all or peers <= FEW or before is None:
        return True
    if word.number is None:
        return random.random() * peers < FEW
    start = before.int >> 96
    return 0 < (word.number * SPREAD - start) % POINTS <= ((own.int >> 96) - start) % POINTS
