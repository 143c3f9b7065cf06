"""Interleavings on purpose: one connection is parked on a lock until another one lets go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tests.sql.client import Sql
from tests.support.waiting import wait_until


def in_background(work: Callable[..., Any], *arguments: Any) -> Future:
    """Run `work` in a thread; result() raises what it raised."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="in-background", daemon=True).start()
    return future


def blocked_behind(watcher: Sql, waiting: Sql, holder: Sql) -> None:
    """Return when the connection `waiting` waits for a lock that `holder` has."""
    backends = waiting.connection.info.backend_pid, holder.connection.info.backend_pid
    wait_until(
        lambda: backends[1] in watcher.value("select pg_blocking_pids(%s)", backends[0]),
        message=f"backend {backends[0]} does not wait for backend {backends[1]}",
    )
