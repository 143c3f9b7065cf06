"""Findings about the way to the database: is there a pooler, does the setting fit it, does LISTEN work."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

from packhorse.worker.config import Settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.doctor.findings import Finding
from packhorse.worker.errors import StoreError
from packhorse.worker.store import doctor as store

#: Server processes that a pooler is made to use up while we look whether ours is given away.
OCCUPIED = 4
NOTIFY_SECONDS = 5.0


def examine_mode(
    connection: DeadlineConnection, settings: Settings, open_connection: Callable[[], DeadlineConnection]
) -> Finding:
    """Direct or pooled, and whether the setting `pooler` says the same."""
    with ExitStack() as opened:
        others = []
        try:
            others = [opened.enter_context(closing(open_connection())) for _ in range(OCCUPIED)]
        except StoreError as error:
            return Finding(
                "connection_mode",
                "warn",
                f"not examined: {OCCUPIED} more connections cannot be opened ({error})",
                "see connection_budget",
            )
        mode = store.connection_mode(connection, others)
    if mode == "transaction" and not settings.pooler:
        return Finding(
            "connection_mode",
            "fail",
            "a pooler in transaction mode, and the setting pooler is off: prepared statements and LISTEN break",
            "PACKHORSE_POOLER=true, and PACKHORSE_LISTEN_URL with a direct connection for quick wake-ups",
        )
    if mode == "session" and not settings.pooler:
        return Finding(
            "connection_mode", "ok", "a pooler that keeps a server process per connection (session mode)"
        )
    if mode == "direct" and settings.pooler:
        return Finding(
            "connection_mode",
            "warn",
            "a direct connection, and the setting pooler is on: no LISTEN, no prepared statements, for nothing",
            "PACKHORSE_POOLER=false",
        )
    return Finding(
        "connection_mode",
        "ok",
        "a direct connection"
        if mode == "direct"
        else f"a pooler in {mode} mode, and the setting pooler is on",
    )


def examine_listen(
    settings: Settings,
    open_connection: Callable[[], DeadlineConnection],
    open_listener: Callable[[], DeadlineConnection],
) -> Iterator[Finding]:
    """Does a NOTIFY reach the connection that workers would LISTEN on?"""
    if settings.woken_by == "redis" and settings.listen_url is None:
        yield Finding(
            "listen", "ok", "not used: idle workers hear of messages by Redis, from Python producers"
        )
        return
    if settings.woken_by == "poll":
        yield Finding("listen", "ok", f"not used: idle workers look every {settings.poll_seconds:g} s")
        return
    mend = "PACKHORSE_LISTEN_URL with a direct connection, or PACKHORSE_WAKEUPS=poll"
    try:
        with closing(open_listener()) as listener, closing(open_connection()) as sender:
            heard = store.listens(listener, sender, uuid.uuid4().hex, NOTIFY_SECONDS)
    except StoreError as error:
        yield Finding("listen", "fail", f"LISTEN does not work: {error}", mend)
        return
    if heard:
        yield Finding("listen", "ok", "a NOTIFY arrives")
    else:
        yield Finding(
            "listen",
            "fail",
            f"a NOTIFY did not arrive within {NOTIFY_SECONDS:.0f} s: workers wake up by polling only",
            mend,
        )
