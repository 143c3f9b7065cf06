"""Connections with a deadline of our own on every call (SPEC FAILURES 42).

`statement_timeout`, keepalives and `tcp_user_timeout` all fail to end a call to a stopped server; only a
clock on our side does. The deadline is enforced where psycopg waits for the socket: when it passes, the
connection is closed and StoreUnavailable follows.

A forked child has none of our connections: else its copy of a socket would keep a session, with its
transaction and its locks, for as long as the child lives, whatever becomes of the process whose session it is
(SPEC W10b).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import generators, postgres
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row
from psycopg.types.datetime import TimestamptzLoader

from packhorse.worker import forks
from packhorse.worker.db.errors import DeadlinePassed, translated
from packhorse.worker.db.names import Names
from packhorse.worker.db.queries import Statement, sql
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.service import still_alive

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
    """Times that Python does not have ('infinity', before the year 1, after 9999) as the text that PostgreSQL
    writes.
    """

    def load(self, data: Any) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return bytes(data).decode()


class DeadlineConnection(psycopg.Connection[Any]):
    """A psycopg connection whose every wait for the server ends after `deadline_seconds`.

    touched: a user's handler has had it in its hands. Its role, its settings and whatever else a session or
    this object keeps may be the handler's: as_ourselves() runs statements of ours in its transaction all the
    same, and reset_session() makes the session what it was before anybody else gets it.
    """

    deadline_seconds: float = 10.0
    #: What our schemas are called here.
    names = Names()
    touched = False
    #: Statements so far, through execute().
    executed_total = 0
    #: What connect() has set for the session, as SQL that sets it again; () behind a pooler, where the
    #: session is not ours.
    session_sql: tuple[str, ...] = ()
    #: session_authorization, role, search_path and row_security as they are when nobody has changed them;
    #: None until known.
    home: tuple[str, ...] | None = None
    #: What enqueues in its transaction want published by Redis after the commit: (channel, queue). None:
    #: nobody asks.
    wakes: set[tuple[str, str]] | None = None
    _adapters_at_first: AdaptersMap | None = None
    _own_adapters: AdaptersMap | None = None
    _at_home = False  # in as_ourselves()
    _going_home = False  # and the next statement is its first one
    _away: tuple[str, ...] | None = None  # what the handler had set instead of `home`
    _go_home: str | None = None

    @property
    def adapters(self) -> AdaptersMap:
        """psycopg's, but kept here, so that a handler's own can be taken off again."""
        if self._own_adapters is None:
            self._own_adapters = AdaptersMap(postgres.adapters)
        return self._own_adapters

    def in_hands(self) -> DeadlineConnection:
        """Itself, for a user's handler: from now on session and object may be changed."""
        if not self.touched:
            self.touched = True
            self._adapters_at_first = self.adapters
            self._own_adapters = AdaptersMap(self.adapters)
        return self

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool = False
    ) -> psycopg.Cursor[Any]:
        """As psycopg's, with our schemas put into statements of ours; the first one in as_ourselves() goes
        home in the same round trip.
        """
        self.executed_total += 1
        if type(query) is Statement:
            query = self.names.of(query)
        if not self._going_home:
            return super().execute(query, params, prepare=prepare, binary=binary)
        self._going_home = False
        # the handler's: there, each statement goes alone
        if self.pgconn.pipeline_status != PipelineStatus.OFF:
            self._note_what_was(super().execute(sql("go_home"), self._twice_home()).fetchone())
            return super().execute(query, params, prepare=prepare, binary=binary)
        cursor = psycopg.ClientCursor(self)
        # only a text without parameters can be two statements, so the values of this one become part of it
        cursor.execute(f"{self._way_home().replace('%', '%%')};\n{query}", params or ())
        self._note_what_was(cursor.fetchone())
        cursor.nextset()
        return cursor

    def _note_what_was(self, row: Any) -> None:
        found = tuple(row)[:4]
        self._away = None if found == self.home else found

    def _way_home(self) -> str:
        if self._go_home is None:
            self._go_home = psycopg.ClientCursor(self).mogrify(sql("go_home"), self._twice_home())
        return self._go_home

    def _twice_home(self) -> list[str]:
        """The values of go_home."""
        if self.home is None:  # behind a pooler
            self.home = psycopg.Cursor(self, row_factory=tuple_row).execute(sql("home_of_role")).fetchone()
        return [value for value in self.home or () for _ in range(2)]

    def ask_as_ourselves(self, statement: str) -> str | None:
        """The only value of one statement without parameters, as as_ourselves() runs it. A simple query of
        two statements costs no more than a prepared one that goes through the driver's cursor.
        """
        if type(statement) is Statement:
            statement = self.names.qualified(statement)
        if self.pgconn.pipeline_status != PipelineStatus.OFF:
            with self.as_ourselves():
                return str(self.execute(statement).fetchone()[0])  # type: ignore[index]
        before, answer = self._ask(f"{self._way_home()};\n{statement}")[-2:]
        self._note_what_was([_text(before.get_value(0, column)) for column in range(4)])
        self._leave_home()
        return _text(answer.get_value(0, 0))

    def _ask(self, text: str) -> list[PGresult]:
        """Answers to several statements in one text; they are one transaction. Raises psycopg's errors."""
        with self.lock:
            self.pgconn.send_query(text.encode(self.info.encoding))
            results: list[PGresult] = self.wait(generators.execute(self.pgconn))
        if results[-1].status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            raise psycopg.errors.error_from_result(results[-1], encoding=self.info.encoding)
        return results

    @contextmanager
    def as_ourselves(self) -> Iterator[None]:
        """Statements of ours in a transaction that a handler has had in its hands: under our role, our
        search_path and our row factory and adapters, whatever the handler has set. Its own are back at the
        end, for what it does next and for what runs at the commit (deferred triggers). Costs nothing while
        nobody has had it.
        """
        if not self.touched or self._at_home:
            yield
            return
        theirs = self.row_factory, self.cursor_factory, self._own_adapters
        self._go_back_to(tuple_row, psycopg.Cursor, self._adapters_at_first)
        self._at_home = self._going_home = True
        try:
            yield
        finally:
            try:
                self._leave_home()
            finally:
                self._go_back_to(*theirs)

    def _leave_home(self) -> None:
        away, self._away = self._away, None
        self._at_home = self._going_home = False
        if away is not None and self.pgconn.transaction_status == TransactionStatus.INTRANS:
            # not a cursor of the handler's making
            psycopg.Cursor(self, row_factory=tuple_row).execute(sql("leave_home"), away)

    def _go_back_to(self, row_factory: Any, cursor_factory: Any, adapters: AdaptersMap | None) -> None:
        self.row_factory, self.cursor_factory, self._own_adapters = row_factory, cursor_factory, adapters

    def reset_session(self) -> None:
        """Undo what a handler did to its session and to this object; the connection is closed when that does
        not end well.

        What DISCARD ALL does, in one round trip, without the loss of our own prepared statements and
        settings. Temporary tables, settings, role, advisory locks, LISTEN, cursors and the like go; SQL's own
        PREPARE costs the connection. Raises nothing but what interrupts the thread. Behind a pooler only the
        object is reset: the session belongs to the pooler.
        """
        clean = False
        try:
            self._go_back_to(tuple_row, psycopg.Cursor, self._adapters_at_first)
            self._notice_handlers.clear()
            self._notify_handlers.clear()
            if self.session_sql:
                self.prepare_threshold = 0
                # most of what a reset costs would be the driver's cursor
                text = ";\n".join((sql("reset_session"), *self.session_sql, sql("prepared_by_sql")))
                clean = self._ask(text)[-1].get_value(0, 0) == b"f"
            else:
                self.prepare_threshold = None
                clean = True
            clean = clean and self.pgconn.transaction_status == TransactionStatus.IDLE
        except psycopg.Error:
            pass
        finally:
            if clean:
                self.touched, self._adapters_at_first = False, None
            else:
                self.close()

    #: Behind a transaction pooler: what is set outside a transaction is left to strangers, and so is not set.
    pooled: bool = False

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Any:
        """One attempt of psycopg's. A name may stand for many addresses, each with a timeout of its own: who
        tries them all does not hang.
        """
        still_alive()
        attempt = super()._connect_gen(*args, **kwargs)
        try:
            wanted = next(attempt)
            while True:
                _sockets.connecting[id(attempt)] = wanted[0]
                wanted = attempt.send((yield wanted))
        except StopIteration as end:
            _sockets.connections.add(end.value)
            return end.value
        finally:
            _sockets.connecting.pop(id(attempt), None)
            attempt.close()

    def wait(self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None) -> T:
        if timeout is not None:  # notifies() brings a limit of its own and knows how to go on after it
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.deadline_seconds)
        except psycopg.errors._WaitTimeout:  # the name that psycopg documents for it
            self.pgconn.finish()
            raise DeadlinePassed("the server did not answer before the deadline of the call") from None


