"""How a row of a foreign queue table becomes a message: which column is which field, which word means which
state.

Pure: columns and choices in, a Mapping (or every problem at once) out; a row as texts in, a Draft out.
Defaults are found by column name, in the order of CANDIDATES; choices override them. What cannot be a message
becomes a dead letter with the row's payload as text: nothing is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from typing import Any, Literal

from packhorse.worker.errors import ConfigError

#: Field of a message -> names of columns that mean it, the first that exists counts; for times of start, the
#: latest of all.
CANDIDATES: dict[str, tuple[str, ...]] = {
    "queue": ("queue", "queue_name"),
    "message_type": (
        "message_type",
        "type",
        "task",
        "task_name",
        "job_type",
        "event_type",
        "actor",
        "handler",
    ),
    "payload": (
        "payload",
        "data",
        "kwargs",
        "args",
        "body",
        "message_data",
        "job_data",
        "message",
        "content",
    ),
    "priority": ("priority",),
    "status": ("status", "state"),
    "run_at": (
        "run_at",
        "scheduled_at",
        "scheduled_for",
        "next_retry_at",
        "next_attempt_at",
        "retry_at",
        "available_at",
        "visible_at",
        "process_after",
    ),
    "attempt": ("attempt", "attempts", "attempt_count", "retry_count", "retries", "tries"),
    "max_attempts": ("max_attempts", "max_retries", "max_tries"),
    "conversation_key": ("conversation_key", "conversation_id"),
    "dedup_key": ("dedup_key", "deduplication_key", "idempotency_key"),
    "correlation_id": ("correlation_id", "request_id", "trace_id"),
    "error": ("last_error", "error_message", "error", "failure_reason"),
    "created_at": ("created_at", "inserted_at", "enqueued_at", "created"),
    "expires_at": ("expires_at",),
    "finished_at": ("completed_at", "processed_at", "finished_at", "done_at"),
}
TIMES = frozenset({"run_at", "created_at", "expires_at", "finished_at"})
#: Fields whose values can be given instead of a column, and what stands there when there is neither.
DEFAULTS = {"queue": "default", "message_type": None, "priority": "5", "max_attempts": None}
#: Word -> what becomes of a row: a pending message, a dead letter, nothing (it has finished). Running ones
#: need a decision.
Fate = Literal["pending", "dead", "finished"]
STATUSES: dict[str, str] = {
    **dict.fromkeys(
        (
            "",
            "pending",
            "queued",
            "waiting",
            "new",
            "created",
            "ready",
            "available",
            "scheduled",
            "delayed",
            "retry",
            "retrying",
        ),
        "pending",
    ),
    **dict.fromkeys(
        ("failed", "dead", "error", "errored", "dead_letter", "discarded", "rejected", "exhausted"), "dead"
    ),
    **dict.fromkeys(
        (
            "done",
            "completed",
            "complete",
            "success",
            "succeeded",
            "processed",
            "sent",
            "finished",
            "cancelled",
            "canceled",
            "skipped",
            "expired",
            "archived",
            "deleted",
        ),
        "finished",
    ),
}
RUNNING = frozenset(
    {"running", "processing", "in_progress", "active", "locked", "claimed", "started", "executing"}
)
PRIORITIES = {
    "critical": 1,
    "urgent": 1,
    "highest": 1,
    "high": 3,
    "normal": 5,
    "medium": 5,
    "default": 5,
    "low": 8,
    "lowest": 10,
}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,99}")
#: A payload of more bytes is not read; message_json takes 1 MiB as jsonb, which text can exceed.
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
MAX_TEXT = 1_000_000


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator said: field -> column(s), field -> value, (field, old value) -> new value."""

    columns: Dict[str, str] = field(default_factory=dict)
    values: Dict[str, str] = field(default_factory=dict)
    words: Dict[str, Dict[str, str]] = field(default_factory=dict)

    def over(self, older: Choices) -> Choices:
        """These choices, and where they are silent the older ones."""
        words = {
            name: {**older.words.get(name, {}), **self.words.get(name, {})}
            for name in {*older.words, *self.words}
        }
        columns = {k: v for k, v in older.columns.items() if k not in self.values} | dict(self.columns)
        values = {k: v for k, v in older.values.items() if k not in self.columns} | dict(self.values)
        return Choices(columns, values, words)


