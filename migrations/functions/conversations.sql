-- Order of a conversation (SPEC P4, Q7).
--
-- Everybody enqueues `pending`. A pending message of a conversation may start
-- when no message of it runs and no pending one has a smaller id. The claim that meets one which may
-- not turns it to `blocked`, which takes it out of the claim index: a million messages on one
-- conversation cost others nothing. When a message leaves its conversation, the first blocked one
-- becomes `pending` again (promote_conversations).
--
-- Why no wake-up is lost: to block a message the claim must hold FOR KEY SHARE on the one it waits
-- behind, and that one can only leave by DELETE, which waits for the lock; the promotion that follows
-- is a later statement and sees the blocked row. A message is only blocked behind smaller ids: so the
-- first of a conversation is never blocked, and one that comes back (retry, snooze, release) still holds it.

create or replace function packhorse.block_waiting_messages(p_ids bigint[]) returns integer
language plpgsql as $$
-- Turn pending messages (locked by the caller) to blocked behind the holder of their conversation.
-- Locks each holder FOR KEY SHARE, skipping holders that are about to leave. Returns how many.
declare
  v_running bigint[];
  v_count integer;
begin
  v_running := array(
    select h.id from packhorse.message_queue h
    where h.state = 'running' and h.id = any (array(
      select r.id
      from (select distinct m.conversation_key from packhorse.message_queue m where m.id = any (p_ids)) k
      cross join lateral (
        select c.id from packhorse.message_queue c
        where c.conversation_key = k.conversation_key and c.state = 'running' limit 1) r))
    for key share skip locked);
  with waiting as (
    select m.id, m.conversation_key from packhorse.message_queue m
    where m.id = any (p_ids) and m.state = 'pending'
  ), earlier as (
    select k.conversation_key, h.id
    from (select distinct w.conversation_key from waiting w) k
    cross join lateral (
      select p.id from packhorse.message_queue p
      where p.conversation_key = k.conversation_key and p.state = 'pending' order by p.id limit 1) h
  ), earlier_locked as (
    select h.id, h.conversation_key from packhorse.message_queue h
    where h.id in (select e.id from earlier e) and h.id <> all (p_ids) and h.state = 'pending'
    for key share skip locked
  ), dead as (
    select l.conversation_key from (select distinct w.conversation_key from waiting w) k
    cross join lateral (
      select d.conversation_key from packhorse.dead_letters d
      where d.conversation_key = k.conversation_key
        and d.blocks_conversation limit 1 for key share skip locked) l
  ), blocked as (
    update packhorse.message_queue m set state = 'blocked'
    where m.id = any (p_ids) and m.state = 'pending'
      -- only behind smaller ids: a running message with a greater one (this one committed late) may come back
      -- to pending, behind this one, and then nobody would wake it before its successors
      and (exists (select from packhorse.message_queue r where r.id = any (v_running)
                   and r.conversation_key = m.conversation_key and r.state = 'running' and r.id < m.id)
        or exists (select from earlier_locked e where e.conversation_key = m.conversation_key and e.id < m.id)
        -- the first one in the same batch, which this transaction itself holds
        or exists (select from earlier e where e.conversation_key = m.conversation_key and e.id = any (p_ids)
                   and e.id < m.id)
        or exists (select from dead d where d.conversation_key = m.conversation_key))
    returning 1
  )
  select count(*) into v_count from blocked;
  return v_count;
end
$$;
comment on function packhorse.block_waiting_messages(bigint[]) is
  'Used by the claim: pending messages that wait behind another of their conversation become blocked.';

