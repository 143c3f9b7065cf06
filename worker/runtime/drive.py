"""One coroutine of a handler: driven step by step, interrupted by exceptions of ours (SPEC W3, W4).

What interrupts it is an exception inside it, of our class, and a CancelledError for the libraries that tidy
up after one. A handler that goes on all the same until its hard limit is not driven any more: its attempt has
failed, and nobody else notices.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from array import array
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NoReturn, Protocol

from dramatiq.middleware import TimeLimitExceeded

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.errors import CancelInterrupt, DrainInterrupt, HardTimeLimitExceeded, LeaseInterrupt
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.slots import Slot

logger = logging.getLogger("packhorse.pool")

#: As they are raised in a coroutine: a CancelledError too, after which asyncio and what builds on it tidies
#: up.
RAISED: dict[type[BaseException], type[BaseException]] = {
    kind: type(
        kind.__name__,
        (kind, asyncio.CancelledError),
        {"__doc__": kind.__doc__, "__module__": kind.__module__},
    )
    for kind in (TimeLimitExceeded, CancelInterrupt, DrainInterrupt, LeaseInterrupt)
}


class Driver(Protocol):
    """What a coroutine needs of its pool. steps: of all handlers so far."""

    steps: int

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a function in the loop, from any thread."""

    def expect(self, slot: CoroutineSlot) -> None:
        """Its handler begins."""

    def contain(self, error: BaseException | None) -> None:
        """After a step of a handler: a child that it forked ends here."""


class CoroutineSlot(Slot):
    """The place of one coroutine. Only the event loop writes to it."""

    __slots__ = ("_pool", "_told", "abandoned", "driving", "task")

    def __init__(self, index: int, running: RunningIds, pool: Driver) -> None:
        super().__init__(index, running)
        self._pool = pool
        self.task: asyncio.Task[None] | None = None
        self._told: ClaimedMessage | None = None  # the last message that was to be interrupted
        self.driving = False  # its handler is being driven: it can be interrupted
        self.abandoned = False

    def start_over(self, private: array[int]) -> None:
        """In a forked child: what it does stands in memory of its own."""
        self._view = self._overdue_tokens = memoryview(private)

    def drive(self, coroutine: Awaitable[Any]) -> Awaitable[Any]:
        """Run the handler, and raise in it what interrupts it."""
        return Drive(self._pool, self, coroutine)

    def interrupt(self, message: ClaimedMessage, exception: type[BaseException]) -> bool:
        """Called by any thread; the loop does it as soon as it can, if the slot still runs `message` then."""
        if self.message is not message or self._told is message:
            return False
        self._told = message
        self._pool.call(self._interrupt, message, exception)
        return True

    def abandon(self, message: ClaimedMessage) -> None:
        """Drive its handler no further. Called by any thread."""
        self._pool.call(self._abandon, message)

    def _interrupt(self, message: ClaimedMessage, exception: type[BaseException]) -> None:
        """In the loop, so the handler waits for something, or has not begun: then `Drive` raises it as soon
        as it does.
        """
        if self.message is not message:
            return
        self.interrupted = self.interrupted or exception
        if self.driving and self.task is not None:
            self.task.cancel()

    def _abandon(self, message: ClaimedMessage) -> None:
        if self.message is message:
            self.abandoned = True
            self._interrupt(message, TimeLimitExceeded)


class Drive:
    """Runs a handler's coroutine step by step, like `await`, and turns a cancellation of the task into what
    interrupts the handler.
    """

    __slots__ = ("_coroutine", "_pool", "_slot")

    def __init__(self, pool: Driver, slot: CoroutineSlot, coroutine: Any) -> None:
        self._pool = pool
        self._slot = slot
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, slot, pool = self._coroutine, self._slot, self._pool
        thrown: BaseException | None = None
        future = None
        if slot.interrupted is not None:  # before it began
            coroutine.close()
            raise RAISED[slot.interrupted]
        pool.expect(slot)
        slot.driving = True
        try:
            while True:
                pool.steps += 1
                try:
                    future = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
                except StopIteration as end:
                    pool.contain(None)
                    return end.value
                except BaseException as error:
                    pool.contain(error)
                    self._raise(error)
                pool.contain(_AWAITS)
                thrown = None
                try:
                    yield future
                except BaseException as error:
                    thrown = self._interruption(error)
        finally:
            slot.driving = False
            # this frame is part of the traceback of what the handler has ended with: named here, that would
            # wait for the garbage collector
            thrown = future = None

    def _interruption(self, error: BaseException) -> BaseException:
        """What the handler meets instead of a cancellation of ours. Raises it when it is driven no
        further.
        """
        slot = self._slot
        if not isinstance(error, asyncio.CancelledError) or slot.interrupted is None:
            return error
        if not slot.abandoned:
            return RAISED[slot.interrupted]()
        message = slot.message
        _keep(self._coroutine)
        logger.warning(
            "handler_abandoned message_id=%s actor=%s", message and message.id, message and message.actor_name
        )
        if slot.interrupted is TimeLimitExceeded:
            raise HardTimeLimitExceeded(
                "it went on after its time limit until the hard one; it is not resumed any more"
            )
        raise RAISED[slot.interrupted]

    def _raise(self, error: BaseException) -> NoReturn:
        """What the handler has ended with. A group that a TaskGroup made, or a cancellation on its way,
        stands for the interrupt itself.
        """
        interrupted = self._slot.interrupted
        try:
            if (
                interrupted is not None
                and not isinstance(error, interrupted)
                and isinstance(error, (asyncio.CancelledError, BaseExceptionGroup))
            ):
                raise RAISED[interrupted] from error
            raise error
        finally:
            del error  # as in __await__


def _keep(coroutine: Any) -> None:
    """Never let it be collected: that would run its code once more, in whatever thread, and one that swallows
    everything would not end.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))


_AWAITS = RuntimeError(
    "a child that a coroutine forked cannot await anything: the event loop is its parent's"
)
