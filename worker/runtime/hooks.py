"""dramatiq's middleware hooks with only those called that have something to do.

Half of dramatiq's time per message goes into calling hooks that do nothing: those that a middleware does not
override, and those that look for an option that neither the message nor its actor has. Order, exceptions and
logging are dramatiq's: before_* in order, after_* in reverse; MiddlewareError of a before hook
propagates, everything else is logged and the next hook runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

from dramatiq.middleware import GroupCallbacks, Middleware, MiddlewareError, ShutdownNotifications
from dramatiq.results import Results

from packhorse.worker import forks
from packhorse.worker.attempt.middleware.age_limit import AgeLimit
from packhorse.worker.attempt.middleware.follow_ups import Callbacks, Pipelines
from packhorse.worker.attempt.middleware.retries import Retries
from packhorse.worker.broker.postgres import PostgresBroker

logger = logging.getLogger("packhorse.hooks")

Hook = Callable[..., None]

#: Packages whose middleware starts no processes.
_OURS = {__name__.partition(".")[0], "schedules", "dramatiq"}
#: Their hooks around a handler do nothing without one of these options, of the message, of its actor or, for
#: all actors, of the middleware itself. What is derived from them may do something else.
_ONLY_WITH: dict[type, tuple[str, ...]] = {
    AgeLimit: ("max_age",),
    ShutdownNotifications: ("notify_shutdown",),
    Callbacks: ("on_success", "on_failure"),
    Pipelines: ("pipe_target",),
}


def _contained(middleware: Any, hook: Hook) -> Hook:
    """The hook of others' middleware may fork; ours and dramatiq's do not, and pay nothing."""
    if type(middleware).__module__.partition(".")[0] in _OURS:
        return hook
    return update_wrapper(partial(forks.contain, hook), hook)


@dataclass(frozen=True, slots=True)
class LoopHook:
    """A hook of a coroutine's message. in_thread(broker, message): has it something to do, for which it
    waits, so that a thread has to run it? None: it runs on the loop."""

    call: Hook
    in_thread: Callable[[Any, Any], bool] | None


@dataclass(frozen=True, slots=True)
class Around:
    """The hooks before and after a handler, in dramatiq's order; those of a coroutine's message apart."""

    before: list[Hook]
    after: list[Hook]
    before_on_loop: list[LoopHook]
    after_on_loop: list[LoopHook]


def _always(_broker: Any, _message: Any) -> bool:
    return True


def _in_group(_broker: Any, message: Any) -> bool:
    return "group_completion_uuid" in message.options


def _in_thread(middleware: Any) -> Callable[[Any, Any], bool] | None:
    """When a middleware may not run on the event loop. A user's may block, unless its class has `runs_on_loop
    = True`; ours and dramatiq's do where they talk to a database or to Redis."""
    if getattr(middleware, "runs_on_loop", False) is True:
        return None
    sends: Callable[[Any, Any], bool] | None = getattr(middleware, "sends_after", None)
    if sends is not None:
        return sends
    if isinstance(middleware, GroupCallbacks):
        return _in_group
    if type(middleware).__module__.partition(".")[0] not in _OURS or isinstance(middleware, Results):
        return _always
    return None


class Hooks:
    """Bound hooks of a broker's middleware, by signal. around: all before and after a handler."""

    def __init__(self, broker: PostgresBroker) -> None:
        self._broker = broker
        self.around = self._around(list(broker.middleware))
        #: By actor: those of a message without options. Filled by any thread, with the same.
        self._around_plain: dict[str, Around] = {}
        self.after_skip = self._bound("after_skip_message")[::-1]
        self.after_skip_on_loop = self._for_loop("after_skip_message")[::-1]
        self.before_commit = [
            _contained(m, m.before_commit) for m in reversed(broker.middleware) if hasattr(m, "before_commit")
        ]
        self.before_ack = self._bound("before_ack")
        self.after_ack = self._bound("after_ack")[::-1]
        self.before_nack = self._bound("before_nack")
        self.after_nack = self._bound("after_nack")[::-1]
        self.before_delay = self._bound("before_delay_message")
        self.has_retries = any(isinstance(m, Retries) for m in broker.middleware)
        self.has_results = any(type(m) is Results for m in broker.middleware)

    def around_plain(self, actor_name: str) -> Around:
        """Those around the handler of a message without options; asked again where something may have written
        some. Raises dramatiq.ActorNotFound.
        """
        found = self._around_plain.get(actor_name)
        if found is None:
            options = self._broker.get_actor(actor_name).options
            found = self._around_plain[actor_name] = self._around(
                [
                    m
                    for m in self._broker.middleware
                    if type(m) not in _ONLY_WITH
                    or any(options.get(name) or getattr(m, name, None) for name in _ONLY_WITH[type(m)])
                ]
            )
        return found

    def _around(self, middleware: list[Any]) -> Around:
        before, after = "before_process_message", "after_process_message"
        return Around(
            self._bound(before, middleware),
            self._bound(after, middleware)[::-1],
            self._for_loop(before, middleware),
            self._for_loop(after, middleware)[::-1],
        )

    def _bound(self, name: str, middleware: list[Any] | None = None) -> list[Hook]:
        return [_contained(m, getattr(m, name)) for m in self._overriding(name, middleware)]

    def _for_loop(self, name: str, middleware: list[Any] | None = None) -> list[LoopHook]:
        found = self._overriding(name, middleware)
        return [LoopHook(_contained(m, getattr(m, name)), _in_thread(m)) for m in found]

    def _overriding(self, name: str, middleware: list[Any] | None = None) -> list[Any]:
        stock = getattr(Middleware, name)
        among = self._broker.middleware if middleware is None else middleware
        return [m for m in among if getattr(type(m), name, None) is not stock]

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
        """before_nack when it failed, else before_ack; what a hook raises to be heard is logged and changes
        nothing.
        """
        try:
            self._in_context(
                message, self.run_before, self.before_nack if message.failed else self.before_ack
            )
        except Exception:
            logger.critical("hook_failed hook=before_%s", "nack" if message.failed else "ack", exc_info=True)

    def after_ending(self, message: Any) -> None:
        """after_nack when it failed, else after_ack: its outcome is written, or somebody else's to write."""
        self._in_context(message, self.run_after, self.after_nack if message.failed else self.after_ack)

    def delayed(self, message: Any) -> None:
        """before_delay_message: it waits for its next attempt."""
        try:
            self._in_context(message, self.run_before, self.before_delay)
        except Exception:
            logger.critical("hook_failed hook=%s", "before_delay_message", exc_info=True)

    def _in_context(self, message: Any, run: Hook, hooks: list[Hook]) -> None:
        """In a context of its own, like its handler before: what hooks set is not there for the next message
        of this thread.
        """
        if hooks:
            copy_context().run(run, hooks, message)
