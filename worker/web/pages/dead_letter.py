"""One dead letter, whole."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.records import Row
from packhorse.worker.store import browse, dead_letters
from packhorse.worker.web import masks
from packhorse.worker.web.pages import message, parameters
from packhorse.worker.web.pages.message import Attempt
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.render import payload_rows
from packhorse.worker.web.screens import Query

PATH = "/dead-letters/{id}"
TITLE = "Dead letter"
NAV = None
TEMPLATE = "dead_letter.html"


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """letter: whole. payload, options, error_details: lines of a tree, without values. attempts: newest
    first.
    """

    letter: Row
    payload: list[Row]
    options: list[Row]
    error_details: list[Row]
    error_message: str | None
    traceback: str | None
    attempts: tuple[Attempt, ...]
    steps: tuple[Row, ...]
    actions: list[Row]
    command: str


async def load(reader: Reader, query: Query) -> DeadLetterPage:
    """Parameter: id. Raises NotFound; NotDead for a message that lives again, with its state."""
    number = parameters.number(query, "id")
    letter = await reader.ask("dead letter", 2.0, dead_letters.show, number)
    actions = await reader.ask("message actions", 2.0, browse.actions_of, number)
    steps = tuple(step for step in (letter["steps"] or ()) if isinstance(step, dict))
    return DeadLetterPage(
        letter=letter,
        payload=payload_rows(letter["payload"]),
        options=payload_rows(letter["options"]),
        error_details=payload_rows(letter["error_details"]),
        error_message=masks.error_text(letter["error_message"], query.visitor),
        traceback=masks.error_text(letter["traceback"], query.visitor),
        attempts=message.attempts_of(letter["history"], query.visitor),
        steps=steps,
        actions=actions,
        command=f"packhorse dead-letter show {number}",
    )
