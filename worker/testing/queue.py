"""An application's actors on a real queue, run by the real runtime in a thread of the test process (SPEC
W12).
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any
from uuid import uuid4

import dramatiq
from dramatiq.middleware import Middleware

from packhorse.worker.attempt.messages import ClaimedMessage, format_traceback
from packhorse.worker.attempt.middleware.retries import asked_for
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.db import migrate
from packhorse.worker.db.borrowed import with_parsed_json
from packhorse.worker.db.connection import DeadlineConnection, url_parts
from packhorse.worker.db.databases import ensure_database
from packhorse.worker.db.embedded import Embedded
from packhorse.worker.db.errors import translated
from packhorse.worker.db.sessions import names_of, open_work
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.observe.process_stats import HURRY, ProcessStats
from packhorse.worker.runtime.process import WorkerProcess
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.states import Verb
from packhorse.worker.store import bursts
from packhorse.worker.store import messages as message_store
from packhorse.worker.store import testing as store
from packhorse.worker.testing.report import MessageReport, QueueNotEmpty, RunReport

#: What a run needs to be quick. The lease is long: a machine that sleeps, or a debugger, must not end the
#: process of the tests.
SETTINGS: dict[str, Any] = {
    "poll_seconds": 0.1,
    "heartbeat_seconds": 1.0,
    "lease_seconds": 3600.0,
    "rescue_seconds": 600.0,
    "drain_seconds": 2.0,
    "queues": (),
}
#: Settings of production that mean nothing here: the tests have one database, and a direct way to it.
NOT_IN_TESTS: dict[str, Any] = {
    "listen_url": None,
    "maintenance_url": None,
    "pooler": False,
    "maintenance_pooler": None,
    "max_messages": 0,
    "max_memory_mib": 0,
}
LOOK_SECONDS = 0.02
STOP_SECONDS = 30.0
#: Messages that a timeout explains.
EXPLAINED = 5
#: A database that is emptied must say what it is for.
WORD = "test"


class PackhorseDatabase:
    """A database with the schema of the queue, for tests and for nothing else. url: of its owner."""

    def __init__(self, url: str) -> None:
        self.url = url

    @classmethod
    @contextmanager
    def embedded(cls, folder: Any) -> Iterator[PackhorseDatabase]:
        """On a server of its own, with its data in this folder, until the end. Raises EmbeddedError."""
        with Embedded(folder) as server:
            server.prepare(names_of(load_settings()))
            database = cls(server.owner_url)
            with database.connection() as connection:
                store.commit_without_waiting(connection)
            yield database

    @classmethod
    def given(cls, url: str, worker: str | None = None) -> PackhorseDatabase:
        """On a server that runs: the database that the url names, whose name must contain `test`, with the
        schema brought up to date.

        worker: of several processes of a test run one; then a database of its own, `<name>_<worker>`, is made
        when it is missing. Raises InvalidArgument, StoreUnavailable, SchemaMismatch.
        """
        name = url_parts(url).get("dbname", "")
        if WORD not in name.lower():
            raise InvalidArgument(
                f"PACKHORSE_TEST_DATABASE_URL: the database {name!r} would be emptied before each test, and its name does not contain {WORD!r}",
                field="PACKHORSE_TEST_DATABASE_URL",
                hint=f"Name one for tests, e.g. {name or 'app'}_test.",
            )
        if worker is not None:
            own = f"{name}_{worker}"
            with cls(url).connection() as connection:
                ensure_database(connection, own)
            url = with_database(url, own)
        database = cls(url)
        with database.connection(deadline_seconds=600.0) as connection:
            migrate.up(connection)
        return database

    def settings(self, **changes: Any) -> Settings:
        """Settings of this process for a run on this database, with these changes. Raises ConfigError."""
        return load_settings(database_url=self.url, **{**SETTINGS, **changes}).model_copy(update=NOT_IN_TESTS)

    @contextmanager
    def connection(self, **options: Any) -> Iterator[DeadlineConnection]:
        """A psycopg connection in autocommit mode, closed at the end. options: of the connection."""
        connection = with_parsed_json(open_work(self.settings(), "testing", **options))
        try:
            yield connection
        finally:
            connection.close()

    def empty(self) -> None:
        """Remove everything that the queue holds; an application's own tables are left alone."""
        with self.connection() as connection, translated():
            store.empty(connection)


