-- name: filter_text
-- One of these texts, or like one of these patterns.
({column} = any (%({name})s::text[]) or {column} like any (%({name}_like)s::text[]))

-- name: filter_not_text
-- None of them; also where there is no value.
(({column} = any (%({name})s::text[]) or {column} like any (%({name}_like)s::text[])) is not true)

-- name: filter_integer
-- One of these numbers.
({column} = any (%({name})s::bigint[]))

-- name: filter_not_integer
-- None of them.
(({column} = any (%({name})s::bigint[])) is not true)

-- name: filter_compared_integer
-- A number, compared.
({column} {operator} %({name})s::bigint)

-- name: filter_time
-- A time, compared.
({column} {operator} %({name})s::timestamptz)

-- name: filter_age
-- The time since then, in seconds, compared: an age of more is a time before.
({column} {operator} %(now)s::timestamptz - make_interval(secs => %({name})s::float8))

-- name: filter_payload
-- What stands at a place of the payload, as text.
jsonb_extract_path_text({column}, variadic %({name}_path)s::text[])

-- name: filter_compared_payload
-- A number at a place of the payload, compared.
((case when jsonb_typeof(jsonb_extract_path({column}, variadic %({name}_path)s::text[])) = 'number'
  then jsonb_extract_path_text({column}, variadic %({name}_path)s::text[])::numeric end)
  {operator} %({name})s::numeric)

-- name: filter_everything
-- No filter.
true

-- name: filter_moment
-- The database's time and the newest message: what comes later is not part of a selection that is made now.
select clock_timestamp(), coalesce((select max(id) from packhorse.message_queue), 0);

-- name: database_time
-- The database's time.
select clock_timestamp();

-- name: bound_statement
-- A look at a table of any size ends by itself.
select set_config('statement_timeout', %s, true);

-- name: tally_live
-- Where live messages are counted.
packhorse.message_queue

-- name: tally_live_taken
-- Those that an act takes: also running ones, or not.
(%(running)s or m.state <> 'running')

-- name: tally_live_runs
-- Those that run.
m.state = 'running'

-- name: tally_dead
-- Where dead letters are counted.
packhorse.dead_letters

-- name: tally_dead_taken
-- An act takes each of them.
true

-- name: tally_dead_runs
-- None of them runs.
false

-- name: tally
-- What is selected, by queue: how many are taken, the oldest of those, and how many run.
select m.queue::text as queue, count(*) filter (where {taken}) as count,
  min(m.created_at) filter (where {taken}) as oldest, count(*) filter (where {runs}) as running
from {source} m where {within} and {filter} group by m.queue;

-- name: tally_step
-- The same of the next so many rows after an id, whatever the filter says, and how many rows those were.
select m.queue::text as queue, count(*) filter (where m.is_selected and {taken}) as count,
  min(m.created_at) filter (where m.is_selected and {taken}) as oldest,
  count(*) filter (where m.is_selected and {runs}) as running, count(*) as looked, max(m.id) as last_id
from (select m.*, ({filter}) as is_selected from {source} m where m.id > %(after)s and {within}
  order by m.id limit %(step)s) m
group by m.queue;

-- name: tally_within_live
-- Messages that were there when the count was made.
m.id <= %(last)s::bigint

-- name: tally_within_dead
-- Dead letters are bounded by when they died, which is a part of their selection.
true

-- name: bound_statements
-- The next statements of this transaction end after so long; what held for them before.
select current_setting('statement_timeout'), set_config('statement_timeout', %s, true);

-- name: page_of_filtered
-- The next ids of a selection after a given one, oldest first, with those that run or without.
select m.id from packhorse.message_queue m
where m.id > %(after)s and m.id <= %(last)s and (%(running)s or m.state <> 'running') and {filter}
order by m.id limit %(limit)s;

-- name: lock_filtered
-- Those of these messages that are selected still, locked; those that somebody else has locked are left out.
select m.id from packhorse.message_queue m
where m.id = any (%(ids)s::bigint[]) and (%(running)s or m.state <> 'running') and {filter}
order by m.id for no key update skip locked;

-- name: list_filtered
-- Messages by filter, newest first: live, archived and dead. wait: from its enqueue to the start of its last
-- attempt; duration: of that.
select m.id, m.queue, m.message_type, m.state, m.priority, m.attempt, m.conversation_key, m.run_at,
  m.created_at, m.finished_at, m.error_class, m.error_code,
  extract(epoch from coalesce(m.claimed_at, m.finished_at, clock_timestamp())
    - m.created_at)::float8 as wait_seconds,
  extract(epoch from coalesce(m.finished_at, case when m.state = 'running' then clock_timestamp() end)
    - m.claimed_at)::float8 as duration_seconds
from packhorse.all_messages m
where (%(after)s::bigint is null or m.id < %(after)s) and (%(queue)s::text is null or m.queue = %(queue)s)
  and (%(state)s::text is null or m.state = %(state)s)
  and (%(message_type)s::text is null or m.message_type = %(message_type)s)
  and (%(conversation_key)s::text is null or m.conversation_key = %(conversation_key)s)
  and (%(since)s::timestamptz is null or m.created_at >= %(since)s)
  and (%(until)s::timestamptz is null or m.created_at < %(until)s) and {filter}
order by m.id desc limit %(limit)s;

-- name: act_cancel
-- Stop each of these for good.
select u.id, packhorse.cancel_message(u.id, %(reason)s, %(operator)s)
from unnest(%(ids)s::bigint[]) as u (id);

-- name: act_retry
-- Each of these need not wait.
select u.id, packhorse.retry_message(u.id, %(operator)s, %(reason)s) from unnest(%(ids)s::bigint[]) as u (id);

-- name: act_reschedule
-- Each of these is due at a time, or so many seconds from now.
select u.id, packhorse.reschedule_message(u.id, %(run_at)s::timestamptz,
  make_interval(secs => %(delay)s::float8), %(operator)s, %(reason)s)
from unnest(%(ids)s::bigint[]) as u (id);

-- name: act_move
-- Each of these goes to another queue.
select u.id, packhorse.move_message(u.id, %(queue)s, %(operator)s, %(reason)s)
from unnest(%(ids)s::bigint[]) as u (id);

-- name: act_priority
-- Each of these has another priority.
select u.id, packhorse.set_message_priority(u.id, %(priority)s, %(operator)s, %(reason)s)
from unnest(%(ids)s::bigint[]) as u (id);

-- name: act_bury
-- Each of these is given up.
select u.id, packhorse.bury_waiting_message(u.id, %(operator)s, %(reason)s)
from unnest(%(ids)s::bigint[]) as u (id);

-- name: clone_message
-- A new message like this one, and its id.
select answer, clone_id from packhorse.clone_message(%s, make_interval(secs => %s), %s, %s);

-- name: edit_message
-- Replace the payload, which was the last value but one when it was read.
select packhorse.edit_message(%s, %s::jsonb, %s, %s, %s::jsonb, %s);

-- name: set_message_limits
-- How often a message is tried, and until when; null leaves a limit as it is.
select packhorse.set_message_limits(%s, %s, %s::timestamptz, %s, %s);

-- name: reveal_message
-- What one message carries; the look is recorded.
select state, payload, options, error_details, steps, error_message, traceback, history
from packhorse.reveal_message(%s, %s, %s);

-- name: message_payload
-- State and payload of one message, who holds it, the names of its steps, and its limits while it lives.
select a.state, a.payload, array(select s.name from packhorse.message_steps(a.id) s) as steps, q.max_attempts,
  q.expires_at
from packhorse.all_messages a left join packhorse.message_queue q on q.id = a.id where a.id = %s limit 1;
