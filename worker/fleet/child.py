"""What runs in the supervisor's children: the worker process itself, the short one that gives back what a
dead one held, and the one that tries out new code before a reload.

Nothing here runs in the parent. A child starts with TERM and INT blocked, so that no signal can meet it
before it has handlers of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from packhorse.worker import forks
from packhorse.worker.config import Settings
from packhorse.worker.errors import ConfigError, SchemaMismatch, StoreError, StoreUnavailable
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_SCHEMA, EXIT_USAGE
from packhorse.worker.observe import tracebacks
from packhorse.worker.observe.process_stats import ProcessStats
from packhorse.worker.runtime.memory import collect_seldom
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.stopping import StopRequest

if TYPE_CHECKING:
    from packhorse.worker.db.connection import DeadlineConnection
    from packhorse.worker.runtime.process import WorkerProcess

logger = logging.getLogger("packhorse.supervisor")

#: Makes what a child is, in the child; as WorkerProcess is made.
MakeProcess = Callable[[Settings, RunningIds, UUID, ProcessStats], "WorkerProcess"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
INSUFFICIENT_PRIVILEGE = "42501"
#: Of a lease token of a message from RabbitMQ: the number of its attempt (worker/amqp/custody.py).
ATTEMPT_MASK = (1 << 20) - 1
#: While the database does not answer, what an ended child held is given back again and again: first after
#: this.
RECOVER_SECONDS, MOST_RECOVER_SECONDS = 0.2, 2.0
#: What handlers' use of multiprocessing wants to do at the end of a process may take so long.
FINALIZERS_SECONDS = 3.0


class Once:
    """Something that one of several processes does: all that are forked from the one that made it share
    it.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.allow()

    def take(self) -> bool:
        """True for the first that asks."""
        try:
            return bool(os.read(self._read, 1))
        except BlockingIOError:
            return False

    def allow(self) -> None:
        """Once more."""
        self.take()
        os.write(self._write, b".")


def run_worker_process(
    settings: Settings,
    running: RunningIds,
    worker_id: UUID,
    stats: ProcessStats,
    refusal: Once | None = None,
    make: MakeProcess | None = None,
) -> int:
    """The body of a child: returns its exit code. Comes with TERM and INT blocked; a stop that was asked
    while the actors were still being imported is not lost. refusal: of those that cannot start, for the same
    reason, one says so. make: another process than an ordinary one."""
    early = False
    process: WorkerProcess | None = None

    def on_stop(_number: int, _frame: object) -> None:
        nonlocal early
        early = True
        if process is not None:
            process.stop()

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # a terminal's Ctrl-C reaches the whole group; the parent passes it on as TERM
    handlers = SignalHandlers({signal.SIGTERM: on_stop, signal.SIGINT: do_nothing, signal.SIGHUP: do_nothing})
    end_with_parent(stats.made_by)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # programs inherit it
    try:
        process = forks.contain(make or _process_class(settings), settings, running, worker_id, stats)
        handlers.hold()  # what was imported may have set its own
        process.on_turn = handlers.hold
        if process.coroutines.handlers:
            collect_seldom()
        if early:
            process.stop()
        return forks.contain(process.run)
    except (ConfigError, SchemaMismatch, StoreError) as error:
        return _refusal(error, told=refusal is not None and not refusal.take())
    finally:
        _end_daemonic_children()


def _process_class(settings: Settings) -> type[WorkerProcess]:
    """What the setting `broker` asks for; loaded here, for the parent needs none of it."""
    if settings.broker == "amqp":
        from packhorse.worker.amqp.process import AmqpProcess

        return AmqpProcess
    from packhorse.worker.runtime.process import WorkerProcess

    return WorkerProcess


def do_nothing(_number: int, _frame: object) -> None:
    """What a signal does that is not meant for this process. SIG_IGN would be inherited by the programs that
    handlers start.
    """


class SignalHandlers:
    """The signal handlers of a worker process; the application, and what it imports, may set others, which
    must not keep it from draining.
    """

    def __init__(self, ours: dict[signal.Signals, Callable[[int, Any], None]]) -> None:
        self._ours = ours
        self._said: set[str] = set()
        for number in ours:
            self._set(number)
        forks.protect(ours)

    def hold(self) -> None:
        """Set ours again; say once per signal whose handler was found. Main thread only."""
        for number, ours in self._ours.items():
            found = signal.getsignal(number)
            if found is not ours:
                self._say(number.name, found)
            self._set(number)  # always: an extension in C may have set one that Python does not know of
        descriptor = signal.set_wakeup_fd(-1)
        if descriptor != -1:
            self._say("set_wakeup_fd", f"descriptor {descriptor}")

    def _set(self, number: signal.Signals) -> None:
        signal.signal(number, self._ours[number])
        if self._ours[number] is do_nothing:
            signal.siginterrupt(number, False)

    def _say(self, name: str, found: Any) -> None:
        if name not in self._said:
            self._said.add(name)
            handler = (
                f"{found.__module__}.{found.__qualname__}"
                if hasattr(found, "__qualname__")
                else getattr(found, "name", found)
            )
            logger.warning(
                "foreign_signal_handler signal=%s handler=%s: replaced by ours, which drain this process",
                name,
                handler,
            )


def _end_daemonic_children() -> None:
    """Those of multiprocessing end with their process, as in any Python program; a worker process ends
    without atexit.
    """
    if "multiprocessing.util" not in sys.modules:
        return
    import multiprocessing.util

    # pools that nobody closed; else their threads would replace what is terminated here
    pools = threading.Thread(
        target=getattr(multiprocessing.util, "_run_finalizers", lambda _: None), args=(0,), daemon=True
    )
    pools.start()
    pools.join(FINALIZERS_SECONDS)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.terminate()


