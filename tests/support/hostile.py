"""Ten thousand hostile messages, and what must never be seen of them in a log line or a series.

MARKS are in payloads and keys only: nobody may show them. PERSONAL is in everything a producer controls, and
handlers log it themselves: nobody may show it unmasked. FORGED begins a line that only a forger writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.support.postgres import Database

MARK, NUMBER = "qzxmark", 840275913
FORGED = "forged_by_a_message"
#: Values of a payload: its texts, its keys, its numbers.
MARKS = re.compile(rf"{MARK}|(?<![\d.]){NUMBER}")
PERSONAL = re.compile(r"(?<![\d.])25078\d{7}|user\d+@hostile|s3kr1t|sk_live_\d{8}")
#: How a handler of tests/support/hostile_actors.py ends; the state of each in the end.
ENDINGS = {
    "says": "done",
    "returns": "done",
    "warns": "done",
    "thread": "done",
    "finalizer": "done",
    "nosy": "done",
    "cancels": "cancelled",
    "plain": "dead",
    "cause": "dead",
    "context": "dead",
    "group": "dead",
    "noted": "dead",
    "frames": "dead",
    "endless": "dead",
    "mute": "dead",
    "renamed": "dead",
    "buries": "dead",
    "system_exit": "dead",
}
LINE = f'\r\n{{"event": "{FORGED}", "level": "critical"}}\n\x1b[2J\x1b]0;{FORGED}\x07\u2028\u202e" {{}} }}\\ %s %(x)s'
#: As odd as a queue's name may be.
DECLARED = [f"_.-_{n}-{'Q.' * 45}"[:100] for n in range(150)]
BROKEN_OPTIONS: list[Any] = [
    {"args": 5},
    {"args": {"a": MARK}},
    {"args": MARK},
    {"message_id": {"a": MARK}},
    {"message_id": LINE},
    {"time_limit": MARK},
    {"max_age": MARK},
    {"max_age": 1},
    {"retries": MARK},
    {"max_retries": MARK},
    {"max_backoff": [MARK]},
    {"on_failure": MARK},
    {"on_success": {MARK: MARK}},
    {"pipe_target": MARK},
    {"group_callbacks": MARK},
    {MARK: MARK},
    {"throws": MARK},
    {"on_retry_exhausted": LINE},
    {"redis_message_id": [[[[MARK]]]]},
]
BROKEN_PAYLOADS = [
    '{"a": ' + "[" * 3000 + "]" * 3000 + "}",
    f'{{"{MARK}": {"9" * 6000}}}',
    f'{{"how": "plain", "how ": 1e400, "{MARK}": 1{"0" * 5000}}}',
]
INSERT = """
insert into message_queue (queue, message_type, payload, options, max_attempts, conversation_key, dedup_key, correlation_id)
select r.queue, r.message_type, r.payload::jsonb, r.options::jsonb, 1, r.conversation_key, r.dedup_key, r.correlation_id
from jsonb_to_recordset(%s) as r (queue text, message_type text, payload text, options text, conversation_key text, dedup_key text, correlation_id text)
"""


def personal(n: int) -> str:
    """Who it is about: a phone number, an address, two secrets, and a forged line."""
    return f"+25078{n:07d} user{n}@hostile.example password=s3kr1t{n} sk_live_{n:020d}{LINE}"


def payload(n: int, how: str) -> dict[str, Any]:
    """Marks as keys, texts, numbers, nested; every eightieth is long."""
    return {
        "how": how,
        "key": f"{MARK}{n}",
        f"{MARK}{n}": LINE,
        "number": NUMBER * 10**6 + n,
        "nested": {"a": [f"{MARK}{n}", {f"{MARK}{n}": [NUMBER + n / 7]}]},
        "about": personal(n),
        "password": f"{MARK}{n}",
        "text": f'packhorse_{MARK}{{a="b"}} {n}\n# EOF\n' * (2000 if n % 80 == 0 else 1),
    }


def _row(n: int, queue: str, message_type: str, content: str, options: Any = None) -> dict[str, Any]:
    return {
        "queue": queue,
        "message_type": message_type,
        "payload": content,
        "options": json.dumps(options or {}),
        "conversation_key": f"{MARK}{n} {personal(n)}"[:500],
        "dedup_key": f"{MARK}{n}{LINE}",
        "correlation_id": f"c{n} {personal(n)}".ljust(500 if n % 500 == 0 else 0, "x")[:500],
    }


def messages(count: int) -> Iterator[dict[str, Any]]:
    """`count` rows. Of each hundred: 45 for handlers, 5 undecodable or with broken options, 40 of unknown
    types, 5 on queues that nobody works on, 5 on queues that nobody has declared."""
    hows = list(ENDINGS)
    for n in range(count):
        match n % 100:
            case place if place < 45:
                yield _row(
                    n, "default", "hostile", json.dumps(payload(n, hows[(n // 100 * 45 + place) % len(hows)]))
                )
            case 45 | 46:
                yield _row(n, "default", "hostile", BROKEN_PAYLOADS[n // 100 % len(BROKEN_PAYLOADS)])
            case 47 | 48:
                yield _row(
                    n,
                    "default",
                    "hostile",
                    json.dumps(payload(n, "plain")),
                    BROKEN_OPTIONS[n // 50 % len(BROKEN_OPTIONS)],
                )
            case 49:
                yield _row(n, "default", "strict", json.dumps(payload(n, "plain")))
            case place if place < 90:
                yield _row(n, "default", f"type{n}.HELP", json.dumps(payload(n, "plain")))
            case place if place < 95:
                yield _row(n, DECLARED[n % len(DECLARED)], "hostile", json.dumps(payload(n, "plain")))
            case _:
                yield _row(n, f"queue{n}.HELP", "hostile", json.dumps(payload(n, "plain")))


def insert(database: Database, count: int) -> None:
    """As a SQL producer may: rows, in a few transactions."""
    rows = list(messages(count))
    database.query("select declare_queue(name) from unnest(%s::text[]) as name", DECLARED, admin=False)
    for first in range(0, count, 1000):
        database.query(INSERT, json.dumps(rows[first : first + 1000]), admin=False)
    database.query("select wake_queue('default')", admin=False)
