"""JSON as the database stores it: what jsonb cannot hold, or other readers cannot read, is refused with the
name of the field.
"""

from __future__ import annotations

import json
import re
from typing import Any

from packhorse.worker.errors import InvalidArgument

MAX_PAYLOAD_BYTES = 1_048_576
#: As the domain message_json has them: Python reads no deeper by far, and no longer number.
MAX_LEVELS = 500
MAX_DIGITS = 4300
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # an escaped NUL, not an escaped backslash before "u0000"

#: JSON text for the database; made once, for json.dumps makes an encoder per call. Raises ValueError for
#: what jsonb cannot hold (NaN, infinity).
dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode


def to_json(name: str, value: dict[str, Any] | list[dict[str, Any]]) -> str:
    """JSON text of a dict, or of a list of them, at most MAX_PAYLOAD_BYTES; refuses what jsonb cannot hold,
    naming the field.
    """
    try:
        text = dumps(value)
    except RecursionError as error:
        raise too_deep(name) from error
    except (TypeError, ValueError) as error:
        if "integer string conversion" in str(error):
            raise too_long_a_number(name) from error
        raise InvalidArgument(f"{name}: cannot be stored as JSON: {error}", field=name) from error
    if (
        len(text) > 2 * MAX_LEVELS
        and text.count("{") + text.count("[") > MAX_LEVELS
        and _levels_exceed(value, MAX_LEVELS)
    ):
        raise too_deep(name)
    if has_nul(text):
        raise InvalidArgument(
            f"{name}: contains a NUL character, which PostgreSQL cannot store",
            field=name,
            hint="Remove it first.",
        )
    if len(text) > MAX_PAYLOAD_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > MAX_PAYLOAD_BYTES:
        raise InvalidArgument(
            f"{name}: {len(text)} bytes, at most {MAX_PAYLOAD_BYTES}",
            field=name,
            hint="Store the large part elsewhere and send its key.",
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"{name}: contains a lone surrogate, which is no character", field=name
            ) from error
    return text


def too_deep(name: str) -> InvalidArgument:
    """What the database says, too (is_readable_json in migrations/functions/enqueue.sql)."""
    return InvalidArgument(
        f"{name}: is nested more than {MAX_LEVELS} levels deep", field=name, hint="Send deep data as a text."
    )


def too_long_a_number(name: str) -> InvalidArgument:
    """The same of a number: more digits nobody reads who reads JSON with Python."""
    return InvalidArgument(
        f"{name}: holds a number of more than {MAX_DIGITS} digits", field=name, hint="Send it as a text."
    )


def _levels_exceed(value: Any, most: int) -> bool:
    """Are containers nested more than `most` deep? Level by level, so that no depth is too much for it."""
    level = [value]
    for _ in range(most):
        items = (
            item for holder in level for item in (holder.values() if isinstance(holder, dict) else holder)
        )
        level = [item for item in items if isinstance(item, (dict, list, tuple))]
        if not level:
            return False
    return True


def has_nul(text: str) -> bool:
    """Does a JSON text contain a NUL character, which PostgreSQL cannot store?"""
    return "\\u0000" in text and _NUL.search(text) is not None
