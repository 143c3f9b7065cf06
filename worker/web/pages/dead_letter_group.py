"""The dead letters of one cause."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.records import Row
from packhorse.worker.store import browse
from packhorse.worker.store.browse import Page
from packhorse.worker.web import masks
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/dead-letters/groups/{fingerprint}"
TITLE = "Dead letters of one cause"
NAV = None
TEMPLATE = "dead_letter_group.html"


@dataclass(frozen=True, slots=True)
class DeadLetterGroupPage:
    """group: None when no letter has the cause any more, which is what a redrive leads to."""

    fingerprint: str
    group: Row | None
    page: Page
    command: str


async def load(reader: Reader, query: Query) -> DeadLetterGroupPage:
    """Parameters: fingerprint; before, after: an id."""
    fingerprint = parameters.text(query, "fingerprint") or ""
    if not re.fullmatch(r"[0-9A-Za-z._-]{1,100}", fingerprint):
        raise InvalidArgument(
            f"fingerprint: {fingerprint[:40]!r} is none",
            field="fingerprint",
            hint="Open a group from the list of dead letters",
        )
    before, after = query.integer("before"), query.integer("after")
    group = await reader.ask("dead letter group", 2.0, browse.group, fingerprint)
    if group is not None:
        texts = {
            name: masks.error_text(group[name], query.visitor) for name in ("error_message", "traceback")
        }
        group = {**group, **texts}
    page = await reader.ask(
        "dead letters of a group", 2.0, browse.group_letters, fingerprint, before, after, parameters.ROWS
    )
    return DeadLetterGroupPage(
        fingerprint, group, page, f"packhorse dead-letter list --fingerprint {fingerprint}"
    )
