"""Where steps are stored: in the message's row, at once, or with the transaction of a transactional handler
(SPEC W3c).

Threads write one step at a time on the broker's pool. Coroutines hand theirs to one thread, which writes what
is waiting in one statement and one commit: a thousand coroutines need neither a thousand connections nor a
thousand commits.

The function of a step has been called, and mostly paid for, when its result comes here. So a short outage is
waited out, and a row that somebody has locked, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from packhorse.worker import forks
from packhorse.worker.attempt.stored_steps import MAX_STEP_BYTES, MAX_STEPS, MAX_STEPS_BYTES, StepOwner
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.pool import ConnectionPool, Link
from packhorse.worker.errors import (
    InvalidArgument,
    LeaseLost,
    StepError,
    StoreConflict,
    StoreError,
    StoreUnavailable,
    WorkerError,
)
from packhorse.worker.service import Service
from packhorse.worker.store import steps as store
from packhorse.worker.store.messages import is_superseded
from packhorse.worker.store.steps import NewStep, StepAnswer

#: So long a step waits for a database that is away, and for a row that somebody has locked.
STORE_SECONDS = 30.0
#: Between two tries: from this, doubling, up to the second. Short, for an interrupt reaches a thread only
#: between two of them.
PAUSE_SECONDS = 0.02
MOST_PAUSE_SECONDS = 0.25
#: What one statement of the writer takes at most.
BATCH_STEPS = 1000
BATCH_CHARACTERS = 8_000_000
IDLE_SECONDS = 60.0


def _new(message: StepOwner, name: str, value: str) -> NewStep:
    return NewStep(message.id, message.lease_token, name, value)


def _lost(step: NewStep) -> LeaseLost:
    return LeaseLost(f"message {step.id}: somebody else owns it now; step {step.name!r} was not stored")


def _unstorable(step: NewStep, refused: InvalidArgument) -> StepError:
    """PostgreSQL does not take the value: nested too deeply, a number too large …"""
    return StepError(f"step {step.name!r}: its result cannot be stored: {refused}")


def _refusal(step: NewStep, answer: StepAnswer) -> WorkerError | None:
    """The error that an answer stands for; None when the step is stored."""
    match answer:
        case StepAnswer.STORED:
            return None
        case StepAnswer.LOST:
            return _lost(step)
        case StepAnswer.EXISTS:
            return StepError(
                f"step {step.name!r}: message {step.id} has stored another result under this name"
            )
        case StepAnswer.TOO_MANY:
            return StepError(f"step {step.name!r}: one too many; a message has at most {MAX_STEPS} steps")
        case StepAnswer.TOO_LARGE:
            return StepError(
                f"step {step.name!r}: its result has {len(step.value.encode())} bytes of JSON; one has at most {MAX_STEP_BYTES}, "
                f"all of a message together {MAX_STEPS_BYTES}; store it elsewhere and return its key"
            )
        case StepAnswer.BUSY:
            return StoreConflict(f"step {step.name!r}: somebody has locked the row of message {step.id}")


class BrokerSteps:
    """The steps of the messages of one broker; any thread, any event loop."""

    def __init__(
        self, pool: Callable[[], ConnectionPool], open_connection: Callable[[], DeadlineConnection]
    ) -> None:
        self._pool = pool
        self._open = open_connection
        self._writer: StepWriter | None = None
        self.stored_total = self.reused_total = 0
        self._lock = threading.Lock()
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """In a forked child: the writer's thread is the parent's, and whoever held the lock may not be
        here.
        """
        self._writer = None
        self._lock = threading.Lock()

    def store(self, message: StepOwner, name: str, value: str) -> str:
        step, until, pause = _new(message, name, value), time.monotonic() + STORE_SECONDS, PAUSE_SECONDS
        while True:
            try:
                with self._pool().connection() as connection:
                    ((answer, stored),) = store.store(connection, [step])
                error = _refusal(step, answer)
                if error is None:
                    self.count_stored()
                    return stored
            except InvalidArgument as refused:
                raise _unstorable(step, refused) from refused
            except (StoreUnavailable, StoreConflict) as failed:
                error = failed
            if not isinstance(error, (StoreUnavailable, StoreConflict)) or time.monotonic() + pause > until:
                raise error
            if message.lost:
                raise _lost(step)
            time.sleep(pause)
            pause = min(MOST_PAUSE_SECONDS, 2 * pause)

    async def store_async(self, message: StepOwner, name: str, value: str) -> str:
        waiting = WaitingStep(_new(message, name, value))
        with self._lock:
            if self._writer is None:
                self._writer = StepWriter(self._open)
                self._writer.start()
            self._writer.put(waiting)
        stored = await waiting.future
        self.count_stored()
        return stored

    def is_superseded(self, message_id: int) -> bool:
        """Asked on a connection of its own: a transactional handler, too, is told what others have
        committed.
        """
        with self._pool().connection() as connection:
            return is_superseded(connection, message_id)

    def in_transaction(self) -> TransactionSteps:
        """For one transactional handler."""
        return TransactionSteps(self)

    def totals(self) -> tuple[int, int]:
        """How many steps were stored, and how many reused, in this process so far."""
        return self.stored_total, self.reused_total

    def count_reused(self) -> None:
        with self._lock:
            self.reused_total += 1

    def count_stored(self) -> None:
        """One more result is in the database, or will be with its transaction."""
        with self._lock:
            self.stored_total += 1

    def close(self) -> None:
        """End the writer; it starts again when it is needed."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.stop()


