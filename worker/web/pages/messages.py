"""All messages by filter, newest first, page by page."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from packhorse.worker.store import browse
from packhorse.worker.store.browse import Count, Page
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.pages.parameters import Filter
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/messages"
TITLE = "Messages"
NAV = "Messages"
TEMPLATE = "messages.html"


#: A walk by a filter may cost the database a tenth of a second: a page that refreshes itself repeats it no
#: more often than this.
WALK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class MessagesPage:
    """filter: as written. page, count: None when it cannot be read. key: the conversation that it names,
    which has a page of its own. command: the CLI line that lists the same."""

    filter: Filter
    page: Page | None
    count: Count | None
    key: str | None
    command: str


async def load(reader: Reader, query: Query) -> MessagesPage:
    """Parameters: where; before, after: an id."""
    found = parameters.message_filter(query)
    if found.problem is not None:
        return MessagesPage(found, None, None, None, "packhorse message list")
    before, after = query.integer("before"), query.integer("after")
    is_cheap = not found.terms and before is None and after is None
    page = await reader.ask(
        "messages",
        2.0 if is_cheap else WALK_SECONDS,
        browse.messages,
        found.terms,
        before,
        after,
        parameters.ROWS,
    )
    count = await reader.ask("messages counted", 3 * WALK_SECONDS, browse.count, found.terms)
    keys = [
        term.values[0]
        for term in found.terms
        if term.field == "key" and term.operator == "=" and len(term.values) == 1 and not term.like
    ]
    command = "packhorse message list" + (f" --where {shlex.quote(found.text)}" if found.text else "")
    return MessagesPage(found, page, count, keys[0] if keys else None, command)
