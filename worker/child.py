"""What runs in the supervisor's children: the worker process itself, the short one that gives back what a dead one
held, and the one that tries out new code before a reload.

Nothing here runs in the parent. A child starts with TERM and INT blocked, so that no signal can meet it
before it has handlers of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any
from uuid import UUID, uuid4

from worker.config import Settings
from worker.errors import ConfigError, SchemaMismatch, StoreError, StoreUnavailable
from worker.exits import EXIT_FAILED, EXIT_OK, EXIT_SCHEMA, EXIT_USAGE
from worker.observe.slab import Slab
from worker.runtime.slots import RunningIds

logger = logging.getLogger("packhorse.supervisor")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
INSUFFICIENT_PRIVILEGE = "42501"


def run_worker_process(settings: Settings, running: RunningIds, worker_id: UUID, slab: Slab) -> int:
    """The body of a child: returns its exit code. Comes with TERM and INT blocked; a stop that was asked while
    the actors were still being imported is not lost."""
    from worker.runtime.process import WorkerProcess

    early = False
    process: WorkerProcess | None = None

    def on_stop(_number: int, _frame: object) -> None:
        nonlocal early
        early = True
        if process is not None:
            process.stop()

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # a terminal's Ctrl-C reaches the whole group; the parent passes it on as TERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_stop)
    end_with_parent(slab.made_by)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        process = WorkerProcess(settings, running, worker_id, slab)
        if early:
            process.stop()
        return process.run()
    except (ConfigError, SchemaMismatch, StoreError) as error:
        return _refusal(error)


def rehearse(settings: Settings, parent: int) -> int:
    """Would a new process start now? Its exit code if not. Imports the actors and compares the schema, claims nothing.

    A database that is away is no reason against it: a new process would wait for it.
    """
    from worker.db import migrate
    from worker.runtime.process import WorkerProcess

    signal.set_wakeup_fd(-1)
    for number in (*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    end_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        process = WorkerProcess(settings, RunningIds(settings.threads), uuid4())
        connection = process.broker.open_connection("reload")
        try:
            migrate.check(connection)
        finally:
            connection.close()
    except StoreUnavailable as error:
        logger.warning("database_unavailable error=%s: the new processes will wait for it", error)
    except (ConfigError, SchemaMismatch, StoreError) as error:
        return _refusal(error)
    return EXIT_OK


def _refusal(error: ConfigError | SchemaMismatch | StoreError) -> int:
    """Say why a process cannot work; its exit code."""
    if isinstance(error, ConfigError):
        for problem in error.problems:
            logger.error("config_error %s", problem)
        return EXIT_USAGE
    if isinstance(error, SchemaMismatch):
        logger.error("schema_mismatch %s", error)
        return EXIT_SCHEMA
    if error.sqlstate == INSUFFICIENT_PRIVILEGE:  # a role that may not work does not become one that may by trying again
        logger.error("schema_mismatch %s: this role may not do what a worker does: grant it packhorse_worker", error)
        return EXIT_SCHEMA
    logger.error("start_failed error_class=%s error=%s", type(error).__name__, error)
    return EXIT_FAILED


def recover(settings: Settings, worker_id: UUID, started: list[int], detail: str, overdue: list[tuple[int, int]]) -> int:
    """One attempt to return a dead child's messages; when it fails their leases run out instead. An exit code, always that of success.

    overdue: (id, lease token) of those whose handlers ignored their time limits; their attempts have failed.
    """
    from worker.db.sessions import open_work
    from worker.store import messages
    from worker.store import workers as store

    try:
        connection: Any = open_work(settings, "recover")
        for message_id, token in overdue:
            outcome = messages.fail(
                connection,
                message_id,
                token,
                "HardTimeLimitExceeded",
                "the handler ignored its time limit; its process was replaced",
                None,
                None,
                None,
                None,
                None,
                None,
            )
            logger.info("message_ended_for_its_thread message_id=%s outcome=%s", message_id, outcome)
        count = store.recover(connection, worker_id, started, detail)
        connection.close()
        if count:
            logger.warning("messages_recovered worker_id=%s count=%d suspects=%d", worker_id, count, len(started))
    except Exception as error:  # last line of defence is the lease
        logger.warning("recover_failed worker_id=%s error_class=%s", worker_id, type(error).__name__)
    return EXIT_OK


def end_with_parent(parent: int) -> None:
    """Linux: a child whose parent was killed gets SIGTERM and drains; elsewhere it goes on until its own signal.

    parent: its process id, learnt before the fork (in a container it is 1, like that of an orphan's new parent).
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() != parent:  # it went in between
            os.kill(os.getpid(), signal.SIGTERM)
