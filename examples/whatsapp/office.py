"""What people do at the desk while the demo ends: a guest checks out, one person asks for its data, and to be
forgotten.

Each look is compared with what must be there, so that the demo fails when the platform loses something.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

from examples.whatsapp.assistant import AGENT
from examples.whatsapp.salon import COMPANY, WORKFLOW
from packhorse.platform import erase_person_data, export_person_data
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.db.queries import Statement
from packhorse.worker.observe.masking import mask

LIMIT_SECONDS = 20.0

REMINDERS = Statement("""
select count(*) filter (where r.status = 'sent'), count(*) filter (where r.status in ('pending', 'enqueued')), count(*)
from platform.reminders r where r.created_at >= %s
""")
OPEN = Statement("""
select string_agg(format('reminder %%s is %%s, its message %%s', r.id, r.status, coalesce(m.state, 'is not there')), '; ' order by r.id)
from platform.reminders r left join packhorse.all_messages m on m.id = r.message_id
where r.status in ('pending', 'enqueued') and r.created_at >= %s
""")
DUE_IN = Statement("""
select coalesce(extract(epoch from max(r.remind_at) - clock_timestamp()), 0)::float8 from platform.reminders r
where r.status = 'pending' and r.created_at >= %s
""")
FLOWS = Statement("""
select count(*) filter (where w.status = 'completed'), count(*) filter (where w.status = 'cancelled'), count(*)
from platform.workflow_states w where w.workflow_type = %s and w.started_at >= %s
""")
REMEMBERED = Statement("""
select m ->> 'role', count(*), count(distinct m -> 'metadata' ->> 'wamid')
from platform.agent_chat_sessions s cross join lateral jsonb_array_elements(s.conversation_history) m
where s.agent_type = %s and m -> 'metadata' ->> 'wamid' = any (%s) group by 1 order by 1
""")
MOST_REMEMBERED = Statement(
    "select coalesce(max(jsonb_array_length(m.conversation_history)), 0) from platform.ai_conversation_memory m where m.agent_type = %s"
)
GUEST = Statement(
    "select g.id from platform.create_guest_session('guest@example.com', 'A Guest', '+16505550199') g"
)
GUEST_BOOKING = Statement("""
insert into platform.bookings (company_id, service_id, staff_id, guest_session_id, datetime, duration, cost)
values (%(company)s, %(company)s, %(company)s, %(guest)s, clock_timestamp() + interval '3 days', 60, 25) returning id
""")
REGISTER = Statement("select platform.convert_guest_to_user(%s, %s)")
OWNERS = Statement("select b.customer_id, b.guest_session_id from platform.bookings b where b.id = %s")


class Office:
    """Used by the main thread. lines: for people. since: the database's time at the start of the run."""

    def __init__(self, open_connection: Callable[[], DeadlineConnection]) -> None:
        self._link = Link(open_connection)
        self.lines: list[str] = []
        with self._link.connection() as connection:
            self._since = connection.execute(Statement("select clock_timestamp()")).fetchone()[0]  # type: ignore[index]

    def close(self) -> None:
        self._link.close()

    def wait_until_due(self) -> None:
        """Until the last reminder of this run may be sent. Raises StoreError."""
        with self._link.connection() as connection:
            seconds = connection.execute(DUE_IN, (self._since,)).fetchone()[0]  # type: ignore[index]
        time.sleep(max(0.0, min(seconds, LIMIT_SECONDS)))

    def wait_for_reminders(self) -> list[str]:
        """Until each reminder of this run is sent or cancelled; what is wrong, [] when nothing is. Raises
        StoreError.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        with self._link.connection() as connection:
            while True:
                sent, open_, made = connection.execute(REMINDERS, (self._since,)).fetchone()  # type: ignore[misc]
                if not open_:
                    break
                if time.monotonic() > deadline:
                    return [
                        f"bookings: {open_} reminders did not end: {connection.execute(OPEN, (self._since,)).fetchone()[0]}"
                    ]  # type: ignore[index]
                time.sleep(0.1)  # a rhythm; each look is one statement
            completed, given_up, begun = connection.execute(FLOWS, (WORKFLOW, self._since)).fetchone()  # type: ignore[misc]
        self.lines.append(
            f"bookings: {begun} flows begun, {completed} reminded and completed, {given_up} cancelled by the person"
        )
        problems = []
        if begun != completed + given_up:
            problems.append(f"bookings: {begun} flows, but {completed} completed and {given_up} cancelled")
        if (made, sent) != (begun, completed):
            problems.append(
                f"bookings: {made} reminders of {begun} flows, {sent} sent for {completed} completed ones"
            )
        return problems

    def look_at_memory(self, asked: frozenset[str]) -> list[str]:
        """Of each question and answer one copy in the sessions, and no memory of more than twenty. asked:
        wamids of the answered questions.
        """
        with self._link.connection() as connection:
            found = {
                role: (count, whose)
                for role, count, whose in connection.execute(REMEMBERED, (AGENT, sorted(asked))).fetchall()
            }
            longest = connection.execute(MOST_REMEMBERED, (AGENT,)).fetchone()[0]  # type: ignore[index]
        self.lines.append(
            f"memory: {sum(count for count, _ in found.values())} messages of {len(asked)} questions in the sessions, at most {longest} in a memory"
        )
        problems = [
            f"memory: {count} messages of the {role} for {whose} of {len(asked)} questions"
            for role, (count, whose) in found.items()
            if not count == whose == len(asked)
        ]
        if asked and len(found) != 2:
            problems.append("memory: the sessions hold one side of the conversation only")
        return problems + ([f"memory: {longest} messages in one, at most 20"] if longest > 20 else [])

    def check_out_a_guest(self) -> list[str]:
        """A guest books without an account, registers afterwards, and finds the booking."""
        user = uuid4()
        with self._link.connection() as connection, connection.transaction():
            guest = connection.execute(GUEST).fetchone()[0]  # type: ignore[index]
            booking = connection.execute(GUEST_BOOKING, {"company": COMPANY, "guest": guest}).fetchone()[0]  # type: ignore[index]
            moved = connection.execute(REGISTER, (guest, user)).fetchone()[0]  # type: ignore[index]
            owners = connection.execute(OWNERS, (booking,)).fetchone()
        self.lines.append(f"guest checkout: {moved} booking moved to the customer who registered afterwards")
        return (
            []
            if (moved, owners) == (1, (user, None))
            else [f"guest checkout: {moved} moved, the booking belongs to {owners}"]
        )

    def forget(self, phone: str) -> list[str]:
        """Export all of a person's data, erase it, and see that nothing is left."""
        with self._link.connection() as connection, connection.transaction():
            before = _sizes(export_person_data(phone=phone, connection=connection))
            erased = erase_person_data(phone=phone, reason="asked for in the demo", connection=connection)
            after = _sizes(export_person_data(phone=phone, connection=connection))
        rows = sum(erasure.rows for erasure in erased)
        self.lines.append(
            f"person {mask('+' + phone)}: {sum(before.values())} rows of {len(before)} tables exported, {rows} erased, {sum(after.values())} left"
        )
        problems = [] if before.get("agent_chat_sessions") else ["person: the export has no session"]
        return problems + [
            f"person: {count} rows of {table} are still there" for table, count in after.items()
        ]


def _sizes(export: object) -> dict[str, int]:
    """Rows per table of an export, without empty ones."""
    assert isinstance(export, dict)
    return {table: len(rows) for table, rows in export.items() if isinstance(rows, list) and rows}
