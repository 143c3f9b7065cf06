"""What the page asks the database: little, briefly, and once for all who look (SPEC O6).

A question is a function of worker/store or worker/ops with its arguments. It runs in a thread, in a READ ONLY
transaction that ends after a second and waits 100 ms for a lock at most, as packhorse_reader where the login
may be that. Equal questions within their time to live are asked once. An answer whose time is over is asked
anew, and a page waits for that no longer than PATIENCE_SECONDS: then it shows the last answer, if that is not
older than GRACE_SECONDS, while the question goes on for the next page. While the database is away or too slow
the last answer counts, however old. Every page says how old its oldest answer is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from packhorse.worker.config import Settings
from packhorse.worker.db.connection import AnyTime, DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.pool import ConnectionPool
from packhorse.worker.db.queries import sql
from packhorse.worker.db.sessions import open_owner, open_work
from packhorse.worker.errors import InvalidArgument, StoreError, StoreRejected, StoreUnavailable
from packhorse.worker.web.refreshes import Refreshes

T = TypeVar("T")
logger = logging.getLogger("packhorse.web")

#: SQLSTATEs: statement_timeout, lock_timeout.
TOO_LONG, _LOCKED = "57014", "55P03"
_AWAY = "the database is away"
#: Connections of the page to a database: for questions, and for acts.
QUESTIONS_AT_ONCE, ACTS_AT_ONCE = 4, 4
#: The server ends a statement of a question after a second; a server that says nothing at all is given up
#: after this.
ANSWER_SECONDS = 3.0
CONNECT_SECONDS = 2.0
#: A dry run or a check of maintenance has so long; the command line has no limit.
OWNER_SECONDS = 15.0
#: After a failed connect nobody who has an old answer waits for the next one.
REST_SECONDS = 2.0
#: A page waits so long, over all of its questions, for newer answers than those of the last GRACE_SECONDS.
PATIENCE_SECONDS, GRACE_SECONDS = 0.1, 60.0
#: Answers that are kept, for their time to live and for an outage: so many, and about so many bytes.
MOST_ANSWERS, MOST_BYTES = 512, 16 * 1_048_576


class NoAnswer(StoreUnavailable):
    """The database did not answer, and there is no earlier answer to this question."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What the database said, when (monotonic clock, and for people), and its size in bytes, roughly.

    problem: why there is no newer one, when that was tried.
    """

    value: Any
    asked_at: float
    moment: datetime
    size: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Outdated:
    """Some answer on a page is an old one. moment: of the oldest. problem: why there is no newer one."""

    moment: datetime
    problem: str


class Site:
    """One database as the page sees it.

    name: in the path when there are several. prefix: of its paths, without the base path. url: the embedded
    server's, where settings.database_url is not set. asked_total: statements that have read something;
    busy_seconds: how long it has worked on questions, previews apart.
    """

    def __init__(self, name: str, prefix: str, settings: Settings, url: str | None = None) -> None:
        self.name = name
        self.prefix = prefix
        self.settings = settings
        self.asked_total = 0
        self.busy_seconds = 0.0
        self.url = url
        self.refreshes = Refreshes()
        self._begin = "web_begin"
        self._kept: OrderedDict[Hashable, KeptAnswer] = OrderedDict()
        self._kept_bytes = 0
        self._flights: dict[Hashable, asyncio.Future[KeptAnswer]] = {}
        self._acted_at = float("-inf")
        self._rests_until = 0.0
        self._is_away = False
        self._questions = ConnectionPool(self._open_reading, QUESTIONS_AT_ONCE)
        self._acts = ConnectionPool(self._open_acting, ACTS_AT_ONCE)
        self._question_threads = ThreadPoolExecutor(QUESTIONS_AT_ONCE, f"web-question-{name}")
        self._act_threads = ThreadPoolExecutor(ACTS_AT_ONCE, f"web-act-{name}")

    async def answer(
        self,
        ttl: float,
        key: Hashable,
        function: Callable[..., Any],
        *args: Any,
        patience: Callable[[], float] = lambda: PATIENCE_SECONDS,
    ) -> tuple[KeptAnswer, str | None]:
        """An answer, and why it is an old one, if that is not the page's own choice.

        patience: seconds that this page may still wait where the last answer would do. Raises NoAnswer;
        InvalidArgument when the question is at fault.
        """
        kept = self._kept.get(key)
        now = time.monotonic()
        if kept is not None and now - kept.asked_at < ttl:
            self._kept.move_to_end(key)
            return kept, _AWAY if self._is_away else None
        if kept is not None and self.is_resting:
            return kept, _AWAY
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(self._ask(key, function, *args))
            flight.add_done_callback(lambda done: self._landed(key, done))
        if kept is not None and now - kept.asked_at < GRACE_SECONDS:
            done, _ = await asyncio.wait({flight}, timeout=patience())
            if not done:
                return kept, kept.problem
        try:
            return await asyncio.shield(flight), None  # who goes away does not end it for the others
        except InvalidArgument:
            raise
        except StoreError as error:
            said = _reason(error)
            if kept is None:
                raise NoAnswer(f"{said}: {error}") from error
            return kept, said

    @property
    def is_resting(self) -> bool:
        """Has a connect just failed? Then nobody waits for the next one who can do without."""
        return time.monotonic() < self._rests_until

    async def act(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run what changes something, in a thread and on a connection in autocommit mode. Raises
        StoreError.
        """

        def run() -> T:
            with self._acts.connection() as connection:
                return function(connection, *args, **options)

        return await asyncio.get_running_loop().run_in_executor(self._act_threads, run)

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """Ask as a question is asked, but on several cores, and keep nothing: previews, fields of forms.
        Raises StoreError.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._question_threads, partial(self._look, function, *args, many_cores=True)
        )

    async def act_as_owner(self, function: Callable[..., T], *args: Any) -> T:
        """The same on a connection of the tables' owner (maintenance_url), which ends with it: for what looks
        at tables that a worker may not read. Raises StoreError.
        """

        def run() -> T:
            connection = self.open_owner(OWNER_SECONDS)
            try:
                with translated():
                    return function(connection, *args)
            finally:
                connection.close()

        return await asyncio.get_running_loop().run_in_executor(self._act_threads, run)

    def forget(self) -> None:
        """Nothing kept, and nothing that is being asked, counts as fresh: after an act its effect shall be
        seen.
        """
        self._acted_at = time.monotonic()
        self.refreshes.forget()
        self._flights.clear()
        for key, kept in list(self._kept.items()):
            self._kept[key] = replace(kept, asked_at=float("-inf"))

    def close(self) -> None:
        """End threads and connections; questions that run are waited for, a second or so."""
        for threads in (self._question_threads, self._act_threads):
            threads.shutdown(wait=True, cancel_futures=True)
        self._questions.close()
        self._acts.close()

    async def _ask(self, key: Hashable, function: Callable[..., Any], *args: Any) -> KeptAnswer:
        asked_at, moment = time.monotonic(), datetime.now(UTC)
        try:
            value = await asyncio.get_running_loop().run_in_executor(
                self._question_threads, self._look, function, *args
            )
        except StoreUnavailable as error:
            if error.sqlstate != TOO_LONG:
                self._rests_until = time.monotonic() + REST_SECONDS
                if not self._is_away:
                    self._is_away = True
                    logger.warning(
                        "web_database_away database=%s error_class=%s error=%s",
                        self.name,
                        type(error).__name__,
                        error,
                    )
            raise
        if self._is_away:
            self._is_away = False
            logger.info("web_database_back database=%s", self.name)
        answer = KeptAnswer(
            value, asked_at if asked_at > self._acted_at else float("-inf"), moment, _size(value)
        )
        earlier = self._kept.get(key)
        if earlier is None or earlier.moment <= moment:  # one that an act has overtaken lands late
            self._keep(key, answer)
        return answer

    def _look(self, function: Callable[..., T], *args: Any, many_cores: bool = False) -> T:
        """In a thread of ours."""
        with self._questions.connection() as connection:
            connection.execute(sql(self._begin), prepare=False)  # several statements in one round trip
            if many_cores:
                connection.execute(sql("web_many_cores"), prepare=False)
            before, begun_at = connection.executed_total, time.monotonic()
            try:
                found = function(connection, *args)
                connection.commit()  # after a rollback psycopg sends DEALLOCATE ALL as well
                return found
            finally:
                self.asked_total += connection.executed_total - before
                if not many_cores:
                    self.busy_seconds += time.monotonic() - begun_at
                if not connection.closed:
                    connection.rollback()  # sends nothing when that is over

    def _keep(self, key: Hashable, answer: KeptAnswer) -> None:
        before = self._kept.pop(key, None)
        self._kept_bytes += answer.size - (before.size if before else 0)
        self._kept[key] = answer
        while self._kept and (len(self._kept) > MOST_ANSWERS or self._kept_bytes > MOST_BYTES):
            self._kept_bytes -= self._kept.popitem(last=False)[1].size

    def _landed(self, key: Hashable, done: asyncio.Future[KeptAnswer]) -> None:
        if self._flights.get(key) is done:
            del self._flights[key]
        error = None if done.cancelled() else done.exception()  # perhaps nobody waits for it any more
        if isinstance(error, StoreError) and key in self._kept:
            self._kept[key] = replace(self._kept[key], problem=_reason(error))

    def _open_reading(self) -> DeadlineConnection:
        connection = self._open(
            "web", deadline_seconds=ANSWER_SECONDS, connect_timeout_seconds=CONNECT_SECONDS
        )
        connection.prepare_threshold = None  # a plan for every filter and page would be one for none of them
        try:
            with translated():
                connection.execute(sql("web_begin_as_reader"), prepare=False)
            self._begin = "web_begin_as_reader"
        except StoreRejected:  # the login may not be the reader, or there is none here
            self._begin = "web_begin"
        connection.rollback()
        return connection

    def open_long(self, deadline_seconds: float) -> DeadlineConnection:
        """A connection of its own for what takes long; the caller closes it. Errors of statements are
        psycopg's: see translated().
        """
        return self._open("web long", deadline_seconds=deadline_seconds)

    def open_owner(self, deadline_seconds: float) -> DeadlineConnection:
        """The same of the tables' owner, where maintenance_url says who that is."""
        connection = open_owner(self.settings, "web owner", url=self.url, deadline_seconds=deadline_seconds)
        connection.adapters.register_loader("timestamptz", AnyTime)
        return connection

    def _open_acting(self) -> DeadlineConnection:
        return self._open("web act", deadline_seconds=self.settings.call_deadline_seconds)

    def _open(self, purpose: str, **options: Any) -> DeadlineConnection:
        connection = open_work(self.settings, purpose, url=self.url, **options)
        connection.adapters.register_loader("timestamptz", AnyTime)  # one odd row must not hide the others
        return connection


