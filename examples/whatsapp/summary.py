"""Does it add up? The sums and the order of one run, and every way in which they can be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Assistant:
    """What the stand-in of the assistant has seen, beside what the database holds of the messages that asked
    it.

    paid: wamid -> answers given. done: wamids of messages that ended well. reused: how many of those sent an
    answer that an earlier attempt had paid for. dead: how many are dead letters. outages: how often it was
    down. opened: how often the breaker opened. state: of the breaker now. busy: how often it said 429.
    handed_back: how often a message was, without spending its attempt. resting: scopes now.
    """

    paid: Mapping[str, int] = field(default_factory=dict)
    done: frozenset[str] = frozenset()
    reused: int = 0
    dead: int = 0
    outages: int = 0
    opened: int = 0
    state: str = ""
    busy: int = 0
    handed_back: int = 0
    resting: int = 0

    def problems(self) -> list[str]:
        """What is not as it has to be after a finished run."""
        problems = []
        if twice := sum(count > 1 for count in self.paid.values()):
            problems.append(f"{twice} answers were paid for more than once")
        if self.paid.keys() != self.done:
            problems.append(
                f"{len(self.paid)} answers were paid for, for {len(self.done)} messages that are done"
            )
        if self.dead:
            problems.append(f"{self.dead} messages to the assistant are dead letters")
        if self.outages and not self.opened:
            problems.append("the assistant was down, but its breaker did not open")
        if self.opened and self.state != "closed":
            problems.append(f"the breaker of the assistant opened and is {self.state} at the end")
        if self.busy and not self.handed_back:
            problems.append("the assistant said 429, but no message was handed back for it")
        if self.resting:
            problems.append(f"{self.resting} scopes are still parked")
        return problems

    def lines(self) -> list[str]:
        """In words."""
        end = " and closed again" if self.opened and self.state == "closed" else f", {self.state} now"
        return [
            f"assistant: {sum(self.paid.values())} answers paid for {len(self.done)} messages; {self.reused} of them used again by a later attempt",
            f"assistant: outages {self.outages}, breaker opened {self.opened}{end}, dead letters of it {self.dead}",
            f"assistant: answers 429 {self.busy}, messages parked {self.handed_back} without spending an attempt, "
            + (f"scopes still parked {self.resting}" if self.resting else "all resumed"),
        ]


@dataclass(frozen=True, slots=True)
class Summary:
    """What the feed counted, what the database holds, and what the Cloud API saw.

    owed: wamids of done messages that owe a reply. answered: wamids that got one. live: not ended yet.
    assistant: what the free text cost.
    """

    received: int
    enqueued: int
    merged: int
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
    assistant: Assistant = field(default_factory=Assistant)

    def sums(self) -> list[str]:
        """What does not add up; true of a run at any moment after its feed ended."""
        problems = []
        accounted = self.enqueued + self.merged + self.deduplicated + self.refused
        if self.received != accounted:
            problems.append(f"received {self.received}, but {accounted} are accounted for")
        if self.enqueued != self.done + self.dead + self.cancelled + self.live:
            problems.append(
                f"enqueued {self.enqueued}, but the database knows {self.done + self.dead + self.cancelled + self.live}"
            )
        return problems

    def problems(self) -> list[str]:
        """Everything that keeps a finished run from being a good one; [] when all holds."""
        problems = self.sums()
        if self.enqueued == 0:
            problems.append("nothing was enqueued")
        if self.merged == 0:
            problems.append("no text went into an earlier one, although people write in bursts")
        if self.live:
            problems.append(f"{self.live} messages have not ended")
        if missing := self.owed - self.answered:
            problems.append(f"{len(missing)} messages are done, but the Cloud API saw no reply")
        if surplus := self.answered - self.owed:
            problems.append(f"{len(surplus)} replies were sent for messages that are not done")
        problems += [f"out of order: {line}" for line in self.out_of_order]
        problems += [f"answered twice: {line}" for line in self.repeated]
        return problems + self.assistant.problems()

    def lines(self) -> list[str]:
        """The sums in words; tests and people read the same lines."""
        live = f" + {self.live} still in the queue" if self.live else ""
        lines = [
            f"received {self.received} = enqueued {self.enqueued} + merged {self.merged} + deduplicated {self.deduplicated} + refused {self.refused}",
            f"enqueued {self.enqueued} = done {self.done} + dead {self.dead} + cancelled {self.cancelled}{live}",
            f"replies {len(self.answered)} for {len(self.owed)} messages that owe one; {self.retried} of them after a retry, {self.snoozed} snoozes",
        ]
        if self.out_of_order:
            lines.append(f"order broken {len(self.out_of_order)} times in {self.conversations} conversations")
        else:
            lines.append(
                f"order kept in {self.conversations} of {self.conversations} conversations, as the Cloud API saw it"
            )
        return lines + self.assistant.lines()
