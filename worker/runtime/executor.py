"""One attempt, step by step; the same for a thread and for a coroutine.

may_start -> before_process_message -> handler (in its transaction, when it is transactional) ->
after_process_message. The order of hooks, the logging and what an exception means are those of dramatiq's
Worker.process_message. Afterwards the outcome is in the message; nothing but BaseException of the
interpreter's own comes out.

A coroutine's hooks run in its event loop, unless they are a user's or wait for a database: these run in
threads, in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from dramatiq.middleware import MiddlewareError, SkipMessage

from packhorse.worker import forks
from packhorse.worker.attempt.context import current
from packhorse.worker.attempt.details import stored_text
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome, failure
from packhorse.worker.attempt.middleware.retries import asked_for
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.async_connection import submit, to_its_end
from packhorse.worker.errors import CancelInterrupt, DrainInterrupt, LeaseInterrupt, UndecodableMessage
from packhorse.worker.runtime.hooks import Hooks, LoopHook
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.runtime.transactions import AsyncTransactions, Transactions
from packhorse.worker.states import Verb

logger = logging.getLogger("packhorse.pool")

#: A claimed message is not started when less than this is left of its lease.
LEASE_MARGIN_SECONDS = 1.0

#: Runs the handler of a coroutine, and whatever interrupts it.
Drive = Callable[[Awaitable[Any]], Awaitable[Any]]


class Executor:
    """Runs attempts; used by every thread of a process that does. hooks: of the broker's middleware, as they
    are now.
    """

    def __init__(self, broker: PostgresBroker) -> None:
        self.broker = broker
        self.hooks = Hooks(broker)
        self._transactions = Transactions(broker, self.hooks)

    def may_start(self, message: ClaimedMessage, now: float) -> bool:
        """Whether its handler is to be called at all; its outcome is decided when not."""
        if message.lost:
            return False
        if message.lease_until - now < LEASE_MARGIN_SECONDS:
            message.outcome = Outcome(Verb.RELEASE, "its lease was nearly over before it started")
            return False
        try:
            message.decode()
        except UndecodableMessage as error:
            message.outcome = Outcome(
                Verb.BURY, "undecodable", "UndecodableMessage", stored_text(str(error), 1000)
            )
            message.failed = True
            return False
        return True

    def run(self, slot: Slot, message: ClaimedMessage, now: float) -> None:
        """In this thread, and in this context."""
        hooks = self.hooks
        current.message = message
        message.step_store = self.broker.steps
        try:
            slot.enter(message, now)
            try:
                around = hooks.around if message.options else hooks.around_plain(message.actor_name)
                for hook in around.before:
                    try:
                        hook(self.broker, message)
                    except MiddlewareError:
                        raise
                    except Exception:  # dramatiq's contract
                        _hook_failed(hook)
                result = None
                if not message.failed:
                    actor = self.broker.get_actor(message.actor_name)
                    if actor.options.get("transactional"):
                        result = self._transactions.call(actor, message)
                    else:
                        result = forks.contain(actor, *message.args, **message.kwargs)
            finally:
                slot.leave()
            if result is not None:
                self._discarded(message)
            if message.options:  # hooks and handlers may write some
                around = hooks.around
            for hook in around.after:
                try:
                    hook(self.broker, message, result=result)
                except Exception:
                    _hook_failed(hook)
        except SkipMessage as error:
            self._skipped(message, error)
            hooks.run_after(hooks.after_skip, message)
        except BaseException as error:
            self._ended_with(message, error)

    def _ended_with(self, message: ClaimedMessage, error: BaseException) -> None:
        """In a frame that is not part of the traceback: a name for the exception in one that is would keep
        both, and all frames with what is in them, until the garbage collector comes."""
        exception = self._raised(message, error)
        self.hooks.run_after(self.hooks.around.after, message, exception=exception)
        self._decide(message, exception)

    async def run_async(
        self,
        slot: Slot,
        message: ClaimedMessage,
        now: float,
        drive: Drive,
        handler: Callable[..., Awaitable[Any]],
        transactions: AsyncTransactions,
        context: Context,
    ) -> None:
        """In the task that awaits it, whose context it is. handler: the coroutine function of the message's
        actor.
        """
        hooks = self.hooks
        current.message = message
        message.step_store = self.broker.steps
        try:
            slot.enter(message, now)
            try:
                around = hooks.around if message.options else hooks.around_plain(message.actor_name)
                for hook in around.before_on_loop:
                    try:
                        if hook.in_thread is None:
                            hook.call(self.broker, message)
                        elif hook.in_thread(self.broker, message):
                            await _in_thread(context, partial(hook.call, self.broker, message))
                    except MiddlewareError:
                        raise
                    except Exception:
                        _hook_failed(hook.call)
                result = None
                if not message.failed:
                    actor = self.broker.get_actor(message.actor_name)
                    if actor.options.get("transactional"):
                        result = await transactions.call(handler, message, drive)
                    else:
                        result = await drive(handler(*message.args, **message.kwargs))
            finally:
                slot.leave()
            if result is not None:
                self._discarded(message)
            if message.options:  # hooks and handlers may write some
                around = hooks.around
            await self._after(around.after_on_loop, message, result=result)
        except SkipMessage as error:
            self._skipped(message, error)
            await self._after(hooks.after_skip_on_loop, message)
        except BaseException as error:
            await self._ended_with_async(message, error)

    async def _ended_with_async(self, message: ClaimedMessage, error: BaseException) -> None:
        """As _ended_with."""
        exception = self._raised(message, error)
        await self._after(self.hooks.around.after_on_loop, message, exception=exception)
        self._decide(message, exception)

    async def _after(self, hooks: list[LoopHook], message: ClaimedMessage, **how: Any) -> None:
        for hook in hooks:
            try:
                if hook.in_thread is None:
                    hook.call(self.broker, message, **how)
                elif hook.in_thread(self.broker, message):
                    # in a copy: the handler may have left something that resumes its task while the hook is
                    # in its context
                    await _in_thread(copy_context(), partial(hook.call, self.broker, message, **how))
            except Exception:
                _hook_failed(hook.call)

    def _discarded(self, message: ClaimedMessage) -> None:
        if not self.hooks.has_results and message.options.get("pipe_target") is None:
            logger.debug(
                "result_discarded actor=%s: add the Results middleware to keep it", message.actor_name
            )

    def _skipped(self, message: ClaimedMessage, error: SkipMessage) -> None:
        if message.failed:
            message.stuff_exception(error)
        logger.warning("message_skipped message_id=%s actor=%s", message.id, message.actor_name)

    def _raised(self, message: ClaimedMessage, error: BaseException) -> BaseException:
        """What the attempt has ended with, as the hooks are told."""
        cause = error.__cause__
        # dramatiq's words for a coroutine that takes longer than a second to end
        late = type(error) is RuntimeError and isinstance(
            cause, (CancelInterrupt, DrainInterrupt, LeaseInterrupt)
        )
        exception = cause if late and cause else error
        message.stuff_exception(exception)
        return exception

    def _decide(self, message: ClaimedMessage, exception: BaseException) -> None:
        if not self.hooks.has_retries:
            _without_policy(message, exception)
        if message.stage is AttemptStage.COMMITTED:  # nothing to write any more
            message.outcome = None


def _without_policy(message: ClaimedMessage, exception: BaseException) -> None:
    """Without our Retries, a handler that was interrupted, or asked for an outcome, is neither done nor
    failed all the same.
    """
    try:
        outcome = asked_for(exception)
    except Exception:  # a Snooze of no number
        outcome = failure(exception)
    if outcome is not None:
        message.outcome, message.failed = outcome, outcome.verb is Verb.BURY


def _hook_failed(hook: Any) -> None:
    logger.critical("hook_failed hook=%s", getattr(hook, "__qualname__", hook), exc_info=True)


async def _in_thread(context: Context, hook: Callable[[], None]) -> None:
    """Call it in a thread, in this context, to its end: an interrupt is for the handler, and the message
    waits for its hooks.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def begin() -> None:
        submit(partial(context.run, hook)).add_done_callback(hand_on)

    def hand_on(ended: asyncio.Future[None]) -> None:
        error = ended.exception()
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    loop.call_soon(begin)  # once the task, which is in the context now, waits
    await to_its_end(done)
