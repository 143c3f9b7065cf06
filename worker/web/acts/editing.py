"""What one message carries: shown to who may see it, and edited while it waits; an edit of a dead letter
shares the form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument, NotFound, StoreRejected
from packhorse.worker.ops import messages
from packhorse.worker.ops.messages import NEVER, Edit
from packhorse.worker.ops.payloads import CHANGED_MEANWHILE, difference, read_object
from packhorse.worker.records import Row
from packhorse.worker.store import acts, operations
from packhorse.worker.store.json_text import to_json
from packhorse.worker.store.rows import decoded
from packhorse.worker.web.access import Role
from packhorse.worker.web.acts.messages import ID, at_message, not_possible
from packhorse.worker.web.forms import ActForm, FormField, Preview, Submission

PAYLOAD = FormField("payload", "Payload", "payload", required=True, hint="A JSON object")
#: The payload that the editor has seen.
BEFORE = FormField("before", "", "payload", target=True)
FRESH = FormField("fresh", "Forget its steps: everything is done again", "flag")


def _waiting(connection: DeadlineConnection, number: int) -> acts.Editable:
    found = acts.editable(connection, number)
    if found is None:
        raise NotFound("message", number)
    if found.state not in ("pending", "blocked"):
        raise not_possible(number, found.state, operations.holder(connection, number))
    return found


def _load(connection: DeadlineConnection, given: Submission) -> Mapping[str, str]:
    """The payload as a person edits it: a look, which is recorded."""
    found = _waiting(connection, given["id"])
    acts.reveal(connection, given["id"], given.operator, given.reason)
    limits = {"max_attempts": str(found.max_attempts or ""), "expires_at": str(found.expires_at or "")}
    return {"payload": pretty_text(found.payload), "before": found.payload, **limits}


def pretty_text(payload: str) -> str:
    """JSON text with a line for each value, in the order of the database; as it is where Python cannot read
    it.
    """
    found = decoded(payload)
    return payload if isinstance(found, str) else json.dumps(found, indent=2, ensure_ascii=False)


def _edit_preview(connection: DeadlineConnection, given: Submission) -> Preview:
    found = _waiting(connection, given["id"])
    lines = difference(read_object("before", given.text("before")), given["payload"])
    limits = []
    if given["max_attempts"] not in (None, found.max_attempts):
        limits += [
            f"-max_attempts: {found.max_attempts or 'as actor and queue say'}",
            f"+max_attempts: {given['max_attempts']}",
        ]
    if given["expires_at"] not in (None, found.expires_at):
        limits += [
            f"-expires_at: {found.expires_at or 'never'}",
            f"+expires_at: {given['expires_at'] or 'never'}",
        ]
    keeps = bool(lines and found.steps and not given["fresh"])
    warnings = [
        f"{len(found.steps)} step(s) have stored what they made of the old payload: they are not done again."
    ] * keeps
    said = "This is changed:" if lines or limits else "Nothing is changed."
    return Preview(said, (*lines, *limits), tuple(warnings), len(lines) + len(limits))


def _edit(connection: DeadlineConnection, given: Submission) -> str:
    before = given.text("before")
    found = _waiting(connection, given["id"])
    wanted = Edit(max_attempts=given["max_attempts"] if given["max_attempts"] != found.max_attempts else None)
    if given["expires_at"] != found.expires_at:
        wanted = replace(wanted, expires_at=given["expires_at"] or NEVER)
    if read_object("before", before) != given["payload"]:
        wanted = replace(
            wanted, payload=to_json("payload", given["payload"]), before=before, fresh=given["fresh"]
        )
    with ChangedByNobodyElse():
        answer = messages.edit(connection, given["id"], wanted, given.operator, given.reason)
    if answer != "edited":
        raise not_possible(given["id"], answer, operations.holder(connection, given["id"]))
    return f"Message {given['id']} is changed."


def _reveal(connection: DeadlineConnection, given: Submission) -> Row:
    found = acts.reveal(connection, given["id"], given.operator, given.reason)
    if found is None:
        raise NotFound("message", given["id"])
    return found


class ChangedByNobodyElse:
    """Around an edit of what was read before: that somebody else has changed it since is said at the
    payload.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, StoreRejected) and error.sqlstate == CHANGED_MEANWHILE:
            raise InvalidArgument(
                f"payload: {error}", field="payload", hint="Nothing was changed: load it again"
            ) from error


EDITING_ACTS = (
    ActForm(
        "message.edit",
        Role.OPERATOR,
        "Edit",
        "Change the payload of a message that waits, its attempts or its expiry. Loading the payload is a look at it, which is recorded.",
        (
            ID,
            PAYLOAD,
            FRESH,
            FormField("max_attempts", "Tried so often at most", "integer", least=1, most=1_000_000),
            FormField(
                "expires_at",
                "Worth doing until then",
                "moment",
                hint="ISO 8601 with its zone; empty: for ever",
            ),
            BEFORE,
        ),
        lambda given: ["message", "edit", str(given["id"]), "--payload", "FILE"],
        at_message,
        run=_edit,
        load=_load,
        preview=_edit_preview,
    ),
    ActForm(
        "message.reveal",
        Role.OPERATOR,
        "Reveal",
        "See what the message carries: payload, options, details of its error, what its steps stored. The look is recorded with your name.",
        (ID,),
        lambda given: ["message", "show", str(given["id"]), "--step-values"],
        at_message,
        show=_reveal,
    ),
)
