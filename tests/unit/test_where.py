"""The filter that people write: what is read, what is refused with which words, and that nothing else ever
comes out (SPEC Q5).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops.where import MOST_CHARACTERS, duration_seconds, parse
from packhorse.worker.states import State
from packhorse.worker.store.filters import KINDS, KNOWN, LIVE, Term, condition

READ: dict[str, Term] = {
    "queue=whatsapp": Term("queue", "=", ("whatsapp",)),
    "state=pending,blocked": Term("state", "=", ("pending", "blocked")),
    "type=send_*": Term("type", "=", (), ("send\\_%",)),
    "type=a,send_*,b": Term("type", "=", ("a", "b"), ("send\\_%",)),
    "key=+49*": Term("key", "=", (), ("+49%",)),
    "key=wa:250788000456": Term("key", "=", ("wa:250788000456",)),
    "key!=a": Term("key", "!=", ("a",)),
    "error=Timeout*": Term("error", "=", (), ("Timeout%",)),
    "age>2h": Term("age", ">", (7200.0,)),
    "age<=1h30m": Term("age", "<=", (5400.0,)),
    "attempts>=2": Term("attempts", ">=", (2,)),
    "attempts=1,2": Term("attempts", "=", (1, 2)),
    "priority<=3": Term("priority", "<=", (3,)),
    "id!=7": Term("id", "!=", (7,)),
    "payload.customer.id=42": Term("payload", "=", ("42",), path=("customer", "id")),
    "payload.a-b>1.5": Term("payload", ">", ("1.5",), path=("a-b",)),
    "created>2026-11-29T10:00Z": Term("created", ">", (datetime(2026, 11, 29, 10, tzinfo=UTC),)),
    "correlation='order 7, paid'": Term("correlation", "=", ("order 7, paid",)),
    'correlation="it\'s *"': Term("correlation", "=", ("it's *",)),
    "queue='a b',c": Term("queue", "=", ("a b", "c")),
    "queue=''": Term("queue", "=", ("",)),
    "message_type=a": Term("type", "=", ("a",)),
}


@pytest.mark.parametrize("text", READ)
def test_a_term_is_read(text: str) -> None:
    assert parse(text).terms == (READ[text],)


def test_terms_are_separated_by_any_space_and_all_must_hold() -> None:
    assert parse("  queue=a\n\tstate=running  ").terms == (
        Term("queue", "=", ("a",)),
        Term("state", "=", ("running",)),
    )
    assert parse("").terms == () == parse("   ").terms


REFUSED = {
    "quue=a": "Did you mean 'queue'?",
    "pirority>3": "Fields: id, queue, state",
    "state=pendng": "Did you mean 'pending'?",
    "state=done": "States: pending, blocked, running",
    "queue": "not FIELD=VALUE",
    "queue=": "a value is missing",
    "queue=a,": "a value is missing",
    "queue='a": "a quote is not closed",
    "queue='a'b": "a space is missing before",
    "queue=a'b'": "a space is missing before",
    "queue>a": "only = and != compare texts",
    "attempts>1,2": "takes one value",
    "attempts=two": "not a whole number",
    "id=99999999999999999999": "not a whole number",
    "age=2h": "compare it with > or <",
    "age>2 hours": "not FIELD=VALUE",
    "age>soon": "not a duration",
    "age>900000d": "longer than 100 years",
    "created>yesterday": "not an ISO 8601 time",
    "created>2026-11-29T10:00": "no time zone",
    "payload=1": "payload.customer.id=42 looks at a place",
    "queue.a=1": "cannot be asked for",
    "payload.a>x": "not a number",
    "payload.a>1e999999": "not a number",
    "queue=a\0": "cannot store",
    "queue=\ud800": "cannot store",
    "queue=" + "a" * MOST_CHARACTERS: "characters, at most",
    "queue=a " * 51: "terms, at most 50",
    "queue=" + "a," * 1000 + "a": "values, at most",
    "; drop table message_queue": "not FIELD=VALUE",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text)[:40])
def test_what_cannot_be_read_is_refused_with_the_place_and_the_fix(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert REFUSED[text] in str(caught.value) and caught.value.field == "where"


def test_a_field_that_only_live_messages_have_is_unknown_where_all_are_listed() -> None:
    parse("expires<2026-11-29T10:00Z")
    with pytest.raises(InvalidArgument, match="there is no field 'expires'"):
        parse("expires<2026-11-29T10:00Z", KNOWN, State)
    assert parse("state=dead", KNOWN, State).terms == (Term("state", "=", ("dead",)),)


WORDS = st.sampled_from(
    [
        *KINDS,
        "payload.a",
        "=",
        "!=",
        ">",
        ">=",
        ",",
        "'",
        '"',
        " ",
        "*",
        "2h",
        "7",
        "pending",
        "2026-11-29T10:00Z",
        "a",
        "\\",
        "%",
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=12).map("".join)))
def test_any_text_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    try:
        found = parse(text)
    except InvalidArgument:
        return
    statement, parameters = condition(found.terms, LIVE)
    assert all(f"term{number}" in parameters for number in range(len(found.terms)))
    assert statement.count("%") == statement.count("%("), "every value is a parameter"


@given(st.text(st.characters(exclude_characters="'\0", exclude_categories=["Cs"]), max_size=40))
def test_a_quoted_value_stands_for_itself(value: str) -> None:
    assert parse(f"key='{value}'").terms == (Term("key", "=", (value,)),)


@given(st.text(max_size=20))
def test_any_duration_is_read_or_refused(text: str) -> None:
    try:
        seconds = duration_seconds(text)
    except InvalidArgument:
        return
    assert 0 <= seconds < 2**32


def test_values_never_become_a_part_of_the_statement() -> None:
    statement, parameters = condition(parse('queue="x\' or true --"').terms, LIVE)
    assert "true" not in statement and parameters["term0"] == ["x' or true --"]


@pytest.mark.parametrize(("field", "kind"), KINDS.items())
def test_every_field_has_a_condition(field: str, kind: str) -> None:
    values: dict[str, Any] = {"integer": 1, "age": 1.0, "time": datetime.now(UTC), "state": "pending"}
    operator = "<" if kind in ("age", "time") else "="
    statement, _ = condition(
        [Term(field, operator, (values.get(kind, "a"),), path=("a",) if kind == "payload" else ())], LIVE
    )
    assert LIVE[field] in statement
