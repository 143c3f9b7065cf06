"""One attempt of a message that an endpoint handles: request, answer, outcome (SPEC W8).

It runs as the handler of an `async def` actor: attempts, leases, retries, dead letters and drain are those of
every message. What the answer means is in `_against_endpoint` and `_finish`.
"""

from __future__ import annotations

import logging
import re
from typing import TypeVar

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.calls.push.client import PushAnswer, PushClient
from packhorse.worker.calls.push.declarations import PushDeclaration
from packhorse.worker.calls.push.signing import Secrets
from packhorse.worker.calls.remote import RemoteService
from packhorse.worker.calls.requests import retry_after_seconds
from packhorse.worker.errors import Cancel, RetryAfter, ServiceFailed
from packhorse.worker.observe import tracing
from packhorse.worker.version import __version__

logger = logging.getLogger("packhorse.push")

#: Of these an answer that says how long asks for a pause.
PAUSES = frozenset({429, 503})
#: The endpoint works, and another attempt may end better.
TOO_EARLY = 425
#: Of an answer, in the text of a failure.
MOST_QUOTED = 200
#: Standard Webhooks puts the id before a dot.
_WEBHOOK_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_HEADER_TEXT = re.compile(r"[\x20-\x7e]{1,500}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class PushFailed(ServiceFailed):
    """The endpoint answered with a status that another attempt may mend."""


class PushRefused(ServiceFailed):
    """The endpoint answered that it will not have this message: a dead letter at once."""

    retryable = False


Failed = TypeVar("Failed", bound=ServiceFailed)


class Push:
    """The handler of one declaration. Raises ConfigError when its secrets are no good."""

    def __init__(self, declaration: PushDeclaration, service: RemoteService) -> None:
        self.declaration = declaration
        self.client = PushClient(declaration)
        self._service = service
        self._secrets = Secrets(declaration.types, declaration.secret_file)

    async def handle(self, message: ClaimedMessage) -> None:
        """Send it, and end as the answer says: raises what stands for the outcome."""
        if message.args:
            raise PushRefused(
                f"args: {message.message_type} goes to an endpoint, which gets keyword arguments only; send the payload by name",
                service=self._service.name,
            )
        text = message.payload_text
        async with self._service.call():
            answer = await self.client.post(self._headers(message, text), text.encode())
            self._against_endpoint(answer)
        self._finish(message, answer)

    def _headers(self, message: ClaimedMessage, text: str) -> dict[str, str]:
        headers = {
            "content-type": "application/json",
            "accept-encoding": "gzip, deflate",
            "user-agent": f"packhorse/{__version__}",
            "packhorse-queue": message.queue_name,
            "packhorse-type": message.message_type,
            "packhorse-attempt": str(message.attempt),
            **self._secrets.headers(webhook_id(message), text),
        }
        if message.correlation_id and _HEADER_TEXT.fullmatch(message.correlation_id):
            headers["packhorse-correlation-id"] = message.correlation_id
        trace = tracing.active.current_text() if tracing.active is not None else message.trace_context
        parent, _, state = (trace or "").partition(" ")
        if _TRACEPARENT.fullmatch(parent):
            headers["traceparent"] = parent
            if tracing.active is not None and state:
                headers["tracestate"] = state
        return headers

    def _against_endpoint(self, answer: PushAnswer) -> None:
        """Raise what speaks against the endpoint, where its breaker sees it."""
        status = answer.status
        if 300 <= status < 400:
            raise self._error(PushFailed, answer, "; redirects are not followed: change url")
        if (status < 200 or status in (408, 429) or status >= 500) and _pause_seconds(answer) is None:
            raise self._error(PushFailed, answer)

    def _finish(self, message: ClaimedMessage, answer: PushAnswer) -> None:
        """What an endpoint that works says of this message."""
        status = answer.status
        if 200 <= status < 300:
            if answer.cut:
                logger.warning(
                    "push_answer_cut push=%s message_id=%s max_answer_bytes=%d: answered %d with more than that; the rest was not read",
                    self.declaration.types,
                    message.id,
                    self.declaration.max_answer_bytes,
                    status,
                )
            return
        if (seconds := _pause_seconds(answer)) is not None:
            raise RetryAfter(seconds, scope=self._service.name, reason=self._said(answer))
        if status == 410:
            raise Cancel(self._said(answer, ": it does not want these messages any more"))
        raise self._error(PushFailed if status == TOO_EARLY else PushRefused, answer)

    def _error(self, kind: type[Failed], answer: PushAnswer, more: str = "") -> Failed:
        return kind(
            self._said(answer, more),
            service=self._service.name,
            endpoint=self.declaration.url,
            status_code=answer.status,
        )

    def _said(self, answer: PushAnswer, more: str = "") -> str:
        body = " ".join(answer.body[: MOST_QUOTED * 4].decode("utf-8", "replace").split())[:MOST_QUOTED]
        return f"the endpoint of {self.declaration.types} answered with status {answer.status}{more}" + (
            f": {body}" if body else ""
        )


def _pause_seconds(answer: PushAnswer) -> float | None:
    """How long it asks to wait; None when it asks for no pause."""
    return retry_after_seconds(answer.headers) if answer.status in PAUSES else None


def webhook_id(message: ClaimedMessage) -> str:
    """The same in every attempt: the id that its sender knows, when a header can carry it, else the row's."""
    said = str(message.message_id)
    return said if _WEBHOOK_ID.fullmatch(said) else f"msg_{message.id}"
