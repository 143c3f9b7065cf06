"""The one place that opens connections, so that none is opened past a setting (SPEC Q10, FAILURES 43 and 46).

Three ways to the database, each with its own url and its own answer whether a transaction pooler is between:

- work: `database_url` and `pooler`. Everything but the two below.
- listen: `listen_url`, which is direct; without one `database_url`, when that is direct.
- owner: `maintenance_url` and `maintenance_pooler`, which is `pooler` when nothing is said; without one
  `database_url`.

A server that we start ourselves has no pooler. A test forbids other modules to connect.
"""

from __future__ import annotations

from typing import Any

from packhorse.worker.config import Settings
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.db.names import Names
from packhorse.worker.db.reconnect import politely
from packhorse.worker.errors import ConfigError


def open_work(
    settings: Settings, purpose: str, *, url: str | None = None, **options: Any
) -> DeadlineConnection:
    """A connection to the queue. purpose: shown by the server as `packhorse <purpose>`.

    url: the embedded server's, where database_url is not set. options: deadline_seconds (default
    call_deadline_seconds) and times_in_utc of `connect`. Raises ConfigError, StoreUnavailable.
    """
    return _open(
        settings,
        settings.database_url.get_secret_value() if settings.database_url else url,
        purpose,
        pooler=settings.pooler,
        **options,
    )


def open_listen(settings: Settings, purpose: str = "listen", *, url: str | None = None) -> DeadlineConnection:
    """A connection that may LISTEN. url: as for open_work. Raises ConfigError where there is none,
    StoreUnavailable.
    """
    if settings.listen_url is not None:
        return _open(settings, settings.listen_url.get_secret_value(), purpose, pooler=False)
    if settings.pooler:
        raise ConfigError(
            [
                "listen_url: a pooler is in front of database_url; set listen_url to a direct connection, or wakeups = poll"
            ]
        )
    return open_work(settings, purpose, url=url)


def open_owner(
    settings: Settings, purpose: str = "maintenance", *, url: str | None = None, deadline_seconds: float
) -> DeadlineConnection:
    """A connection of the tables' owner. url: the embedded server's. Raises ConfigError, StoreUnavailable."""
    if settings.maintenance_url is None:
        return open_work(settings, purpose, url=url, deadline_seconds=deadline_seconds)
    pooler = settings.pooler if settings.maintenance_pooler is None else settings.maintenance_pooler
    return _open(
        settings,
        settings.maintenance_url.get_secret_value(),
        purpose,
        pooler=pooler,
        deadline_seconds=deadline_seconds,
    )


def open_for_examination(settings: Settings, *, url: str | None = None) -> DeadlineConnection:
    """For `packhorse doctor`: no prepared statements, whatever `pooler` says, for that is what is
    examined.
    """
    found = settings.database_url.get_secret_value() if settings.database_url else url
    connection = _open(settings, found, "doctor", pooler=True, deadline_seconds=30.0)
    connection.prepare_threshold = None
    return connection


def open_own_server(
    url: str, purpose: str, *, names: Names = DeadlineConnection.names, deadline_seconds: float = 10.0
) -> DeadlineConnection:
    """To a server that we have started: there is no pooler, and no setting says where it is. Raises
    StoreUnavailable.
    """
    return connect(
        url, names=names, application_name=f"packhorse {purpose}", deadline_seconds=deadline_seconds
    )


def names_of(settings: Settings) -> Names:
    """What our schemas are called in this installation."""
    return Names(settings.db_schema, settings.platform_schema)


def _open(settings: Settings, url: str | None, purpose: str, **options: Any) -> DeadlineConnection:
    if url is None:
        raise ConfigError(["database_url: not set; set DATABASE_URL, or run everything with `packhorse up`"])
    given: dict[str, Any] = {
        "names": names_of(settings),
        # behind a pooler one for all: PgBouncer sets the name of who has the connection next, in a
        # transaction of its own
        "application_name": "packhorse" if options.get("pooler") else f"packhorse {purpose}",
        "deadline_seconds": settings.call_deadline_seconds,
        "connect_timeout_seconds": settings.connect_timeout_seconds,
    }
    with politely(url):
        return connect(url, **given | options)
