"""What a run on a real queue has made of each message (SPEC W12)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MessageReport:
    """A message after a run. outcome: done, dead, cancelled; or what it waits as: pending, blocked, running.

    attempts: started ones that counted. error_class, error: the last failure that is known. traceback: of the
    last failure in this run, as text. result: what the handler returned, when it ended in this run. reason:
    why it is dead or cancelled.
    """

    id: int
    queue: str
    message_type: str
    outcome: str
    attempts: int
    reason: str | None = None
    error_class: str | None = None
    error: str | None = None
    traceback: str | None = None
    result: Any = None

    def __str__(self) -> str:
        why = (
            f": {self.error_class}: {self.error}"
            if self.error_class
            else f": {self.reason}"
            if self.reason
            else ""
        )
        return f"message {self.id} ({self.message_type} on {self.queue}) is {self.outcome} after {self.attempts} attempt(s){why}"


class RunReport:
    """Messages of a run in the order of their ids: those that lived at its start, and those that were sent
    meanwhile.

    Iteration and length are over all of them, `report[id]` is one.
    """

    def __init__(self, messages: list[MessageReport]) -> None:
        self._messages = {message.id: message for message in messages}

    def __iter__(self) -> Iterator[MessageReport]:
        return iter(self._messages.values())

    def __len__(self) -> int:
        return len(self._messages)

    def __getitem__(self, message_id: int) -> MessageReport:
        return self._messages[message_id]

    def __repr__(self) -> str:
        return "\n".join(["RunReport:", *(f"  {message}" for message in self)])

    def of(self, message_type: Any) -> list[MessageReport]:
        """Those of an actor, or of a message type by its name."""
        name = getattr(message_type, "actor_name", message_type)
        return [message for message in self if message.message_type == name]

    def one(self, message_type: Any) -> MessageReport:
        """The only one of an actor. Raises AssertionError."""
        found = self.of(message_type)
        if len(found) != 1:
            raise AssertionError(
                f"expected one message of {getattr(message_type, 'actor_name', message_type)!r}, found {len(found)}\n{self!r}"
            )
        return found[0]

    @property
    def outcomes(self) -> dict[int, str]:
        """Outcome by id."""
        return {message.id: message.outcome for message in self}

    @property
    def errors(self) -> dict[int, str]:
        """The text of the last failure by id, with its traceback when it was in this run; also of what was
        done in a later attempt.
        """
        return {
            message.id: message.traceback or f"{message.error_class}: {message.error}"
            for message in self
            if message.traceback or message.error_class
        }

    def raise_for_dead(self) -> RunReport:
        """Itself when nothing died. Raises AssertionError with the tracebacks of what did."""
        dead = [message for message in self if message.outcome == "dead"]
        if dead:
            raise AssertionError(
                "\n\n".join(
                    [
                        f"{len(dead)} message(s) died",
                        *(f"{message}\n{message.traceback or ''}".rstrip() for message in dead),
                    ]
                )
            )
        return self

    def with_run(self, results: dict[int, Any], tracebacks: dict[int, str]) -> RunReport:
        """The same with what the handlers of this run returned and raised."""
        return RunReport(
            [
                dataclasses.replace(m, result=results.get(m.id), traceback=tracebacks.get(m.id, m.traceback))
                for m in self
            ]
        )


class QueueNotEmpty(AssertionError):
    """The time of a run was over and there is still something to do. report: what it had made of the messages
    by then.
    """

    def __init__(self, text: str, report: RunReport) -> None:
        self.report = report
        super().__init__(text)