class TransactionSteps:
    """The steps of one transactional handler. They are written right before its completion: until then nobody
    but the handler could read them, and a row that the transaction keeps locked could not have its lease
    renewed."""

    def __init__(self, steps: BrokerSteps) -> None:
        self._steps = steps
        self.waiting: list[NewStep] = []

    def store(self, message: StepOwner, name: str, value: str) -> str:
        self.waiting.append(_new(message, name, value))
        return value

    async def store_async(self, message: StepOwner, name: str, value: str) -> str:
        return self.store(message, name, value)

    def count_reused(self) -> None:
        self._steps.count_reused()

    def is_superseded(self, message_id: int) -> bool:
        return self._steps.is_superseded(message_id)

    def write(self, connection: DeadlineConnection) -> None:
        """Write them in the handler's transaction, under our role. Raises LeaseLost, StepError,
        StoreError.
        """
        if not self.waiting:
            return
        step = self.waiting[0]
        try:
            with translated(), connection.as_ourselves():
                for step in self.waiting:
                    if not store.store_and_wait(connection, step):
                        raise _lost(step)
        except InvalidArgument as refused:
            raise _unstorable(step, refused) from refused
        for _ in self.waiting:
            self._steps.count_stored()


@dataclass(slots=True, eq=False)
class WaitingStep:
    """A step on its way through the writer. until: monotonic; then nobody waits for it any more. Made in the
    event loop of its coroutine.
    """

    step: NewStep
    until: float = field(default_factory=lambda: time.monotonic() + STORE_SECONDS)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    future: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class StepWriter(Service):
    """One thread, one connection: writes the steps that wait, all of them in one statement."""

    name = "steps"
    max_backoff_seconds = 1.0

    def __init__(self, open_connection: Callable[[], DeadlineConnection]) -> None:
        super().__init__()
        self._link = Link(open_connection)
        # put at the right by event loops, taken from the left by the thread
        self._waiting: deque[WaitingStep] = deque()
        self._apart = 0  # so many at the left are written one by one: together they were refused
        self._error: StoreError | None = None  # the last one
        self._rests = False  # what waits has to be tried again a little later

    def put(self, waiting: WaitingStep) -> None:
        """Write it soon; its future is told. One caller at a time."""
        self._waiting.append(waiting)
        if self._rests or len(self._waiting) == 1:  # for more the thread has been woken, or is at work
            self._rests = False
            self.wake()

    def urgent(self) -> bool:
        """What waits has been paid for."""
        return bool(self._waiting)

    def run_once(self) -> float:
        batch = self._next()
        if not batch:
            return IDLE_SECONDS
        try:
            with self._link.connection() as connection:
                answers = store.store(connection, [waiting.step for waiting in batch])
        except StoreError as error:
            self._error = error
            if len(batch) == 1 and not isinstance(error, (StoreUnavailable, StoreConflict)):
                self._tell(
                    [
                        (
                            batch[0],
                            _unstorable(batch[0].step, error)
                            if isinstance(error, InvalidArgument)
                            else error,
                        )
                    ]
                )
                return 0.0
            if len(batch) > 1:
                self._waiting.extendleft(reversed(batch))
                self._apart = len(batch)
            else:
                self._waiting.append(batch[0])  # behind those that may have better luck
            if isinstance(error, StoreUnavailable):
                self._apart = 0
                raise
            return self._rest() if isinstance(error, StoreConflict) else 0.0
        except Exception as error:  # no settings, a bug: nobody may wait for ever
            self._tell([(waiting, error) for waiting in batch])
            raise
        told: list[tuple[WaitingStep, str | Exception]] = []
        for waiting, (answer, value) in zip(batch, answers, strict=True):
            refusal = _refusal(waiting.step, answer)
            if isinstance(refusal, StoreConflict):
                self._error = refusal
                self._waiting.append(waiting)
            else:
                told.append((waiting, value if refusal is None else refusal))
        self._tell(told)
        return 0.0 if told else self._rest()

    def _rest(self) -> float:
        self._rests = True
        return PAUSE_SECONDS

    def _next(self) -> list[WaitingStep]:
        """What is written next; those that waited too long are told. Also the step of a coroutine that was
        interrupted meanwhile: it is paid for.
        """
        batch: list[WaitingStep] = []
        late: list[tuple[WaitingStep, str | Exception]] = []
        now, characters = time.monotonic(), 0
        most = 1 if self._apart else BATCH_STEPS
        while self._waiting and len(batch) < most and characters < BATCH_CHARACTERS:
            waiting = self._waiting.popleft()
            self._apart = max(0, self._apart - 1)
            if now > waiting.until:
                late.append(
                    (
                        waiting,
                        StoreUnavailable(
                            f"step {waiting.step.name!r} was not stored within {STORE_SECONDS:.0f} s: {self._error}"
                        ),
                    )
                )
                continue
            characters += len(waiting.step.value)
            batch.append(waiting)
        self._tell(late)
        return batch

    def _tell(self, told: Sequence[tuple[WaitingStep, str | Exception]]) -> None:
        """Resolve futures, with one call into each event loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[WaitingStep, str | Exception]]] = {}
        for one in told:
            loops.setdefault(one[0].loop, []).append(one)
        for loop, some in loops.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_resolve, some)

    def on_stop(self) -> None:
        self._tell(
            [
                (waiting, StoreUnavailable("the broker was closed before the step was stored"))
                for waiting in self._waiting
            ]
        )
        self._link.close()


def _resolve(told: Sequence[tuple[WaitingStep, str | Exception]]) -> None:
    """In the event loop."""
    for waiting, answer in told:
        if waiting.future.done():
            continue
        if isinstance(answer, str):
            waiting.future.set_result(answer)
        else:
            waiting.future.set_exception(answer)
