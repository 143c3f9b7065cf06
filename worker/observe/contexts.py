"""A mapping of anything as small, masked JSON: the context of an error, for the log and the database (SPEC
W9).

Whatever was put in, something comes out that JSON, PostgreSQL and a log line can hold: bounded in size, depth
and number, without NUL and lone surrogates, without cycles (FAILURES 13). Objects of others are asked for
their text, and an object that refuses is its class. Personal data and secrets are masked as in a log line
(FAILURES 75).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, TypeAlias

from packhorse.worker.observe.masking import HIDDEN, is_secret_key, mask, mask_phone

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]

#: Characters of a whole context, about; of one text; of a key.
MAX_SIZE, MAX_TEXT, MAX_KEY = 4000, 500, 100
#: Characters of a text that are looked at: masking makes a text shorter.
MAX_RAW = 4 * MAX_TEXT
MAX_DEPTH, MAX_ITEMS = 5, 50
#: Stands for what was left out.
CUT = "…"
#: Integers beyond are texts: not every reader of JSON can hold them.
MAX_INTEGER = 2**63

#: Under these a value is a phone number, however short it is.
_PHONE_KEY = re.compile(r"(?:^|_)(?:phone|phone_number|mobile|msisdn|wa_id)$", re.IGNORECASE)


class _Room:
    """How many characters are left."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, text: str) -> str:
        """As much of the text as there is room for."""
        shown = text if len(text) <= self.left else f"{text[: max(0, self.left - 1)]}{CUT}"
        self.left -= len(text) + 4
        return shown


def masked_context(context: object) -> JsonObject:
    """The context as a JSON object of about MAX_SIZE characters; no Exception of its content comes out.

    What is no mapping stands under `value`. Keys become texts.
    """
    found = _value(context, 0, _Room(MAX_SIZE))
    return found if isinstance(found, dict) else {"value": found}


def _value(value: Any, depth: int, room: _Room) -> JsonValue:
    try:
        if value is None or value is True or value is False:
            room.left -= 5
            return value
        if isinstance(value, str):
            return _text(value, room)
        if isinstance(value, int):
            return _integer(value, room)
        if isinstance(value, float):
            number = float.__add__(value, 0.0)
            room.left -= 20
            return number if math.isfinite(number) else str(number)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return room.take(f"<{len(value)} bytes>")
        if isinstance(value, (Mapping, list, tuple, set, frozenset)):
            if depth >= MAX_DEPTH:
                return room.take(CUT)
            return _mapping(value, depth, room) if isinstance(value, Mapping) else _list(value, depth, room)
        return _text(str(value), room)
    except Exception:  # a value whose text cannot be had must not cost the failure
        return room.take(_class_of(value))


def _class_of(value: object) -> str:
    return mask(f"<{type(value).__name__[:MAX_KEY]}>")


def _text(text: str, room: _Room) -> str:
    text = str.__str__(text)  # a class of its own may have odd methods
    shown = mask(text[:MAX_RAW])
    if len(shown) > MAX_TEXT or len(text) > MAX_RAW:
        shown = f"{shown[:MAX_TEXT]}{CUT}"
    return room.take(shown)


def _integer(value: int, room: _Room) -> JsonValue:
    """A number of ten to fifteen digits may be a phone number, as in a text."""
    number = int.__add__(value, 0)
    text = str(number)  # raises for one of thousands of digits
    shown = room.take(mask(text)[:MAX_TEXT])
    return number if shown == text and -MAX_INTEGER <= number < MAX_INTEGER else shown


def _mapping(value: Mapping[Any, Any], depth: int, room: _Room) -> JsonObject:
    found: JsonObject = {}
    try:
        for number, (key, item) in enumerate(islice(value.items(), MAX_ITEMS + 1)):
            if number == MAX_ITEMS or room.left <= 0:
                found[CUT] = CUT
                break
            name = _key(key, room)
            found[name] = _under(name, item, depth, room)
    except Exception:  # another thread changes it, or it is a mapping of its own kind
        found[CUT] = _class_of(value)
    return found


def _key(key: object, room: _Room) -> str:
    try:
        text = str.__str__(key) if isinstance(key, str) else str(key)
        return room.take(mask(text[:MAX_RAW])[:MAX_KEY]) or CUT
    except Exception:
        return room.take(_class_of(key))


def _under(name: str, item: Any, depth: int, room: _Room) -> JsonValue:
    """A value as its key asks for."""
    if item is not None and is_secret_key(name):
        return room.take(HIDDEN)
    if _PHONE_KEY.search(name) and isinstance(item, (str, int)) and not isinstance(item, bool):
        text = _value(item, depth, room)
        return mask_phone(str(text)) if HIDDEN not in str(text) and re.search(r"\d", str(text)) else text
    return _value(item, depth + 1, room)


def _list(value: Any, depth: int, room: _Room) -> list[JsonValue]:
    found: list[JsonValue] = []
    try:
        for number, item in enumerate(islice(iter(value), MAX_ITEMS + 1)):
            if number == MAX_ITEMS or room.left <= 0:
                found.append(CUT)
                break
            found.append(_value(item, depth + 1, room))
    except Exception:
        found.append(_class_of(value))
    return found