create or replace function packhorse.waiting_behind(p_ids bigint[], p_limit integer) returns bigint[]
language sql volatile as $$
-- Lock and return up to p_limit further pending messages behind these ones in their conversations: whatever
-- keeps an earlier message of a conversation from starting keeps a later one, too.
  select array(
    select b.id
    from (select m.conversation_key, max(m.id) as id from packhorse.message_queue m where m.id = any (p_ids)
      group by m.conversation_key) w
    cross join lateral (
      select m.id from packhorse.message_queue m
      where m.conversation_key = w.conversation_key and m.state = 'pending' and m.id > w.id
      order by m.id limit p_limit for update of m skip locked) b
    limit p_limit);
$$;
comment on function packhorse.waiting_behind(bigint[], integer) is
  'Used by the claim: more pending messages behind these in their conversations.';

create or replace function packhorse.waiting_in_front(
  p_queue text, p_types text[], p_since timestamptz[], p_until timestamptz[], p_passed text[],
  p_now timestamptz
) returns bigint[]
language sql volatile as $$
-- Lock and return those of the next hundred messages of the queue that wait behind their conversation; those
-- of conversations in p_passed are passed over. Locks no message that may start: others want it.
  select array(
    select m.id from packhorse.message_queue m
    where m.state = 'pending' and m.id = any (array(
      select w.id from (
        select c.id, c.free, bool_or(c.free) over (partition by c.conversation_key) as goes_on from (
          select f.id, f.conversation_key,
            f.conversation_key is null
              or not exists (select from packhorse.conversation_holders(f.conversation_key, f.id)) as free
          from (
            select n.id, n.conversation_key from generate_series(1, 10) as level (priority)
            cross join lateral (
              select m.id, m.conversation_key from packhorse.message_queue m
              where m.queue = p_queue and m.state = 'pending' and not packhorse.runs_apart(m.crashes)
                and m.priority = level.priority
                and packhorse.is_due(m.run_at, p_now)
                and m.run_at >= coalesce(p_since[level.priority], '-infinity')
                and m.run_at < coalesce(p_until[level.priority], 'infinity')
                and packhorse.is_wanted(m.message_type, p_types, null)
                and (m.conversation_key is null or m.conversation_key <> all (p_passed))
              order by m.run_at, m.id limit 100) n
            limit 100) f) c) w
      where not w.free and not w.goes_on))
    for update of m skip locked);
$$;
comment on function packhorse.waiting_in_front(text, text[], timestamptz[], timestamptz[], text[],
  timestamptz)
  is 'Used by the claim: those of the next hundred messages that wait behind their conversation.';

create or replace function packhorse.next_of_conversations(p_keys text[]) returns bigint[]
language sql stable set enable_seqscan = off as $$
-- The first pending message of each of these conversations, to be passed as p_first: for who ended messages
-- by another call than complete_and_claim_messages, whose answer names them. At most 1000.
  select array(
    select n.id from unnest(p_keys) as k (key)
    cross join lateral (
      select m.id from packhorse.message_queue m
      where m.conversation_key = k.key and m.state = 'pending' order by m.id limit 1) n
    limit 1000);
$$;
comment on function packhorse.next_of_conversations(text[]) is
  'The first pending message of each conversation, for p_first of complete_and_claim_messages.';

