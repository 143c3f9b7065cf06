"""How many an act is about, as a person was shown it, and what that agrees to (SPEC Q4, Q5).

A preview of a large selection counts a part and estimates the rest. The act looks itself at all that match
before it begins, among what was there at the preview, and does nothing when that is more than was agreed to.
"""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store.tallies import MOST_COUNTED, Tally

#: Agreed to, beyond what was counted: so many, or a twentieth. An estimate agrees to as many again.
TOLERANCE = 10


@dataclass(frozen=True, slots=True)
class Amount:
    """counted: so many match for sure. estimate: how many in all, None when all were counted. looked: rows
    that were looked at, then.
    """

    counted: int
    estimate: int | None = None
    looked: int | None = None

    @classmethod
    def of(cls, tally: Tally) -> Amount:
        return cls(tally.total, tally.expected, tally.looked)

    @property
    def is_all(self) -> bool:
        return self.estimate is None

    @property
    def number(self) -> int:
        """The best that is known."""
        return max(self.counted, self.estimate or 0)

    @property
    def most(self) -> int:
        """Who was shown this agrees to no more."""
        return self.number + max(TOLERANCE, self.number // 20 if self.is_all else self.number)

    def up_to(self, limit: int | None) -> Amount:
        """The same of an act that ends after so many."""
        if limit is None or limit > self.number:
            return self
        return Amount(limit) if limit <= self.counted else Amount(self.counted, limit, self.looked)

    def said(self, noun: str) -> str:
        """`1,204 messages`; `at least 50,000 messages, about 980,000 by estimate`."""
        if self.is_all:
            return f"{self.counted:,} {noun}{'s' * (self.counted != 1)}"
        counted = min(self.counted, MOST_COUNTED)
        looked = (
            "" if self.looked is None or counted == MOST_COUNTED else f" among the oldest {self.looked:,}"
        )
        some = f"at least {counted:,} {noun}{'s' * (counted != 1)}" if counted else f"no {noun}"
        about = (
            f"about {self.number:,} in all by estimate"
            if self.number > self.counted
            else "the others were not looked at"
        )
        return f"{some}{looked}, {about}"


def confirmed(shown: Amount, now: Amount) -> None:
    """What matches now, among what was there when this was shown, must not be more than that agrees to: else
    the person looks again. Raises InvalidArgument.
    """
    if now.counted > shown.most:
        raise InvalidArgument(
            f"where: {now.number:,} match now, and {shown.number:,} were shown",
            field="where",
            hint="Nothing is done yet: look at the preview again",
        )
