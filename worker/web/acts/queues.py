"""Acts on queues: pause, resume, settings with a preview (SPEC Q8)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument, StoreRejected
from packhorse.worker.ops import retries
from packhorse.worker.store import inspection, operations
from packhorse.worker.web.access import Role
from packhorse.worker.web.forms import ActForm, FormField, Place, Preview, Submission

QUEUE = FormField("queue", "Queue", required=True, target=True)

#: Setting -> what it is called, and what helps to write it, or what it may be. Each may be `none` where no
#: limit makes sense; the database checks them.
SETTINGS: Mapping[str, tuple[str, str | Mapping[str, str]]] = {
    "fair_share": ("Tenants take turns", {"false": "no", "true": "yes: by fairness key, or by key"}),
    "max_concurrency": ("At once, in the fleet", "empty: no limit"),
    "max_concurrency_per_key": ("At once per concurrency key", "empty: no limit"),
    "rate_limit": ("Starts per interval", "empty: no limit"),
    "rate_interval": ("The interval", "00:00:01, 1 minute"),
    "rate_burst": ("In a burst", "empty: as many as per interval"),
    "rate_limit_per_key": ("Starts per interval and concurrency key", "empty: no limit"),
    "rate_interval_per_key": ("The interval of a key", "00:00:01, 1 minute"),
    "rate_burst_per_key": ("In a burst of a key", "empty: as many as per interval"),
    "max_attempts": ("Attempts", ""),
    "crash_limit": ("Crashes allowed", ""),
    "backoff_initial": ("First wait after a failure", "5 seconds"),
    "backoff_multiplier": ("Times", ""),
    "backoff_max": ("Longest wait", "1 hour"),
    "backoff_jitter": ("Jitter", "0 to 1"),
    "on_dead": (
        "A dead letter of a conversation",
        {"skip": "skip: the conversation goes on", "block": "block: it waits until somebody acts"},
    ),
    "failure_breaker": ("Failure breaker", "after so many failures of one cause; empty: none"),
    "forward": (
        "Forwarded to",
        {"": "nobody: workers run its messages", "amqp": "amqp: a relay publishes them to RabbitMQ"},
    ),
    "keep_done": ("Done messages are kept", "7 days, 0"),
}


def _field(name: str) -> FormField:
    label, help = SETTINGS[name]
    if isinstance(help, str):
        return FormField(name, label, hint=help)
    return FormField(name, label, "choice", choices=help)


def at_queue(given: Submission) -> Place:
    return f"/queues/{quote(given.text('queue'), safe='')}", {}


def _switch(
    function: Callable[[DeadlineConnection, str, str, str | None], bool], done: str, already: str
) -> Callable[[DeadlineConnection, Submission], str]:
    def run(connection: DeadlineConnection, given: Submission) -> str:
        return f"{given['queue']} {done if function(connection, given['queue'], given.operator, given.reason) else already}."

    return run


def _prefill(connection: DeadlineConnection, given: Submission) -> Mapping[str, str]:
    found = operations.queue_settings(connection, given["queue"])
    return {name: "" if found[name] is None else _shown(found[name]) for name in SETTINGS}


def _changes(connection: DeadlineConnection, given: Submission) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is now, and what the form says otherwise."""
    now = operations.queue_settings(connection, given["queue"])
    return now, {
        name: value
        for name in SETTINGS
        if name in given.texts and (value := _value(given.text(name))) != now[name]
    }


def _value(text: str) -> Any:
    """A number as one, true and false, nothing as none, else text: intervals are PostgreSQL's."""
    word = text.strip().lower()
    if word in ("", "none", "null"):
        return None
    if word in ("true", "false"):
        return word == "true"
    try:
        number = json.loads(text)
    except ValueError:
        return text.strip()
    return (
        number
        if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        else text.strip()
    )


