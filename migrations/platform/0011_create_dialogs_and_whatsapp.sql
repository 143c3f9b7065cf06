-- What a booking dialog knows of a person, and the keys of WhatsApp sessions (SPEC C6, M3).
--
-- whatsapp_auth and whatsapp_keys are secrets: the worker alone may read them (0012).
-- Lock and duration: new objects only, milliseconds.

create table platform.dialog_contexts (
  phone      platform.phone_number not null,
  company_id bigint       not null,
  step       text,
  context    packhorse.message_json not null default '{}',
  created_at timestamptz  not null default clock_timestamp(),
  updated_at timestamptz  not null default clock_timestamp(),
  expires_at timestamptz  not null default clock_timestamp() + interval '24 hours',
  constraint dialog_contexts_pkey primary key (phone, company_id),
  constraint dialog_contexts_company_fkey foreign key (company_id) references platform.companies (id) on delete cascade,
  constraint dialog_contexts_step_length check (length(step) between 1 and 100)
);
create index dialog_contexts_expires_idx on platform.dialog_contexts (expires_at);
create index dialog_contexts_company_idx on platform.dialog_contexts (company_id);
comment on table platform.dialog_contexts is 'Where a person stands in a dialog with a company; ends by time.';

create table platform.whatsapp_auth (
  company_id bigint      not null,
  creds      jsonb       not null,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  constraint whatsapp_auth_pkey primary key (company_id),
  constraint whatsapp_auth_company_fkey foreign key (company_id) references platform.companies (id) on delete cascade
);
comment on table platform.whatsapp_auth is 'Credentials of a company''s WhatsApp session. Secret.';

create table platform.whatsapp_keys (
  company_id bigint      not null,
  key_type   text        not null,
  key_id     text        not null,
  value      jsonb       not null,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,
  constraint whatsapp_keys_pkey primary key (company_id, key_type, key_id),
  constraint whatsapp_keys_company_fkey foreign key (company_id) references platform.companies (id) on delete cascade,
  constraint whatsapp_keys_type_length check (length(key_type) between 1 and 100),
  constraint whatsapp_keys_id_length check (length(key_id) between 1 and 500)
);
create index whatsapp_keys_expires_idx on platform.whatsapp_keys (expires_at) where expires_at is not null;
comment on table platform.whatsapp_keys is 'Keys of WhatsApp sessions; without expires_at they stay. Secret.';
