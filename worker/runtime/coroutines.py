"""Coroutines of `async def` actors: up to `size` at once in one event loop, which has a thread of its own
(SPEC W3).

Each message has a task and a context of its own. drive.py runs its handler step by step and interrupts it.

A handler that blocks the loop stops all others. The timekeeper sees that from outside (`blockage`): the
process ends when the block outlasts the hard limit of the handler that causes it. The time of the others does
not run meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import selectors
import sys
import threading
import time
import traceback
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from math import inf
from typing import Any, cast
from weakref import WeakKeyDictionary

from dramatiq.asyncio import async_to_sync

from packhorse.worker import forks
from packhorse.worker.attempt.context import current
from packhorse.worker.attempt.messages import ClaimedMessage, failure
from packhorse.worker.attempt.stages import AT_WORK
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.runtime.drive import CoroutineSlot
from packhorse.worker.runtime.executor import Executor
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.runtime.transactions import AsyncTransactions

logger = logging.getLogger("packhorse.pool")

#: The loop is blocked when one step of one task has lasted so long.
BLOCKED_SECONDS = 0.25
TICK_SECONDS = 0.05
#: Tasks made in one turn of the loop.
BURST = 500
MOST_FRAMES = 30

_WRAPPED = async_to_sync(asyncio.sleep).__code__


def coroutine_function(actor: Any) -> Callable[..., Awaitable[Any]] | None:
    """The `async def` of an actor, which dramatiq has wrapped; None of an ordinary one."""
    if getattr(actor.fn, "__code__", None) is _WRAPPED:
        return cast(Callable[..., Awaitable[Any]], actor.fn.__wrapped__)
    return None


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's when it is installed."""
    try:
        return cast(asyncio.AbstractEventLoop, importlib.import_module("uvloop").new_event_loop())
    except ImportError:
        return asyncio.new_event_loop()


class LoopThread(threading.Thread):
    """The thread of the event loop: what hooks of middleware for worker threads are given."""

    def __init__(self, broker: PostgresBroker, run: Callable[[], None]) -> None:
        super().__init__(target=run, name="packhorse-event-loop", daemon=True)
        self.broker = broker
        self.logger = logger


@dataclass(frozen=True, slots=True)
class Blockage:
    """The event loop stands still since `since` (monotonic). slot: the coroutine that keeps it, when that is
    known; stack: where.
    """

    since: float
    slot: CoroutineSlot | None
    stack: str


