"""Where the example keeps its queue: DATABASE_URL, or the embedded PostgreSQL in the data directory of the
project.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from examples.whatsapp.salon import open_salon
from examples.whatsapp.webhook import QUEUE
from packhorse.worker.config import Settings
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.embedded import Embedded
from packhorse.worker.db.queries import Statement
from packhorse.worker.db.sessions import names_of, open_work

#: Sessions, memory, workflows, bookings: the conversation platform beside the queue.
SETS = ("platform",)
#: Short, so that a demo of a minute shows a message to its end: 0.2, 0.4, 0.8 s, then dead letter.
QUEUE_SETTINGS = {
    "max_attempts": 4,
    "backoff_initial": "0.2 seconds",
    "backoff_multiplier": 2,
    "backoff_max": "2 seconds",
    "on_dead": "skip",
}


@contextmanager
def ready_database(settings: Settings, report: Callable[[str], object]) -> Iterator[str]:
    """A migrated database with the queue `whatsapp` and a salon; yields the connection string to work with.

    Embedded: the string is that of an unprivileged role in packhorse_worker, and the server stops at the end
    unless somebody else has it. DATABASE_URL: used as it is, for everything. Raises StoreError,
    SchemaMismatch, MigrationError, EmbeddedError.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        report("using DATABASE_URL")
        owner = open_connection(settings, url, "migrate", deadline_seconds=120)
        try:
            migrate.up(owner, lambda name: report(f"migration {name}"), sets=SETS)
        finally:
            owner.close()
        _set_up(settings, url)
        yield url
        return
    report(f"starting the embedded PostgreSQL in {settings.data_dir}/")
    with Embedded(settings.data_dir) as server:
        applied = server.prepare(names_of(settings), sets=SETS)
        report(
            f"PostgreSQL {'started' if server.started_it else 'was running'}, {len(applied)} migrations applied"
        )
        _set_up(settings, server.url)
        yield server.url


def open_connection(
    settings: Settings, url: str, purpose: str, *, deadline_seconds: float | None = None
) -> DeadlineConnection:
    """One connection as the settings say. Raises StoreUnavailable."""
    deadline = deadline_seconds or settings.call_deadline_seconds
    return open_work(settings, f"example {purpose}", url=url, deadline_seconds=deadline)


def _set_up(settings: Settings, url: str) -> None:
    connection = open_connection(settings, url, "setup")
    try:
        with connection.transaction():
            connection.execute(Statement("select packhorse.declare_queue(%s)"), (QUEUE,))
            connection.execute(
                Statement("select packhorse.set_queue(%s, %s::jsonb)"), (QUEUE, json.dumps(QUEUE_SETTINGS))
            )
            open_salon(connection)
    finally:
        connection.close()
