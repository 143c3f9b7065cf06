"""The message every system carries: a flat JSON object of about 200 bytes."""

from __future__ import annotations

import json
from typing import Any

TEXT = "Good morning, I would like to move my booking of Thursday to Friday at ten, is that possible?"
SHAPE = {
    "number": 0,
    "sent_ns": 0,
    "channel": "whatsapp",
    "sender": "+250788000111",
    "recipient": "+250788000222",
    "text": TEXT,
}
NUMBER_MARK = "@number@"
SENT_MARK = "@sent@"
_MARKED = json.dumps({**SHAPE, "number": NUMBER_MARK, "sent_ns": SENT_MARK})
TEMPLATE = _MARKED.replace(f'"{SENT_MARK}"', SENT_MARK).replace(f'"{NUMBER_MARK}"', NUMBER_MARK)
"""JSON text with two marks; SQL and Python fill it in, so that no encoder is part of a load."""


def payload(number: int, sent_ns: int = 0) -> dict[str, Any]:
    """One message as keyword arguments. sent_ns: the host's clock before the enqueue call, 0 when unused."""
    return {**SHAPE, "number": number, "sent_ns": sent_ns}


def payload_json(number: int, sent_ns: int = 0) -> str:
    """The same message as JSON text."""
    return TEMPLATE.replace(NUMBER_MARK, str(number)).replace(SENT_MARK, str(sent_ns))
