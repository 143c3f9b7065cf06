"""Dead letters by cause."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from packhorse.worker.records import Row
from packhorse.worker.store import browse
from packhorse.worker.web import masks
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.pages.parameters import Filter
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/dead-letters"
TITLE = "Dead letters"
NAV = "Dead letters"
TEMPLATE = "dead_letters.html"

MOST_GROUPS = 100


@dataclass(frozen=True, slots=True)
class DeadLettersPage:
    """groups: None when the filter cannot be read. total: of the groups that are shown; is_all: there are no
    others.
    """

    filter: Filter
    groups: list[Row] | None
    total: int
    is_all: bool
    command: str


async def load(reader: Reader, query: Query) -> DeadLettersPage:
    """Parameter: where."""
    found = parameters.dead_filter(query)
    if found.problem is not None:
        return DeadLettersPage(found, None, 0, True, "packhorse dead-letter groups")
    groups = await reader.ask(
        "dead letter groups", 15.0 if found.terms else 5.0, browse.groups, found.terms, MOST_GROUPS
    )
    groups = [
        {**group, "error_message": masks.error_text(group["error_message"], query.visitor)}
        for group in groups
    ]
    command = (
        f"packhorse dead-letter list --where {shlex.quote(found.text)}"
        if found.text
        else "packhorse dead-letter groups"
    )
    return DeadLettersPage(
        found, groups, sum(int(group["count"]) for group in groups), len(groups) < MOST_GROUPS, command
    )
