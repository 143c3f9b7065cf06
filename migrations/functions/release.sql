-- Release and snooze: a running message goes back without an attempt spent (SPEC Q5, W6).

create or replace function packhorse.snooze_message(
  p_id bigint, p_token bigint, p_delay interval, p_reason text default null, p_event text default 'snooze'
) returns boolean
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Later, and not a failure: running -> pending at now + p_delay, the attempt is given back. Null when the
-- lease was lost. A message whose cancellation was requested is cancelled instead. p_event: its name in the
-- history.
declare
  v_cancel boolean;
begin
  update packhorse.message_queue m
  set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null,
    completion_refused_at = null,
      attempt = m.attempt - 1,
      run_at = clock_timestamp() + coalesce(packhorse.bounded_delay(p_delay), interval '0'),
      history = packhorse.append_history(m.history, m.attempt, p_event, null, p_reason, m.lease_holder)
  where m.id = p_id and m.lease_token = p_token and m.state = 'running'
  returning m.cancel_requested_at is not null into v_cancel;
  if v_cancel then
    perform packhorse.finish_cancelled(array[p_id], null, 'cancel requested');
  end if;
  return case when v_cancel is not null then true end;
end
$$;
comment on function packhorse.snooze_message(bigint, bigint, interval, text, text) is
  'Later, not a failure; the attempt is given back. Null when the lease was lost.';

create or replace function packhorse.return_uncommitted_message(
  p_id bigint, p_token bigint, p_delay interval, p_reason text, p_limit integer default 5
) returns text
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- The transaction of a handler was not committed, and the handler may not be to blame: a cut connection, a
-- locked row, a completion that was refused. It runs again after p_delay, doubled each time in a row up to 30
-- s, and the attempt is given back. But what happens to the same message p_limit times in a row (null: never)
-- is a failed attempt: it may be the message that does it. Returns 'snooze', or what fail_message returns.
declare
  v_before integer;
  v_answer text;
begin
  select packhorse.history_tail(m.history, 'uncommitted') into v_before from packhorse.message_queue m
  where m.id = p_id and m.lease_token = p_token and m.state = 'running';
  if not found then
    return 'lost';
  elsif v_before + 1 >= p_limit then
    v_answer := packhorse.fail_message(p_id, p_token, 'NotCompleted', p_reason);
    if v_answer = 'dead' then
      perform packhorse.send_exhausted(array[p_id]);
    end if;
    return v_answer;
  end if;
  return case when packhorse.snooze_message(p_id, p_token,
    packhorse.message_backoff(v_before + 1, p_delay, 2, interval '30 seconds'),
    p_reason, 'uncommitted') then 'snooze' else 'lost' end;
end
$$;
comment on function packhorse.return_uncommitted_message(bigint, bigint, interval, text, integer)
  is 'A handler''s transaction was not committed: run it again; several times in a row are a failed attempt.';

create or replace function packhorse.release_messages(p_ids bigint[], p_tokens bigint[],
  p_reason text default null) returns integer
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- Hand messages back: running -> pending, due as before, the attempt is given back. Returns how many.
-- p_reason: why handlers that had started were interrupted; it stands in the history, as every start does.
-- Null: none had. Those whose cancellation was requested are cancelled instead.
declare
  v_count integer;
  v_cancelled bigint[];
  v_queues text[];
begin
  with released as (
    update packhorse.message_queue m
    set state = 'pending', lease_holder = null, lease_token = null, lease_expires_at = null,
      completion_refused_at = null,
        attempt = m.attempt - 1,
        history = case when p_reason is null then m.history
          else packhorse.append_history(m.history, m.attempt, 'release', null, p_reason, m.lease_holder) end
    where m.id = any (p_ids) and m.lease_token = any (p_tokens) and m.state = 'running'
    returning m.id, m.queue::text, m.cancel_requested_at
  )
  select count(*), array_agg(r.id) filter (where r.cancel_requested_at is not null),
    array_agg(distinct r.queue)
  into v_count, v_cancelled, v_queues from released r;
  if v_cancelled is not null then
    perform packhorse.finish_cancelled(v_cancelled, null, 'cancel requested');
  end if;
  perform packhorse.wake_queue(q.name) from unnest(v_queues) as q (name);
  return v_count;
end
$$;
comment on function packhorse.release_messages(bigint[], bigint[], text) is
  'Hand messages back without spending an attempt; returns how many.';

create or replace function packhorse.release_unknown_messages(p_holder uuid, p_known bigint[]) returns integer
language sql as $$
-- The connection broke after a claim had committed and before its answer came: what is leased to p_holder and
-- is not among p_known never started there. Hand it back; returns how many.
  select coalesce((
    select packhorse.release_messages(array_agg(m.id), array_agg(m.lease_token))
    from packhorse.message_queue m
    where m.lease_token is not null and m.lease_holder = p_holder and m.id <> all (p_known)
      and m.completion_refused_at is null
    having count(*) > 0), 0);
$$;
comment on function packhorse.release_unknown_messages(uuid, bigint[]) is
  'Hand back what a claim leased to this holder whose answer was lost; returns how many.';

create or replace function packhorse.release_message(p_id bigint, p_token bigint) returns boolean
language sql volatile as $$
  select packhorse.release_messages(array[p_id], array[p_token]) = 1;
$$;
comment on function packhorse.release_message(bigint, bigint) is
  'Hand one unstarted message back; false when the lease was lost.';

create or replace function packhorse.extend_message_lease(p_id bigint, p_token bigint,
  p_lease interval default '5 minutes') returns timestamptz
language plpgsql set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set lock_timeout = '500ms' as $$
-- The lease goes on until now + p_lease (1 second to 1 day, else PH001); returns its end, null when it was
-- lost. A HOT update.
declare
  v_end timestamptz;
begin
  perform packhorse.check_lease(p_lease);
  update packhorse.message_queue m set lease_expires_at = clock_timestamp() + p_lease
  where m.id = p_id and m.lease_token = p_token and m.state = 'running'
  returning m.lease_expires_at into v_end;
  return v_end;
end
$$;
comment on function packhorse.extend_message_lease(bigint, bigint, interval) is
  'The lease of one message goes on; returns its new end, null when it was lost.';
