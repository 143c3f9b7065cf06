-- The step by which due reminders become messages of the queue (SPEC C6). A reminder and its message are
-- written in one transaction.

create or replace function platform.enqueue_reminder(p_id bigint, p_now timestamptz) returns text
language plpgsql as $$
-- Used by enqueue_due_reminders, which has locked the reminder: it becomes a message, or is set aside; its
-- new status. The phone is the reminder's, else that of the booking's client, else that of its guest.
declare
  v_reminder record;
  v_status text := 'failed';
  v_error text;
  v_message_id bigint;
begin
  select r.*, b.finished_at as booking_finished_at,
    coalesce(r.phone, c.phone, g.phone)::text as reached_at into v_reminder
  from platform.reminders r left join platform.bookings b on b.id = r.booking_id
  left join platform.clients c on c.id = b.client_id left join platform.guest_sessions g
    on g.id = b.guest_session_id
  where r.id = p_id;
  if v_reminder.booking_finished_at is not null then
    v_status := 'cancelled';
  elsif v_reminder.expires_at <= p_now then
    v_status := 'expired';
  elsif v_reminder.reached_at is null then
    v_error := 'phone: neither the reminder nor the client or guest of its booking has one';
  else
    begin
      select e.message_id into v_message_id from packhorse.enqueue_message(
        v_reminder.queue, v_reminder.message_type,
        v_reminder.payload || jsonb_build_object('reminder_id', v_reminder.id,
          'phone', v_reminder.reached_at),
        p_conversation_key => v_reminder.conversation_key, p_correlation_id => 'reminder:' || v_reminder.id,
        p_expires_at => v_reminder.expires_at) e;
      v_status := 'enqueued';
    exception when sqlstate 'PH001' or sqlstate 'PH002' or data_exception
      or integrity_constraint_violation then
      v_error := sqlerrm;
    end;
  end if;
  update platform.reminders r set status = v_status, message_id = v_message_id, error = v_error
  where r.id = p_id;
  return v_status;
end
$$;
comment on function platform.enqueue_reminder(bigint, timestamptz) is
  'Used by enqueue_due_reminders: one reminder becomes a message, or is set aside.';

create or replace function platform.enqueue_due_reminders(p_limit integer default 100) returns integer
language plpgsql as $$
-- Turn up to p_limit (1..10000) due reminders into messages, earliest first; returns how many were enqueued.
-- The message's payload is the reminder's, with reminder_id and phone added. A reminder of a booking that is
-- over becomes `cancelled`, one past its expires_at `expired`; one without a phone, or that the queue
-- refuses, becomes `failed` with the reason, and holds up no other: it goes on until p_limit are enqueued, at
-- most 20 times as many are looked at, or none is due. Reminders that another caller has at hand are passed
-- by. The handler sets `sent`. Locks the reminders. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_ids bigint[];
  v_count integer := 0;
  v_done integer := 0;
begin
  if p_limit is null or p_limit not between 1 and 10000 then
    perform platform.refuse_value('limit', 'must be between 1 and 10000');
  end if;
  loop
    v_ids := array(
      select r.id from platform.reminders r
      where r.status = 'pending' and r.remind_at <= v_now
      order by r.remind_at, r.id
      limit p_limit - v_count
      for update skip locked);
    v_count := v_count + (
      select count(*) filter (where platform.enqueue_reminder(i.id, v_now) = 'enqueued')
      from (select u.id from unnest(v_ids) with ordinality as u (id, place) order by u.place offset 0) i);
    v_done := v_done + cardinality(v_ids);
    exit when cardinality(v_ids) = 0 or v_count >= p_limit or v_done >= p_limit * 20;
  end loop;
  return v_count;
end
$$;
comment on function platform.enqueue_due_reminders(integer) is
  'Turn a batch of due reminders into messages; returns how many were enqueued.';
