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
    """groups: None when the filter cannot be read. total: letters of the groups that are shown; estimated:
    some of them. newest: None, or so many letters were looked at, and older ones not. is_all: of these no
    group is left out.
    """

    filter: Filter
    groups: list[Row] | None
    total: int
    estimated: bool
    newest: int | None
    is_all: bool
    command: str


async def load(reader: Reader, query: Query) -> DeadLettersPage:
    """Parameter: where."""
    filter = parameters.dead_filter(query)
    if filter.problem is not None:
        return DeadLettersPage(filter, None, 0, False, None, True, "packhorse dead-letter groups")
    found = await reader.ask(
        "dead letter groups", 15.0 if filter.terms else 5.0, browse.groups, filter.terms, MOST_GROUPS
    )
    groups = [
        {**group, "error_message": masks.error_text(group["error_message"], query.visitor)}
        for group in found.rows
    ]
    command = (
        f"packhorse dead-letter list --where {shlex.quote(filter.text)}"
        if filter.text
        else "packhorse dead-letter groups"
    )
    return DeadLettersPage(
        filter,
        groups,
        total=sum(int(group["count"]) for group in groups),
        estimated=any(group["estimated"] for group in groups),
        newest=browse.NEWEST_LETTERS if filter.terms and not found.is_all else None,
        is_all=len(groups) < MOST_GROUPS and (found.is_all or bool(filter.terms)),
        command=command,
    )
