"""The parent of worker processes (SPEC W7): forks, watches, replaces, recovers, restarts.

The parent has one thread, no database connection and none of the actors' code: it can always fork. What
ran in a child that died stands in shared memory; a short-lived child of its own gives it back at once.
Signals: TERM/INT drain (again: interrupt), HUP replaces the children one by one.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from worker.config import Settings
from worker.errors import ConfigError, SchemaMismatch, StoreError
from worker.exits import EXIT_FAILED, EXIT_LEASE_LOST, EXIT_OK, EXIT_SCHEMA, EXIT_USAGE, EXPECTED_CHILD_EXITS, FATAL_CHILD_EXITS
from worker.runtime.slots import RunningIds

logger = logging.getLogger("packhorse.supervisor")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
MAX_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
KILL_MARGIN_SECONDS = 15.0


@dataclass(slots=True)
class Child:
    """One place for a worker process. `id` is fresh for every process started in it."""

    running: RunningIds
    pid: int = 0
    id: UUID = field(default_factory=uuid4)
    started_at: float = 0.0
    start_after: float = 0.0
    failures: int = 0
    retiring: bool = False


class Supervisor:
    """Keeps settings.processes children alive until told to stop. Use from the main thread."""

    def __init__(self, settings: Settings, run_child: Callable[[Settings, RunningIds, UUID], int] | None = None) -> None:
        self.settings = settings
        self._run_child = run_child or run_worker_process
        self._children = [Child(RunningIds(settings.threads)) for _ in range(settings.processes)]
        self._signals: list[int] = []  # appended by signal handlers, read by the loop
        self._stops = 0
        self._stop_at = 0.0
        self._fatal = EXIT_OK
        self._wakeup = -1

    def run(self) -> int:
        """Run until stopped; 0 after a good drain, the child's code when it cannot work at all."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda signum, _frame: self._signals.append(signum))
        self._wakeup, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        logger.info("supervisor_started pid=%d processes=%d", os.getpid(), self.settings.processes)
        while True:
            self._handle_signals()
            self._reap()
            if self._stops:
                if not any(child.pid for child in self._children):
                    break
                self._kill_late()
            else:
                self._start_missing()
                self._roll()
            self._nap()
        logger.info("supervisor_stopped exit_code=%d", self._fatal)
        return self._fatal

    def _nap(self) -> None:
        """Wait for a signal (a byte on the wake-up pipe) or for the next moment at which something is due."""
        due = [child.start_after - time.monotonic() for child in self._children if not child.pid]
        timeout = 1.0 if self._stops else min([60.0, *due])
        if select.select([self._wakeup], [], [], max(0.0, timeout))[0]:
            os.read(self._wakeup, 4096)

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stops += 1
                self._stop_at = self._stop_at or time.monotonic()
                for child in self._children:
                    if child.pid:
                        _kill(child.pid, signal.SIGTERM)
            elif number == signal.SIGHUP:
                for child in self._children:
                    child.retiring = True

    def _roll(self) -> None:
        """Rolling restart: one child at a time drains and is replaced."""
        waiting = [child for child in self._children if child.retiring and child.pid]
        if waiting and all(child.pid for child in self._children):
            first = waiting[0]
            if first.retiring is True and first.started_at:
                logger.info("child_retiring pid=%d", first.pid)
                _kill(first.pid, signal.SIGTERM)
                first.started_at = 0.0  # told once

    def _start_missing(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if not child.pid and now >= child.start_after:
                child.id = uuid4()
                child.running.clear()
                child.retiring = False
                child.pid = self._fork(child)
                child.started_at = now

    def _fork(self, child: Child) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the child has handlers of its own
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            return pid
        code = EXIT_FAILED
        try:
            code = self._run_child(self.settings, child.running, child.id)
        except BaseException:  # the child must never return into the parent's loop
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.pid == pid:
                    self._on_exit(child, os.waitstatus_to_exitcode(status))

    def _on_exit(self, child: Child, code: int) -> None:
        lived = time.monotonic() - (child.started_at or time.monotonic() - STABLE_SECONDS)
        pid, child.pid = child.pid, 0
        started = child.running.read()
        wanted = code == EXIT_OK and (self._stops or child.retiring)
        if not wanted:
            logger.warning("child_exited pid=%d exit_code=%d running=%d", pid, code, len(started))
        if code in FATAL_CHILD_EXITS:
            self._fatal = code
            self._stops = max(self._stops, 1)
            self._stop_at = self._stop_at or time.monotonic()
            for other in self._children:
                if other.pid:
                    _kill(other.pid, signal.SIGTERM)
            return
        if code != EXIT_OK:
            # an orderly end of its own (replaced, recycled, fenced): nothing that ran is to blame
            orderly = code in EXPECTED_CHILD_EXITS or code == EXIT_LEASE_LOST
            self._recover(child.id, [] if orderly else started, f"child {pid} ended with {_describe(code)}")
        if code in EXPECTED_CHILD_EXITS or wanted:
            child.failures = 0
        elif lived > STABLE_SECONDS:
            child.failures = 1
        else:
            child.failures += 1
        child.start_after = time.monotonic() + (min(MAX_BACKOFF_SECONDS, 0.25 * 2 ** (child.failures - 1)) if child.failures else 0.0)

    def _recover(self, worker_id: UUID, started: list[int], detail: str) -> None:
        """Give back what a dead child held, in a child of its own: the parent keeps no connection."""
        pid = os.fork()
        if pid:
            return  # reaped like any other child
        try:
            recover(self.settings, worker_id, started, detail)
        finally:
            os._exit(EXIT_OK)

    def _kill_late(self) -> None:
        limit = self.settings.drain_seconds + self.settings.call_deadline_seconds + KILL_MARGIN_SECONDS
        if time.monotonic() - self._stop_at > limit:
            for child in self._children:
                if child.pid:
                    logger.error("child_killed pid=%d: it did not end within %.0f s", child.pid, limit)
                    _kill(child.pid, signal.SIGKILL)


def run_worker_process(settings: Settings, running: RunningIds, worker_id: UUID) -> int:
    """The body of a child: returns its exit code. Comes with TERM and INT blocked; a stop that was asked while
    the actors were still being imported is not lost."""
    from worker.runtime.process import WorkerProcess

    early: list[int] = []
    process: WorkerProcess | None = None

    def on_stop(number: int, _frame: object) -> None:
        early.append(number) if process is None else process.stop()

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # a terminal's Ctrl-C reaches the whole group; the parent passes it on as TERM, and twice would mean "at once"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_stop)
    _end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        process = WorkerProcess(settings, running, worker_id)
        for _ in early:
            process.stop()
        return process.run()
    except ConfigError as error:
        for problem in error.problems:
            logger.error("config_error %s", problem)
        return EXIT_USAGE
    except SchemaMismatch as error:
        logger.error("schema_mismatch %s", error)
        return EXIT_SCHEMA
    except StoreError as error:
        logger.error("start_failed error_class=%s error=%s", type(error).__name__, error)
        return EXIT_FAILED


def recover(settings: Settings, worker_id: UUID, started: list[int], detail: str) -> None:
    """One attempt to return a dead child's messages; when it fails their leases run out instead."""
    from worker.db.connection import connect
    from worker.store import workers as store

    assert settings.database_url is not None
    try:
        connection: Any = connect(settings.database_url.get_secret_value(), schema=settings.db_schema, application_name="packhorse recover",
                                  pooler=settings.pooler)
        count = store.recover(connection, worker_id, started, detail)
        connection.close()
        if count:
            logger.warning("messages_recovered worker_id=%s count=%d suspects=%d", worker_id, count, len(started))
    except Exception as error:  # last line of defence is the lease
        logger.warning("recover_failed worker_id=%s error_class=%s", worker_id, type(error).__name__)


def _end_with_parent() -> None:
    """Linux: a child whose parent was killed gets SIGTERM and drains; elsewhere it goes on until its own signal."""
    if sys.platform == "linux":
        import ctypes

        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent or parent == 1:  # it went in between
            os.kill(os.getpid(), signal.SIGTERM)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
