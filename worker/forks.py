"""What a child process gets that somebody else's code starts in one of our processes (SPEC W10b).

A handler may fork (os.fork, multiprocessing), or start programs. Such a child is no worker. It gets the
default signal handlers, an empty signal mask, no wake-up descriptor, and private copies instead of our
connections, locks and shared memory (`register`). If it comes back to where our code called the handler, it
ends there (`contain`).

Programs inherit what exec keeps: ignored signals and the mask. So a worker process ignores no signal and
blocks none; its handlers become the default in a program. Our descriptors are close-on-exec.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, TypeVar

T = TypeVar("T")
Handlers = Mapping[signal.Signals, Callable[[int, Any], Any]]

logger = logging.getLogger("packhorse.forks")

#: A child that leaves writes what it has printed; a lock that another thread of its parent held at the fork
#: may keep it from that.
LEAVE_SECONDS = 5

#: How many forks lie between this process and the first of its line. Code that finds another number than
#: before is in a copy.
count = 0


class Copied(Protocol):
    """Something that is not the same in a forked child."""

    def after_fork(self, stranger: bool) -> None:
        """Called in the child, in its only thread. stranger: others' code forked it, in a process that
        `protect` was called in.
        """


class _Before(threading.local):
    mask: set[int | signal.Signals] | None = None


_copied: weakref.WeakSet[Any] = weakref.WeakSet()
_handlers: dict[signal.Signals, Callable[[int, Any], Any]] = {}
_own = False
_before_fork = _Before()


def register(copied: Copied) -> None:
    """Call `copied.after_fork` in every forked child, as long as the object lives. It must not raise."""
    _copied.add(copied)


def protect(handlers: Handlers) -> None:
    """This process runs others' code: what it forks from now on is no process of ours. handlers: the signal
    handlers that we have set.
    """
    _handlers.clear()
    _handlers.update(handlers)


def fork_own() -> int:
    """os.fork for one more process of ours: the child goes on as its parent's code says. Raises OSError."""
    global _own
    _own = True
    try:
        return os.fork()
    finally:
        _own = False


def contain(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call code that is not ours. A child that it forked, and that returns or raises, ends here."""
    mine = count
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        if count != mine:
            leave(error)
        raise
    if count != mine:
        leave()
    return result


def leave(error: BaseException | None = None) -> NoReturn:
    """End this child, with none of its parent's clean-up: with the code that sys.exit asked for, 1 after
    another exception, else 0.
    """
    code = 0
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LEAVE_SECONDS)
        if isinstance(error, SystemExit):
            code = _exit_code(error.code)
        elif error is not None:
            code = 1
            logger.critical(
                "forked_child_failed pid=%d error_class=%s", os.getpid(), type(error).__name__, exc_info=error
            )
        _flush()
    finally:
        os._exit(code)


def _exit_code(asked: object) -> int:
    """As Python reads the argument of sys.exit."""
    if asked is None:
        return 0
    if isinstance(asked, int):
        return asked & 0xFF
    print(asked, file=sys.stderr)
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except Exception:
            # a full disk, a closed or an odd stream of the application: no reason against a fork, or an end
            pass


def _before() -> None:
    if _handlers and not _own:
        _flush()  # what is printed so far is the parent's to write, once
        # a signal that comes before the child has the default handlers waits until it has them
        _before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _handlers)


def _in_parent() -> None:
    mask, _before_fork.mask = _before_fork.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    global count
    count += 1
    stranger = bool(_handlers) and not _own
    for copied in list(_copied):
        copied.after_fork(stranger)
    if stranger:
        signal.set_wakeup_fd(-1)
        for number, ours in _handlers.items():
            if signal.getsignal(number) is ours:
                # SIGINT, too: Python's handler for it could raise in here, where nobody would hear of it
                signal.signal(number, signal.SIG_DFL)
        _handlers.clear()  # what this child sets itself, its own children inherit
        _in_parent()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
