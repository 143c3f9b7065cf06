"""What a filter may go on with: fields first, then the values that the database knows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packhorse.worker.states import State
from packhorse.worker.store import browse
from packhorse.worker.store.filters import DEAD, KINDS, KNOWN
from packhorse.worker.web.pages import parameters
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/completions"
TITLE = "Completions"
NAV = None
TEMPLATE = "completions.html"

_LAST = re.compile(r"(?:^|(?<=\s))([^\s=!<>]*)(!=|>=|<=|=|>|<)?(\S*)$")
#: What a comparison of a kind looks like.
_EXAMPLES = {"age": ("15m", "2h", "3d"), "time": ("2030-01-31T12:00Z",), "integer": ("1", "5")}
MOST = 20


@dataclass(frozen=True, slots=True)
class Completions:
    """options: whole filters, each the text so far with one thing more."""

    options: tuple[str, ...]


async def load(reader: Reader, query: Query) -> Completions:
    """Parameters: where, the text so far; of: messages (default) or dead."""
    text = query.values.get("where", "")[: parameters.MOST_TEXT]
    fields = KNOWN if parameters.choice(query, "of", ("messages", "dead")) == "messages" else DEAD
    found = _LAST.search(text)
    if found is None:
        return Completions(())
    field, operator, value = found.groups()
    head = text[: found.start()]
    if operator is None:
        return Completions(_starting(head, (_with_operator(name) for name in fields), field))
    field = field.split(".")[0]
    if field not in fields:
        return Completions(())
    done, _, last = value.rpartition(",")
    stem = f"{head}{field}{operator}{done}{',' if done else ''}"
    if field == "state":
        return Completions(_starting(stem, State, last))
    if field in ("queue", "type", "error", "code"):
        known = await reader.ask("completions", 30.0, browse.values_of, field, last)
        return Completions(_starting(stem, known, last))
    return Completions(_starting(stem, _EXAMPLES.get(KINDS[field], ()), last))


def _with_operator(field: str) -> str:
    return {"payload": "payload.", "age": "age>", "created": "created>", "run_at": "run_at>"}.get(
        field, f"{field}="
    )


def _starting(head: str, words: Iterable[str], start: str) -> tuple[str, ...]:
    return tuple(f"{head}{word}" for word in words if word.startswith(start))[:MOST]