class Reader:
    """The questions of one request; remembers how old its answers are.

    moment: of the oldest answer; None before the first. outdated: some answer is an old one against the
    page's will.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.moment: datetime | None = None
        self.outdated: Outdated | None = None
        self._patient_until = time.monotonic() + PATIENCE_SECONDS

    async def ask(self, name: str, ttl: float, function: Callable[..., T], *args: Hashable) -> T:
        """What function(connection, *args) says: newer than ttl seconds, or than GRACE_SECONDS when the
        database is slow to say it. name: of the question; with args it says which questions are equal. Raises
        NoAnswer, InvalidArgument.
        """
        answer, problem = await self.site.answer(ttl, (name, args), function, *args, patience=self._patience)
        if self.moment is None or answer.moment < self.moment:
            self.moment = answer.moment
        if problem is not None and (self.outdated is None or answer.moment < self.outdated.moment):
            self.outdated = Outdated(answer.moment, problem)
        value: T = answer.value
        return value

    def _patience(self) -> float:
        return max(0.0, self._patient_until - time.monotonic())


def _reason(error: StoreError) -> str:
    """Why there is no newer answer, without what may name hosts and roles; the log has that."""
    if error.sqlstate == TOO_LONG:
        return "the database took longer than a second"
    if error.sqlstate == _LOCKED:
        return "somebody keeps it locked"
    return _AWAY if isinstance(error, StoreUnavailable) else "the database refuses the question"


def _size(value: Any) -> int:
    """Bytes that a value takes, roughly."""
    if isinstance(value, str | bytes):
        return 60 + len(value)
    if isinstance(value, dict):
        return 100 + sum(_size(name) + _size(item) for name, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return 60 + sum(map(_size, value))
    slots = getattr(value, "__dataclass_fields__", None)
    return 60 + sum(_size(getattr(value, name)) for name in slots) if slots else 60
