-- What a booking dialog knows of a person, and the keys of WhatsApp sessions (SPEC C6, M3).
--
-- whatsapp_auth and whatsapp_keys are secrets: the worker alone may read them (0013).
-- Lock and duration: new objects only, milliseconds.

create table dialog_contexts (
  phone      phone_number not null,
  company_id bigint       not null,
  step       text,
  context    message_json not null default '{}',
  created_at timestamptz  not null default clock_timestamp(),
  updated_at timestamptz  not null default clock_timestamp(),
  expires_at timestamptz  not null default clock_timestamp() + interval '24 hours',
  constraint dialog_contexts_pkey primary key (phone, company_id),
  constraint dialog_contexts_company_fkey foreign key (company_id) references companies (id) on delete cascade,
  constraint dialog_contexts_step_length check (length(step) between 1 and 100)
);
create index dialog_contexts_expires_idx on dialog_contexts (expires_at);
create index dialog_contexts_company_idx on dialog_contexts (company_id);
create trigger dialog_contexts_touch before update on dialog_contexts for each row execute function touch_updated_at();
comment on table dialog_contexts is 'Where a person stands in a dialog with a company; ends by time.';

create table whatsapp_auth (
  company_id bigint      not null,
  creds      jsonb       not null,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  constraint whatsapp_auth_pkey primary key (company_id),
  constraint whatsapp_auth_company_fkey foreign key (company_id) references companies (id) on delete cascade
);
create trigger whatsapp_auth_touch before update on whatsapp_auth for each row execute function touch_updated_at();
comment on table whatsapp_auth is 'Credentials of a company''s WhatsApp session. Secret.';

create table whatsapp_keys (
  company_id bigint      not null,
  key_type   text        not null,
  key_id     text        not null,
  value      jsonb       not null,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,
  constraint whatsapp_keys_pkey primary key (company_id, key_type, key_id),
  constraint whatsapp_keys_company_fkey foreign key (company_id) references companies (id) on delete cascade,
  constraint whatsapp_keys_type_length check (length(key_type) between 1 and 100),
  constraint whatsapp_keys_id_length check (length(key_id) between 1 and 500)
);
create index whatsapp_keys_expires_idx on whatsapp_keys (expires_at) where expires_at is not null;
create trigger whatsapp_keys_touch before update on whatsapp_keys for each row execute function touch_updated_at();
comment on table whatsapp_keys is 'Keys of WhatsApp sessions; without expires_at they stay. Secret.';

create function cleanup_expired_dialog_contexts(p_limit integer default 5000) returns integer
language plpgsql set search_path from current as $$
-- Delete up to p_limit (1..100000) dialog contexts whose time is over, oldest first; rows that somebody works
-- on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform check_limit(p_limit);
  with expired as materialized (
    select d.phone, d.company_id from dialog_contexts d
    where d.expires_at <= v_now
    order by d.expires_at
    limit p_limit
    for update skip locked
  )
  delete from dialog_contexts d using expired e where d.phone = e.phone and d.company_id = e.company_id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function cleanup_expired_dialog_contexts(integer) is 'Delete a batch of expired dialog contexts; returns how many.';

create function cleanup_expired_whatsapp_keys(p_limit integer default 5000) returns integer
language plpgsql set search_path from current as $$
-- Delete up to p_limit (1..100000) keys whose time is over, oldest first; those without an end stay, and rows
-- that somebody works on are left for the next call. Returns how many. Raises PH001.
declare
  v_now constant timestamptz := clock_timestamp();
  v_count integer;
begin
  perform check_limit(p_limit);
  with expired as materialized (
    select k.company_id, k.key_type, k.key_id from whatsapp_keys k
    where k.expires_at <= v_now
    order by k.expires_at
    limit p_limit
    for update skip locked
  )
  delete from whatsapp_keys k using expired e
  where k.company_id = e.company_id and k.key_type = e.key_type and k.key_id = e.key_id;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function cleanup_expired_whatsapp_keys(integer) is 'Delete a batch of expired WhatsApp keys; returns how many.';

create function get_whatsapp_auth_stats()
returns table (total_companies bigint, total_keys bigint, expired_keys bigint, active_keys bigint, total_bytes bigint)
language sql volatile set search_path from current as $$
-- How many WhatsApp sessions and keys there are; one row. Counts the whole of both tables. Locks nothing.
  select (select count(*) from whatsapp_auth), k.total, k.expired, k.total - k.expired,
    pg_total_relation_size('whatsapp_auth') + pg_total_relation_size('whatsapp_keys')
  from (select count(*) as total, count(*) filter (where expires_at <= clock_timestamp()) as expired from whatsapp_keys) k;
$$;
comment on function get_whatsapp_auth_stats() is 'How many WhatsApp sessions and keys there are, and how large.';
