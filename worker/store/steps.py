"""Steps of messages that run (SPEC W3c; migrations/functions/steps.sql)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql


class StepAnswer(StrEnum):
    """What became of a step."""

    STORED = "stored"
    LOST = "lost"  # somebody else owns the message
    EXISTS = "exists"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    BUSY = "busy"  # somebody has locked the row


@dataclass(frozen=True, slots=True)
class NewStep:
    """A step to be stored: the message, its lease token, the name, the value as JSON text."""

    id: int
    token: int
    name: str
    value: str


def store(connection: DeadlineConnection, steps: Sequence[NewStep]) -> list[tuple[StepAnswer, str]]:
    """Store steps in one statement, and so all or none when it fails; what became of each, and its value as
    the database writes it.

    At most 10000. Waits for no locked row. Raises InvalidArgument for a value that PostgreSQL cannot store.
    """
    answers, values = connection.execute(  # type: ignore[misc]
        sql("store_steps"),
        {
            "ids": [step.id for step in steps],
            "tokens": [step.token for step in steps],
            "names": [step.name for step in steps],
            "values": [step.value for step in steps],
        },
    ).fetchone()
    return [(StepAnswer(answer), value) for answer, value in zip(answers, values, strict=True)]


def store_and_wait(connection: DeadlineConnection, step: NewStep) -> bool:
    """Store one step; waits for a locked row. False when the lease was lost. Raises InvalidArgument for what
    cannot be stored.
    """
    row = connection.execute(
        sql("store_step_and_wait"), (step.id, step.token, step.name, step.value)
    ).fetchone()
    return bool(row[0])  # type: ignore[index]
