"""Ctrl-C of a command that works in batches."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets: a batch is not left while it is uncertain whether it is done. The
    second one ends as usual.
    """
    stop = threading.Event()
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.SIG_IGN or usual is None:  # in the background of a shell's script
        yield stop
        return

    def first(_number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, usual)
