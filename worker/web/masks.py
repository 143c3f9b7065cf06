"""How much each visitor sees of a text that may quote a payload (SPEC O6).

The text of an error is hidden from viewers, as values of payloads are; others see it as the log has it,
without phone numbers, addresses and secrets. The whole text is revealed with the message, which is recorded.
"""

from __future__ import annotations

import re
from dataclasses import replace

from packhorse.worker.observe.masking import mask_whole
from packhorse.worker.records import Gate
from packhorse.worker.web.access import Role, Visitor
from packhorse.worker.web.render import plural

#: What explain_running() quotes: why the database refuses to write that a message is done.
_REFUSAL = re.compile(r"(the database refused to write that): .*(\. It does not run again: )", re.DOTALL)


def error_text(text: str | None, visitor: Visitor | None) -> str | None:
    """The text of an error, or a traceback: for viewers its length alone."""
    if text is None:
        return None
    if _is_operator(visitor):
        return mask_whole(text)
    return f"••• {plural(len(text), 'character')}"


def log_text(text: str | None, visitor: Visitor | None, keys: tuple[str, ...] = ()) -> str | None:
    """A text of ours that names things, as operators see it; for others as the log has it, without these
    keys.
    """
    if text is None or _is_operator(visitor):
        return text
    for key in keys:
        text = text.replace(key, "•••")
    return mask_whole(text)


def gate(found: Gate, visitor: Visitor | None, keys: tuple[str, ...]) -> Gate:
    """A gate of explain_message(); two of them quote an error."""
    if found.gate == "last_error":
        # the class and the rest of it stand beside, by the rule for errors
        when, _, text = found.detail.partition(": ")
        said = f"{when}: {mask_whole(text)}" if _is_operator(visitor) else when
        return replace(found, detail=said)
    detail = found.detail
    if not _is_operator(visitor):
        detail = _REFUSAL.sub(r"\1\2", detail)
    return replace(found, detail=log_text(detail, visitor, keys) or "")


def _is_operator(visitor: Visitor | None) -> bool:
    return visitor is not None and visitor.may(Role.OPERATOR)
