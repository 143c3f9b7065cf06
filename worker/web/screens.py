"""What a screen is: a module of pages/ with these names. It reads, makes a view model, and its template shows
it.

    PATH = "/queues/{name}"            below the database; parts in braces are in query.path
    TITLE = "Queue"
    NAV = "Queues"                     in the navigation, where there is one; None otherwise
    ROLE = Role.VIEWER                 who may see it; may be left out
    TEMPLATE = "queue.html"            in templates/pages
    @dataclass(frozen=True, slots=True)
    class QueuePage: ...               the view model; the template has it as `model`
    async def load(reader: Reader, query: Query) -> QueuePage: ...

A page holds no SQL and no rule: it asks functions of worker/store and worker/ops through `reader.ask`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.web.access import Role, Visitor
from packhorse.worker.web.reading import Reader

MOST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Query:
    """What the address says. path: parts of it. values: its query, the last of each name; nothing in it is
    checked yet.
    """

    path: Mapping[str, str]
    values: Mapping[str, str]
    visitor: Visitor

    def text(self, name: str, otherwise: str = "") -> str:
        return self.values.get(name, "").strip() or otherwise

    def integer(self, name: str, otherwise: int | None = None, most: int = MOST_ID) -> int | None:
        """A whole number from 0 to most, of the path or of the query. Raises InvalidArgument."""
        given = self.path.get(name, self.values.get(name, "")).strip()
        if not given:
            return otherwise
        if not given.isascii() or not given.isdigit() or len(given) > 19 or int(given) > most:
            raise InvalidArgument(
                f"{name}: {given[:40]!r} is not a whole number from 0 to {most}", field=name
            )
        return int(given)


@dataclass(frozen=True, slots=True)
class Screen:
    """One module of pages/, as the app uses it."""

    path: str
    title: str
    nav: str | None
    role: Role
    template: str
    module: ModuleType

    async def load(self, reader: Reader, query: Query) -> Any:
        return await self.module.load(reader, query)


def screen(module: ModuleType) -> Screen:
    """The screen that a module is."""
    given: dict[str, Any] = vars(module)
    return Screen(
        given["PATH"],
        given["TITLE"],
        given["NAV"],
        given.get("ROLE", Role.VIEWER),
        f"pages/{given['TEMPLATE']}",
        module,
    )