def with_database(url: str, name: str) -> str:
    """The same connection string for another database of the server."""
    from urllib.parse import quote, urlsplit, urlunsplit

    if url.startswith(("postgresql://", "postgres://")):
        return urlunsplit(urlsplit(url)._replace(path="/" + quote(name, safe="")))
    return f"{url} dbname='{name}'"


class PackhorseQueue:
    """The queue of one test. url: its connection string, also in DATABASE_URL meanwhile."""

    def __init__(self, database: PackhorseDatabase) -> None:
        self.database = database
        self.url = database.url

    def connection(self) -> AbstractContextManager[DeadlineConnection]:
        """`with queue.connection() as connection:` a psycopg connection in autocommit mode, to look and to
        prepare.
        """
        return self.database.connection()

    def run_until_empty(
        self,
        *modules_or_actors: str | ModuleType | dramatiq.Actor[Any, Any],
        broker: dramatiq.Broker | None = None,
        timeout: float = 30.0,
        until: Callable[[], object] | None = None,
        include_delayed: bool = False,
        **settings: Any,
    ) -> RunReport:
        """Run handlers until none could start now, and say what became of each message.

        modules_or_actors: whose broker it is (a module by its name is imported); all actors of that broker
        run. Nothing: the broker that dramatiq knows. include_delayed: delayed messages, retries, snoozed ones
        and what a parked scope holds back are due at once, as often as they come. until: run until it returns
        something true, whether the queue is empty or not. settings: of the worker, e.g. threads=1. Raises
        QueueNotEmpty after `timeout` seconds, InvalidArgument, and what keeps a worker from starting.
        """
        found = broker_of(modules_or_actors, broker)
        with using(found, self.database.settings(**settings)) as chosen, self.connection() as connection:
            before = store.ended(connection)
            run = RuntimeThread(found, chosen)
            over, text = False, ""
            try:
                run.start()
                over = self._wait(run, connection, time.monotonic() + timeout, until, include_delayed)
                text = "" if over else _still_there(connection, run, timeout)
            finally:
                run.stop(quickly=not over)
            report = _report(connection, before, run.recorder)
        if not over:
            raise QueueNotEmpty(text, report)
        return report

    @staticmethod
    def _wait(
        run: RuntimeThread,
        connection: DeadlineConnection,
        until_time: float,
        until: Callable[[], object] | None,
        include_delayed: bool,
    ) -> bool:
        """Whether the end came before the time was over."""
        while time.monotonic() < until_time:
            run.check()
            if until is not None and until():
                return True
            if not run.settled(connection):
                time.sleep(LOOK_SECONDS)
            elif include_delayed and store.make_due(connection, run.worker.queues, run.worker.types):
                continue
            elif until is None:
                return True
            else:
                time.sleep(LOOK_SECONDS)
        return False


class Recorder(Middleware):
    """What handlers returned and raised, by message id. Last of all middleware, so the first to be told of an
    end.
    """

    runs_on_loop = True

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}
        self.tracebacks: dict[int, str] = {}

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if not isinstance(message, ClaimedMessage):
            return
        if exception is None:
            self.results[message.id] = result
        elif _failed(exception):
            self.tracebacks[message.id] = format_traceback(exception)


def _failed(exception: BaseException) -> bool:
    try:
        asked = asked_for(exception)
    except Exception:  # a Snooze of no number
        return True
    return asked is None or asked.verb is Verb.BURY