class _SessionSockets:
    """The sockets of this process: of its connections, and of those that are being opened."""

    def __init__(self) -> None:
        self.connections: weakref.WeakSet[DeadlineConnection] = weakref.WeakSet()
        self.connecting: dict[int, int] = {}  # by attempt
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """The child gives its copies back. Nothing is said to the server, and libpq finds a descriptor that
        is at its end.
        """
        inherited = [*self.connecting.values(), *filter(None, map(_descriptor, list(self.connections)))]
        self.connecting.clear()
        self.connections.clear()
        if not inherited:
            return
        try:
            nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # no room for one more
            for descriptor in inherited:
                os.close(descriptor)
            return
        for descriptor in inherited:
            os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)


def _descriptor(connection: DeadlineConnection) -> int | None:
    try:
        return connection.pgconn.socket
    except psycopg.Error:
        return None


_sockets = _SessionSockets()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


def connect(
    url: str,
    *,
    names: Names = DeadlineConnection.names,
    application_name: str = "packhorse",
    deadline_seconds: float = 10.0,
    connect_timeout_seconds: float = 5.0,
    pooler: bool = False,
    autocommit: bool = True,
    times_in_utc: bool = False,
) -> DeadlineConnection:
    """Open a connection, for sessions.py, which knows the settings: autocommit, every call bounded by
    deadline_seconds, json as text.

    names: what our schemas are called. pooler: no prepared statements and no session state, for PgBouncer in
    transaction mode. times_in_utc: texts of times sort as the times do, whatever the database's settings
    (without a pooler). Raises StoreUnavailable. Several hosts: only a writable one is taken.
    """
    # what a database of another encoding sends is converted by its server: JsonText and every text here are
    # UTF-8
    parameters: dict[str, Any] = {
        "connect_timeout": max(2, int(connect_timeout_seconds)),
        "application_name": application_name,
        "client_encoding": "utf8",
    }
    given = _in_force(url)
    if not pooler:
        parameters |= {
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20000,
        }
    if "," in given.get("host", "") + given.get("hostaddr", ""):
        parameters["target_session_attrs"] = "read-write"
    with translated():
        connection = DeadlineConnection.connect(url, autocommit=autocommit, **parameters)
        connection.deadline_seconds = deadline_seconds
        connection.names = names
        if not pooler:
            connection.session_sql = (*_prepare_times(connection, times_in_utc), _prepare_session(connection))
        if connection.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII":
            connection.session_sql = (
                (*connection.session_sql, _take_any_bytes(connection)) if connection.session_sql else ()
            )
    connection.pooled = pooler
    connection.prepare_threshold = None if pooler else 0
    connection.adapters.register_loader("jsonb", JsonText)
    connection.adapters.register_loader("json", JsonText)
    return connection