class CoroutinePool:
    """As threads.py, for coroutines. `ready` is filled by the fetcher; `on_finished(message)` gets each
    message back, from the loop.

    size: most coroutines at once. transactions: most of them with a transaction. first_index: where its slots
    begin in `running`. begun: messages started since somebody took them out, for the meter.
    """

    patient = True

    def __init__(
        self,
        executor: Executor,
        size: int,
        transactions: int,
        running: RunningIds,
        first_index: int,
        on_finished: Callable[[ClaimedMessage], None],
    ) -> None:
        self._executor = executor
        self.broker = executor.broker
        self.size = size
        self.ready: deque[ClaimedMessage] = deque()
        self.begun: list[ClaimedMessage] = []
        self.handlers = {
            name: function
            for name, actor in self.broker.actors.items()
            if (function := coroutine_function(actor)) is not None
        }
        self.handlers |= {
            alias: self.handlers[name] for alias, name in self.broker.aliases.items() if name in self.handlers
        }
        self.steps = 0  # of all handlers so far
        # when the first of the running handlers is to be looked at by the timekeeper (monotonic), about
        self.earliest = inf
        self._transactions = AsyncTransactions(self.broker, executor.hooks, transactions)
        self._on_finished = on_finished
        self._ids = running
        self._next_index = first_index
        self._free: list[CoroutineSlot] = []
        self._running: dict[int, CoroutineSlot] = {}  # by message id
        # tasks that handlers have made
        self._children: WeakKeyDictionary[asyncio.Task[Any], ClaimedMessage] = WeakKeyDictionary()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: LoopThread | None = None
        self._context = copy_context()
        self._starting = False
        self._stopping = self._ended = False
        self.on_busy: Callable[[], None] = lambda: None  # told when the first of them begins
        self._ticked_at = inf
        self._ticking = False
        self._seen: tuple[int, int] = (0, 0)
        self._seen_at = self._looked_at = 0.0
        self._forks = forks.count
        forks.register(self)

    # -- life ---------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the loop's thread when there is a coroutine to run."""
        if not self.handlers:
            return
        self._loop = _new_loop()
        self._loop.set_task_factory(self._make_task)
        self._thread = LoopThread(self.broker, self._run)
        self._thread.start()

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        forks.contain(self.broker.emit_after, "worker_thread_boot", self._thread)
        self._context = copy_context()
        try:
            while not self._ended:
                try:
                    loop.run_forever()
                except BaseException:  # a task of a handler's raised SystemExit; the loop goes on
                    logger.critical("event_loop_interrupted", exc_info=True)
            _cancel_all(loop)
        finally:
            forks.contain(self.broker.emit_before, "worker_thread_shutdown", self._thread)
            loop.close()

    def stop(self) -> None:
        """No further message is started; running ones go on."""
        self._stopping = True

    def wait(self, timeout_seconds: float) -> bool:
        """End the loop, unless handlers still run; True when it has ended."""
        if self._thread is None:
            return True
        if not self._running:
            self._ended = True
            self.call(self._loop.stop)  # type: ignore[union-attr]
            self._thread.join(timeout_seconds)
            self._transactions.close()
        return bool(self._running) or not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread is None or self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def running_slots(self) -> list[Slot]:
        """Those that have a message now; a copy, for any thread."""
        return list(self._running.values())

    def slot_of(self, message: ClaimedMessage) -> Slot | None:
        """Where it runs; None when it does not."""
        slot = self._running.get(message.id)
        return slot if slot is not None and slot.message is message else None

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: nothing that it does is said of the parent's slots, and other coroutines do not
        go on in it.
        """
        private = array("q", bytes(8 * self._next_index))
        for slot in (*self._running.values(), *self._free):
            slot.start_over(private)
        if (
            self._thread is not None
            and threading.current_thread() is self._thread
            and hasattr(self._loop, "_selector")
        ):
            # the selector is the parent's, too (an epoll descriptor is shared by a fork)
            self._loop._selector = selectors.PollSelector()  # type: ignore[union-attr]
            self._loop._ready.clear()  # type: ignore[union-attr]

    def contain(self, error: BaseException | None) -> None:
        """After a step of a handler: a child that it forked ends here, as forks.contain ends it."""
        if forks.count != self._forks:
            forks.leave(error)

    # -- messages -----------------------------------------------------------------------------------
    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a function in the loop, from any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args, context=self._context)
        except RuntimeError:
            pass  # the loop has ended, and with it whatever this was about

    def put(self, messages: list[ClaimedMessage]) -> None:
        """Give claimed messages to the loop, in order."""
        self.ready.extend(messages)
        if not self._starting:
            self._starting = True
            self.call(self._start)

    def _start(self) -> None:
        """Start what is ready while there is room."""
        self._starting = False
        for _ in range(BURST):
            if self._stopping or len(self._running) >= self.size:
                return
            try:
                message = self.ready.popleft()
            except IndexError:
                return
            self._begin(message)
        if not self._starting:
            self._starting = True
            self._loop.call_soon(self._start)  # type: ignore[union-attr]

    def _begin(self, message: ClaimedMessage) -> None:
        now = time.monotonic()
        if not self._executor.may_start(message, now):
            message.hand_back()
            self._on_finished(message)
            return
        if self._free:
            slot = self._free.pop()
        else:
            slot = CoroutineSlot(self._next_index, self._ids, self)
            self._next_index += 1
        slot.abandoned = slot.driving = False
        slot.started_at = now
        self._running[message.id] = slot
        context = copy_context()
        slot.task = asyncio.Task(self._attempt(slot, message, now, context), loop=self._loop, context=context)
        if not self._ticking:
            self._ticking = True
            self._tick()
            self.on_busy()

    async def _attempt(
        self, slot: CoroutineSlot, message: ClaimedMessage, now: float, context: Context
    ) -> None:
        try:
            await self._executor.run_async(
                slot, message, now, slot.drive, self.handlers[message.actor_name], self._transactions, context
            )
        except BaseException as error:  # nothing may end the loop
            logger.critical(
                "handler_coroutine_failed message_id=%s error_class=%s",
                message.id,
                type(error).__name__,
                exc_info=True,
            )
            if message.outcome is None:
                message.outcome = failure(error)
        finally:
            message.ran_seconds = time.monotonic() - now
            slot.message = slot.task = None
            slot.forget(message)
            del self._running[message.id]
            self._free.append(slot)
            message.hand_back()
            self._on_finished(message)
            if message._exception is not None and not message.failed:
                message._exception = None  # a kept exception keeps its frames alive
            if self.ready and not self._starting:
                self._starting = True
                self._loop.call_soon(self._start, context=self._context)  # type: ignore[union-attr]

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """A task that a handler makes is remembered with its message: it may be the one that blocks the
        loop.
        """
        task = asyncio.Task(coroutine, loop=loop, **options)
        message = current.message
        if message is not None:
            self._children[task] = message
        return task

    # -- what the timekeeper asks ------------------------------------------------------------------
    def expect(self, slot: CoroutineSlot) -> None:
        """Its handler begins: the timekeeper is to look at it in time."""
        message = slot.message
        if message is not None:
            self.begun.append(message)
            if message.deadline is not None and message.deadline < self.earliest:
                self.earliest = message.deadline

    def take_begun(self) -> list[ClaimedMessage]:
        """Messages begun since the last call that still run."""
        if not self.begun:
            return []
        begun, self.begun = self.begun, []
        return [message for message in begun if message.stage in AT_WORK]

    def _tick(self) -> None:
        self._ticked_at = time.monotonic()
        if self._running:
            self._loop.call_later(TICK_SECONDS, self._tick)  # type: ignore[union-attr]
        else:
            self._ticking, self._ticked_at = False, inf

    def blockage(self, now: float) -> Blockage | None:
        """Does one step of one task keep the loop, for BLOCKED_SECONDS or longer? Asked by the timekeeper,
        about every 10 ms.
        """
        if self._loop is None or not self._running:
            return None
        task = asyncio.current_task(self._loop)
        seen = (self.steps, id(task))
        looked_at, self._looked_at = self._looked_at, now
        if seen != self._seen or now - looked_at > BLOCKED_SECONDS:  # or the whole process stood still
            self._seen, self._seen_at = seen, now
            return None
        if now - self._seen_at < BLOCKED_SECONDS or now - self._ticked_at < BLOCKED_SECONDS:
            return None
        frame = sys._current_frames().get(self._thread.ident or 0)  # type: ignore[union-attr]
        return Blockage(
            self._seen_at,
            self._culprit(task),
            "".join(traceback.format_stack(frame, MOST_FRAMES)) if frame else "",
        )

    def _culprit(self, task: asyncio.Task[Any] | None) -> CoroutineSlot | None:
        message = self._children.get(task) if task is not None else None
        return next(
            (
                slot
                for slot in list(self._running.values())
                if slot.message is not None and (slot.task is task or slot.message is message)
            ),
            None,
        )


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Tasks that handlers have left behind are told that it is over."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=1))
    loop.run_until_complete(loop.shutdown_asyncgens())
