"""The context of an error becomes small, masked JSON, whatever was put in (worker/observe/contexts.py): SPEC
W9, FAILURES 13, 75.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import IntEnum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.worker.observe.contexts import CUT, MAX_SIZE, masked_context


class Refuses:
    """Nothing about it can be had."""

    def __repr__(self) -> str:
        raise ValueError("no")

    __str__ = __hash__ = __len__ = __iter__ = __bool__ = __repr__  # type: ignore[assignment]


class Hostile(dict):
    def items(self):
        yield "first", 1
        raise RuntimeError("changed while it was read")


class Endless(Mapping):
    def __getitem__(self, key):
        return key

    def __iter__(self):
        number = 0
        while True:
            yield number
            number += 1

    def __len__(self):
        return 2**60


class Cut(str):
    def __getitem__(self, key):
        raise ValueError("not in pieces")

    __str__ = __repr__ = __len__ = __getitem__  # type: ignore[assignment]


class Level(IntEnum):
    HIGH = 3


def cycle():
    found: dict[str, object] = {"a": 1}
    found["self"] = found
    found["list"] = [found, found]
    return found


def deep(levels: int) -> object:
    found: object = "end"
    for _ in range(levels):
        found = {"next": found}
    return found


ODD = {
    "10 MB": {"body": "x" * 10_000_000},
    "10 MB of bytes": {"body": b"\x00" * 10_000_000},
    "a million items": {"list": list(range(1_000_000))},
    "a million keys": {str(n): n for n in range(100_000)},
    "cycle": cycle(),
    "deep": deep(100_000),
    "NUL and surrogates": {"text\x00": "a\x00b\ud800c"},
    "keys that are none": {1: "a", None: "b", (2, 3): "c", b"\xff": "d", 1.5: "e"},
    "refuses": {"it": Refuses(), "beside": 1},
    "key refuses": [Refuses(), {Level.HIGH: Level.HIGH}],
    "hostile": Hostile(a=1),
    "endless": Endless(),
    "odd text": {"text": Cut("abc")},
    "numbers": {
        "nan": float("nan"),
        "inf": float("-inf"),
        "huge": 10**6000,
        "decimal": Decimal("1.50"),
        "true": True,
    },
    "generator": {"rows": (n for n in range(10))},
    "no mapping": "just a text",
    "nothing": None,
}


@pytest.mark.parametrize("context", ODD.values(), ids=ODD)
def test_it_is_bounded_json_that_the_database_can_store(context):
    found = masked_context(context)
    text = json.dumps(found, allow_nan=False)
    assert len(json.dumps(found, ensure_ascii=False)) < 3 * MAX_SIZE
    assert "\\u0000" not in text and "\\ud8" not in text


def test_what_is_plain_stays_as_it_is():
    context = {
        "a": 1,
        "b": [True, None, 1.5, "x"],
        "c": {"d": "e"},
        "when": datetime(2026, 1, 2),
        "id": UUID(int=1),
        "level": Level.HIGH,
    }
    assert masked_context(context) == context | {
        "when": "2026-01-02 00:00:00",
        "id": "00000000-0000-0000-0000-000000000001",
        "level": 3,
    }


def test_odd_values_are_texts():
    assert masked_context(ODD["odd text"]) == {"text": "abc"}
    assert masked_context({"big": 2**70, "least": -(2**63), "huge": 10**6000}) == {
        "big": str(2**70),
        "least": -(2**63),
        "huge": "<int>",
    }
    assert masked_context(ODD["hostile"]) == {"first": 1, CUT: "<Hostile>"}
    assert masked_context(ODD["no mapping"]) == {"value": "just a text"}


def test_it_ends_at_the_fifth_level():
    found, levels = masked_context(deep(10)), 0
    while isinstance(found, dict):
        found, levels = found["next"], levels + 1
    assert (levels, found) == (5, CUT)


def test_what_is_left_out_is_marked():
    many = masked_context({str(n): n for n in range(60)})
    assert len(many) == 51 and many[CUT] == CUT and many["49"] == 49
    assert masked_context({"body": "x" * 600})["body"] == "x" * 500 + CUT
    assert masked_context({"list": list(range(100))})["list"][-1] == CUT
    assert CUT in masked_context({f"key{n}": "y" * 100 for n in range(100)})
    assert masked_context({"blob": b"abc", "it": Refuses(), "beside": 1}) == {
        "blob": "<3 bytes>",
        "it": "<Refuses>",
        "beside": 1,
    }


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"user_phone": "+250788123456"}, {"user_phone": "+250788***456"}),
        ({"user_phone": 250788123456}, {"user_phone": "250788***456"}),
        ({"user_phone": "0788123"}, {"user_phone": "0***123"}),
        ({"user_phone": "12345"}, {"user_phone": "***345"}),
        ({"user_phone": None}, {"user_phone": None}),
        ({"wa_id": "250788123456"}, {"wa_id": "250788***456"}),
        (
            {"order": {"note": "call +250788123456 or ada@example.org"}},
            {"order": {"note": "call +250788***456 or a***@example.org"}},
        ),
        ({"+250788123456": 1}, {"+250788***456": 1}),
        ({"numbers": [250788123456, 17]}, {"numbers": ["250788***456", 17]}),
        (
            {"api_key": "k", "password": 1, "token": None},
            {"api_key": "***", "password": "***", "token": None},
        ),
    ],
)
def test_personal_data_and_secrets_are_masked(context, expected):
    assert masked_context(context) == expected
    assert masked_context(masked_context(context)) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_becomes_bounded_json(value):
    found = masked_context({"value": value})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert masked_context(found) == masked_context(found)