def url_parts(url: str) -> dict[str, str]:
    """What a connection string says, by libpq's keywords; opens nothing. Raises InvalidArgument, without any
    part of it.
    """
    try:
        return {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(url).items() if value}
    except psycopg.ProgrammingError:  # its text may quote a part of the url, and so of the password
        text = "database_url: not a connection string that PostgreSQL understands (postgresql://user@host:5432/database)"
        raise InvalidArgument(text, field="database_url") from None


def _in_force(url: str) -> dict[str, str]:
    """The parameters of a connection, those included that libpq has from PGHOST, PGOPTIONS and the like, or
    from a service file.
    """
    given = url_parts(url)
    known = psycopg.pq.Conninfo.get_defaults()
    if "service" in given:  # only libpq reads the file, when a connection begins
        begun = psycopg.pq.PGconn.connect_start(url.encode())
        if begun.status != psycopg.pq.ConnStatus.BAD:
            known = begun.info
        begun.finish()
    return {option.keyword.decode(): option.val.decode() for option in known if option.val} | given


def _prepare_session(connection: DeadlineConnection) -> str:
    """Set what every session of ours has; returns the SQL that does it.

    READ COMMITTED whatever the role's default is: under any other, messages of conversations could not be
    ended.

    And the server looks whether we are still there: after a deadline of ours it would go on with the
    statement for as long as it takes, hold its locks, and commit.
    """
    interval = CHECK_INTERVAL
    try:
        home = connection.execute(sql("prepare_session"), (interval,), prepare=False).fetchone()
    except psycopg.errors.InvalidParameterValue:  # a server on a system where it cannot look
        connection.rollback()
        interval = "0"
        home = connection.execute(sql("prepare_session"), (interval,), prepare=False).fetchone()
    connection.home = tuple(home or ())[2:]
    if not connection.autocommit:
        connection.commit()
    return sql("prepare_session").replace("%s", f"'{interval}'")


def _take_any_bytes(connection: DeadlineConnection) -> str:
    """A database that checks no encoding: asked for UTF-8 it would refuse every answer with a text that is
    none (SPEC P5).
    """
    statement = "set client_encoding = 'SQL_ASCII'"
    connection.execute(statement, prepare=False)
    if not connection.autocommit:
        connection.commit()
    for name in ("text", "varchar", "name"):
        connection.adapters.register_loader(name, AnyText)
    return statement


def _prepare_times(connection: DeadlineConnection, in_utc: bool) -> list[str]:
    """ISO dates, which psycopg can read; costs nothing where the server has told that it is so already.
    Returns the SQL that was needed.
    """
    wanted = [("DateStyle", b"ISO", "set datestyle = 'ISO'")] + (
        [("TimeZone", b"UTC", "set timezone = 'UTC'")] if in_utc else []
    )
    needed = []
    for name, start, statement in wanted:
        if not (connection.pgconn.parameter_status(name.encode()) or b"").startswith(start):
            connection.execute(statement, prepare=False)
            needed.append(statement)
            if not connection.autocommit:
                connection.commit()
    return needed
