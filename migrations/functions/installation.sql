-- Installation: is this database a copy of another one (SPEC O11)?
--
-- A dump that is restored has every waiting message of the original, and both would run it. In another
-- database our tables get other numbers, and `installation` holds those of the original. The claim and the
-- timetable refuse to work until somebody accepts the copy. Enqueues go on.

create or replace function packhorse.is_copy() returns boolean
language sql stable as $$
-- A database without the row (a dump of the schema alone) is none: there is nothing in it that could start
-- twice.
  select exists (select from packhorse.installation i
    where i.queue_oid <> 'packhorse.message_queue'::regclass::oid
      or i.dead_letters_oid <> 'packhorse.dead_letters'::regclass::oid);
$$;
comment on function packhorse.is_copy() is 'Is this database a copy that nobody has accepted?';

create or replace function packhorse.refuse_copy() returns void
language plpgsql stable as $$
-- Raises PH006 in a copy that nobody has accepted.
begin
  if exists (select from packhorse.installation i
      where i.queue_oid <> 'packhorse.message_queue'::regclass::oid
        or i.dead_letters_oid <> 'packhorse.dead_letters'::regclass::oid) then
    raise exception using errcode = 'PH006',
      message = 'this database is a copy that nobody has accepted: nothing starts here, for its original may start the same',
      hint = 'Once the original starts nothing any more: packhorse copy accept.';
  end if;
end
$$;
comment on function packhorse.refuse_copy() is 'Raise PH006 in a copy that nobody has accepted.';

create or replace function packhorse.accept_copy(p_paused boolean default false,
  p_operator text default session_user, p_reason text default null)
returns boolean
language plpgsql as $$
-- This database goes on by itself from here; false when it is no copy. What ran in the original at the time
-- of the backup is waiting again: no crash, no attempt spent. p_paused: every queue and schedule is paused
-- first, and goes on when somebody resumes it. Recorded.
declare
  v_ids bigint[];
begin
  if not packhorse.is_copy() then
    return false;
  end if;
  if p_paused then
    perform packhorse.pause_queue(q.name, p_operator) from packhorse.queues q order by q.name;
    perform packhorse.pause_schedule(s.name, p_operator) from packhorse.schedules s order by s.name;
  end if;
  v_ids := array(
    select m.id from packhorse.message_queue m
    where m.state = 'running' and m.lease_token is not null and m.completion_refused_at is null
    for no key update skip locked);
  perform packhorse.return_lost_messages(v_ids, v_ids, 'release', 'the database was copied while it ran');
  delete from packhorse.workers; -- processes of the original
  update packhorse.installation
  set queue_oid = 'packhorse.message_queue'::regclass::oid,
    dead_letters_oid = 'packhorse.dead_letters'::regclass::oid;
  insert into packhorse.operator_actions (action, operator, reason, details)
  values ('accept_copy', p_operator, p_reason,
    jsonb_build_object('paused', p_paused, 'returned', cardinality(v_ids)));
  return true;
end
$$;
comment on function packhorse.accept_copy(boolean, text, text) is
  'Let a copy start messages and schedules by itself; false when it is none.';

create or replace function packhorse.mark_copy(p_operator text default session_user,
  p_reason text default null) returns boolean
language plpgsql as $$
-- This database is a copy that its table numbers do not show (a snapshot of the disk, `create database ...
-- template`): nothing starts until somebody accepts it. What runs is finished. False when it was marked
-- already, or cannot be: it has no row in `installation`. Recorded.
begin
  update packhorse.installation set queue_oid = 0, dead_letters_oid = 0 where not packhorse.is_copy();
  if not found then
    return false;
  end if;
  insert into packhorse.operator_actions (action, operator, reason)
  values ('mark_copy', p_operator, p_reason);
  return true;
end
$$;
comment on function packhorse.mark_copy(text, text) is
  'Nothing starts in this database until somebody accepts it as a copy.';
