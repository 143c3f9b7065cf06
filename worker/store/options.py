"""The table of message options: what enqueue() and actors take besides the payload (SPEC Q5-Q7). ONE place:
name, check, SQL argument.

Encoding, producers on connections of others, the broker and the bulk enqueue read it; the columns themselves
are in migrations/ and in migrations/functions/enqueue.sql. For type checkers the same names stand in
worker/records.py (EnqueueOptions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from packhorse.worker.errors import InvalidArgument

MAX_DELAY_SECONDS = 3660 * 86400
MAX_TEXT = 500
DAY_SECONDS = 86400
WHEN_PENDING = ("return", "replace", "append")
#: Attempts of a message that is retried for ever: dramatiq's max_retries=None.
WITHOUT_END = 1_000_000


def whole(low: int, high: int, name: str, value: Any) -> int:
    """A whole number in a range. Raises InvalidArgument."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgument(
            f"{name}: must be a whole number from {low} to {high}, got {str(value)[:40]!r}", field=name
        )
    return value


def seconds(name: str, value: Any) -> float:
    """Seconds or a timedelta, as seconds. Raises InvalidArgument."""
    number = value.total_seconds() if hasattr(value, "total_seconds") else value
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not 0 <= number <= MAX_DELAY_SECONDS
    ):
        raise InvalidArgument(f"{name}: must be seconds or a timedelta, at most ten years", field=name)
    return float(number)


def of_a_day(name: str, value: Any) -> float:
    """Seconds or a timedelta of at most one day, as seconds. Raises InvalidArgument."""
    if seconds(name, value) > DAY_SECONDS:
        raise InvalidArgument(f"{name}: must be at most one day, in seconds or as a timedelta", field=name)
    return seconds(name, value)


def when_pending(name: str, value: Any) -> str:
    """What a second enqueue of a pending key does. Raises InvalidArgument."""
    if value not in WHEN_PENDING:
        raise InvalidArgument(
            f"{name}: there is no {str(value)[:40]!r}", field=name, hint=f"One of {', '.join(WHEN_PENDING)}."
        )
    return str(value)


def moment(name: str, value: Any) -> Any:
    """A time with a zone. Raises InvalidArgument."""
    if getattr(value, "tzinfo", None) is None:
        raise InvalidArgument(f"{name}: must be a datetime with a time zone", field=name)
    return value


def text(name: str, value: Any) -> str:
    """A text that PostgreSQL can store. Raises InvalidArgument."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not _storable(value):
        raise InvalidArgument(
            f"{name}: must be a text of 1 to {MAX_TEXT} characters, without NUL and lone surrogates",
            field=name,
        )
    return value


def _storable(value: str) -> bool:
    if value.isascii():
        return "\x00" not in value
    try:
        return b"\x00" not in value.encode()
    except UnicodeEncodeError:
        return False


_INTERVAL = "make_interval(secs => {}::float8)"


@dataclass(frozen=True, slots=True)
class Option:
    """One option. check: of its value, or InvalidArgument. key: under which it is kept once checked, with its
    unit.

    argument: of enqueue_message. expression: the argument in SQL, {} for the value. default: of the argument.
    in_bulk: a column of its own in the bulk enqueue; where it is not, the whole batch has the default.
    """

    name: str
    check: Callable[[str, Any], Any]
    argument: str
    expression: str = "{}::text"
    key: str = ""
    default: Any = None
    in_bulk: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)


#: In the order of the bulk enqueue's columns.
OPTIONS = (
    Option("priority", partial(whole, 1, 10), "p_priority", "{}::integer", default=5),
    Option("delay", seconds, "p_delay", _INTERVAL, key="delay_seconds", in_bulk=False),
    Option("run_at", moment, "p_run_at", "{}::timestamptz"),
    Option("max_attempts", partial(whole, 1, 1_000_000), "p_max_attempts", "{}::integer"),
    Option("conversation_key", text, "p_conversation_key"),
    Option("dedup_key", text, "p_dedup_key", in_bulk=False),
    Option(
        "dedup_window",
        seconds,
        "p_dedup_window",
        _INTERVAL,
        key="dedup_window_seconds",
        default=300.0,
        in_bulk=False,
    ),
    Option("pending_key", text, "p_pending_key", in_bulk=False),
    Option("when_pending", when_pending, "p_when_pending", in_bulk=False),
    Option("debounce", of_a_day, "p_debounce", _INTERVAL, key="debounce_seconds", in_bulk=False),
    Option("max_wait", of_a_day, "p_max_wait", _INTERVAL, key="max_wait_seconds", in_bulk=False),
    Option("correlation_id", text, "p_correlation_id"),
    Option("trace_context", text, "p_trace_context"),
    Option("expires_in", seconds, "p_expires_at", "clock_timestamp() + " + _INTERVAL, key="expires_seconds"),
    Option("concurrency_key", text, "p_concurrency_key"),
    Option("fairness_key", text, "p_fairness_key"),
)
BY_NAME = {option.name: option for option in OPTIONS}
#: Options of a dramatiq message that become arguments of enqueue_message instead of staying with the message;
#: `delay` is an argument of send.
COLUMN_OPTIONS = frozenset(BY_NAME) - {"delay"}
#: Keys of options that a bulk enqueue refuses; a delay is a time to it.
PER_MESSAGE_KEYS = frozenset(option.key for option in OPTIONS if not option.in_bulk) - {"delay_seconds"}
#: Keys of the columns after the priority in the bulk enqueue, in order.
BULK_KEYS = tuple(option.key for option in OPTIONS if option.in_bulk and option.name != "priority")
