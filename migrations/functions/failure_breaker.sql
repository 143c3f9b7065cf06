-- Failure breaker: what fails again and again for one reason rests, and spends no attempts (SPEC Q8d).
-- Opt-in: the queue setting `failure_breaker`, the actor option of the same name: after so many failures of
-- one cause in a row the scope `queue:<queue>` or `actor:<type>` is parked for a second and then probing. A
-- probe that fails parks it again, twice as long up to a minute; one that succeeds lifts it. A scope that was
-- parked by it has a next_park.

create or replace function packhorse.count_failure(p_scope text, p_limit integer, p_type text,
  p_fingerprint text, p_id bigint, p_reason text, out rests boolean, out parked boolean)
language plpgsql as $$
-- Message p_id has failed with this cause. rests: no attempt is spent, for its scope rests for that reason;
-- parked: by this call.
declare
  v_row packhorse.scopes;
  v_now constant timestamptz := clock_timestamp();
begin
  parked := false;
  select * into v_row from packhorse.scopes s where s.name = p_scope;
  rests := v_row.next_park is not null and v_row.fingerprint = p_fingerprint;
  if v_row.next_park is not null and v_row.probe_id is distinct from p_id then
    return; -- one of those that were in flight; nothing is locked
  end if;
  begin -- who waits for longer than lock_timeout is not counted: others of its kind are
    insert into packhorse.scopes (name, queue) values (p_scope, substring(p_scope from '^queue:(.+)$'))
      on conflict (name) do nothing;
    select * into v_row from packhorse.scopes s where s.name = p_scope for update;
  exception when lock_not_available then
    rests := coalesce(rests, false);
    return;
  end;
  rests := v_row.next_park is not null and v_row.fingerprint = p_fingerprint;
  if v_row.next_park is not null then
    -- a probe that fails for another reason is no success either; it has spent its attempt, the next one will
    -- not
    parked := v_row.probe_id = p_id;
    update packhorse.scopes s
    set fingerprint = p_fingerprint, reason = p_reason, last_failed_at = v_now, probe_id = null,
      probe_at = null, parked_until = greatest(s.parked_until, v_now + s.next_park),
      next_park = least(s.next_park * 2::float8, interval '1 minute')
    where s.name = p_scope and parked;
    return;
  end if;
  rests := coalesce(case when v_row.fingerprint = p_fingerprint then v_row.failures else 0 end + 1, 1)
    >= p_limit;
  parked := rests;
  update packhorse.scopes s
  set fingerprint = p_fingerprint,
    failures = case when s.fingerprint = p_fingerprint then s.failures else 0 end + 1, last_failed_at = v_now
  where s.name = p_scope;
  update packhorse.scopes s
  set parked_until = greatest(s.parked_until, v_now + interval '1 second'), probing = true,
    ends_at = 'infinity', probe_id = null, probe_at = null, next_park = interval '2 seconds',
    parked_at = v_now, parked_by = 'failure breaker', reason = p_reason,
    message_types = case when s.queue is null then packhorse.scope_types(p_scope, array[p_type]) else '{}' end
  where s.name = p_scope and rests;
end
$$;
comment on function packhorse.count_failure(text, integer, text, text, bigint, text) is
  'Used by rest_after_failure: count a failure of a scope; after so many in a row it is parked.';

create or replace function packhorse.count_failures(
  p_id bigint, p_type text, p_queue text, p_error_class text, p_error_message text, p_frame text,
  p_actor_limit integer, p_queue_limit integer, out rests boolean, out parked boolean, out reason text
)
language plpgsql as $$
-- Message p_id has failed, and its actor or its queue has a failure breaker; as count_failure, for both. The
-- cause: for an actor the fingerprint that groups its dead letters; for a queue class and text, whatever the
-- type.
declare
  v_found record;
