-- What a message carries, shown to a person who asks for it: personal data, so each look is recorded (SPEC
-- O6).

create or replace function packhorse.reveal_message(p_id bigint, p_operator text default session_user,
  p_reason text default null)
returns table (state text, payload jsonb, options jsonb, error_details jsonb, steps jsonb,
  error_message text, traceback text, history jsonb)
language plpgsql set lock_timeout = '500ms' as $$
-- Payload, options, the last error whole, values of steps (2000 characters of each) and the history of
-- attempts, wherever the message is; the traceback of a dead letter, others have theirs in the history. No
-- row when nothing has this id, and then nothing is recorded. Record and answer are one transaction: without
-- the one there is not the other.
begin
  return query
    select a.state, a.payload, a.options, a.error_details, packhorse.describe_steps(a.steps, 2000),
      a.error_message,
      (select d.traceback from packhorse.dead_letters d where d.id = p_id and a.state = 'dead'), a.history
    from packhorse.all_messages a where a.id = p_id limit 1;
  if found then
    insert into packhorse.operator_actions (action, operator, reason, message_id)
    values ('reveal_message', p_operator, p_reason, p_id);
  end if;
end
$$;
comment on function packhorse.reveal_message(bigint, text, text) is
  'What a message carries; the look is recorded.';
