"""The salon behind the conversation: bookings and their reminders, each a few statements in the caller's
transaction.

A booking flow is a workflow of two steps, `reserved` and `reminded`: the first is the person's choice of a
day, the second comes from the reminder, which the schedule `job.due_reminders` turns into a message of the
same conversation.
"""

from __future__ import annotations

import datetime
from typing import Any

from packhorse.platform import advance_workflow, finish_workflow, start_workflow
from packhorse.worker.db.queries import Statement

WORKFLOW = "booking"
COMPANY = 1
OPENS_AT = datetime.time(9, tzinfo=datetime.UTC)
#: A day before would be usual; a demo of half a minute shows it to its end.
REMIND_AFTER_SECONDS = 1.0

OPEN = Statement("""
with company as (
  insert into platform.companies (id, name) values (%(company)s, 'Salon Example') on conflict do nothing
), service as (
  insert into platform.services (id, company_id, title, price_min) values (%(company)s, %(company)s, 'Haircut', 25) on conflict do nothing
)
insert into platform.staff (id, company_id, name) values (%(company)s, %(company)s, 'Ann') on conflict do nothing
""")
CLIENT = Statement("""
insert into platform.clients (company_id, phone) values (%s, %s)
on conflict (company_id, phone) do update set updated_at = excluded.updated_at returning id
""")
UNDER_WAY = Statement("""
select w.id, (w.workflow_data ->> 'booking_id')::bigint from platform.workflow_states w
where w.workflow_type = %s and w.status = 'active' and platform.normalize_phone(w.user_phone::text) = platform.normalize_phone(%s)
for update
""")
RESERVE = Statement("""
insert into platform.bookings (company_id, client_id, service_id, staff_id, datetime, duration, cost)
values (%(company)s, %(client)s, %(company)s, %(company)s, %(at)s, 60, 25) returning id
""")
MOVE = Statement("update platform.bookings set datetime = %s where id = %s")
REMIND = Statement("""
insert into platform.reminders (company_id, booking_id, remind_at, expires_at, queue, message_type, payload, conversation_key)
values (%s, %s, clock_timestamp() + make_interval(secs => %s), clock_timestamp() + interval '1 day', 'whatsapp', 'whatsapp_reminder',
  jsonb_build_object('business', %s::text, 'workflow_id', %s::text, 'booking_id', %s::bigint), %s)
""")
BOOKING_ENDS = Statement("update platform.bookings set status = %s where id = %s and status = 'pending'")
REMINDER_ENDS = Statement("""
update platform.reminders r set status = e.status, sent_at = case when e.status = 'sent' then clock_timestamp() end
from (select %s::text as status) e where r.id = %s
""")


def open_salon(connection: Any) -> None:
    """A company with one service and somebody who does it; safe to repeat."""
    connection.execute(OPEN, {"company": COMPANY})


def reserve(connection: Any, business: str, phone: str, day: datetime.date) -> bool:
    """Book a day for a person, or move the booking that is under way; True when it was moved. The reminder
    comes with a new one.
    """
    at = datetime.datetime.combine(day, OPENS_AT)
    under_way = connection.execute(UNDER_WAY, (WORKFLOW, phone)).fetchone()
    if under_way is not None:
        connection.execute(MOVE, (at, under_way[1]))
        advance_workflow(under_way[0], "reserved", {"day": day.isoformat()}, connection=connection)
        return True
    client = connection.execute(CLIENT, (COMPANY, phone)).fetchone()[0]
    booking = connection.execute(RESERVE, {"company": COMPANY, "client": client, "at": at}).fetchone()[0]
    data = {"booking_id": booking, "day": day.isoformat()}
    workflow = start_workflow(
        WORKFLOW, "reserved", data, user_phone=phone, conversation_key=f"wa:{phone}", connection=connection
    )
    connection.execute(
        REMIND, (COMPANY, booking, REMIND_AFTER_SECONDS, business, str(workflow), booking, f"wa:{phone}")
    )
    return False


def cancel(connection: Any, phone: str) -> bool:
    """Cancel the booking that is under way, its reminder with it; False when there is none."""
    under_way = connection.execute(UNDER_WAY, (WORKFLOW, phone)).fetchone()
    if under_way is None:
        return False
    connection.execute(BOOKING_ENDS, ("cancelled", under_way[1]))
    return finish_workflow(under_way[0], "cancelled", connection=connection)


def remind(connection: Any, reminder: int, workflow: str, booking: int) -> bool:
    """Confirm the booking and complete its flow; False when the person has cancelled since the reminder
    became a message: nothing to send.
    """
    still_booked = bool(connection.execute(BOOKING_ENDS, ("confirmed", booking)).rowcount)
    connection.execute(REMINDER_ENDS, ("sent" if still_booked else "cancelled", reminder))
    if still_booked:
        advance_workflow(workflow, "reminded", connection=connection)
        finish_workflow(workflow, connection=connection)
    return still_booked
