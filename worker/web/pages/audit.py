"""The audit trail: who did what, when and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from packhorse.worker.records import Row
from packhorse.worker.store import browse
from packhorse.worker.store.browse import Page
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.render import payload_rows
from packhorse.worker.web.screens import Query

PATH = "/audit"
TITLE = "Audit"
NAV = "Audit"
TEMPLATE = "audit.html"


#: Details that hold parts of messages.
HIDDEN = frozenset({"payload", "before", "after", "old_payload", "new_payload", "old", "new"})


@dataclass(frozen=True, slots=True)
class AuditPage:
    """action, operator, message: what was asked for; None for all. page: each row has `lines`, its details as
    a tree without the values of payloads, which an edit keeps here."""

    action: str | None
    operator: str | None
    message: int | None
    page: Page


async def load(reader: Reader, query: Query) -> AuditPage:
    """Parameters: action, operator, message; before, after: an id of the trail."""
    action, operator, message = (
        parameters.text(query, "action"),
        parameters.text(query, "operator"),
        query.integer("message"),
    )
    before, after = query.integer("before"), query.integer("after")
    page = await reader.ask(
        "audit", 2.0, browse.actions, action, operator, message, before, after, parameters.ROWS
    )
    page = replace(page, rows=tuple({**row, "lines": lines_of(row["details"])} for row in page.rows))
    return AuditPage(action, operator, message, page)


def lines_of(details: Any) -> list[Row]:
    """Details as a tree. Numbers and short words of ours are shown; what an edit keeps of a payload is
    not.
    """
    if not isinstance(details, dict):
        return payload_rows(details) if details is not None else []
    return [
        line
        for name, part in details.items()
        for line in payload_rows({name: part}, isinstance(part, dict | list) or name in HIDDEN)[1:]
    ]
