"""What is kept of a failure besides its text: code, context, and whether another attempt can help (SPEC W9).

An error boundary (worker/calls/boundary.py) leaves its judgement on the exception, for the one that ends the
attempt. It counts in that attempt only: an exception may be one object that is raised again and again.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

from packhorse.worker.errors import MessageProcessingError, StoreError, WorkflowError
from packhorse.worker.observe.contexts import JsonObject, masked_context
from packhorse.worker.observe.masking import mask, mask_whole

MAX_CODE = 100
#: What an exception may say of itself, as a bool: of ours, and of anybody's.
FLAGS = ("retryable", "recoverable", "should_retry")

_ATTRIBUTE = "_packhorse_judgement"


def storable(text: str, length: int) -> str:
    """What PostgreSQL can store: no NUL, no lone surrogates, bounded (FAILURES 13)."""
    return text[:length].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def stored_text(text: str, length: int) -> str:
    """A text of an attempt as it is kept: storable, and masked as in a log line (FAILURES 75).

    Every text of an error comes through here: last error, history and dead letter show the same.
    """
    text = storable(text, length)
    return _masked(text) if len(text) <= LONGEST_REMEMBERED else mask_whole(text)


#: Thousands that fail for the same reason (a service is down) have the same texts. Of the 719 us that
#: failure() took, masking were 498.
_masked = lru_cache(maxsize=32)(mask_whole)
LONGEST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class FailureDetails:
    """Goes into the database with a failure. context: masked, bounded."""

    code: str | None
    context: JsonObject
    recoverable: bool
    retryable: bool

    def as_json(self) -> str:
        """JSON text that PostgreSQL can store."""
        said = {
            "code": self.code,
            "context": self.context or None,
            "recoverable": self.recoverable,
            "retryable": self.retryable,
        }
        return json.dumps({key: value for key, value in said.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a boundary says of an exception that leaves it.

    operations: the numbers of its operation and of those around it. lease_token: that of the attempt, None
    outside a handler.
    """

    retryable: bool
    context: JsonObject
    correlation_id: str
    operations: tuple[int, ...] = field(default=())
    lease_token: int | None = None


def judge(exception: BaseException, judgement: Judgement) -> None:
    """Leave a judgement on an exception, in place of an earlier one."""
    with suppress(Exception):  # a class of its own kind: then the usual policy decides
        BaseException.__setattr__(exception, _ATTRIBUTE, judgement)


def judgement_of(exception: BaseException) -> Judgement | None:
    """The judgement of the last boundary that it left."""
    found = getattr(exception, _ATTRIBUTE, None)
    return found if isinstance(found, Judgement) else None


def judgement_in(exception: BaseException, lease_token: int) -> Judgement | None:
    """The same, if the boundary was in this attempt. An error of the database may be the translation of the
    one that left it.
    """
    found = judgement_of(exception)
    if found is None and isinstance(exception, StoreError) and exception.__cause__ is not None:
        found = judgement_of(exception.__cause__)
    return found if found is not None and found.lease_token == lease_token else None


def own_flag(exception: BaseException) -> bool | None:
    """Whether another attempt can help, by what the exception says of itself; None when it says nothing."""
    said = []
    for name in FLAGS:
        with suppress(Exception):  # a property of others
            said.append(getattr(exception, name, None))
    flags = [value for value in said if isinstance(value, bool)]
    return all(flags) if flags else None


def code_of(exception: BaseException) -> str | None:
    """The code of one of our error classes, bounded and masked; None of any other."""
    if not isinstance(exception, WorkflowError):
        return None
    with suppress(Exception):
        return mask(str(exception.code)[:MAX_CODE])
    return None


def details_of(exception: BaseException, judgement: Judgement | None = None) -> FailureDetails | None:
    """What is kept of it; None of an error of others that no boundary has judged."""
    around = judgement.context if judgement is not None else {}
    if isinstance(exception, WorkflowError):
        context = {**masked_context(exception.context), **_named(exception)}
        context = (
            masked_context(context | {key: value for key, value in around.items() if key not in context})
            if around
            else context
        )
        return FailureDetails(
            code_of(exception), context, exception.recoverable is not False, exception.retryable is not False
        )
    if judgement is None:
        return None
    return FailureDetails(None, around, True, judgement.retryable)


def _named(exception: WorkflowError) -> JsonObject:
    """What a class of ours has besides its context."""
    name = "message_id" if isinstance(exception, MessageProcessingError) else "agent_type"
    found = getattr(exception, name, None)
    return {} if found is None else masked_context({name: found})
