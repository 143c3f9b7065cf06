"""The two calls to WhatsApp's Cloud API that the handlers make, and what each answer means for the message.

2xx               go on
429               packhorse.Snooze: later, as Retry-After says; no attempt is spent
other 4xx         not retryable: the message becomes a dead letter at once
5xx, no answer    an ordinary error: retry with backoff, then dead letter
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

import packhorse

TIMEOUT_SECONDS = 10.0
DEFAULT_RETRY_AFTER_SECONDS = 5.0


class CloudApiError(packhorse.MessageProcessingError):
    """The Cloud API said no; `code` is the HTTP status."""


def send_text(business: str, phone: str, text: str, reply_to: str) -> str:
    """Send a text that quotes the message `reply_to`; returns the wamid of what was sent."""
    answer = _call(
        f"{business}/messages",
        {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": phone,
            "context": {"message_id": reply_to},
            "type": "text",
            "text": {"preview_url": False, "body": text},
        },
    )
    return str(json.loads(answer)["messages"][0]["id"])


def fetch_media(media_id: str) -> bytes:
    """The content of a medium: Meta tells its URL first, and the URL wants the same token."""
    return _call(json.loads(_call(media_id))["url"])


def _call(path: str, body: dict[str, Any] | None = None) -> bytes:
    base = os.environ.get("WHATSAPP_API_URL", "https://graph.facebook.com/v23.0")
    request = urllib.request.Request(
        path if path.startswith("http") else f"{base}/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {os.environ.get('WHATSAPP_TOKEN', '')}",
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 429:
                raise packhorse.Snooze(
                    _retry_after(error.headers.get("Retry-After")), "the Cloud API asks to slow down"
                ) from None
            raise CloudApiError(
                f"the Cloud API answered {error.code}", code=str(error.code), retryable=error.code >= 500
            ) from None


def _retry_after(header: str | None) -> float:
    """Seconds; the other form of the header, a date, is not used by Meta."""
    return float(header) if header and header.isdigit() else DEFAULT_RETRY_AFTER_SECONDS
