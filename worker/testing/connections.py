"""Stand-ins for the connection of a transactional handler: they keep what was executed, and answer with the
rows that a test gives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple


class Executed(NamedTuple):
    """A statement and its parameters, as the handler gave them."""

    query: Any
    params: Any = None


class _Script:
    """executed: every statement, in order. answers: the rows of the first statement, of the second …; later
    ones have none.
    """

    def __init__(self, *answers: Sequence[Any]) -> None:
        self.executed: list[Executed] = []
        self._answers = [list(rows) for rows in answers]

    def next_rows(self, query: Any, params: Any) -> list[Any]:
        self.executed.append(Executed(query, params))
        return self._answers.pop(0) if self._answers else []


class FakeCursor:
    """The rows of one statement at a time."""

    def __init__(self, script: _Script, rows: Iterable[Any] = ()) -> None:
        self._script = script
        self._rows = list(rows)
        self.rowcount = len(self._rows)

    def execute(self, query: Any, params: Any = None, **_options: Any) -> FakeCursor:
        self._rows = self._script.next_rows(query, params)
        self.rowcount = len(self._rows)
        return self

    def executemany(self, query: Any, params_seq: Iterable[Any], **_options: Any) -> None:
        for params in params_seq:
            self.execute(query, params)

    def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: int = 1) -> list[Any]:
        taken, self._rows = self._rows[:size], self._rows[size:]
        return taken

    def fetchall(self) -> list[Any]:
        return self.fetchmany(len(self._rows))

    def close(self) -> None:
        self._rows = []

    def __iter__(self) -> Iterator[Any]:
        while self._rows:
            yield self._rows.pop(0)

    def __enter__(self) -> FakeCursor:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class FakeConnection(_Script):
    """For `def` actors: `run_actor(actor, …, connection=FakeConnection([(7,)]))` answers the first statement
    with one row.
    """

    def in_hands(self) -> FakeConnection:
        """What current_connection() asks of ours."""
        return self

    def cursor(self, *_arguments: Any, **_options: Any) -> FakeCursor:
        return FakeCursor(self)

    def execute(self, query: Any, params: Any = None, **_options: Any) -> FakeCursor:
        return self.cursor().execute(query, params)

    @contextmanager
    def transaction(self, *_arguments: Any, **_options: Any) -> Iterator[None]:
        yield


class FakeAsyncCursor:
    """As FakeCursor, awaited."""

    def __init__(self, script: _Script) -> None:
        self._cursor = FakeCursor(script)

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    async def execute(self, query: Any, params: Any = None, **_options: Any) -> FakeAsyncCursor:
        self._cursor.execute(query, params)
        return self

    async def executemany(self, query: Any, params_seq: Iterable[Any], **_options: Any) -> None:
        self._cursor.executemany(query, params_seq)

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()

    async def fetchmany(self, size: int = 1) -> list[Any]:
        return self._cursor.fetchmany(size)

    async def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    async def close(self) -> None:
        self._cursor.close()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for row in self._cursor:
            yield row

    async def __aenter__(self) -> FakeAsyncCursor:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._cursor.close()


class FakeAsyncConnection(_Script):
    """For `async def` actors: as FakeConnection, awaited."""

    def cursor(self, *_arguments: Any, **_options: Any) -> FakeAsyncCursor:
        return FakeAsyncCursor(self)

    async def execute(self, query: Any, params: Any = None, **_options: Any) -> FakeAsyncCursor:
        return await self.cursor().execute(query, params)

    @asynccontextmanager
    async def transaction(self, *_arguments: Any, **_options: Any) -> AsyncIterator[None]:
        yield
