"""The model of the walk: what each message should be, told by states.TRANSITIONS and a few counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from packhorse.worker.states import LIVE, TRANSITIONS, State


@dataclass
class Message:
    """One message as the model believes it to be. `starts` counts claims since its last enqueue or
    redrive.
    """

    id: int
    key: str | None
    max_attempts: int
    state: State = State.PENDING
    attempt: int = 0
    crashes: int = 0
    token: int | None = None
    holder: UUID | None = None
    stale: list[int] = field(default_factory=list)  # tokens of leases that are over
    cancel_requested: bool = False

    def apply(self, verb: str) -> None:
        """Take the edge `verb`; the walk only asks for edges that exist."""
        target = TRANSITIONS[self.state].get(verb)
        assert target is not None, f"the model has no edge {verb} from {self.state}"
        if self.state is State.RUNNING and self.token is not None:
            self.stale.append(self.token)
            self.token = self.holder = None
        self.state = target
        if target not in LIVE:
            self.cancel_requested = False


@dataclass
class Model:
    """All messages that were ever enqueued, by id."""

    on_dead_blocks: bool
    messages: dict[int, Message] = field(default_factory=dict)
    purged: set[int] = field(default_factory=set)

    def in_state(self, *states: State) -> list[Message]:
        return [message for message in self.messages.values() if message.state in states]

    def holders(self, key: str) -> list[Message]:
        """Messages that keep others of the conversation waiting: running, pending, or a blocking death."""
        held = (State.RUNNING, State.PENDING, *((State.DEAD,) if self.on_dead_blocks else ()))
        return [message for message in self.in_state(*held) if message.key == key]
