"""Waiting for a condition instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_seconds: float = 20.0, message: str = "") -> T:
    """Call `condition` until it is true; its value. Fails the test after timeout_seconds."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"not true within {timeout_seconds} s: {message or condition}; last value {value!r}"
            )
        time.sleep(0.02)
