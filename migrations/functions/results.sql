-- Results of dramatiq actors on Postgres (SPEC W1).

create or replace function packhorse.store_message_result(p_key text, p_result jsonb, p_ttl interval)
returns void
language sql volatile as $$
  insert into packhorse.message_results (result_key, result, expires_at)
  values (p_key, p_result, clock_timestamp() + p_ttl)
  on conflict (result_key) do update set result = excluded.result, expires_at = excluded.expires_at;
$$;
comment on function packhorse.store_message_result(text, jsonb, interval) is
  'Store the result of an actor for p_ttl.';

create or replace function packhorse.get_message_result(p_key text) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select result from packhorse.message_results where result_key = p_key and expires_at > clock_timestamp();
$$;
comment on function packhorse.get_message_result(text) is
  'The stored result, null when it is not there (yet).';