@dataclass(frozen=True, slots=True)
class Mapping:
    """field -> its columns (several: the latest of times, an object of payload columns); fixed values;
    words.
    """

    columns: dict[str, tuple[str, ...]]
    values: dict[str, str | None]
    words: dict[str, dict[str, str]]

    def fate(self, status: str | None, finished: str | None = None) -> str | None:
        """pending, dead or finished; None for a word that nobody has explained, or that says "running"."""
        if "status" not in self.columns:
            return "pending" if finished is None else "finished"
        word = (status or "").strip().lower()
        own = {key.strip().lower(): value for key, value in self.words.get("status", {}).items()}
        return own.get(word) or STATUSES.get(word)

    def word(self, name: str, value: str | None) -> str | None:
        """The name of a queue or message type: the fixed one where the row has none, renamed as the operator
        said.
        """
        value = value or self.values[name]
        return self.words.get(name, {}).get(value or "", value)


@dataclass(frozen=True, slots=True)
class Draft:
    """One row, ready to be written. reason: why it is a dead letter although the old system had not given it
    up.
    """

    message_id: int
    legacy_id: str
    outcome: Literal["message", "dead_letter", "undecodable", "finished", "gone"]
    queue: str = "default"
    message_type: str = "unknown"
    payload: str = "{}"
    priority: int = 5
    run_at: str | None = None
    attempt: int = 0
    max_attempts: int | None = None
    conversation_key: str | None = None
    dedup_key: str | None = None
    correlation_id: str | None = None
    error: str | None = None
    created_at: str | None = None
    expires_at: str | None = None
    reason: str | None = None


def choose(columns: Dict[str, str], choices: Choices) -> Mapping:
    """The mapping for a table with these columns (name -> type). Raises ConfigError with every problem."""
    problems = []
    for name in {*choices.columns, *choices.values, *choices.words} - set(CANDIDATES):
        problems.append(f"{name[:60]}: not a field of a message; there is: {', '.join(CANDIDATES)}")
    for name in set(choices.values) - set(DEFAULTS):
        if name in CANDIDATES:
            problems.append(f"{name}: cannot be set to a value; these can: {', '.join(DEFAULTS)}")
    for name in set(choices.words) - {"status", "queue", "message_type"}:
        if name in CANDIDATES:
            problems.append(
                f"{name}: its values cannot be renamed; those of status, queue and message_type can"
            )
    for name, fate in choices.words.get("status", {}).items():
        if fate not in ("pending", "dead", "finished"):
            problems.append(
                f"status: {name[:40]!r} cannot become {fate[:40]!r}; it can be pending, dead or finished"
            )
    found: dict[str, tuple[str, ...]] = {}
    for name, candidates in CANDIDATES.items():
        if name in choices.columns:
            found[name], wrong = _given(name, choices.columns[name], columns)
            problems += wrong
        elif name not in choices.values:
            fitting = [column for column in candidates if column in columns and _fits(name, columns[column])]
            found[name] = tuple(fitting if name == "run_at" else fitting[:1])
    values: dict[str, str | None] = {
        name: choices.values.get(name, default) for name, default in DEFAULTS.items()
    }
    mapped = {name: given for name, given in found.items() if given}
    if "message_type" not in mapped and values["message_type"] is None:
        problems.append(
            "message_type: no column says which handler a row is for. Say --map message_type=COLUMN, or --set message_type=NAME"
        )
    if "payload" not in mapped and "payload" not in choices.columns:
        problems.append(
            "payload: no column is the payload. Say --map payload=COLUMN, or several, separated by commas, to become its keys"
        )
    for name in ("queue", "message_type"):
        value = values[name]
        if value is not None and not NAME.fullmatch(value):
            problems.append(
                f"{name}: {value[:60]!r} is not a name: a letter or underscore, then letters, digits, . _ or -; 100 at most"
            )
        problems += [
            f"{name}: {new[:60]!r} is not a name"
            for new in choices.words.get(name, {}).values()
            if not NAME.fullmatch(new)
        ]
    if problems:
        raise ConfigError(sorted(problems))
    return Mapping(mapped, values, {name: dict(words) for name, words in choices.words.items()})


