"""Does it add up? The sums and the order of one run, and every way in which they can be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Summary:
    """What the feed counted, what the database holds, and what the Cloud API saw.

    owed: wamids of done messages that owe a reply. answered: wamids that got one. live: not ended yet.
    """

    received: int
    enqueued: int
    deduplicated: int
    refused: int
    done: int
    dead: int
    cancelled: int
    live: int
    owed: frozenset[str] = frozenset()
    answered: frozenset[str] = frozenset()
    out_of_order: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    conversations: int = 0
    retried: int = 0
    snoozed: int = 0

    def sums(self) -> list[str]:
        """What does not add up; true of a run at any moment after its feed ended."""
        problems = []
        if self.received != self.enqueued + self.deduplicated + self.refused:
            problems.append(f"received {self.received}, but {self.enqueued} + {self.deduplicated} + {self.refused} are accounted for")
        if self.enqueued != self.done + self.dead + self.cancelled + self.live:
            problems.append(f"enqueued {self.enqueued}, but the database knows {self.done + self.dead + self.cancelled + self.live}")
        return problems

    def problems(self) -> list[str]:
        """Everything that keeps a finished run from being a good one; [] when all holds."""
        problems = self.sums()
        if self.enqueued == 0:
            problems.append("nothing was enqueued")
        if self.live:
            problems.append(f"{self.live} messages have not ended")
        if missing := self.owed - self.answered:
            problems.append(f"{len(missing)} messages are done, but the Cloud API saw no reply")
        if surplus := self.answered - self.owed:
            problems.append(f"{len(surplus)} replies were sent for messages that are not done")
        problems += [f"out of order: {line}" for line in self.out_of_order]
        problems += [f"answered twice: {line}" for line in self.repeated]
        return problems

    def lines(self) -> list[str]:
        """The sums in words; tests and people read the same lines."""
        live = f" + {self.live} still in the queue" if self.live else ""
        lines = [
            f"received {self.received} = enqueued {self.enqueued} + deduplicated {self.deduplicated} + refused {self.refused}",
            f"enqueued {self.enqueued} = done {self.done} + dead {self.dead} + cancelled {self.cancelled}{live}",
            f"replies {len(self.answered)} for {len(self.owed)} messages that owe one; {self.retried} of them after a retry, {self.snoozed} snoozes",
        ]
        if self.out_of_order:
            lines.append(f"order broken {len(self.out_of_order)} times in {self.conversations} conversations")
        else:
            lines.append(f"order kept in {self.conversations} of {self.conversations} conversations, as the Cloud API saw it")
        return lines
