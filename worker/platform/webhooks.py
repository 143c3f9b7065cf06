"""What came in or went out at webhooks: rows of webhook_events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from packhorse.worker.observe.masking import is_secret_key
from packhorse.worker.platform.running import Script, run, run_async, to_json, to_object


def record_webhook_event(
    event_category: str,
    event_type: str,
    *,
    webhook_id: str | None = None,
    source: str | None = None,
    destination: str | None = None,
    payload: Any = None,
    headers: Mapping[str, Any] | None = None,
    status: str | None = None,
    error_code: str | None = None,
    error_message: str | None = None,
    correlation_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    connection: Any = None,
) -> UUID:
    """Record one webhook, or one attempt to deliver one; the id of the record.

    event_category: incoming, delivery, error or routing. event_type: what it was. webhook_id: the sender's
    id; many records may have it. source, destination: the service, the recipient. payload, metadata: JSON.
    headers: of the request; authorization, cookies, signatures and what else is secret by its name are left
    out. status: pending, sent, delivered, failed, received, processed, ignored … error_code, error_message:
    why it failed. correlation_id: of the request. connection: as for get_or_create_session(). Raises
    InvalidArgument, StoreError.
    """
    given = dict(locals())
    given.pop("connection")
    return run(_record(given), connection)


async def record_webhook_event_async(
    event_category: str,
    event_type: str,
    *,
    webhook_id: str | None = None,
    source: str | None = None,
    destination: str | None = None,
    payload: Any = None,
    headers: Mapping[str, Any] | None = None,
    status: str | None = None,
    error_code: str | None = None,
    error_message: str | None = None,
    correlation_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    connection: Any = None,
) -> UUID:
    """As record_webhook_event(), awaited."""
    given = dict(locals())
    given.pop("connection")
    return await run_async(_record(given), connection)


def _record(given: dict[str, Any]) -> Script[UUID]:
    headers = given["headers"]
    values = {
        **given,
        "payload": None if given["payload"] is None else to_json("payload", given["payload"]),
        "headers": None if headers is None else to_object("headers", public_headers(headers)),
        "metadata": to_object("metadata", given["metadata"] or {}),
    }
    rows = yield "platform_record_webhook", values
    recorded: UUID = rows[0]["id"]
    return recorded


def public_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers without those that prove who somebody is."""
    return {
        name: value
        for name, value in headers.items()
        if not is_secret_key(name) and "signature" not in name.lower()
    }
