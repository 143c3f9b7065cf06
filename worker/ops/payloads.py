"""Payloads that people write: read them, compare them."""

from __future__ import annotations

import difflib
import json
from typing import Any

from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store.json_text import too_deep, too_long_a_number

#: SQLSTATE of an edit of what somebody else has changed meanwhile.
CHANGED_MEANWHILE = "PH005"


def read_object(name: str, text: str) -> dict[str, Any]:
    """A JSON object. Raises InvalidArgument that says where it breaks."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise InvalidArgument(
            f"{name}: not JSON: {where}", field=name, hint='For example: {"key": "value"}'
        ) from None
    except RecursionError:
        raise too_deep(name) from None
    except ValueError:  # Python's limit, which holds for the worker, too
        raise too_long_a_number(name) from None
    if not isinstance(found, dict):
        raise InvalidArgument(
            f"{name}: must be a JSON object, not {type(found).__name__}",
            field=name,
            hint="Its keys are the handler's arguments",
        )
    return found


def read_setting(name: str, text: str) -> tuple[str, Any]:
    """`customer.id=42` as path and value; what is JSON is that, all else a text. Raises InvalidArgument."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise InvalidArgument(
            f"{name}: {text[:60]!r} is not PATH=VALUE", field=name, hint="For example: customer.id=42"
        )
    try:
        return path, json.loads(value)
    except (ValueError, RecursionError):
        return path, value


def pretty(payload: Any) -> list[str]:
    """The lines of a payload as people compare it."""
    return json.dumps(payload, indent=2, sort_keys=True, ensure_ascii=False).splitlines()


def difference(before: Any, after: Any, context: int = 3) -> list[str]:
    """A unified diff of two payloads, with so many lines around each change; empty when they are the same."""
    return list(
        difflib.unified_diff(pretty(before), pretty(after), "before", "after", lineterm="", n=context)
    )
