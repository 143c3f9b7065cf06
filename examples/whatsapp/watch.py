"""What the database says about this run: counts by state, held conversations, fresh dead letters. Reads
only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from examples.whatsapp.assistant_api import AssistantApi
from examples.whatsapp.events import Events
from examples.whatsapp.summary import Assistant
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.db.queries import Statement

#: Statements name the schema as the queue's own do: the connection puts in what it is called.
COUNTS = Statement("""
select case when state = 'pending' and run_at > clock_timestamp() then 'waiting' else state end, count(*)
from packhorse.all_messages where correlation_id = %s group by 1
""")
BLOCKED = Statement("""
select conversation_key, waiting, coalesce(holder_kind, '') from packhorse.blocked_conversations where conversation_key like 'wa:%%'
""")
DEAD = Statement("""
select id, conversation_key, attempt, error_class, error_message from packhorse.dead_letters where correlation_id = %s
order by dead_at desc limit 20
""")
RETRYING = Statement("""
select id, conversation_key, attempt, error ->> 'class' from packhorse.message_queue
where correlation_id = %s and state = 'pending' and error ->> 'class' = 'ValueError'
""")
WORKERS = Statement("""
select count(*) from packhorse.workers where last_seen_at > clock_timestamp() - interval '20 seconds' and 'whatsapp_text' = any (message_types)
""")
DONE_WITH_REPLY = Statement("""
select coalesce(payload ->> 'wamid', payload -> 'messages' -> -1 ->> 'wamid'), attempt from packhorse.message_archive
where correlation_id = %s and state = 'done' and message_type in ('whatsapp_text', 'whatsapp_interactive', 'whatsapp_media', 'whatsapp_location')
""")

BREAKER = Statement("""
select state, opened_total from packhorse.service_endpoints where service = 'assistant' and endpoint = %s
""")
RESTING = Statement("""
select reason, probing from packhorse.parked_scopes where scope = 'assistant'
""")
ASKED = Statement("""
select payload -> 'messages' -> -1 ->> 'wamid', exists (
    select from jsonb_array_elements(history) e where (e ->> 'at')::timestamptz > (steps -> 'answer' ->> 'at')::timestamptz),
  (select count(*) from jsonb_array_elements(history) e where e ->> 'event' = 'park')
from packhorse.message_archive where correlation_id = %s and state = 'done' and message_type = 'whatsapp_text'
""")
ASKED_IN_VAIN = Statement("""
select count(*) from packhorse.dead_letters where correlation_id = %s and message_type = 'whatsapp_text'
""")


@dataclass(frozen=True, slots=True)
class Picture:
    """One look. states: pending, waiting (retry or snooze), blocked, running, done, dead, cancelled. blocked:
    phone -> (waiting, behind).
    """

    states: dict[str, int] = field(default_factory=dict)
    blocked: dict[str, tuple[int, str]] = field(default_factory=dict)
    workers: int = 0

    def count(self, *names: str) -> int:
        return sum(self.states.get(name, 0) for name in names)

    @property
    def live(self) -> int:
        """Messages of this run that have not ended."""
        return self.count("pending", "waiting", "blocked", "running")

    @property
    def ended(self) -> int:
        return self.count("done", "dead", "cancelled")


class Monitor:
    """Used by the main thread. Everything is limited to the messages of one run, by their correlation id."""

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        run_id: str,
        events: Events,
        assistant_url: str,
    ) -> None:
        self._link = Link(open_connection)
        self._run_id = run_id
        self._events = events
        self._assistant_url = assistant_url
        self._breaker = "closed"
        self._dead: set[int] = set()
        self._retrying: set[tuple[int, int]] = set()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._link.close()

    def look(self) -> Picture:
        """One consistent look. Raises StoreError when the database is away."""
        with self._link.connection() as connection, connection.transaction():
            states = dict(connection.execute(COUNTS, (self._run_id,)).fetchall())
            blocked = {
                key.removeprefix("wa:"): (waiting, kind)
                for key, waiting, kind in connection.execute(BLOCKED).fetchall()
            }
            workers = connection.execute(WORKERS).fetchone()[0]  # type: ignore[index]
            self._tell(connection)
        return Picture(states, blocked, workers)

    def done_with_reply(self) -> dict[str, int]:
        """wamid -> attempt at which it was done, for every done message that owes a reply."""
        with self._link.connection() as connection:
            return dict(connection.execute(DONE_WITH_REPLY, (self._run_id,)).fetchall())

    def assistant(self, api: AssistantApi) -> Assistant:
        """What the assistant was asked, and what became of it, by itself and by the database."""
        with self._link.connection() as connection:
            asked = connection.execute(ASKED, (self._run_id,)).fetchall()
            state, opened = connection.execute(BREAKER, (self._assistant_url,)).fetchone() or ("", 0)
            return Assistant(
                paid=api.given(),
                done=frozenset(wamid for wamid, _, _ in asked),
                reused=sum(reused for _, reused, _ in asked),
                dead=connection.execute(ASKED_IN_VAIN, (self._run_id,)).fetchone()[0],  # type: ignore[index]
                outages=api.outages,
                opened=opened,
                state=state,
                busy=api.answers.get(429, 0),
                handed_back=sum(parked for _, _, parked in asked),
                resting=len(connection.execute(RESTING).fetchall()),
            )

    def _tell(self, connection: DeadlineConnection) -> None:
        for state, _ in connection.execute(BREAKER, (self._assistant_url,)).fetchall():
            if state != self._breaker:
                self._breaker = state
                self._events.add(f"the breaker of the assistant is {state.replace('_', ' ')}")
        for message_id, key, attempt, error_class in connection.execute(RETRYING, (self._run_id,)).fetchall():
            if (message_id, attempt) not in self._retrying:
                self._retrying.add((message_id, attempt))
                self._events.add(
                    f"{_shown(key)} message {message_id}: attempt {attempt} failed ({error_class}), waits for its backoff"
                )
        for message_id, key, attempt, error_class, text in reversed(
            connection.execute(DEAD, (self._run_id,)).fetchall()
        ):
            if message_id not in self._dead:
                self._dead.add(message_id)
                self._events.add(
                    f"{_shown(key)} message {message_id}: dead after attempt {attempt}: {error_class}: {text[:60]}"
                )


def _shown(key: str | None) -> str:
    return (key or "").replace("wa:", "+")
