"""From the body of a WhatsApp webhook to messages in the queue, in one transaction (SPEC Q6, Q9).

One message per inbound WhatsApp message, status update or account error; texts in a row are one. Answer the
webhook with 200 only after `ingest` returned: until then nothing is promised, and Meta delivers again. What
cannot be understood is refused item by item with a reason; the good items of the same delivery go in all the
same.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

import packhorse

QUEUE = "whatsapp"
#: Meta delivers again for up to seven days, so a wamid is remembered that long.
DEDUP_SECONDS = 7 * 86400
#: People write in bursts: texts of one person gather until he is quiet for so long, five seconds at most, and
#: become one question with one answer. An assistant in production waits two or three seconds.
GATHER = {"whatsapp_text": {"debounce": 0.5, "max_wait": 5.0}}
#: Kinds of inbound messages that have a handler of their own; all others go to whatsapp_unsupported.
HANDLERS = {
    "text": "whatsapp_text",
    "interactive": "whatsapp_interactive",
    "location": "whatsapp_location",
    "image": "whatsapp_media",
    "document": "whatsapp_media",
    "audio": "whatsapp_media",
    "video": "whatsapp_media",
    "sticker": "whatsapp_media",
}
STATUSES = ("sent", "delivered", "read", "failed")
_PHONE = re.compile(r"[0-9]{5,20}")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that happened. `key`: what Meta repeats when it delivers it again. `conversation`: things
    that must stay in order.
    """

    message_type: str
    key: str
    conversation: str
    payload: dict[str, Any]


@dataclass(slots=True)
class Receipt:
    """What became of one delivery: received = len(enqueued) + merged + deduplicated + len(refused)."""

    received: int = 0
    enqueued: list[int] = field(default_factory=list)  # message ids
    merged: int = 0  # went into a message that has not started
    deduplicated: int = 0
    refused: list[str] = field(default_factory=list)  # reasons; they hold names of fields, never their values


class Refused(ValueError):
    """An item, or a whole body, that is not what Meta documents; the text names the field."""


def signature_fits(body: bytes, header: str, app_secret: str) -> bool:
    """Whether X-Hub-Signature-256 was made from this body with our app secret."""
    expected = "sha256=" + hmac.new(app_secret.encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(header.encode(), expected.encode())


def ingest(connection: Any, body: bytes, *, correlation_id: str | None = None) -> Receipt:
    """Enqueue everything in one webhook body, in one transaction on `connection` (psycopg 3).

    A second delivery of the same item is recognised by its key and counted, not enqueued. Raises
    psycopg.OperationalError when the database is away: answer 500, Meta delivers again.
    """
    receipt = Receipt()
    with connection.transaction():
        for item in read(body):
            receipt.received += 1
            try:
                if isinstance(item, Refused):
                    raise item
                # a savepoint: one item that the database refuses does not take the others along
                with connection.transaction():
                    result = packhorse.enqueue(
                        connection,
                        item.message_type,
                        item.payload,
                        queue=QUEUE,
                        conversation_key=item.conversation,
                        dedup_key=item.key,
                        dedup_window=DEDUP_SECONDS,
                        correlation_id=correlation_id,
                        **GATHER.get(item.message_type, {}),
                    )
            except (Refused, packhorse.InvalidArgument) as error:
                receipt.refused.append(str(error))
            except psycopg.DatabaseError as error:
                if not (isinstance(error, psycopg.DataError) or error.sqlstate == "PH001"):
                    raise
                receipt.refused.append(error.diag.message_primary or "the database refused a value")
            else:
                if result.merged:
                    receipt.merged += 1
                elif result.duplicate:
                    receipt.deduplicated += 1
                else:
                    receipt.enqueued.append(result.id)
    return receipt


def read(body: bytes) -> Iterator[Item | Refused]:
    """The items of a body in their order; a Refused in the place of each that cannot be understood. Never
    raises.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        yield Refused(f"body: not JSON ({type(error).__name__})")
        return
    if not isinstance(document, dict) or document.get("object") != "whatsapp_business_account":
        yield Refused("object: must be whatsapp_business_account")
        return
    try:
        changes = [change for entry in _objects(document, "entry") for change in _objects(entry, "changes")]
    except Refused as error:
        yield error
        return
    if not changes:
        yield Refused("entry: holds no changes")
    for change in changes:
        yield from _read_change(change)


def _read_change(change: dict[str, Any]) -> Iterator[Item | Refused]:
    value = change.get("value")
    if change.get("field") != "messages" or not isinstance(value, dict):
        yield Refused("changes.field: only messages is handled here")
        return
    metadata = value.get("metadata")
    business = metadata.get("phone_number_id") if isinstance(metadata, dict) else None
    if not isinstance(business, str) or not _PHONE.fullmatch(business):
        yield Refused("metadata.phone_number_id: missing")
        return
    found = False
    for name, reader in (("messages", _message), ("statuses", _status), ("errors", _account_error)):
        entries = value.get(name, [])
        for entry in entries if isinstance(entries, list) else [entries]:
            found = True
            try:
                yield reader(entry, business)
            except Refused as error:
                yield error
    if not found:
        yield Refused("value: holds no messages, statuses or errors")


def _message(entry: Any, business: str) -> Item:
    phone, wamid, kind = (
        _text(entry, "messages", "from"),
        _text(entry, "messages", "id"),
        _text(entry, "messages", "type"),
    )
    if not _PHONE.fullmatch(phone):
        raise Refused("messages.from: not a phone number in digits")
    message_type = HANDLERS.get(kind, "whatsapp_unsupported")
    if kind in HANDLERS and not isinstance(entry.get(kind), dict):
        raise Refused(f"messages.{kind}: must be an object")
    return Item(
        message_type,
        wamid,
        f"wa:{phone}",
        {"business": business, "phone": phone, "wamid": wamid, "message": entry},
    )


def _status(entry: Any, business: str) -> Item:
    phone, wamid, status = (
        _text(entry, "statuses", "recipient_id"),
        _text(entry, "statuses", "id"),
        _text(entry, "statuses", "status"),
    )
    if status not in STATUSES:
        raise Refused(f"statuses.status: not one of {', '.join(STATUSES)}")
    codes = [error.get("code") for error in entry.get("errors", []) if isinstance(error, dict)]
    # the same wamid comes as sent, delivered and read: the key says which
    return Item(
        "whatsapp_status",
        f"{wamid}:{status}",
        f"wa:{phone}",
        {"business": business, "wamid": wamid, "status": status, "codes": codes},
    )


def _account_error(entry: Any, business: str) -> Item:
    """Errors of the account carry no id: equal ones are one, by their content."""
    if not isinstance(entry, dict) or not isinstance(entry.get("code"), int):
        raise Refused("errors.code: missing")
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    return Item(
        "whatsapp_account_error",
        f"error:{business}:{digest}",
        f"wa:account:{business}",
        {"business": business, "error": entry},
    )


def _objects(parent: dict[str, Any], name: str) -> list[dict[str, Any]]:
    children = parent.get(name)
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        raise Refused(f"{name}: must be a list of objects")
    return children


def _text(entry: Any, where: str, name: str) -> str:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not 1 <= len(value) <= 400:
        raise Refused(f"{where}.{name}: missing or not a text of 1 to 400 characters")
    return value
