-- name: empty_queue_tables
-- For tests: every table of the queue as its migrations left it, with one queue. Only what holds rows is
-- truncated: a truncate makes new files.
do $$
declare
  v_schema constant oid := 'packhorse.message_queue'::regclass::oid;
  v_table regclass;
  v_full text[] := '{}';
  v_rows boolean;
begin
  for v_table in
    select c.oid from pg_catalog.pg_class c
    where c.relnamespace = (select s.relnamespace from pg_catalog.pg_class s where s.oid = v_schema)
      and c.relkind in ('r', 'p') and not c.relispartition and c.relname <> 'packhorse_migrations'
  loop
    execute format('select exists (select from %s)', v_table) into v_rows;
    if v_rows then
      v_full := v_full || v_table::text;
    end if;
  end loop;
  if cardinality(v_full) > 0 then
    execute format('truncate %s cascade', array_to_string(v_full, ', '));
  end if;
  perform pg_catalog.setval(pg_catalog.pg_get_serial_sequence('packhorse.message_queue', 'id'), 1, false);
  perform packhorse.declare_queue('default');
end
$$;

-- name: commit_without_waiting
-- For tests: what a crash of the machine may lose is of no use.
do $$
begin
  execute format('alter database %I set synchronous_commit = off', current_database());
end
$$;

-- name: make_due
-- For tests: what waits for its time starts now, and what rests rests no longer; how many messages and scopes
-- that was for, and which of these queues there are.
with lifted as (
  update packhorse.scopes
  set parked_until = null, probing = false, probe_id = null, probe_at = null, ends_at = null, failures = 0,
    next_park = null
  where ends_at > clock_timestamp() returning name
), due as (
  update packhorse.message_queue set run_at = clock_timestamp()
  where state = 'pending' and run_at > clock_timestamp() and queue = any (%(queues)s::text[])
    and message_type = any (%(types)s::text[])
  returning id
)
select (select count(*) from due) + (select count(*) from lifted),
  array(select q.name::text from packhorse.queues q where q.name = any (%(queues)s::text[]));

-- name: outcomes
-- What became of messages, by id: where they are, and what is known of their last failure.
select a.id, a.queue, a.message_type, a.state, a.reason, a.attempt, a.error_class, a.error_message,
  d.traceback
from packhorse.all_messages a left join packhorse.dead_letters d on d.id = a.id and a.state = 'dead'
order by a.id;

-- name: ended_messages
-- Ids of messages that are at their end.
select array(select a.id from packhorse.message_archive a union all select d.id
  from packhorse.dead_letters d);

-- name: waiting_messages
-- What lives of these queues and types, oldest first, at most so many.
select m.id, m.queue::text, m.message_type::text, m.state::text, m.attempt, m.error ->> 'class',
  m.error ->> 'message'
from packhorse.message_queue m
where m.queue = any (%(queues)s::text[]) and m.message_type = any (%(types)s::text[])
order by m.id limit %(limit)s;
