"""Connections with a deadline of our own on every call (SPEC FAILURES 42).

`statement_timeout`, keepalives and `tcp_user_timeout` all fail to end a call to a stopped server; only a
clock on our side does. The deadline is enforced where psycopg waits for the socket: when it passes, the
connection is closed and StoreUnavailable follows.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.adapt import Loader
from psycopg.types.datetime import TimestamptzLoader

from worker.db.errors import translated
from worker.db.queries import sql
from worker.errors import InvalidArgument
from worker.service import still_alive

T = TypeVar("T")

#: How often a server that works for us looks whether we are still there.
CHECK_INTERVAL = "2s"


class JsonText(Loader):
    """json and jsonb as text: decoding happens later, per row, inside a guarded block (FAILURES 80)."""

    def load(self, data: Any) -> str:
        return bytes(data).decode("utf-8", "backslashreplace")  # what is no UTF-8 is then no JSON either


class AnyText(JsonText):
    """Texts of a database that checks no encoding: what is no UTF-8 shows as it would in Python's source."""


class AnyTime(TimestamptzLoader):
    """Times that Python does not have ('infinity', before the year 1, after 9999) as the text that PostgreSQL writes."""

    def load(self, data: Any) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return bytes(data).decode()


class DeadlineConnection(psycopg.Connection[Any]):
    """A psycopg connection whose every wait for the server ends after `deadline_seconds`."""

    deadline_seconds: float = 10.0
    #: Behind a transaction pooler: what is set outside a transaction is left to strangers, and so is not set.
    pooled: bool = False

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Any:
        """One attempt of psycopg's. A name may stand for many addresses, each with a timeout of its own: who tries them all does not hang."""
        still_alive()
        return super()._connect_gen(*args, **kwargs)

    def wait(self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None) -> T:
        if timeout is not None:  # notifies() brings a limit of its own and knows how to go on after it
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.deadline_seconds)
        except psycopg.errors._WaitTimeout:  # the name that psycopg documents for it
            self.pgconn.finish()
            raise psycopg.OperationalError("the server did not answer before the deadline of the call") from None


def connect(
    url: str,
    *,
    schema: str = "public",
    application_name: str = "packhorse",
    deadline_seconds: float = 10.0,
    connect_timeout_seconds: float = 5.0,
    pooler: bool = False,
    autocommit: bool = True,
    times_in_utc: bool = False,
) -> DeadlineConnection:
    """Open a connection, for sessions.py, which knows the settings: autocommit, every call bounded by deadline_seconds, json as text.

    pooler: no prepared statements and no session state, for PgBouncer in transaction mode; the schema
    must then be the role's default. times_in_utc: texts of times sort as the times do, whatever the database's
    settings (without a pooler). Raises StoreUnavailable. Several hosts: only a writable one is taken.
    """
    # what a database of another encoding sends is converted by its server: JsonText and every text here are UTF-8
    parameters: dict[str, Any] = {
        "connect_timeout": max(2, int(connect_timeout_seconds)),
        "application_name": application_name,
        "client_encoding": "utf8",
    }
    given = _in_force(url)
    if not pooler:
        parameters |= {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20000}
        if schema != "public":
            parameters["options"] = f"{given.get('options') or ''} -csearch_path={schema}".strip()
    if "," in given.get("host", "") + given.get("hostaddr", ""):
        parameters["target_session_attrs"] = "read-write"
    with translated():
        connection = DeadlineConnection.connect(url, autocommit=autocommit, **parameters)
        connection.deadline_seconds = deadline_seconds
        if not pooler:
            _settle_times(connection, times_in_utc)
            _settle_session(connection)
        if connection.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII":
            _take_any_bytes(connection)
    connection.pooled = pooler
    connection.prepare_threshold = None if pooler else 0
    connection.adapters.register_loader("jsonb", JsonText)
    connection.adapters.register_loader("json", JsonText)
    return connection


def url_parts(url: str) -> dict[str, str]:
    """What a connection string says, by libpq's keywords; opens nothing. Raises InvalidArgument, without any part of it."""
    try:
        return {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(url).items() if value}
    except psycopg.ProgrammingError:  # its text may quote a part of the url, and so of the password
        text = "database_url: not a connection string that PostgreSQL understands (postgresql://user@host:5432/database)"
        raise InvalidArgument(text, field="database_url") from None


def _in_force(url: str) -> dict[str, str]:
    """The parameters of a connection, those included that libpq has from PGHOST, PGOPTIONS and the like, or from a service file."""
    given = url_parts(url)
    known = psycopg.pq.Conninfo.get_defaults()
    if "service" in given:  # only libpq reads the file, when a connection begins
        begun = psycopg.pq.PGconn.connect_start(url.encode())
        if begun.status != psycopg.pq.ConnStatus.BAD:
            known = begun.info
        begun.finish()
    return {option.keyword.decode(): option.val.decode() for option in known if option.val} | given


def _settle_session(connection: DeadlineConnection) -> None:
    """READ COMMITTED whatever the role's default is: under any other, messages of conversations could not be ended.

    And the server looks whether we are still there: after a deadline of ours it would go on with the statement for as
    long as it takes, hold its locks, and commit.
    """
    try:
        connection.execute(sql("settle_session"), (CHECK_INTERVAL,), prepare=False)
    except psycopg.errors.InvalidParameterValue:  # a server on a system where it cannot look
        connection.rollback()
        connection.execute(sql("settle_session"), ("0",), prepare=False)
    if not connection.autocommit:
        connection.commit()


def _take_any_bytes(connection: DeadlineConnection) -> None:
    """A database that checks no encoding: asked for UTF-8 it would refuse every answer with a text that is none (SPEC P5)."""
    connection.execute("set client_encoding = 'SQL_ASCII'", prepare=False)
    if not connection.autocommit:
        connection.commit()
    for name in ("text", "varchar", "name"):
        connection.adapters.register_loader(name, AnyText)


def _settle_times(connection: DeadlineConnection, in_utc: bool) -> None:
    """ISO dates, which psycopg can read; costs nothing where the server has told that it is so already."""
    wanted = [("DateStyle", b"ISO", "set datestyle = 'ISO'")] + ([("TimeZone", b"UTC", "set timezone = 'UTC'")] if in_utc else [])
    for name, start, statement in wanted:
        if not (connection.pgconn.parameter_status(name.encode()) or b"").startswith(start):
            connection.execute(statement, prepare=False)
            if not connection.autocommit:
                connection.commit()
