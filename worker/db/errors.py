"""SQLSTATE -> our errors. The only place that looks inside psycopg.Error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg

from packhorse.worker.errors import (
    InvalidArgument,
    StoreConflict,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    UnknownQueue,
)

#: Classes of SQLSTATE after which the connection is of no use: lost, shutting down, too many clients,
#: read-only after a switchover, disk or memory full (temporary, SPEC FAILURES 41, 77).
_UNAVAILABLE_CLASSES = ("08", "53", "57", "58", "XX")
_UNAVAILABLE = {"25006", "25P03", "3D000", "28P01", "28000"}
#: Errors of this process so far, by kind; every failed call passes through `translate`.
error_counts = dict.fromkeys(("unavailable", "conflict", "rejected", "invalid"), 0)
_counting = threading.Lock()
#: Somebody else has a lock: waited for it long enough, or each for the other.
LOCKED = frozenset({"55P03", "40P01"})
_CONFLICTS = {"40001", "40P01", "55P03", "23505", "55006"}

_KINDS = {StoreUnavailable: "unavailable", StoreConflict: "conflict", StoreRejected: "rejected"}


class DeadlinePassed(psycopg.OperationalError):
    """The server did not answer in time; the call may still be running there."""


def translate(error: psycopg.Error) -> StoreError:
    """The error of ours that says what to do about a psycopg error."""
    state = error.sqlstate
    text = error.diag.message_primary or str(error).strip() or type(error).__name__
    result: StoreError
    if state == "PH002":
        result = UnknownQueue(text, field=error.diag.column_name, hint=error.diag.message_hint)
    elif state in ("PH001", "22P05", "22P02", "22021", "54001", "22003", "22007", "22008") or (
        state == "23514" and (error.diag.constraint_name or "").startswith(("message_", "queue_name"))
    ):
        result = InvalidArgument(
            text, field=error.diag.column_name or error.diag.constraint_name, hint=error.diag.message_hint
        )
    elif state is None:
        # libpq itself: no server, connection cut; or a value that cannot be sent at all
        if isinstance(error, (pg.OperationalError, pg.InterfaceError)):
            result = StoreUnavailable(text)
        elif isinstance(error, (pg.DataError, pg.ProgrammingError)):
            result = InvalidArgument(text)
        else:
            result = StoreUnavailable(text)
    elif state in _CONFLICTS:
        result = StoreConflict(text)
    elif state == "PH006":  # a restored copy: like a database that is not up yet, until somebody accepts it
        result = StoreUnavailable(f"{text}. {error.diag.message_hint}")
    elif state in _UNAVAILABLE or state[:2] in _UNAVAILABLE_CLASSES:
        result = StoreUnavailable(text)
    else:
        result = StoreRejected(text)
    result.sqlstate = state
    if isinstance(result, StoreUnavailable):
        result.late = isinstance(error, DeadlinePassed)
    with _counting:
        error_counts[_KINDS.get(type(result), "invalid")] += 1
    return result


@contextmanager
def translated() -> Iterator[None]:
    """Run a database call; psycopg errors come out as ours, with the cause chained."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error