create or replace function packhorse.promote_conversations(p_keys text[]) returns bigint[]
language plpgsql as $$
-- After messages left these conversations: the first blocked message of each becomes pending.
-- Must be a statement of its own after the one that removed them: its snapshot has to see what was
-- blocked while that one waited. Returns the ids promoted.
-- Under a snapshot that lasts for the whole transaction it would not see them, and the conversation would
-- wait for ever: refused with PH001.
declare
  v_key text;
  v_id bigint;
  v_queue text;
  v_promoted bigint[] := '{}';
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform packhorse.refuse_argument('transaction_isolation',
      'messages with a conversation_key leave it in READ COMMITTED only',
      'begin transaction isolation level read committed');
  end if;
  -- most conversations have nothing that waits: find those that have with one look each. Not with EXISTS:
  -- planned while the table was empty, that is a join which reads the blocked messages of all conversations
  for v_key in
    select k.key from unnest(p_keys) as k (key)
    cross join lateral (
      select m.id from packhorse.message_queue m
      where m.conversation_key = k.key and m.state = 'blocked' limit 1) b
  loop
    loop
      -- a range and its order, which one index has: where most messages wait in one conversation, "= v_key"
      -- and "order by id" cost as much by the primary key
      select m.id into v_id from packhorse.message_queue m
      where m.conversation_key >= v_key and m.conversation_key <= v_key and m.state = 'blocked'
        and not exists (select from packhorse.dead_letters d
          where d.conversation_key = v_key and d.blocks_conversation)
      order by m.conversation_key, m.id limit 1;
      exit when not found;
      update packhorse.message_queue m set state = 'pending'
      where m.id = v_id and m.state = 'blocked' returning m.queue into v_queue;
      if found then
        v_promoted := v_promoted || v_id;
        perform packhorse.wake_queue(v_queue);
        exit;
      end if;
      -- cancelled by somebody in the meantime: look for the next one
    end loop;
  end loop;
  return v_promoted;
end
$$;
comment on function packhorse.promote_conversations(text[]) is
  'The first blocked message of each conversation becomes pending.';

create or replace function packhorse.promote_after_delete() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms' as $$
-- Somebody deleted a message by hand: its conversation goes on. The functions of this schema, which promote
-- by themselves, say so in packhorse_queue.promotes and pay for this trigger with one comparison. Under a
-- snapshot that lasts for the whole transaction it would not see what waits: promote_stranded_conversations
-- finds that later.
begin
  if current_setting('transaction_isolation') = 'read committed' then
    perform packhorse.promote_conversations(array[old.conversation_key::text]);
  end if;
  return null;
exception when lock_not_available then
  return null; -- somebody has locked the next message: promote_stranded_conversations finds it later
end
$$;
comment on function packhorse.promote_after_delete() is
  'Used by a trigger: the conversation of a message that was deleted by hand goes on.';

create or replace trigger message_queue_deleted after delete on packhorse.message_queue for each row
  -- one that is blocked holds up no other: a long conversation that is deleted whole costs one look
  when (old.conversation_key is not null and old.state <> 'blocked'
    and current_setting('packhorse_queue.promotes', true) is distinct from 'on')
  execute function packhorse.promote_after_delete();

create or replace function packhorse.promote_stranded_conversations() returns integer
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Conversations in which messages are blocked and none is left that they could wait behind: somebody deleted
-- it by hand, and who goes that way promotes nobody. The first one becomes pending. Looks at 5000
-- conversations from a place found by chance on, then at the first ones; returns how many went on.
declare
  v_none constant bigint := 9223372036854775807;
  v_start text;
  v_key text;
  v_keys text[] := '{}';
begin
  select m.conversation_key into v_start from (
    select b.conversation_key, b.state from packhorse.message_queue b
    where b.id >= (
      select l.id + floor(random() * (h.id - l.id + 1)::float8)::bigint
      from (select r.id from packhorse.message_queue r order by r.id limit 1) l,
        (select r.id from packhorse.message_queue r order by r.id desc limit 1) h)
    order by b.id limit 1000) m
  where m.state = 'blocked' limit 1;
  v_key := coalesce(v_start, '');
  for v_look in 1..5000 loop
    select m.conversation_key into v_key from packhorse.message_queue m
    where m.state = 'blocked' and m.conversation_key > v_key order by m.conversation_key limit 1;
    if not found then
      exit when v_start is null; -- the second time at the end
      v_start := null;
      v_key := '';
    elsif not exists (select from packhorse.conversation_holders(v_key, v_none)) then
      v_keys := v_keys || v_key;
    end if;
  end loop;
  return cardinality(packhorse.promote_conversations(v_keys));
end
$$;
comment on function packhorse.promote_stranded_conversations() is
  'Let conversations go on whose first message was deleted by hand; returns how many.';
