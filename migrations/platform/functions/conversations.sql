-- Conversations with a lock in the row (SPEC C5, C7).

create or replace function platform.get_or_create_conversation(
  p_conversation_key text, p_phone text, p_channel text default 'whatsapp', p_company_id bigint default null,
  out conversation_id uuid, out created boolean
)
language plpgsql as $$
-- The conversation with this key, made when there is none. Any number of callers at the same instant get
-- the same one, and one of them created = true. Phone (in its normal form), channel and company are those of
-- the first call. Raises PH001.
declare
  v_phone constant text := platform.check_phone('phone', p_phone);
begin
  perform platform.check_text('conversation_key', p_conversation_key, 500);
  perform platform.check_text('channel', p_channel, 50);
  select c.id into conversation_id from platform.conversations c
  where c.conversation_key = p_conversation_key;
  created := false;
  while conversation_id is null loop -- a second time when another caller made it, and it was deleted since
    insert into platform.conversations as c (conversation_key, phone, channel, company_id)
    values (p_conversation_key, v_phone, p_channel, p_company_id)
    on conflict on constraint conversations_key_key do nothing
    returning c.id into conversation_id;
    created := found;
    if not found then
      select c.id into conversation_id from platform.conversations c
      where c.conversation_key = p_conversation_key;
    end if;
  end loop;
exception when foreign_key_violation then
  perform platform.refuse_value('company_id', format('there is no company %s', p_company_id));
end
$$;
comment on function platform.get_or_create_conversation(text, text, text, bigint) is
  'The conversation with this key, made when there is none.';

create or replace function platform.lock_conversation(p_conversation_id uuid, p_holder text,
  p_lease interval default '5 minutes') returns boolean
language plpgsql as $$
-- Take or renew the lock for p_lease (1 second to 1 day). True when it is ours until then, false when another
-- holder has it. Raises PH001, PH004 (no such conversation).
declare
  v_now constant timestamptz := clock_timestamp();
begin
  perform platform.check_text('holder', p_holder, 500);
  perform packhorse.check_lease(p_lease);
  update platform.conversations c
  set lock_holder = p_holder, locked_at = v_now, lock_expires_at = v_now + p_lease
  where c.id = p_conversation_id
    and (c.lock_holder is null or c.lock_holder = p_holder or c.lock_expires_at <= v_now);
  if not found and not exists (select from platform.conversations c where c.id = p_conversation_id) then
    raise exception using errcode = 'PH004', column = 'conversation_id',
      message = format('conversation_id: there is no conversation %s', p_conversation_id);
  end if;
  return found;
end
$$;
comment on function platform.lock_conversation(uuid, text, interval) is
  'Take or renew the lock of a conversation; false when another holder has it.';

create or replace function platform.unlock_conversation(p_conversation_id uuid, p_holder text) returns boolean
language plpgsql as $$
-- Give the lock back. False when it was not ours any more: then nothing changes. Raises PH001.
begin
  perform platform.check_text('holder', p_holder, 500);
  update platform.conversations c set lock_holder = null, locked_at = null, lock_expires_at = null
  where c.id = p_conversation_id and c.lock_holder = p_holder;
  return found;
end
$$;
comment on function platform.unlock_conversation(uuid, text) is
  'Give the lock of a conversation back; false when it was not ours.';

create or replace function platform.release_stuck_conversations(p_after interval default '5 minutes',
  p_limit integer default 1000) returns integer
language plpgsql as $$
-- Take up to p_limit (1..100000; null: all) locks away whose own time is over, and those without an end that
-- nobody has renewed for p_after (1 second to 366 days), oldest first; rows that somebody works on are left
-- for the next call. A lock that is still valid is never taken. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform platform.check_span('after', p_after, interval '1 second', interval '366 days');
  perform platform.check_limit(p_limit);
  with stuck as materialized (
    select c.id from platform.conversations c
    where c.locked_at is not null
      and (c.lock_expires_at <= v_now
        or (coalesce(c.lock_expires_at, 'infinity') = 'infinity' and c.locked_at <= v_now - p_after))
    order by c.locked_at
    limit p_limit
    for update skip locked
  )
  update platform.conversations c set lock_holder = null, locked_at = null, lock_expires_at = null
  from stuck s where c.id = s.id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function platform.release_stuck_conversations(interval, integer) is
  'Take away a batch of conversation locks that are stuck; returns how many.';
