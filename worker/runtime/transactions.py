"""A transactional handler: its effects, what follows and the completion in one transaction, all or nothing
(SPEC P3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from packhorse.worker import forks
from packhorse.worker.attempt.context import sending_on
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.async_connection import AsyncDeadlineConnection, current_async, in_thread
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import LOCKED, translated
from packhorse.worker.db.pool import ConnectionPool
from packhorse.worker.errors import LeaseLost, NotCompleted, StoreError, StoreUnavailable
from packhorse.worker.runtime.hooks import Hooks
from packhorse.worker.store import messages as store

#: What ends a session that is at fault itself: idle in a transaction, a transaction or a statement that takes
#: too long.
LIMITS = frozenset({"25P03", "25P04", "57014"})
#: It may not write: the handler asked for that, or the server has become a standby.
READ_ONLY = "25006"
#: Classes of SQLSTATE that are about the server: out of resources, of its system, internal.
OF_THE_SERVER = ("53", "58", "XX")
#: Why a completion fails for what its handler did in the same transaction: an error it went on after, an
#: isolation level.
REFUSED_FOR_THE_HANDLER = ("25", "PH")


class Course:
    """How far one transaction has come, and what an error in it means."""

    def __init__(self, broker: PostgresBroker, message: ClaimedMessage) -> None:
        self._broker = broker
        self._steps = message.step_store = broker.steps.in_transaction()
        self.returned = False  # the handler
        self.completing = False

    def judge(self, error: StoreError, connection: DeadlineConnection) -> None:
        """Raise NotCompleted when the error is no fault of the handler. May ask the database."""
        if self.returned and error.sqlstate in LOCKED:  # somebody has locked its row
            raise NotCompleted(f"the transaction of its handler could not be committed: {error}") from error
        if isinstance(error, StoreUnavailable):
            if not self._caused(error, cut=connection.broken):
                raise NotCompleted(f"the transaction of its handler was cut off: {error}") from error
        elif self.completing and not (error.sqlstate or "").startswith(REFUSED_FOR_THE_HANDLER):
            # a right, a constraint or a partition of ours is missing: whatever the handler does, it would end
            # like this
            raise NotCompleted(
                f"the database refuses the completion: {error} ({error.sqlstate})", refused=True
            ) from error

    def complete(self, connection: DeadlineConnection, message: ClaimedMessage) -> None:
        """The last statements of the transaction: its steps, its completion. Raises LeaseLost, StepError, and
        psycopg's errors.
        """
        self.returned = self.completing = True
        self._steps.write(connection)
        if not store.complete_in_transaction(connection, message.id, message.lease_token):
            raise LeaseLost(
                f"message {message.id}: somebody else owns it now; its transaction was rolled back"
            )
        self.completing = False

    def _caused(self, error: StoreUnavailable, *, cut: bool) -> bool:
        """Did the handler bring this about? It did when that is a limit for transactions or statements, or
        took longer than every call has, or its transaction may not write, while the database works for
        others; and when its connection goes on (cut: it does not), so that the error is about something else.
        (What else a commit can be refused for, a deferred constraint say, is its own doing anyway.)"""
        state = error.sqlstate or ""
        if state in LIMITS:
            return True
        if state == READ_ONLY or error.late:
            return self._works_for_others()
        return not cut and state[:2] not in OF_THE_SERVER

    def _works_for_others(self) -> bool:
        try:
            connection = self._broker.open_connection("look")
            try:
                with translated():
                    return store.can_write(connection)
            finally:
                connection.close()
        except StoreError:
            return False


class Transactions:
    """For handlers in threads, on the broker's pool."""

    def __init__(self, broker: PostgresBroker, hooks: Hooks) -> None:
        self._broker = broker
        self._hooks = hooks

    def call(self, actor: Callable[..., Any], message: ClaimedMessage) -> Any:
        """What the handler returns, once it is committed; raises what it raises, LeaseLost, NotCompleted."""
        course = Course(self._broker, message)
        with self._broker.pool.connection() as connection:
            wakes = connection.wakes = self._broker.waking.new(self._broker.settings)
            try:
                with translated(), connection.transaction():
                    with sending_on(connection, self._broker.place):
                        result = forks.contain(actor, *message.args, **message.kwargs)
                        for hook in self._hooks.before_commit:
                            hook(self._broker, message, result)
                    course.complete(connection, message)
            except StoreError as error:
                course.judge(error, connection)
                raise
            message.move(AttemptStage.COMMITTED)
        self._broker.waking.publish(self._broker.settings, wakes)
        return result


class AsyncTransactions:
    """For coroutines: `size` at once, each with a connection of its own. Used in the event loop."""

    def __init__(self, broker: PostgresBroker, hooks: Hooks, size: int) -> None:
        self._broker = broker
        self._hooks = hooks
        self._pool = ConnectionPool(partial(broker.open_connection, "coroutine"), size)

    async def call(
        self,
        handler: Callable[..., Awaitable[Any]],
        message: ClaimedMessage,
        drive: Callable[[Awaitable[Any]], Awaitable[Any]],
    ) -> Any:
        """As Transactions.call. drive: runs the handler, and raises what interrupts it."""
        lent = self._pool.connection()
        twin = await in_thread(lent.__enter__)
        try:
            result = await self._call(twin, handler, message, drive)
        except BaseException as error:
            # raises it again, translated
            await in_thread(_give_back, lent, error)
            raise
        wakes = twin.wakes
        await in_thread(lent.__exit__, None, None, None)
        if wakes:
            await in_thread(self._broker.waking.publish, self._broker.settings, wakes)
        return result

    async def _call(
        self,
        twin: DeadlineConnection,
        handler: Callable[..., Awaitable[Any]],
        message: ClaimedMessage,
        drive: Callable[[Awaitable[Any]], Awaitable[Any]],
    ) -> Any:
        course = Course(self._broker, message)
        twin.wakes = self._broker.waking.new(self._broker.settings)
        twin.in_hands()
        connection = AsyncDeadlineConnection(twin)
        try:
            with translated():
                async with connection.transaction():
                    here = current_async.set((connection, self._broker.place))
                    try:
                        result = await drive(handler(*message.args, **message.kwargs))
                        if self._hooks.before_commit:
                            await connection.ours(self._before_commit, twin, message, result)
                    finally:
                        current_async.reset(here)
                    await connection.ours(course.complete, twin, message)
        except StoreError as error:
            await in_thread(course.judge, error, twin)
            raise
        message.move(AttemptStage.COMMITTED)
        return result

    def _before_commit(self, twin: DeadlineConnection, message: ClaimedMessage, result: Any) -> None:
        """In a thread: what these hooks send goes into the transaction."""
        with sending_on(twin, self._broker.place):
            for hook in self._hooks.before_commit:
                hook(self._broker, message, result)

    def close(self) -> None:
        self._pool.close()


def _give_back(lent: Any, error: BaseException) -> None:
    lent.__exit__(type(error), error, error.__traceback__)
