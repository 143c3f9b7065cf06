"""Handler threads: take claimed messages from one shared deque, run them, hand over the outcome.

No message waits behind a slow one: any idle thread takes the next. No hand-over per message either:
while handlers are quick, one thread goes through the deque and the others park (threads that compete
for the interpreter cost more than they give); as soon as handlers take longer than SLOW_SECONDS on
average, or one blocks (seen by the timekeeper), all threads work. The steps of one message are
dramatiq's Worker.process_message, with its logging and hook order. A child that a handler forked ends where it would come back here.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from dramatiq.middleware import MiddlewareError, SkipMessage

from packhorse.worker import forks
from packhorse.worker.attempt.context import current
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome, failure
from packhorse.worker.attempt.middleware.retries import asked_for
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.errors import LOCKED, translated
from packhorse.worker.errors import (
    CancelInterrupt,
    DrainInterrupt,
    LeaseInterrupt,
    LeaseLost,
    NotCompleted,
    StoreError,
    StoreUnavailable,
    UndecodableMessage,
)
from packhorse.worker.runtime.hooks import Hooks
from packhorse.worker.runtime.slots import RunningIds, Slot
from packhorse.worker.states import Verb
from packhorse.worker.store import messages as store

logger = logging.getLogger("packhorse.pool")

#: Handlers slower than this on average make the pool use all of its threads.
SLOW_SECONDS = 0.001
#: A handler that runs for longer than this while others are ready counts as blocked.
BLOCKED_SECONDS = 0.005
#: What ends a session that is at fault itself: idle in a transaction, a transaction or a statement that takes too long.
LIMITS = frozenset({"25P03", "25P04", "57014"})
#: It may not write: the handler asked for that, or the server has become a standby.
READ_ONLY = "25006"
#: Classes of SQLSTATE that are about the server: out of resources, of its system, internal.
OF_THE_SERVER = ("53", "58", "XX")
#: Why a completion fails for what its handler did in the same transaction: an error it went on after, an isolation level.
REFUSED_FOR_THE_HANDLER = ("25", "PH")
#: A claimed message is not started when less than this is left of its lease.
LEASE_MARGIN_SECONDS = 1.0


def _decide(message: ClaimedMessage, exception: BaseException) -> None:
    """Without our Retries, a handler that was interrupted, or asked for an outcome, is neither done nor failed all the same."""
    try:
        outcome = asked_for(exception)
    except Exception:  # a Snooze of no number
        outcome = failure(exception)
    if outcome is not None:
        message.outcome, message.failed = outcome, outcome.verb is Verb.BURY


class HandlerThread(threading.Thread):
    """One thread of a pool: what hooks of middleware for worker threads are given."""

    def __init__(self, broker: PostgresBroker, loop: Callable[[Slot], None], slot: Slot) -> None:
        super().__init__(target=loop, args=(slot,), name=f"packhorse-handler-{slot.index}", daemon=True)
        self.broker = broker
        self.logger = logger


class HandlerPool:
    """`ready` is filled by the fetcher; `on_finished(message)` gets each message back, from handler threads."""

    def __init__(self, broker: PostgresBroker, threads: int, running: RunningIds, on_finished: Callable[[ClaimedMessage], None]) -> None:
        self.broker = broker
        self.hooks = Hooks(broker)
        self.ready: deque[ClaimedMessage] = deque()
        self.slots = [Slot(index, running) for index in range(threads)]
        self._on_finished = on_finished
        self._idle: deque[threading.Lock] = deque()  # locks of sleeping threads; deque operations are atomic
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._average = 1.0  # seconds per message, smoothed; written by handler threads, a lost update is harmless
        self._slow = True  # until shown otherwise
        self._forks = forks.count
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: no transaction is its own, and nothing that it does is said of the parent's slots."""
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
        free = [thread for thread, slot in zip(self._threads, self.slots, strict=False) if slot.message is None]
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
        if self.ready and self._idle and all(slot.message is None or now - slot.started_at > BLOCKED_SECONDS for slot in self.slots):
            self._average, self._slow = 1.0, True
            self.wake(len(self.ready))

    def _loop(self, slot: Slot) -> None:
        slot.thread_id = threading.get_ident()
        forks.contain(self.broker.emit_after, "worker_thread_boot", threading.current_thread())
        try:
            self._work(slot)
        finally:
            forks.contain(self.broker.emit_before, "worker_thread_shutdown", threading.current_thread())

    def _work(self, slot: Slot) -> None:
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
                logger.critical("handler_thread_failed message_id=%s error_class=%s", message.id, type(error).__name__, exc_info=True)
                if message.outcome is None:
                    message.outcome = failure(error)
            finally:
                if forks.count != mine:  # the code of handlers and of hooks is contained; the rest, an encoder say, is not
                    forks.leave()
                slot.forget(message)
                current.connection = current.place = None  # an interrupt may have come in between
                message.returned = True
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

    def _run(self, slot: Slot, message: ClaimedMessage) -> None:
        now = time.monotonic()
        if message.lost:
            return
        if message.lease_until - now < LEASE_MARGIN_SECONDS:
            message.outcome = Outcome(Verb.RELEASE, "its lease was nearly over before it started")
            return
        try:
            message.decode()
        except UndecodableMessage as error:
            message.outcome = Outcome(Verb.BURY, "undecodable", "UndecodableMessage", str(error))
            message.failed = True
            return
        message.started_at = now
        # a context of its own: what it sets is not there for the next message of this thread. A copy, so that it has what
        # middleware has set in worker_thread_boot
        copy_context().run(self.process, slot, message, now)
        took = message.ran_seconds = time.monotonic() - now
        average = self._average = 0.9 * self._average + 0.1 * took
        if average > SLOW_SECONDS:
            self._slow = True
            if self.ready and self._idle:
                self.wake(len(self.ready))
        else:
            self._slow = False

    def process(self, slot: Slot, message: ClaimedMessage, now: float) -> None:
        """Run one message through middleware and actor; its outcome is in the message afterwards."""
        hooks = self.hooks
        current.message = message
        message.step_store = self.broker.steps
        try:
            slot.enter(message, now)
            try:
                for hook in hooks.before_process:
                    try:
                        hook(self.broker, message)
                    except MiddlewareError:
                        raise
                    except Exception:  # dramatiq's contract
                        logger.critical("hook_failed hook=%s", getattr(hook, "__qualname__", hook), exc_info=True)
                result = None
                if not message.failed:
                    actor = self.broker.get_actor(message.actor_name)
                    if actor.options.get("transactional"):
                        result = self._call_in_transaction(actor, message)
                    else:
                        result = forks.contain(actor, *message.args, **message.kwargs)
            finally:
                slot.leave()
            if result is not None and not hooks.has_results and message.options.get("pipe_target") is None:
                logger.debug("result_discarded actor=%s: add the Results middleware to keep it", message.actor_name)
            for hook in hooks.after_process:
                try:
                    hook(self.broker, message, result=result)
                except Exception:
                    logger.critical("hook_failed hook=%s", getattr(hook, "__qualname__", hook), exc_info=True)
        except SkipMessage as error:
            if message.failed:
                message.stuff_exception(error)
            logger.warning("message_skipped message_id=%s actor=%s", message.id, message.actor_name)
            hooks.run_after(hooks.after_skip, message)
        except BaseException as error:
            cause = error.__cause__
            # dramatiq's words for a coroutine that takes longer than a second to end
            late = type(error) is RuntimeError and isinstance(cause, (CancelInterrupt, DrainInterrupt, LeaseInterrupt))
            exception = cause if late and cause else error
            message.stuff_exception(exception)
            hooks.run_after(hooks.after_process, message, exception=exception)
            if not hooks.has_retries:
                _decide(message, exception)
            if message.finished:  # the transaction had committed: nothing to write any more
                message.outcome = None

    def _call_in_transaction(self, actor: Any, message: ClaimedMessage) -> Any:
        """Handler, its effects, what follows and the completion in one transaction: all or nothing (SPEC P3)."""
        returned = completing = False
        steps = message.step_store = self.broker.steps.in_transaction()
        with self.broker.pool.connection() as connection:
            try:
                with translated(), connection.transaction():
                    current.connection, current.place = connection, self.broker.place
                    try:
                        result = forks.contain(actor, *message.args, **message.kwargs)
                        for hook in self.hooks.before_commit:
                            hook(self.broker, message, result)
                    finally:
                        current.connection = current.place = None
                    returned = completing = True
                    steps.write(connection)
                    if not store.complete_in_transaction(connection, message.id, message.lease_token):
                        raise LeaseLost(f"message {message.id}: somebody else owns it now; its transaction was rolled back")
                    completing = False
            except StoreError as error:
                if returned and error.sqlstate in LOCKED:  # somebody has locked its row
                    raise NotCompleted(f"the transaction of its handler could not be committed: {error}") from error
                if isinstance(error, StoreUnavailable):
                    if not self._caused(error, cut=connection.broken):
                        raise NotCompleted(f"the transaction of its handler was cut off: {error}") from error
                elif completing and not (error.sqlstate or "").startswith(REFUSED_FOR_THE_HANDLER):
                    # a right, a constraint or a partition of ours is missing: whatever the handler does, it would end like this
                    raise NotCompleted(f"the database refuses the completion: {error} ({error.sqlstate})", refused=True) from error
                raise
            message.finished = True
        return result

    def _caused(self, error: StoreUnavailable, *, cut: bool) -> bool:
        """Did the handler bring this about? It did when that is a limit for transactions or statements, or took longer than every call
        has, or its transaction may not write, while the database works for others; and when its connection goes on (cut: it does not),
        so that the error is about something else. (What else a commit can be refused for, a deferred constraint say, is its own
        doing anyway.)"""
        state = error.sqlstate or ""
        if state in LIMITS:
            return True
        if state == READ_ONLY or error.late:
            return self._works_for_others()
        return not cut and state[:2] not in OF_THE_SERVER

    def _works_for_others(self) -> bool:
        try:
            connection = self.broker.open_connection("look")
            try:
                with translated():
                    return store.can_write(connection)
            finally:
                connection.close()
        except StoreError:
            return False
