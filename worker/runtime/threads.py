"""Handler threads: take claimed messages from one shared deque, run them, hand over the outcome.

No message waits behind a slow one: any idle thread takes the next. No hand-over per message either: while
handlers are quick, one thread goes through the deque and the others park (threads that compete for the
interpreter cost more than they give); as soon as handlers take longer than SLOW_SECONDS on average, or one
blocks (seen by the timekeeper), all threads work. executor.py has the steps of one message. A child that a
handler forked ends where it would come back here.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from contextvars import copy_context

from packhorse.worker import forks
from packhorse.worker.attempt.context import current
from packhorse.worker.attempt.messages import ClaimedMessage, failure
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.runtime.executor import Executor
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.slots import Slot, ThreadSlot

logger = logging.getLogger("packhorse.pool")

#: Handlers slower than this on average make the pool use all of its threads.
SLOW_SECONDS = 0.001
#: A handler that runs for longer than this while others are ready counts as blocked.
BLOCKED_SECONDS = 0.005


class HandlerThread(threading.Thread):
    """One thread of a pool: what hooks of middleware for worker threads are given."""

    def __init__(self, broker: PostgresBroker, loop: Callable[[ThreadSlot], None], slot: ThreadSlot) -> None:
        super().__init__(target=loop, args=(slot,), name=f"packhorse-handler-{slot.index}", daemon=True)
        self.broker = broker
        self.logger = logger


class ThreadPool:
    """`ready` is filled by the fetcher; `on_finished(message)` gets each message back, from handler
    threads.
    """

    patient = False

    def __init__(
        self,
        executor: Executor,
        threads: int,
        running: RunningIds,
        on_finished: Callable[[ClaimedMessage], None],
    ) -> None:
        self._executor = executor
        self.broker = executor.broker
        self.size = threads
        self.ready: deque[ClaimedMessage] = deque()
        self.slots = [ThreadSlot(index, running) for index in range(threads)]
        self._on_finished = on_finished
        self._idle: deque[threading.Lock] = deque()  # locks of sleeping threads; deque operations are atomic
        self._threads: list[threading.Thread] = []
        self._stopping = False
        # seconds per message, smoothed; written by handler threads, a lost update is harmless
        self._average = 1.0
        self._slow = True  # until shown otherwise
        self._forks = forks.count
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: no transaction is its own, and nothing that it does is said of the parent's
        slots.
        """
        current.connection = current.place = None
        private = array("q", bytes(8 * len(self.slots)))
        for slot in self.slots:
            slot.start_over(private)

    def start(self) -> None:
        for slot in self.slots:
            thread = HandlerThread(self.broker, self._loop, slot)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """No further message is started; running ones go on."""
        self._stopping = True
        self.wake(len(self.slots))

    def wait(self, timeout_seconds: float) -> bool:
        """Join the threads, but for those whose handler still runs; True when the others have ended."""
        deadline = time.monotonic() + timeout_seconds
        free = [
            thread for thread, slot in zip(self._threads, self.slots, strict=False) if slot.message is None
        ]
        for thread in free:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in free)

    @property
    def alive(self) -> int:
        """Threads that live; fewer than configured means trouble (FAILURES 18)."""
        return sum(thread.is_alive() for thread in self._threads)

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def started_total(self) -> int:
        """Messages begun so far."""
        return sum([slot.starts for slot in self.slots])

    @property
    def running(self) -> int:
        return sum(slot.message is not None for slot in self.slots)

    def running_slots(self) -> list[Slot]:
        """Those that have a message now."""
        return [slot for slot in self.slots if slot.message is not None]

    def slot_of(self, message: ClaimedMessage) -> Slot | None:
        """Where it runs; None when it does not."""
        return next((slot for slot in self.slots if slot.message is message), None)

    def put(self, messages: list[ClaimedMessage]) -> None:
        """Give claimed messages to the threads, in order."""
        self.ready.extend(messages)
        self.wake(len(messages) if self._slow else 1)

    def wake(self, count: int) -> None:
        """Wake up to `count` sleeping threads."""
        for _ in range(count):
            try:
                self._idle.popleft().release()
            except (IndexError, RuntimeError):
                return

    def wake_for_blocked(self, now: float) -> None:
        """Called by the timekeeper: messages are ready while every running handler blocks."""
        if (
            self.ready
            and self._idle
            and all(slot.message is None or now - slot.started_at > BLOCKED_SECONDS for slot in self.slots)
        ):
            self._average, self._slow = 1.0, True
            self.wake(len(self.ready))

    def _loop(self, slot: ThreadSlot) -> None:
        slot.thread_id = threading.get_ident()
        forks.contain(self.broker.emit_after, "worker_thread_boot", threading.current_thread())
        try:
            self._work(slot)
        finally:
            forks.contain(self.broker.emit_before, "worker_thread_shutdown", threading.current_thread())

    def _work(self, slot: ThreadSlot) -> None:
        gate = threading.Lock()
        gate.acquire()
        ready, idle, most_idle = self.ready, self._idle, len(self.slots) - 1
        on_finished, mine = self._on_finished, self._forks
        while not self._stopping:
            if not self._slow and len(idle) < most_idle:
                self._park(gate)  # one thread is enough for quick handlers
            try:
                message = ready.popleft()
            except IndexError:
                self._park(gate)
                continue
            try:
                self._run(slot, message)
            except BaseException as error:  # nothing may end this thread
                logger.critical(
                    "handler_thread_failed message_id=%s error_class=%s",
                    message.id,
                    type(error).__name__,
                    exc_info=True,
                )
                if message.outcome is None:
                    message.outcome = failure(error)
            finally:
                # the code of handlers and of hooks is contained; the rest, an encoder say, is not
                if forks.count != mine:
                    forks.leave()
                slot.forget(message)
                current.connection = current.place = None  # an interrupt may have come in between
                message.hand_back()
                on_finished(message)
                if message._exception is not None and not message.failed:
                    message._exception = None  # a kept exception keeps its frames alive

    def _park(self, gate: threading.Lock) -> None:
        """Sleep until woken, unless that would leave ready messages without any thread."""
        idle = self._idle
        idle.append(gate)
        if self._stopping or (self.ready and (self._slow or len(idle) == len(self.slots))):
            try:
                idle.remove(gate)
                return
            except ValueError:
                pass  # already woken: take the token
        gate.acquire()

    def _run(self, slot: ThreadSlot, message: ClaimedMessage) -> None:
        now = time.monotonic()
        if not self._executor.may_start(message, now):
            return
        # a context of its own: what it sets is not there for the next message of this thread. A copy, so that
        # it has what middleware has set in worker_thread_boot
        copy_context().run(self._executor.run, slot, message, now)
        took = message.ran_seconds = time.monotonic() - now
        average = self._average = 0.9 * self._average + 0.1 * took
        if average > SLOW_SECONDS:
            self._slow = True
            if self.ready and self._idle:
                self.wake(len(self.ready))
        else:
            self._slow = False
