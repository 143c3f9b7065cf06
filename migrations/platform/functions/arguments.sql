-- Checks of arguments. They refuse with PH001 and the argument's name in COLUMN, like the queue's functions.
--
-- None of them calls the queue: `authenticated` may use some of the platform's functions, and has no rights
-- in the queue's schema.

create or replace function platform.refuse_value(p_name text, p_problem text, p_hint text default '')
returns void
language plpgsql immutable as $$
-- Raise PH001 for one argument: its name, what is wrong, what to do.
begin
  if p_hint = '' then
    raise exception using errcode = 'PH001', column = p_name, message = format('%s: %s', p_name, p_problem);
  end if;
  raise exception using errcode = 'PH001', column = p_name, message = format('%s: %s', p_name, p_problem),
    hint = p_hint;
end
$$;
comment on function platform.refuse_value(text, text, text) is 'Raise PH001 that names the argument.';

create or replace function platform.check_text(p_name text, p_value text, p_length integer) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a text has 1 to p_length characters.
begin
  if p_value is null or length(p_value) not between 1 and p_length then
    perform platform.refuse_value(p_name, format('must have 1 to %s characters', p_length));
  end if;
end
$$;
comment on function platform.check_text(text, text, integer) is
  'Raise PH001 unless a text argument has 1 to so many characters.';

create or replace function platform.check_phone(p_name text, p_value text) returns text
language plpgsql immutable as $$
-- The normal form of a phone number, or of the address of another channel. Raise PH001 unless it has 1 to 100
-- characters.
declare
  v_phone constant text := platform.normalize_phone(p_value);
begin
  if v_phone is null or length(v_phone) > 100 or length(p_value) > 100 then
    perform platform.refuse_value(p_name, 'must have 1 to 100 characters',
      'A phone number in any form, or the address of another channel.');
  end if;
  return v_phone;
end
$$;
comment on function platform.check_phone(text, text) is
  'The normal form of a phone argument; PH001 unless it has 1 to 100 characters.';

create or replace function platform.check_object(p_name text, p_value jsonb, p_bytes integer default 1048576)
returns void
language plpgsql immutable as $$
-- Raise PH001 unless the value is a JSON object of at most p_bytes (1 MiB).
begin
  if p_value is null or jsonb_typeof(p_value) <> 'object' or pg_column_size(p_value) > p_bytes then
    perform platform.refuse_value(p_name, format('must be a JSON object of at most %s KiB', p_bytes / 1024));
  end if;
end
$$;
comment on function platform.check_object(text, jsonb, integer) is
  'Raise PH001 unless an argument is a JSON object.';

create or replace function platform.check_span(p_name text, p_value interval, p_least interval,
  p_most interval) returns void
language plpgsql immutable as $$
-- Raise PH001 unless an interval lies between two others.
begin
  if p_value is null or p_value not between p_least and p_most then
    perform platform.refuse_value(p_name, format('must be between %s and %s', p_least, p_most));
  end if;
end
$$;
comment on function platform.check_span(text, interval, interval, interval) is
  'Raise PH001 unless an interval argument is in range.';

create or replace function platform.check_number(p_name text, p_value integer, p_least integer,
  p_most integer) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a number lies between two others.
begin
  if p_value is null or p_value not between p_least and p_most then
    perform platform.refuse_value(p_name, format('must be between %s and %s', p_least, p_most));
  end if;
end
$$;
comment on function platform.check_number(text, integer, integer, integer) is
  'Raise PH001 unless a number argument is in range.';

create or replace function platform.check_limit(p_limit integer) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a batch has 1 to 100000 rows. Null is no limit: what is due, all of it, in one call.
begin
  if p_limit not between 1 and 100000 then
    perform platform.refuse_value('limit', 'must be between 1 and 100000', 'Null for all that is due.');
  end if;
end
$$;
comment on function platform.check_limit(integer) is 'Raise PH001 unless a limit is in range; null is none.';

create or replace function platform.check_period(p_start timestamptz, p_end timestamptz) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a period has a beginning, and its end is not before that.
begin
  if p_start is null then
    perform platform.refuse_value('start_date', 'must not be null');
  elsif p_end is null or p_end < p_start then
    perform platform.refuse_value('end_date', format('must not be earlier than %s', p_start));
  end if;
end
$$;
comment on function platform.check_period(timestamptz, timestamptz) is
  'Raise PH001 unless a period ends after it begins.';

create or replace function platform.check_message(p_role text, p_content text) returns void
language plpgsql immutable as $$
-- Raise PH001 unless the role is one that speaks in a conversation, and it says 1 to 32768 characters.
begin
  if p_role is null or p_role not in ('user', 'assistant', 'system', 'tool') then
    perform platform.refuse_value('role', format('%L is not a role', left(p_role, 60)),
      'user, assistant, system or tool.');
  end if;
  perform platform.check_text('content', p_content, 32768);
end
$$;
comment on function platform.check_message(text, text) is
  'Raise PH001 unless role and content are those of a message.';

create or replace function platform.append_entry(p_entries jsonb, p_entry jsonb, p_keep integer) returns jsonb
language sql immutable as $$
-- A JSON array with one more element at its end, of which the newest p_keep stay. Null is an empty array;
-- another value, which a client may have written, becomes the first element.
  select case when e.entries = '[]' or jsonb_array_length(e.entries) < p_keep then e.entries
    else jsonb_path_query_array(e.entries, '$[$from to last]',
      jsonb_build_object('from', jsonb_array_length(e.entries) - p_keep + 1)) end
    || jsonb_build_array(p_entry)
  from (select case when p_entries is null or jsonb_typeof(p_entries) = 'null' then '[]'
    when jsonb_typeof(p_entries) = 'array' then p_entries
    else jsonb_build_array(p_entries) end as entries) e;
$$;
comment on function platform.append_entry(jsonb, jsonb, integer) is 'Append to a bounded JSON array.';

create or replace function platform.merge_context(p_context jsonb, p_changes jsonb) returns jsonb
language sql immutable as $$
-- The keys of p_changes put into p_context; one whose value is null goes.
  select (coalesce(p_context, '{}') || p_changes)
    - array(select c.key from jsonb_each(p_changes) c where jsonb_typeof(c.value) = 'null');
$$;
comment on function platform.merge_context(jsonb, jsonb) is 'Put keys into a context; null removes one.';
