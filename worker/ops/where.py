"""The filter that people write, read in one place (SPEC Q5): `queue=whatsapp state=pending,blocked
type=send_* age>2h payload.customer.id=42`.

Terms are joined by AND. A term is a field, an operator (= != > >= < <=) and a value; = and != take several,
with commas. In a text `*` stands for anything. A value in quotes may hold spaces, commas and `*`, which then
stand for themselves. Ages are durations (90s, 15m, 2h, 3d), times ISO 8601 with a zone. parse() raises
InvalidArgument and nothing else, with the place and the near miss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.states import State
from packhorse.worker.store.filters import KINDS, LIVE, Term
from packhorse.worker.suggest import did_you_mean, near_miss

MOST_CHARACTERS = 10_000
MOST_TERMS = 50
MOST_ALTERNATIVES = 1000
MOST_INTEGER = 2**63 - 1
#: Longer is a slip of the finger; PostgreSQL's intervals end far beyond it.
MOST_SECONDS = 100 * 365 * 86400.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_HEAD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)((?:\.[^\s.=!<>\"',]+)*)(!=|>=|<=|=|>|<)")
_QUOTED = re.compile(r"\"([^\"]*)\"|'([^']*)'")
_BARE = re.compile(r"[^\s,\"']+")
_LIVE_STATES = (State.PENDING, State.BLOCKED, State.RUNNING)
#: Other words for a field that people try first.
_MEANT = {
    "conversation": "key",
    "conversation_key": "key",
    "message_type": "type",
    "attempt": "attempts",
    "correlation_id": "correlation",
}


@dataclass(frozen=True, slots=True)
class Where:
    """A filter that was read. text: as it was written."""

    text: str
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    text: str
    quoted: bool


def parse(text: str, fields: Iterable[str] = LIVE, states: Iterable[str] = _LIVE_STATES) -> Where:
    """The terms of a filter over these fields and states; none for a text of spaces. Raises
    InvalidArgument.
    """
    known, wanted = tuple(fields), tuple(str(state) for state in states)
    if len(text) > MOST_CHARACTERS:
        raise _wrong(f"{len(text)} characters, at most {MOST_CHARACTERS}")
    if "\0" in text or not _is_text(text):
        raise _wrong("a character that PostgreSQL cannot store")
    terms: list[Term] = []
    at = _past_spaces(text, 0)
    while at < len(text):
        term, at = _term(text, at, known, wanted)
        terms.append(term)
        if at < len(text) and not text[at].isspace():
            raise _wrong(
                f"a space is missing before {text[at : at + 20]!r}",
                "Terms are separated by spaces; quote a value that holds one",
            )
        at = _past_spaces(text, at)
    if len(terms) > MOST_TERMS:
        raise _wrong(f"{len(terms)} terms, at most {MOST_TERMS}")
    return Where(text.strip(), tuple(terms))


def duration_seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `2h`, `7d`, `1h30m` as seconds. Raises InvalidArgument."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        text += "s"
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise _wrong(f"{text[:40]!r} is not a duration", "Write 90s, 15m, 2h or 3d")
    found = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if found > MOST_SECONDS:
        raise _wrong(f"{text[:40]!r} is longer than 100 years")
    return found


def _term(text: str, at: int, fields: tuple[str, ...], states: tuple[str, ...]) -> tuple[Term, int]:
    head = _HEAD.match(text, at)
    if head is None:
        raise _wrong(
            f"{text[at : at + 40]!r} is not FIELD=VALUE", "For example: queue=default state=pending age>2h"
        )
    field, dotted, operator = head.groups()
    field = _MEANT.get(field, field)
    path = tuple(dotted.split(".")[1:])
    if field not in fields:
        listed = "Fields: " + ", ".join(name + ".NAME" if name == "payload" else name for name in fields)
        near = near_miss(field, fields)
        raise _wrong(
            f"there is no field {field[:60]!r}", f"Did you mean {near!r}? {listed}" if near else listed
        )
    if (field == "payload") != bool(path):
        hint = (
            "payload.customer.id=42 looks at a place in the payload"
            if field == "payload"
            else f"Write {field}{operator}VALUE"
        )
        raise _wrong(f"{field + dotted} cannot be asked for", hint)
    values, end = _values(text, head.end(), field + dotted)
    return _checked(field, path, operator, values, states), end


def _values(text: str, at: int, name: str) -> tuple[list[_Value], int]:
    """The alternatives from here on, and where they end."""
    found: list[_Value] = []
    while True:
        quoted, bare = _QUOTED.match(text, at), _BARE.match(text, at)
        match = quoted or bare
        if match is None:
            said = "a quote is not closed" if text[at : at + 1] in ("'", '"') else "a value is missing"
            raise _wrong(f"{name}: {said}", f"Write {name}=VALUE; a value with spaces in quotes")
        found.append(
            _Value(
                quoted.group(1)
                if quoted and quoted.group(1) is not None
                else quoted.group(2)
                if quoted
                else match.group(),
                bool(quoted),
            )
        )
        at = match.end()
        if text[at : at + 1] != ",":
            break
        at += 1
    if len(found) > MOST_ALTERNATIVES:
        raise _wrong(f"{name}: {len(found)} values, at most {MOST_ALTERNATIVES}")
    return found, at


def _checked(
    field: str, path: tuple[str, ...], operator: str, values: list[_Value], states: tuple[str, ...]
) -> Term:
    """The term with its values as their kind has them."""
    kind, equal = KINDS[field], operator in ("=", "!=")
    if not equal and len(values) > 1:
        raise _wrong(f"{field}{operator} takes one value", f"Several are for {field}= and {field}!=")
    if equal and kind in ("time", "age"):
        raise _wrong(
            f"{field}: compare it with > or <",
            f"For example: {field}>{'2h' if kind == 'age' else '2030-01-31T12:00Z'}",
        )
    if not equal and kind in ("text", "state"):
        raise _wrong(f"{field}: only = and != compare texts", f"Write {field}={values[0].text[:40]}")
    if kind == "integer":
        return Term(field, operator, tuple(_integer(field, value.text) for value in values))
    if kind == "age":
        return Term(field, operator, (duration_seconds(values[0].text),))
    if kind == "time":
        return Term(field, operator, (_moment(field, values[0].text),))
    if kind == "state":
        return Term(field, operator, tuple(_state(value.text, states) for value in values))
    if not equal:
        return Term(field, operator, (_number(".".join((field, *path)), values[0].text),), path=path)
    exact = tuple(value.text for value in values if value.quoted or "*" not in value.text)
    return Term(
        field,
        operator,
        exact,
        tuple(_like(value.text) for value in values if not value.quoted and "*" in value.text),
        path,
    )


def _integer(field: str, text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or abs(int(text)) > MOST_INTEGER:
        raise _wrong(f"{field}: {text[:40]!r} is not a whole number")
    return int(text)


def _number(name: str, text: str) -> str:
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal("NaN")
    if not re.fullmatch(r"[-+0-9.eE]{1,60}", text) or not found.is_finite() or abs(found.adjusted()) > 1000:
        raise _wrong(f"{name}: {text[:40]!r} is not a number", f"Texts are compared with {name}=VALUE")
    return text


def _moment(field: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise _wrong(f"{field}: {text[:40]!r} is not an ISO 8601 time", "Write 2030-01-31T12:00Z") from None
    if found.tzinfo is None:
        raise _wrong(f"{field}: {text[:40]!r} has no time zone", "Append Z or +00:00")
    return found


def _state(text: str, states: tuple[str, ...]) -> str:
    if text not in states:
        raise _wrong(
            f"state: {text[:40]!r} is none here", did_you_mean(text, states, f"States: {', '.join(states)}")
        )
    return text


def _like(text: str) -> str:
    """A pattern of LIKE for a text in which * stands for anything."""
    return re.sub(r"([\\%_])", r"\\\1", text).replace("*", "%")


def _past_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(problem: str, hint: str | None = None) -> InvalidArgument:
    return InvalidArgument(f"where: {problem}", field="where", hint=hint)
