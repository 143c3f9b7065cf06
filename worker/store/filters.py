"""Messages by filter: what can be asked, and the condition for it (worker/db/sql/filters.sql).

The text that people write is read in worker/ops/where.py. Values go as parameters, never into the statement;
what goes into it are the columns and operators of this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packhorse.worker.db.queries import Statement, sql

#: Field -> kind: how its values are read and compared.
KINDS = {
    "id": "integer",
    "queue": "text",
    "state": "state",
    "type": "text",
    "key": "text",
    "concurrency": "text",
    "tenant": "text",  # its fairness_key
    "correlation": "text",
    "error": "text",
    "code": "text",
    "attempts": "integer",
    "priority": "integer",
    "crashes": "integer",
    "age": "age",
    "created": "time",
    "run_at": "time",
    "expires": "time",
    "payload": "payload",
}
_COMMON = {
    "id": "m.id",
    "queue": "m.queue",
    "state": "m.state",
    "type": "m.message_type",
    "key": "m.conversation_key",
    "correlation": "m.correlation_id",
    "attempts": "m.attempt",
    "priority": "m.priority",
    "crashes": "m.crashes",
    "age": "m.created_at",
    "created": "m.created_at",
    "run_at": "m.run_at",
    "payload": "m.payload",
}
#: Field -> column of message_queue.
LIVE = {
    **_COMMON,
    "concurrency": "m.concurrency_key",
    "tenant": "m.fairness_key",
    "error": "(m.error ->> 'class')",
    "code": "(m.error ->> 'code')",
    "expires": "m.expires_at",
}
#: Field -> column of all_messages.
KNOWN = {**_COMMON, "error": "m.error_class", "code": "m.error_code"}
#: Field -> column of dead_letters, which are of one state.
DEAD = {
    field: column
    for field, column in {**KNOWN, "concurrency": "m.concurrency_key", "tenant": "m.fairness_key"}.items()
    if field not in ("state", "run_at")
}
#: An age of more is a time before.
_TURNED = {">": "<", ">=": "<=", "<": ">", "<=": ">="}


@dataclass(frozen=True, slots=True)
class Term:
    """One condition. field: of KINDS; operator: = != > >= < <=. values: alternatives of = and !=, else one;
    like: patterns of LIKE beside them. path: the place in the payload. Values are texts, ints, datetimes,
    seconds of an age, or numbers as text (payload)."""

    field: str
    operator: str
    values: tuple[Any, ...]
    like: tuple[str, ...] = ()
    path: tuple[str, ...] = ()


def condition(terms: Sequence[Term], columns: Mapping[str, str]) -> tuple[Statement, dict[str, Any]]:
    """The terms joined by AND, and their parameters; an age also needs the parameter `now`, a time."""
    parts: list[str] = []
    parameters: dict[str, Any] = {}
    for number, term in enumerate(terms):
        name = f"term{number}"
        parts.append(_one(term, columns[term.field], name))
        if term.path:
            parameters[f"{name}_path"] = list(term.path)
        if term.operator in ("=", "!="):
            parameters |= {name: list(term.values), f"{name}_like": list(term.like)}
        else:
            parameters[name] = term.values[0]
    return Statement(" and ".join(parts)) if parts else sql("filter_everything"), parameters


def _one(term: Term, column: str, name: str) -> str:
    kind, equal = KINDS[term.field], term.operator in ("=", "!=")
    if kind == "payload" and not equal:
        return sql("filter_compared_payload").format(column=column, name=name, operator=term.operator)
    if kind == "payload":
        column = sql("filter_payload").format(column=column, name=name)
    if equal:
        text = "integer" if kind == "integer" else "text"
        return sql(f"filter_{text}" if term.operator == "=" else f"filter_not_{text}").format(
            column=column, name=name
        )
    operator = _TURNED[term.operator] if kind == "age" else term.operator
    return sql(
        {"integer": "filter_compared_integer", "age": "filter_age", "time": "filter_time"}[kind]
    ).format(column=column, name=name, operator=operator)


def filled(
    statement: str, terms: Sequence[Term], columns: Mapping[str, str]
) -> tuple[Statement, dict[str, Any]]:
    """A named statement with the condition in it, and the condition's parameters."""
    found, parameters = condition(terms, columns)
    return sql(statement).format(filter=found), parameters