class RuntimeThread:
    """A worker process in a thread of this one."""

    def __init__(self, broker: PostgresBroker, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._quiet_since = 0.0  # the fetcher has held nothing since; 0: it does
        self._switch_seconds = sys.getswitchinterval()
        self.recorder = Recorder()
        self.stats = ProcessStats()
        self.id = uuid4()
        self.worker: WorkerProcess

    def start(self) -> None:
        self._broker.middleware.append(self.recorder)
        self.worker = WorkerProcess(
            self._settings, RunningIds.of(self._settings), self.id, self.stats, broker=self._broker
        )
        self._thread = threading.Thread(target=self._work, name="packhorse-testing", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise what has ended the worker."""
        if self._error is not None:
            raise self._error
        if self._thread is None or not self._thread.is_alive() or self.worker.exit_code:
            raise RuntimeError(
                "the worker ended before the queue was empty: a handler went on after its hard time limit, or a thread of it died"
            )

    def settled(self, connection: DeadlineConnection) -> bool:
        """Is there nothing to do now? Asked twice, with a turn of the fetcher in between: it may be in a hook
        that sends something.
        """
        fetcher = self.worker.fetcher
        ticked = self.stats.ticks().get("fetcher", 0.0)
        if fetcher.in_flight or fetcher.unwritten:
            self._quiet_since = 0.0
            return False
        if self._quiet_since and ticked <= self._quiet_since:
            fetcher.wake()
            return False
        with translated():
            if bursts.has_work(connection, [self.id]) is not False:
                self._quiet_since = 0.0
                return False
        if self._quiet_since:
            self._quiet_since = 0.0
            return True
        self._quiet_since = time.monotonic()
        return False

    def stop(self, *, quickly: bool) -> None:
        """Drain; quickly: without waiting for handlers."""
        try:
            if self._thread is not None:
                self.stats.states[HURRY] = quickly
                self.worker.stop()
                self._thread.join(STOP_SECONDS)
        finally:
            self._broker.middleware.remove(self.recorder)
            self._broker.runtime = None
            sys.setswitchinterval(self._switch_seconds)


def broker_of(
    named: Sequence[str | ModuleType | dramatiq.Actor[Any, Any]], broker: dramatiq.Broker | None = None
) -> PostgresBroker:
    """The one broker of modules and actors. Raises InvalidArgument."""
    actors = [
        value
        for name in named
        for value in ([name] if isinstance(name, dramatiq.Actor) else vars(_module(name)).values())
    ]
    brokers = (
        [broker]
        if broker is not None
        else [value.broker for value in actors if isinstance(value, dramatiq.Actor)]
    )
    found = {id(one): one for one in brokers or [dramatiq.get_broker()]}
    if len(found) > 1:
        raise InvalidArgument(
            "broker: the actors are on several brokers",
            field="broker",
            hint="Run them one after another, with broker=….",
        )
    chosen = next(iter(found.values()))
    if not isinstance(chosen, PostgresBroker):
        raise InvalidArgument(
            f"broker: the actors are on a {type(chosen).__name__}",
            field="broker",
            hint="dramatiq.set_broker(packhorse.PostgresBroker()) must come before they are declared.",
        )
    if not chosen.actors:
        raise InvalidArgument(
            "broker: no actor is declared on it",
            field="broker",
            hint="Import the modules that declare actors, or name them.",
        )
    return chosen


def _module(name: str | ModuleType) -> ModuleType:
    return importlib.import_module(name) if isinstance(name, str) else name


@contextmanager
def using(broker: PostgresBroker, settings: Settings) -> Iterator[Settings]:
    """Meanwhile this broker works with these settings."""
    before = broker._settings
    broker.configure(settings)
    try:
        yield settings
    finally:
        broker.close()
        broker._settings = before


def _still_there(connection: DeadlineConnection, run: RuntimeThread, timeout: float) -> str:
    """What lives, and why: the gates that it does not pass."""
    with translated():
        found = store.waiting(connection, run.worker.queues, run.worker.types, EXPLAINED + 1)
        lines = [f"after {timeout:g} s there is still something to do:"]
        for message_id, queue, message_type, state, attempt, error_class, error in found[:EXPLAINED]:
            failed = f"; its last attempt failed: {error_class}: {error}" if error_class else ""
            lines.append(
                f"  message {message_id} ({message_type} on {queue}) is {state}, attempt {attempt}{failed}"
            )
            gates = message_store.explain(connection, message_id)
            told = [
                gate for gate in gates if not gate.passed or (state == "running" and gate.gate == "state")
            ]
            lines += [f"    {gate.gate}: {gate.detail}" for gate in told]
    if len(found) > EXPLAINED:
        lines.append("  and more")
    return "\n".join(lines if found else [f"after {timeout:g} s `until` had not come true; no message lives"])


def _report(connection: DeadlineConnection, before: set[int], recorder: Recorder) -> RunReport:
    with translated():
        found = [message for message in store.outcomes(connection) if message.id not in before]
    known = [
        MessageReport(
            m.id,
            m.queue,
            m.message_type,
            m.state,
            m.attempt,
            m.reason,
            m.error_class,
            m.error_message,
            m.traceback,
        )
        for m in found
    ]
    return RunReport(known).with_run(recorder.results, recorder.tracebacks)


def current_broker() -> PostgresBroker | None:
    """The broker that dramatiq knows, when it is ours; makes none."""
    import dramatiq.broker

    found = dramatiq.broker.global_broker
    return found if isinstance(found, PostgresBroker) else None