def _set_preview(connection: DeadlineConnection, given: Submission) -> Preview:
    now, changes = _changes(connection, given)
    lines = [
        line
        for name, value in changes.items()
        for line in (f"-{name}: {_shown(now[name])}", f"+{name}: {_shown(value)}")
    ]
    warnings = []
    limit = changes.get("max_concurrency")
    depths = inspection.depths(connection) if isinstance(limit, int) else []
    running = next((int(row["running"]) for row in depths if row["queue"] == given["queue"]), 0)
    if isinstance(limit, int) and running > limit:
        warnings.append(f"{running} run now: they go on, and no other starts until fewer than {limit} do.")
    if changes:
        warnings.append(
            f"Before: {retries.span_sentence(operations.retry_span(connection, given['queue']))}."
        )
    return Preview(
        "This is changed, within seconds:" if changes else "Nothing is changed.",
        tuple(lines),
        tuple(warnings),
        len(changes),
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _set(connection: DeadlineConnection, given: Submission) -> str:
    _, changes = _changes(connection, given)
    if not changes:
        raise InvalidArgument("nothing is changed: every field is as it was")
    operations.set_queue(connection, given["queue"], changes, given.operator, given.reason)
    span = retries.span_sentence(operations.retry_span(connection, given["queue"]))
    return f"{', '.join(changes)} of {given['queue']} changed. {span[:1].upper()}{span[1:]}."


def _set_words(given: Submission) -> list[str]:
    said = [f"{name}={given.text(name).strip() or 'none'}" for name in SETTINGS if name in given.texts]
    return ["queue", "set", str(given["queue"]), *(said or ["NAME=VALUE"])]


def _pause_all(connection: DeadlineConnection, given: Submission) -> str:
    names = operations.pause_all_queues(connection, given.operator, given.reason)
    return f"Paused: {', '.join(names) or 'none, all were paused already'}."


def _resume_all(connection: DeadlineConnection, given: Submission) -> str:
    names = operations.resume_all_queues(connection, given.operator, given.reason)
    return f"These go on: {', '.join(names) or 'none, for no queue was paused with all others'}."


def _delete(connection: DeadlineConnection, given: Submission) -> str:
    operations.require_queue(connection, given["queue"])
    try:
        operations.delete_queue(connection, given["queue"], given.operator, given.reason)
    except StoreRejected as error:
        raise InvalidArgument(str(error), hint="Move, redrive or purge what is there first") from error
    return f"The queue {given['queue']} is deleted."


QUEUE_ACTS = (
    ActForm(
        "queue.pause",
        Role.OPERATOR,
        "Pause",
        "Start nothing more from it; what runs goes on.",
        (QUEUE,),
        lambda given: ["queue", "pause", str(given["queue"])],
        at_queue,
        run=_switch(operations.pause_queue, "is paused", "was paused already"),
    ),
    ActForm(
        "queue.resume",
        Role.OPERATOR,
        "Resume",
        "Let it go on.",
        (QUEUE,),
        lambda given: ["queue", "resume", str(given["queue"])],
        at_queue,
        run=_switch(operations.resume_queue, "goes on", "was not paused"),
    ),
    ActForm(
        "queue.set",
        Role.OPERATOR,
        "Change settings",
        "Limits, retries and keeping; they work within seconds, without a restart. An empty field means none.",
        (QUEUE, *map(_field, SETTINGS)),
        _set_words,
        at_queue,
        run=_set,
        prefill=_prefill,
        preview=_set_preview,
    ),
    ActForm(
        "queue.delete",
        Role.ADMIN,
        "Delete",
        "Remove a queue that nothing uses any more, with its settings.",
        (QUEUE,),
        lambda given: ["queue", "delete", str(given["queue"])],
        lambda given: ("/queues", {}),
        run=_delete,
        danger=True,
    ),
    ActForm(
        "queues.pause",
        Role.ADMIN,
        "Pause all queues",
        "A maintenance window: pause every queue that is not paused. What runs goes on; a queue that is declared later is not paused.",
        (),
        lambda given: ["queue", "pause", "--all"],
        lambda given: ("/queues", {}),
        run=_pause_all,
        danger=True,
    ),
    ActForm(
        "queues.resume",
        Role.ADMIN,
        "Resume all queues",
        "Let those go on that were paused with all others. What somebody paused singly stays paused.",
        (),
        lambda given: ["queue", "resume", "--all"],
        lambda given: ("/queues", {}),
        run=_resume_all,
    ),
)
