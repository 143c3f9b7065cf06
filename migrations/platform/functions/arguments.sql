-- Checks of arguments. They refuse with PH001 and the argument's name, like the queue's functions.

create or replace function platform.check_text(p_name text, p_value text, p_length integer) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a text has 1 to p_length characters.
begin
  if p_value is null or length(p_value) not between 1 and p_length then
    perform packhorse.refuse_argument(p_name, format('must have 1 to %s characters', p_length));
  end if;
end
$$;
comment on function platform.check_text(text, text, integer) is 'Raise PH001 unless a text argument has 1 to so many characters.';

create or replace function platform.check_object(p_name text, p_value jsonb) returns void
language plpgsql immutable as $$
-- Raise PH001 unless the value is a JSON object of at most 1 MiB.
begin
  if p_value is null or jsonb_typeof(p_value) <> 'object' or pg_column_size(p_value) > 1048576 then
    perform packhorse.refuse_argument(p_name, 'must be a JSON object of at most 1 MiB');
  end if;
end
$$;
comment on function platform.check_object(text, jsonb) is 'Raise PH001 unless an argument is a JSON object.';

create or replace function platform.check_span(p_name text, p_value interval, p_least interval, p_most interval) returns void
language plpgsql immutable as $$
-- Raise PH001 unless an interval lies between two others.
begin
  if p_value is null or p_value not between p_least and p_most then
    perform packhorse.refuse_argument(p_name, format('must be between %s and %s', p_least, p_most));
  end if;
end
$$;
comment on function platform.check_span(text, interval, interval, interval) is 'Raise PH001 unless an interval argument is in range.';

create or replace function platform.check_limit(p_limit integer) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a batch has 1 to 100000 rows: no statement of the upkeep is unbounded.
begin
  if p_limit is null or p_limit not between 1 and 100000 then
    perform packhorse.refuse_argument('limit', 'must be between 1 and 100000');
  end if;
end
$$;
comment on function platform.check_limit(integer) is 'Raise PH001 unless a limit is in range.';

create or replace function platform.check_role(p_role text) returns void
language plpgsql immutable as $$
-- Raise PH001 unless it is a role that speaks in a conversation.
begin
  if p_role is null or p_role not in ('user', 'assistant', 'system', 'tool') then
    perform packhorse.refuse_argument('role', format('%L is not a role', left(p_role, 60)), 'user, assistant, system or tool.');
  end if;
end
$$;
comment on function platform.check_role(text) is 'Raise PH001 unless a role is one that speaks in a conversation.';

create or replace function platform.append_entry(p_entries jsonb, p_entry jsonb, p_keep integer) returns jsonb
language sql immutable as $$
-- A JSON array with one more element at its end; the oldest one goes when it had p_keep.
  select case when jsonb_array_length(p_entries) >= p_keep then p_entries - 0 else p_entries end || jsonb_build_array(p_entry);
$$;
comment on function platform.append_entry(jsonb, jsonb, integer) is 'Append to a bounded JSON array.';
