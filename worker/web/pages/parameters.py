"""What addresses of several pages say, read in one place. Raises InvalidArgument that names the parameter."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops import where
from packhorse.worker.states import State
from packhorse.worker.store.filters import DEAD, KNOWN, Term
from packhorse.worker.web.access import Role
from packhorse.worker.web.screens import Query

#: Rows of a page that is turned.
ROWS = 50
MOST_TEXT = 500
#: Fields whose values viewers do not see, or not whole.
HIDDEN_FIELDS = ("payload", "key", "concurrency", "correlation")


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter as the visitor wrote it. terms: empty when it says nothing, or cannot be read; then problem
    and hint say why.
    """

    text: str
    terms: tuple[Term, ...] = ()
    problem: str | None = None
    hint: str | None = None


def message_filter(query: Query) -> Filter:
    """The parameter `where`, over all messages."""
    return _filter(query, tuple(KNOWN), tuple(State))


def dead_filter(query: Query) -> Filter:
    """The parameter `where`, over dead letters."""
    return _filter(query, tuple(DEAD), ())


def _filter(query: Query, fields: tuple[str, ...], states: tuple[str, ...]) -> Filter:
    given = query.text("where")
    try:
        terms = where.parse(given, fields, states).terms
        if not query.visitor.may(Role.OPERATOR):
            _refuse_guessing(terms)
        return Filter(given, terms)
    except InvalidArgument as error:
        return Filter(given[: where.MOST_CHARACTERS], (), str(error).removeprefix("where: "), error.hint)


def _refuse_guessing(terms: tuple[Term, ...]) -> None:
    """What a visitor may not see he may ask for, not feel his way to: a pattern or a comparison tells it one
    character after the other. Raises InvalidArgument.
    """
    for term in terms:
        if term.field in HIDDEN_FIELDS and (term.like or term.operator not in ("=", "!=")):
            raise InvalidArgument(
                f"where: {term.field} is compared exactly by viewers",
                field="where",
                hint=f"Write {term.field}=, without * and without < or >",
            )


def number(query: Query, name: str) -> int:
    """A whole number that must be there. Raises InvalidArgument."""
    found = query.integer(name)
    if found is None:
        raise InvalidArgument(f"{name}: a number is missing", field=name, hint="An id, as the pages show it")
    return found


def text(query: Query, name: str) -> str | None:
    """A short text, of the path or of the query; None when nothing is given. Raises InvalidArgument."""
    found = query.path.get(name, query.values.get(name, ""))
    if len(found) > MOST_TEXT:
        raise InvalidArgument(
            f"{name}: {len(found)} characters, at most {MOST_TEXT}", field=name, hint="Shorten it"
        )
    if "\0" in found or any("\ud800" <= char <= "\udfff" for char in found):
        raise InvalidArgument(
            f"{name}: a character that PostgreSQL cannot store", field=name, hint="Leave it out"
        )
    return found or None


def choice(query: Query, name: str, allowed: tuple[str, ...]) -> str:
    """One of these words; the first when nothing is given. Raises InvalidArgument."""
    found = query.text(name, allowed[0])
    if found not in allowed:
        raise InvalidArgument(f"{name}: {found[:40]!r} is none of them", field=name, hint=", ".join(allowed))
    return found