def _given(name: str, text: str, columns: Dict[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """The columns that an operator named. A payload keeps the comma at its end: one column as a key."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if name not in ("payload", "run_at") and len(parts) != 1:
        return (), [f"{name}: takes one column, not {text[:60]!r}"]
    wrong = [f"{name}: the table has no column {part[:60]!r}" for part in parts if part not in columns]
    wrong += [
        f"{name}: the column {part} is {columns[part]}, not a time"
        for part in parts
        if part in columns and not _fits(name, columns[part])
    ]
    if name == "payload" and text.strip().endswith(","):
        parts = (*parts, "")
    return parts, wrong


def _fits(name: str, column_type: str) -> bool:
    return name not in TIMES or column_type.startswith(("timestamp", "date"))


def draft(row: dict[str, Any], mapping: Mapping) -> Draft:
    """One row of the old table, its fields as texts, as what it becomes. Never raises for what stands in a
    row.
    """
    message_id, legacy_id = row["message_id"], row["legacy_id"]
    if not row["here"]:
        return Draft(message_id, legacy_id, "gone", reason="the row was deleted in the meantime")
    fate = mapping.fate(row["status"], row["finished_at"])
    if fate == "finished":
        return Draft(
            message_id, legacy_id, "finished", reason=f"its state is {(row['status'] or 'finished')[:40]}"
        )
    queue, kind = mapping.word("queue", row["queue"]), mapping.word("message_type", row["message_type"])
    payload, problem = _payload(row["payload"], row["payload_bytes"])
    for name, value in (("queue", queue), ("message_type", kind)):
        if not NAME.fullmatch(value or ""):
            problem = problem or f"{name}: {(value or '')[:60]!r} is not a name"
    if fate is None:
        problem = problem or f"status: nobody has said what {(row['status'] or '')[:40]!r} means"
    made = Draft(
        message_id,
        legacy_id,
        "dead_letter" if fate == "dead" else "message",
        queue=queue or "",
        message_type=kind or "",
        payload=payload,
        priority=_priority(row["priority"] or mapping.values["priority"]),
        run_at=row["run_at"],
        attempt=_count(row["attempt"], 0) or 0,
        max_attempts=_count(row["max_attempts"] or mapping.values["max_attempts"], 1),
        conversation_key=row["conversation_key"] or None,
        dedup_key=(row["dedup_key"] or "")[:500] or None,
        correlation_id=(row["correlation_id"] or "")[:500] or None,
        error=(row["error"] or "")[:2000] or None,
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )
    return undecodable(made, row["payload"], problem) if problem else made


def undecodable(made: Draft, payload: str | None, problem: str) -> Draft:
    """The same row as a dead letter that any table takes: its payload as text, its names only where they are
    names.
    """
    text = payload if payload is not None and len(payload) <= MAX_TEXT else None
    kept = (
        {"legacy_id": made.legacy_id, "legacy_payload": text}
        if text is not None
        else {"legacy_id": made.legacy_id}
    )
    return Draft(
        made.message_id,
        made.legacy_id,
        "undecodable",
        queue=made.queue if NAME.fullmatch(made.queue) else "default",
        message_type=made.message_type[:100] or "unknown",
        payload=json.dumps(kept),
        attempt=made.attempt,
        conversation_key=made.conversation_key,
        correlation_id=made.correlation_id,
        reason=problem[:500],
    )


def _payload(text: str | None, size: int | None) -> tuple[str, str | None]:
    """The JSON object as text, or {} and what is wrong with it. The server has the last word."""
    if (size or 0) > MAX_PAYLOAD_BYTES:
        return "{}", f"payload: {size} bytes; it stays in the old table"
    if text is None or text.strip() in ("", "null"):
        return "{}", None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "{}", "payload: not JSON"
    if not isinstance(value, dict):
        return "{}", f"payload: a JSON object is wanted, not {type(value).__name__}"
    return text, None


def _priority(text: str | None) -> int:
    word = (text or "").strip().lower()
    return PRIORITIES.get(word) or min(10, max(1, _count(word, None) or 5))


def _count(text: str | None, least: int | None) -> int | None:
    """A whole number between least and a million; None when it is none."""
    try:
        number = round(float(text or ""))
    except (ValueError, OverflowError):
        return None
    return min(1_000_000, number if least is None else max(least, number))


def unexplained(statuses: Iterable[Dict[str, Any]], mapping: Mapping) -> list[str]:
    """A sentence for every word in the status column that needs a decision, with the option that makes it."""
    problems = []
    for row in statuses:
        if mapping.fate(row["status"], row["finished_at"]) is None:
            word = str(row["status"])[:60]
            running = word.strip().lower() in RUNNING
            problems.append(
                f"status: {row['rows']} rows are {word!r}"
                + (". Stop the old workers, then say" if running else ", which nobody has explained. Say")
                + f" --value 'status:{word}=pending' (start it again), =dead (a dead letter) or =finished (leave it aside)"
            )
    return problems
