"""A child that a coroutine forked is a copy of dramatiq's event loop thread: it must not run the other coroutines (SPEC W10b).

The loop's selector is the parent's, too (an epoll descriptor is shared by a fork), so the child gets one of its own.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from dramatiq.asyncio import get_event_loop_thread

from packhorse.worker import forks


class Coroutines:
    """Ends such a child when the coroutine that forked it has come to its end, or waits for something."""

    def __init__(self) -> None:
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        thread = get_event_loop_thread()
        if thread is None or threading.current_thread() is not thread:
            return
        loop: Any = thread.loop
        if hasattr(loop, "_selector"):
            loop._selector = selectors.SelectSelector()
        if hasattr(loop, "_ready"):
            loop._ready.clear()  # steps of other coroutines
        loop.call_soon(_end, asyncio.current_task(loop))
        threading.excepthook = partial(_on_exception, thread, threading.excepthook)


def _end(task: asyncio.Task[Any] | None) -> None:
    """The step of the loop in which the fork was is over."""
    if task is None:
        forks.leave()
    if not task.done():
        forks.leave(RuntimeError("a child that a coroutine forked cannot await anything: the event loop is its parent's"))
    forks.leave(asyncio.CancelledError() if task.cancelled() else task.exception())


def _on_exception(loop_thread: threading.Thread, usual: Callable[[threading.ExceptHookArgs], Any], raised: threading.ExceptHookArgs) -> None:
    """SystemExit ends the loop itself. Threads that the child has started say their exceptions as usual."""
    if raised.thread is loop_thread:
        forks.leave(raised.exc_value)
    usual(raised)