begin
  reason := format('%s: %s', p_error_class, left(p_error_message, 300));
  rests := false;
  parked := false;
  if p_actor_limit is not null then
    select * into v_found from packhorse.count_failure('actor:' || p_type, p_actor_limit, p_type,
      packhorse.error_fingerprint(p_type, p_error_class, p_error_message, p_frame), p_id, reason);
    rests := v_found.rests;
    parked := v_found.parked;
  end if;
  if p_queue_limit is not null then
    select * into v_found from packhorse.count_failure('queue:' || p_queue, p_queue_limit, p_type,
      packhorse.error_fingerprint('', p_error_class, p_error_message, null), p_id, reason);
    rests := rests or v_found.rests;
    parked := parked or v_found.parked;
  end if;
end
$$;
comment on function packhorse.count_failures(bigint, text, text, text, text, text, integer, integer) is
  'Used by rest_after_failure and count_forwarded_failure: count a failure of an actor and of its queue.';

create or replace function packhorse.rest_after_failure(
  p_id bigint, p_token bigint, p_error_class text, p_error_message text, p_frame text, p_actor_limit integer,
  p_queue_limit integer
) returns text
language plpgsql as $$
-- An attempt of this running message failed, and its actor or its queue has a failure breaker. Null: it fails
-- as usual. Else it went back without an attempt spent: parked (this failure parked a scope), snooze, or
-- lost.
declare
  v_type text;
  v_queue text;
  v_counted record;
begin
  select m.message_type, m.queue into v_type, v_queue from packhorse.message_queue m
  where m.id = p_id and m.lease_token = p_token and m.state = 'running';
  select * into v_counted from packhorse.count_failures(p_id, v_type, v_queue, p_error_class, p_error_message,
    p_frame, p_actor_limit, p_queue_limit);
  if not v_counted.rests then
    return null;
  end if;
  return packhorse.rest_message(p_id, p_token, interval '0', v_counted.reason, v_counted.parked);
end
$$;
comment on function packhorse.rest_after_failure(bigint, bigint, text, text, text, integer, integer)
  is 'Used by fail_message and reject_message: a failure whose cause has parked its actor or queue spends no attempt.';

create or replace function packhorse.note_success(p_ids bigint[], p_tokens bigint[]) returns void
language plpgsql as $$
-- These running messages are about to be done: what counts failures of their actors or queues starts over;
-- what is parked by its failure breaker is lifted when its probe is among them. What somebody has locked is
-- left, and nobody waits: there will be another one. What a relay has published is no success.
declare
  v_scope packhorse.scopes;
begin
  for v_scope in
    select s.* from packhorse.scopes s
    where s.failures > 0 and exists (
      select from packhorse.message_queue m
      where m.id = any (p_ids) and m.lease_token = any (p_tokens) and m.state = 'running'
        and s.name in ('actor:' || m.message_type, 'queue:' || m.queue)
        and (s.next_park is null or m.id = s.probe_id)
        and not exists (
          select from packhorse.workers w where w.id = m.lease_holder and w.forward is not null))
    for update of s skip locked
  loop
    if v_scope.next_park is not null then
      perform packhorse.lift_scope(v_scope.name);
    else
      update packhorse.scopes s set failures = 0, fingerprint = null where s.name = v_scope.name;
    end if;
  end loop;
end
$$;
comment on function packhorse.note_success(bigint[], bigint[]) is
  'Used by complete: a success starts the count of a failure breaker over, or lifts what it parked.';

create or replace function packhorse.lift_removed_breakers() returns void
language plpgsql as $$
-- What a failure breaker has parked that is no longer set: nobody would park it again, and one message at a
-- time would fail.
begin
  if exists (select from packhorse.scopes s where s.failures > 0) then
    perform packhorse.lift_scope(s.name) from packhorse.scopes s
    where s.next_park is not null
      and not exists (select from packhorse.queues q
        where s.name = 'queue:' || q.name and q.failure_breaker is not null)
      and not exists (
        select from packhorse.message_types t cross join lateral packhorse.failure_policy(t.name, '{}') p
        where s.name = 'actor:' || t.name and p.failure_breaker is not null);
  end if;
end
$$;
comment on function packhorse.lift_removed_breakers() is
  'Used by set_queue and register_worker: lift what a failure breaker parked that is no longer set.';
