"""A webhook that comes twice is handled once: ids in processed_messages."""

from __future__ import annotations

import logging
from typing import Any

from packhorse.worker.errors import InvalidArgument, StoreError
from packhorse.worker.observe.masking import mask
from packhorse.worker.platform.running import Script, run, run_async

logger = logging.getLogger("packhorse.platform")

WINDOW_MS = 300_000


def is_new_message(
    message_id: str,
    correlation_id: str | None = None,
    *,
    enabled: bool = True,
    window_ms: float = WINDOW_MS,
    fail_open: bool = True,
    connection: Any = None,
) -> bool:
    """True for exactly one caller per message id; a duplicate is answered 200. Call it in the transaction
    that enqueues.

    message_id: the sender's, 1 to 500 characters. correlation_id: kept with it, at most 500 characters.
    enabled: False says True to all. window_ms: one that was never marked processed counts as new again after
    this time. fail_open: a database that cannot be asked is logged and says True, for a message handled twice
    is better than one lost; False raises. connection: as for get_or_create_session(); a transaction in which
    a statement failed goes no further, whatever is said here. Raises InvalidArgument; StoreError unless
    fail_open.
    """
    if not enabled:
        return True
    try:
        return run(_ask(message_id, correlation_id, window_ms), connection)
    except InvalidArgument:
        raise
    except StoreError as error:
        return _open(error, message_id, correlation_id, fail_open)


async def is_new_message_async(
    message_id: str,
    correlation_id: str | None = None,
    *,
    enabled: bool = True,
    window_ms: float = WINDOW_MS,
    fail_open: bool = True,
    connection: Any = None,
) -> bool:
    """As is_new_message(), awaited."""
    if not enabled:
        return True
    try:
        return await run_async(_ask(message_id, correlation_id, window_ms), connection)
    except InvalidArgument:
        raise
    except StoreError as error:
        return _open(error, message_id, correlation_id, fail_open)


def _ask(message_id: str, correlation_id: str | None, window_ms: float) -> Script[bool]:
    rows = yield (
        "platform_is_new_message",
        {"message_id": message_id, "correlation_id": correlation_id, "window_seconds": window_ms / 1000},
    )
    return bool(rows[0]["done"])


def _open(error: StoreError, message_id: str, correlation_id: str | None, fail_open: bool) -> bool:
    if not fail_open:
        raise error
    logger.warning(
        "dedup_failed_open message_id=%s correlation_id=%s error_class=%s",
        mask(message_id),
        mask(correlation_id or ""),
        type(error).__name__,
    )
    return True


def mark_message_processed(
    message_id: str,
    correlation_id: str | None = None,
    processing_time_ms: float | None = None,
    *,
    connection: Any = None,
) -> None:
    """The message was processed: for seven days it is a duplicate. Never raises: what goes wrong is logged.

    message_id, correlation_id: as for is_new_message(). processing_time_ms: how long it took. connection: as
    for get_or_create_session().
    """
    try:
        run(_mark(message_id, correlation_id, processing_time_ms), connection)
    except Exception as error:  # the message is handled, and nothing may turn that into a failure
        _not_marked(error, message_id, correlation_id)


async def mark_message_processed_async(
    message_id: str,
    correlation_id: str | None = None,
    processing_time_ms: float | None = None,
    *,
    connection: Any = None,
) -> None:
    """As mark_message_processed(), awaited."""
    try:
        await run_async(_mark(message_id, correlation_id, processing_time_ms), connection)
    except Exception as error:  # as above
        _not_marked(error, message_id, correlation_id)


def _mark(message_id: str, correlation_id: str | None, processing_time_ms: float | None) -> Script[None]:
    milliseconds = None if processing_time_ms is None else round(processing_time_ms)
    yield (
        "platform_mark_processed",
        {"message_id": message_id, "correlation_id": correlation_id, "processing_ms": milliseconds},
    )


def _not_marked(error: Exception, message_id: str, correlation_id: str | None) -> None:
    logger.warning(
        "message_not_marked message_id=%s correlation_id=%s error_class=%s",
        mask(str(message_id)),
        mask(correlation_id or ""),
        type(error).__name__,
    )
