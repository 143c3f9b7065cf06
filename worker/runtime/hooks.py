"""dramatiq's middleware hooks with only those called that a middleware really overrides.

Half of dramatiq's time per message goes into calling hooks that do nothing. Order, exceptions and
logging are dramatiq's: before_* in order, after_* in reverse; MiddlewareError of a before hook
propagates, everything else is logged and the next hook runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import copy_context
from functools import partial, update_wrapper
from typing import Any

from dramatiq.middleware import Middleware, MiddlewareError
from dramatiq.results import Results

from packhorse.worker import forks
from packhorse.worker.attempt.middleware.retries import Retries
from packhorse.worker.broker.postgres import PostgresBroker

logger = logging.getLogger("packhorse.hooks")

Hook = Callable[..., None]

#: Packages whose middleware starts no processes.
_OURS = {__name__.partition(".")[0], "schedules", "dramatiq"}


def _contained(middleware: Any, hook: Hook) -> Hook:
    """The hook of others' middleware may fork; ours and dramatiq's do not, and pay nothing."""
    if type(middleware).__module__.partition(".")[0] in _OURS:
        return hook
    return update_wrapper(partial(forks.contain, hook), hook)


class Hooks:
    """Bound hooks of a broker's middleware, by signal. Build anew when middleware was added."""

    def __init__(self, broker: PostgresBroker) -> None:
        self.count = len(broker.middleware)
        self._broker = broker
        self.before_process = self._bound("before_process_message")
        self.after_process = self._bound("after_process_message")[::-1]
        self.after_skip = self._bound("after_skip_message")[::-1]
        self.before_commit = [_contained(m, m.before_commit) for m in reversed(broker.middleware) if hasattr(m, "before_commit")]
        self.before_ack = self._bound("before_ack")
        self.after_ack = self._bound("after_ack")[::-1]
        self.before_nack = self._bound("before_nack")
        self.after_nack = self._bound("after_nack")[::-1]
        self.has_retries = any(isinstance(m, Retries) for m in broker.middleware)
        self.has_results = any(type(m) is Results for m in broker.middleware)

    def _bound(self, name: str) -> list[Hook]:
        stock = getattr(Middleware, name)
        return [_contained(m, getattr(m, name)) for m in self._broker.middleware if getattr(type(m), name, None) is not stock]

    def run_before(self, hooks: list[Hook], message: Any) -> None:
        """Call before hooks. Raises MiddlewareError (SkipMessage among them)."""
        for hook in hooks:
            try:
                hook(self._broker, message)
            except MiddlewareError:
                raise
            except Exception:  # dramatiq's contract: a broken middleware does not stop the others
                logger.critical("hook_failed hook=%s", getattr(hook, "__qualname__", hook), exc_info=True)

    def run_after(self, hooks: list[Hook], message: Any, **kwargs: Any) -> None:
        """Call after hooks; nothing but BaseException comes out."""
        for hook in hooks:
            try:
                hook(self._broker, message, **kwargs)
            except Exception:
                logger.critical("hook_failed hook=%s", getattr(hook, "__qualname__", hook), exc_info=True)

    def before_ending(self, message: Any) -> None:
        """before_nack when it failed, else before_ack; what a hook raises to be heard is logged and changes nothing."""
        try:
            self._in_context(message, self.run_before, self.before_nack if message.failed else self.before_ack)
        except Exception:
            logger.critical("hook_failed hook=before_%s", "nack" if message.failed else "ack", exc_info=True)

    def after_ending(self, message: Any) -> None:
        """after_nack when it failed, else after_ack: its outcome is written, or somebody else's to write."""
        self._in_context(message, self.run_after, self.after_nack if message.failed else self.after_ack)

    def _in_context(self, message: Any, run: Hook, hooks: list[Hook]) -> None:
        """In a context of its own, like its handler before: what hooks set is not there for the next message of this thread."""
        if hooks:
            copy_context().run(run, hooks, message)
