"""A queue as teams have built it themselves: one table with a status column, functions around it, rows of
every kind.
"""

from __future__ import annotations

from tests.support.postgres import Database

TABLES = """
create table message_queue (
  id bigserial primary key, queue_name text not null, job_type text, payload jsonb, status text not null default 'pending', priority integer default 5,
  attempts integer not null default 0, max_attempts integer default 3, scheduled_at timestamptz default now(), next_retry_at timestamptz,
  conversation_id text, idempotency_key text, last_error text, created_at timestamptz not null default now(), processed_at timestamptz,
  locked_by text, locked_at timestamptz);
create index message_queue_claim_idx on message_queue (status, scheduled_at);
create table processed_messages (message_id text primary key, processed_at timestamptz default now());
create table customers (id bigserial primary key, name text);
"""
FUNCTIONS = """
create function get_next_queue_message(p_queue text) returns setof message_queue language sql as
  $$ update message_queue set status = 'processing' where id = (select id from message_queue where status = 'pending' and queue_name = p_queue
     order by id limit 1 for update skip locked) returning * $$;
create function cleanup_old_messages() returns integer language sql as $$ delete from message_queue where status = 'completed' returning 1 $$;
create function count_open() returns bigint language sql as $$ select count(*) from message_queue where status = 'pending' $$;
create view open_messages as select id, payload from message_queue where status = 'pending';
create function note_change() returns trigger language plpgsql as 'begin return new; end';
create trigger message_queue_note before update on message_queue for each row execute function note_change();
create table receipts (message_id bigint constraint receipts_message_fkey references message_queue (id));
"""


def make(database: Database, *, functions: bool = True) -> None:
    """The old system, empty."""
    with database.connect(admin=True) as connection:
        connection.execute(TABLES + (FUNCTIONS if functions else ""))


def fill(database: Database, rows: int, *, conversations: int = 5) -> None:
    """Rows of every state: of ten, six wait, two have failed, two are done; `n` in the payload counts
    them.
    """
    database.query(
        """insert into message_queue (queue_name, job_type, payload, status, conversation_id, created_at, attempts)
           select (array['mail', 'chat'])[1 + n %% 2], 'send_reply', jsonb_build_object('n', n),
             (array['pending', 'pending', 'queued', 'retry', 'pending', 'pending', 'failed', 'failed', 'completed', 'completed'])[1 + n %% 10],
             'c' || n %% %s, now() - make_interval(secs => 100000 - n), n %% 3
           from generate_series(0, %s - 1) n""",
        conversations,
        rows,
    )
