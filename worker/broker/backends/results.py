"""dramatiq's result backend on Postgres (SPEC W1): JSON in the table message_results, gone after its ttl.

A result that cannot be stored is not swallowed: the message that returned it becomes a dead letter whose
error names the problem, whoever waits for the result is told the same, and the worker goes on. One that
cannot be stored now, because the database is away, is lost (losses.py).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from dramatiq.results import ResultBackend, ResultMissing, ResultTimeout
from dramatiq.results.backend import DEFAULT_TIMEOUT

from packhorse.worker.attempt.details import stored_text
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.broker.backends.connections import Connections
from packhorse.worker.broker.backends.losses import TellsLosses
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.states import Verb
from packhorse.worker.store import backends as store
from packhorse.worker.store.json_text import to_json

if TYPE_CHECKING:
    from packhorse.worker.broker.postgres import PostgresBroker

logger = logging.getLogger("packhorse.results")

#: A blocking get_result polls: first after FIRST_POLL_SECONDS, then half as long again each time, up to
#: LAST_POLL_SECONDS.
FIRST_POLL_SECONDS = 0.01
LAST_POLL_SECONDS = 0.25


class PostgresResultBackend(TellsLosses, ResultBackend):
    """Results on Postgres.

    broker: its connections are used; or dsn: a connection string. namespace: part of every key.
    Results are JSON whatever encoder the messages have: at most 1 MiB, no NUL, no lone surrogate.
    """

    def __init__(
        self,
        *,
        broker: PostgresBroker | None = None,
        dsn: str | None = None,
        namespace: str = "dramatiq-results",
    ) -> None:
        super().__init__(namespace=namespace)
        self._connections = Connections(broker, dsn)

    def get_result(self, message: Any, *, block: bool = False, timeout: int | None = None) -> Any:
        """The result of a message; waits for it up to `timeout` ms (default 10000) when block is True.

        Raises ResultMissing, ResultTimeout, ResultFailure (the actor failed), StoreUnavailable.
        """
        key = self.build_message_key(message)
        deadline = time.monotonic() + (DEFAULT_TIMEOUT if timeout is None else timeout) / 1000
        pause = FIRST_POLL_SECONDS
        while True:
            with self._connections.lend() as connection:
                text = store.get_result(connection, key)
            if text is not None:
                return self.unwrap_result(json.loads(text))
            if not block:
                raise ResultMissing(message)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise ResultTimeout(message)
            threading.Event().wait(min(pause, remaining))
            pause = min(pause * 1.5, LAST_POLL_SECONDS)

    def store_result(self, message: Any, result: Any, ttl: int) -> None:
        """Keep the result for ttl ms. What cannot be stored fails its message instead (see the head of this
        file).
        """
        try:
            super().store_result(message, result, ttl)
        except InvalidArgument as error:
            self._refuse(message, error, ttl)

    def store_exception(self, message: Any, exception: BaseException, ttl: int) -> None:
        """Keep class and text of a failure for ttl ms; the text is cleaned, so that this cannot fail for its
        content.
        """
        super().store_exception(message, _storable(exception), ttl)

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        text = to_json("result", result)
        with self._connections.lend() as connection:
            store.store_result(connection, message_key, text, ttl / 1000)

    def _refuse(self, message: Any, error: InvalidArgument, ttl: int) -> None:
        """The message is buried: the same result would be refused again, so a retry cannot help."""
        logger.error(
            "result_not_storable message_id=%s actor=%s error=%s",
            getattr(message, "id", message.message_id),
            message.actor_name,
            error,
        )
        self.store_exception(message, error, ttl)
        if isinstance(message, ClaimedMessage) and message.stage is not AttemptStage.COMMITTED:
            # (a transactional handler has committed its completion already: there is nothing left to fail)
            message.outcome = Outcome(
                Verb.BURY, "rejected", type(error).__name__, stored_text(str(error), 10_000)
            )
            message.stuff_exception(error)
            message.fail()

    def close(self) -> None:
        """Close the connections of a backend that was made with dsn."""
        self._connections.close()


def _storable(exception: BaseException) -> Exception:
    """An exception of the same class name whose text Postgres can store."""
    try:
        text = str(exception)
    except Exception:  # an exception whose __str__ raises must not hide the failure itself
        text = "(its text could not be made)"
    same: type[Exception] = type(type(exception).__name__, (Exception,), {})
    return same(stored_text(text, 10_000))
