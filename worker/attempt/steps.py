"""Steps: what a handler has done on its way and no later attempt does again (SPEC W3c).

    answer = step("answer", ask_the_model, question)   # slow, and paid for
    send(answer)                                       # when this fails, the next attempt has the same answer

step_store.py says where they are stored.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast, overload

from packhorse.worker import forks
from packhorse.worker.attempt.context import current
from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.attempt.stored_steps import MAX_NAME_LENGTH, MAX_STEP_BYTES
from packhorse.worker.errors import StepError
from packhorse.worker.store.json_text import dumps, has_nul

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("packhorse.steps")


def step(name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function once per message: its result is stored under the name, and later attempts get it
    instead of another call.

    name: 1 to 100 characters, another one for each step of a handler; put into it what tells two apart
    (`f"send {number}"`). The result must be JSON (None, bool, int, float, str, list, dict with str keys), and
    comes back as JSON keeps it, also the first time: tuples are lists, the keys of a dict may come in another
    order. At most 256 KiB of JSON text, 100 steps and 1 MiB of them per message. A function that raises has
    stored nothing: the next attempt, or the next call in this one, runs it again.

    The result is in the database when this returns. What happens between the end of the function and that
    moment (a kill -9) lets it run again: give what you call an idempotency key. In a transactional handler
    steps commit or roll back with the handler. Outside a message (a unit test, a thread that has not got the
    handler's context) the function is called and nothing is stored.

    Raises StepError (then the message becomes a dead letter, for another attempt would pay again), LeaseLost
    when somebody else owns the message, StoreUnavailable or StoreConflict when the database could not be
    asked for half a minute; and whatever the function raises.
    """
    with _step(name) as (message, found):
        if found is not None:
            return cast(T, found[0])
        if message is None or message.step_store is None:
            return cast(T, json.loads(_encoded(name, function(*args, **kwargs))))
        value = _encoded(name, forks.contain(function, *args, **kwargs))
        return cast(T, _stored(message, name, message.step_store.store(message, name, value)))


@overload
async def step_async(
    name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
) -> T: ...
@overload
async def step_async(name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
async def step_async(name: str, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
    """As step, for coroutines: the function is a coroutine function, or a plain one, which then runs on the
    event loop.

    Steps of many coroutines are written together, by one thread of the process.
    """
    with _step(name) as (message, found):
        if found is not None:
            return found[0]
        mine = forks.count
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        if message is None or message.step_store is None:
            return json.loads(_encoded(name, result))
        if forks.count != mine:  # a child that the function has forked has no message
            forks.leave()
        return _stored(
            message, name, await message.step_store.store_async(message, name, _encoded(name, result))
        )


@contextmanager
def _step(name: str) -> Iterator[tuple[ClaimedMessage | None, tuple[Any] | None]]:
    """Hold a name while its step runs; the message, if there is one, and in a tuple the value that an earlier
    attempt has stored.
    """
    _check_name(name)
    message = current.message
    if message is None:
        yield None, None
        return
    steps = message.steps_of_attempt()
    steps.use(name)
    if name in steps.stored:
        if message.step_store is not None:
            message.step_store.count_reused()
        logger.info("step_reused message_id=%s step=%s", message.id, name)
        yield message, (steps.stored[name],)
        return
    try:
        yield message, None
    except BaseException:
        steps.leave(name)
        raise


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_LENGTH:
        shown = repr(name[:60]) if isinstance(name, str) else type(name).__name__
        raise StepError(f"{shown} is no name of a step: give a text of 1 to {MAX_NAME_LENGTH} characters")
    if "\x00" in name or not _is_unicode(name):
        raise StepError(f"{name!r} is no name of a step: it contains what PostgreSQL cannot store")


def _is_unicode(text: str) -> bool:
    """Without lone surrogates?"""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoded(name: str, result: object) -> str:
    """The result of a step as JSON text. Raises StepError for what cannot be stored."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # nobody will await it
        raise StepError(
            f"step {name!r}: the function returned a {type(result).__name__}; use `await step_async(…)`"
        )
    try:
        text = dumps(result)
    except (TypeError, ValueError, RecursionError) as error:
        raise StepError(
            f"step {name!r}: its result ({type(result).__name__}) is not JSON: {str(error)[:200]}"
        ) from error
    if has_nul(text) or not _is_unicode(text):
        raise StepError(
            f"step {name!r}: its result contains a NUL or a lone surrogate, which PostgreSQL cannot store"
        )
    size = len(text) if text.isascii() else len(text.encode())
    if size > MAX_STEP_BYTES:
        raise StepError(
            f"step {name!r}: its result has {size} bytes of JSON, at most {MAX_STEP_BYTES}; store it elsewhere and return its key"
        )
    return text


def _stored(message: ClaimedMessage, name: str, value: str) -> Any:
    """The result as later attempts will get it."""
    logger.debug("step_stored message_id=%s step=%s bytes=%s", message.id, name, len(value))
    return json.loads(value)