def preflight(settings: Settings, parent: int, make: MakeProcess | None = None) -> int:
    """Would a new process start now? Its exit code if not. Imports the actors and compares the schema, claims
    nothing.

    A database that is away is no reason against it: a new process would wait for it.
    """
    from packhorse.worker.db import schema_version

    signal.set_wakeup_fd(-1)
    for number in (*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    end_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        process = forks.contain(
            make or _process_class(settings), settings, RunningIds.of(settings), uuid4(), ProcessStats()
        )
        connection = process.broker.open_connection("reload")
        try:
            schema_version.check(connection)
        finally:
            connection.close()
    except StoreUnavailable as error:
        logger.warning("database_unavailable error=%s: the new processes will wait for it", error)
    except (ConfigError, SchemaMismatch, StoreError) as error:
        return _refusal(error)
    return EXIT_OK


def _refusal(error: ConfigError | SchemaMismatch | StoreError, *, told: bool = False) -> int:
    """Say why a process cannot work, with the traceback of an import that failed (SPEC W13); its exit code.
    told: another one has said it.
    """
    if isinstance(error, ConfigError):
        cause = error.__cause__
        where = (
            tracebacks.folded(cause, texts=True)
            if cause is not None and tracebacks.has_own_frames(cause)
            else None
        )
        for problem in error.problems if not told else ():
            logger.error("config_error %s", problem, extra={"outline": where})
        return EXIT_USAGE
    if isinstance(error, SchemaMismatch):
        logger.error("schema_mismatch %s", error)
        return EXIT_SCHEMA
    # a role that may not work does not become one that may by trying again
    if error.sqlstate == INSUFFICIENT_PRIVILEGE:
        logger.error(
            "schema_mismatch %s: this role may not do what a worker does: grant it packhorse_worker", error
        )
        return EXIT_SCHEMA
    logger.error("start_failed error_class=%s error=%s", type(error).__name__, error)
    return EXIT_FAILED


@dataclass(frozen=True, slots=True)
class Lost:
    """What an ended child was at. started: ids of messages whose handlers had begun and whose outcome is not
    written; overdue: (id, lease token) of those whose handlers ignored their time limits; refused: ids of
    those whose completion the database refused."""

    started: list[int]
    overdue: list[tuple[int, int]]
    refused: list[int]


def recover(
    settings: Settings, worker_id: UUID, lost: Lost, detail: str, *, crashed: bool, once: bool, parent: int
) -> int:
    """Return an ended child's messages, as soon as the database answers; an exit code, always that of
    success.

    crashed: nobody had ordered the child's end. once: the daemon stops; it does not wait for the database.
    When it begins to stop meanwhile this tries once more. Then the leases run out.
    """
    stop = StopRequest()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.ask())
    end_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    wait_seconds = RECOVER_SECONDS
    while True:
        last = once or stop.asked
        try:
            count = _recover(settings, worker_id, lost, detail, crashed)
        except Exception as error:
            if wait_seconds == RECOVER_SECONDS or last:
                logger.warning("recover_failed worker_id=%s error_class=%s", worker_id, type(error).__name__)
            if last:
                return EXIT_OK
            stop.wait(wait_seconds)
            wait_seconds = min(2 * wait_seconds, MOST_RECOVER_SECONDS)
            continue
        if count:
            logger.warning(
                "messages_recovered worker_id=%s count=%d started=%d crashed=%s",
                worker_id,
                count,
                len(lost.started),
                crashed,
            )
        return EXIT_OK


def _recover(settings: Settings, worker_id: UUID, lost: Lost, detail: str, crashed: bool) -> int:
    from packhorse.worker.db.errors import translated
    from packhorse.worker.db.sessions import open_work
    from packhorse.worker.store import messages
    from packhorse.worker.store import workers as store

    connection = open_work(settings, "recover")
    try:
        if settings.broker == "amqp":
            with translated():
                return _note_lost(connection, lost, detail, crashed)
        refused: StoreError | None = None
        for message_id, token in lost.overdue:
            try:
                with translated():
                    outcome = messages.fail_overdue(connection, message_id, token)
                logger.info("message_ended_for_its_thread message_id=%s outcome=%s", message_id, outcome)
            except StoreUnavailable:
                raise
            except StoreError as error:  # the others must not wait for that
                refused = error
        keep = [message_id for message_id, _ in lost.overdue] if refused else []
        count = store.recover(
            connection, worker_id, lost.started, detail, crashed=crashed, refused=lost.refused, keep=keep
        )
        if refused is not None:
            raise refused
        return count
    finally:
        connection.close()


def _note_lost(connection: DeadlineConnection, lost: Lost, detail: str, crashed: bool) -> int:
    """Of messages from RabbitMQ, which gives them to others by itself: what those have to know. How many."""
    from packhorse.worker.store import forwarded

    overdue = dict(lost.overdue)
    for message_id, token in overdue.items():
        forwarded.note_overdue(connection, message_id, token & ATTEMPT_MASK)
    started = [message_id for message_id in lost.started if message_id not in overdue]
    return forwarded.note_crashes(connection, started, detail) if crashed and started else 0


def end_with_parent(parent: int) -> None:
    """Linux: a child whose parent was killed gets SIGTERM and drains; elsewhere it goes on until its own
    signal.

    parent: its process id, learnt before the fork (in a container it is 1, like that of an orphan's new
    parent).
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent:  # it went in between
            os.kill(os.getpid(), signal.SIGTERM)
