-- name: browse_all
-- Where messages of any state are.
packhorse.all_messages

-- name: browse_live
-- Where live messages are.
(select q.id, q.queue::text as queue, q.message_type::text as message_type, q.state::text as state,
  q.priority::integer as priority, q.attempt, q.crashes::integer as crashes,
  q.conversation_key::text as conversation_key, q.correlation_id::text as correlation_id, q.run_at,
  q.created_at, q.claimed_at, null::timestamptz as finished_at, q.error ->> 'class' as error_class,
  q.error ->> 'code' as error_code, q.error ->> 'message' as error_message, q.payload::jsonb as payload
from packhorse.message_queue q where {live})

-- name: browse_live_any
-- Live messages of every state.
true

-- name: browse_live_running
-- Running ones, by their index.
q.lease_token is not null

-- name: browse_live_blocked
-- Blocked ones, by their index.
q.state = 'blocked'

-- name: browse_dead
-- Where dead letters are.
(select d.id, d.queue, d.message_type, 'dead'::text as state, d.priority::integer as priority, d.attempt,
  d.crashes::integer as crashes, d.conversation_key, d.correlation_id, null::timestamptz as run_at,
  d.created_at, null::timestamptz as claimed_at, d.dead_at as finished_at,
  d.error_class, d.error_code, d.error_message, d.payload
from packhorse.dead_letters d)

-- name: browse_older
-- The next messages of a selection that are older than an id, newest first.
select m.id, m.queue, m.message_type, m.state, m.priority, m.attempt, m.conversation_key, m.run_at,
  m.created_at, m.claimed_at, m.finished_at,
  m.error_class, m.error_code, left(m.error_message, 200) as error_message
from {source} m
where (%(before)s::bigint is null or m.id < %(before)s) and (%(edge)s::bigint is null or m.id >= %(edge)s)
  and {filter}
order by m.id desc limit %(limit)s;

-- name: browse_newer
-- The next messages of a selection that are newer than an id, oldest first.
select m.id, m.queue, m.message_type, m.state, m.priority, m.attempt, m.conversation_key, m.run_at,
  m.created_at, m.claimed_at, m.finished_at,
  m.error_class, m.error_code, left(m.error_message, 200) as error_message
from {source} m
where m.id > %(after)s::bigint and (%(edge)s::bigint is null or m.id <= %(edge)s) and {filter}
order by m.id limit %(limit)s;

-- name: browse_edge_older
-- The last id of a walk over so many messages that are older than an id, whatever the filter says; no row
-- when there are fewer. The walk reads ids alone, from indexes; what is at its end is looked up.
select e.id, (select c.created_at from {source} c where c.id = e.id limit 1)
from (select m.id from {source} m where %(before)s::bigint is null or m.id < %(before)s
  order by m.id desc offset %(rows)s limit 1) e;

-- name: browse_edge_newer
-- The same for newer ones.
select e.id, (select c.created_at from {source} c where c.id = e.id limit 1)
from (select m.id from {source} m where m.id > %(after)s::bigint order by m.id offset %(rows)s limit 1) e;

-- name: browse_plan
-- What the planner expects of a selection: rows, and the price of counting them.
explain (format json) select from {source} m where {filter};

-- name: browse_count
-- How many a selection has; only for those that the planner finds cheap.
select count(*) from {source} m where {filter};

-- name: browse_values
-- Values of a field that people may mean, for completion.
select u.value from (
  select 'queue' as field, q.name::text as value from packhorse.queues q
  union all select 'type', t.name::text from packhorse.message_types t
  union all (select 'error', e.error_class
    from (select d.error_class from packhorse.dead_letters d order by d.dead_at desc limit 1000) e group by 2)
  union all (select 'code', e.error_code
    from (select d.error_code from packhorse.dead_letters d order by d.dead_at desc limit 1000) e
    group by 2)) u
where u.field = %(field)s and u.value is not null and starts_with(u.value, %(start)s) order by 1 limit 20;

-- name: browse_groups
-- Dead letters by cause, most frequent first; what a group is stands in its newest letter. One walk over an
-- index, and a probe for each group.
with counted as (
  select d.fingerprint, count(*) as count, min(d.dead_at) as first_dead_at, max(d.dead_at) as last_dead_at,
    count(*) filter (where d.dead_at > clock_timestamp() - interval '1 hour') as last_hour
  from packhorse.dead_letters d group by d.fingerprint
  order by 2 desc, 4 desc, 1 limit %(limit)s
)
select c.*, false as estimated, n.id as newest_id, n.queue, n.message_type, n.reason, n.error_class,
  n.error_code, n.error_message, n.conversation_key, n.concurrency_key
from counted c cross join lateral (
  select d.id, d.queue, d.message_type, d.reason, d.error_class, d.error_code,
    left(d.error_message, 200) as error_message, d.conversation_key, d.concurrency_key
  from packhorse.dead_letters d where d.fingerprint = c.fingerprint order by d.dead_at desc limit 1) n
order by c.count desc, c.last_dead_at desc, c.fingerprint;

-- name: browse_by_index
-- For this transaction: what is counted up to a bound is counted along an index, which can stop.
set local enable_seqscan = off; set local enable_bitmapscan = off

-- name: browse_groups_bounded
-- The same of a table of any size, of the first so many causes by fingerprint: one probe of the index finds
-- the next. Letters are counted up to a share of a budget; of causes that have more, a sample of the table
-- says how many: they are estimated.
with recursive cause (fingerprint, place) as (
  (select d.fingerprint, 1 from packhorse.dead_letters d order by d.fingerprint limit 1)
  union all
  (select n.fingerprint, c.place + 1 from cause c cross join lateral (
     select d.fingerprint from packhorse.dead_letters d
     where d.fingerprint > c.fingerprint order by d.fingerprint limit 1) n
   where c.place < %(causes)s)
), sample as materialized (
  select d.fingerprint, count(*) * %(scale)s::float8 as letters,
    count(*) filter (where d.dead_at > clock_timestamp() - interval '1 hour') * %(scale)s::float8 as last_hour
  from packhorse.dead_letters d tablesample system (100 / %(scale)s::float8) group by 1
), counted as (
  select c.fingerprint, n.letters > c.few as estimated,
    greatest(n.letters, case when n.letters > c.few then s.letters end)::bigint as count,
    greatest(n.last_hour, case when n.letters > c.few then s.last_hour end)::bigint as last_hour
  from (select c.fingerprint, greatest(10, %(most)s / count(*) over ()) as few from cause c) c
  cross join lateral (
    select count(*) as letters,
      count(*) filter (where l.dead_at > clock_timestamp() - interval '1 hour') as last_hour
    from (select d.dead_at from packhorse.dead_letters d where d.fingerprint = c.fingerprint
      order by d.dead_at desc limit c.few + 1) l) n
  left join sample s on s.fingerprint = c.fingerprint
), shown as (
  select c.*, (select d.dead_at from packhorse.dead_letters d where d.fingerprint = c.fingerprint
    order by d.dead_at desc limit 1) as last_dead_at
  from counted c order by c.count desc, 5 desc, c.fingerprint limit %(limit)s
)
select s.fingerprint, s.count, s.estimated, f.first_dead_at, s.last_dead_at, s.last_hour,
  (select count(*) from cause) < %(causes)s as is_all, n.id as newest_id, n.queue, n.message_type, n.reason,
  n.error_class, n.error_code, left(n.error_message, 200) as error_message, n.conversation_key,
  n.concurrency_key
from shown s
cross join lateral (
  select d.dead_at as first_dead_at from packhorse.dead_letters d where d.fingerprint = s.fingerprint
  order by d.dead_at limit 1) f
cross join lateral (
  select d.* from packhorse.dead_letters d where d.fingerprint = s.fingerprint
  order by d.dead_at desc limit 1) n
order by s.count desc, s.last_dead_at desc, s.fingerprint;

-- name: browse_letters_edge
-- When the last of the newest so many dead letters died; no row when there are fewer.
select d.dead_at from packhorse.dead_letters d order by d.dead_at desc offset %(newest)s limit 1;

-- name: browse_groups_filtered
-- The same for a selection, in one walk over the table, or over what died since its edge.
with selected as materialized (
  select m.id, m.fingerprint, m.dead_at from packhorse.dead_letters m
  where (%(edge)s::timestamptz is null or m.dead_at >= %(edge)s) and {filter}
), counted as (
  select s.fingerprint, count(*) as count, min(s.dead_at) as first_dead_at, max(s.dead_at) as last_dead_at,
    count(*) filter (where s.dead_at > clock_timestamp() - interval '1 hour') as last_hour,
    (array_agg(s.id order by s.dead_at desc, s.id desc))[1] as newest_id
  from selected s group by s.fingerprint
  order by 2 desc, 4 desc, 1 limit %(limit)s
)
select c.fingerprint, c.count, c.first_dead_at, c.last_dead_at, c.last_hour, false as estimated,
  c.newest_id, n.queue, n.message_type, n.reason, n.error_class, n.error_code,
  left(n.error_message, 200) as error_message,
  n.conversation_key, n.concurrency_key
from counted c join packhorse.dead_letters n on n.id = c.newest_id
order by c.count desc, c.last_dead_at desc, c.fingerprint;

-- name: browse_group
-- One cause: how many, since when, and its newest letter; no row when there is none. is_more: there are more
-- letters than count, and than last_hour, says.
select n.fingerprint, least(c.letters, %(most)s) as count, c.letters > %(most)s as is_more,
  (select d.dead_at from packhorse.dead_letters d where d.fingerprint = n.fingerprint
    order by d.dead_at limit 1) as first_dead_at,
  n.dead_at as last_dead_at, h.last_hour, n.id as newest_id, n.queue, n.message_type, n.reason, n.error_class,
  n.error_code, left(n.error_message, 2000) as error_message, n.traceback,
  n.conversation_key, n.concurrency_key
from (select * from packhorse.dead_letters d where d.fingerprint = %(fingerprint)s
  order by d.dead_at desc limit 1) n
cross join lateral (
  select count(*) as letters
  from (select from packhorse.dead_letters d where d.fingerprint = n.fingerprint limit %(most)s + 1) l) c
cross join lateral (
  select count(*) as last_hour
  from (select from packhorse.dead_letters d where d.fingerprint = n.fingerprint
      and d.dead_at > clock_timestamp() - interval '1 hour'
    order by d.dead_at desc limit %(most)s) l) h;

-- name: browse_group_letters
-- Letters of one cause, newest message first, by id; older or newer than one.
select d.id, d.queue, d.message_type, d.reason, d.attempt, d.conversation_key, d.created_at, d.dead_at,
  d.edited_at, d.error_class, d.error_code,
  left(d.error_message, 200) as error_message
from packhorse.dead_letters d
where d.fingerprint = %(fingerprint)s and (%(before)s::bigint is null or d.id < %(before)s)
order by d.id desc limit %(limit)s;

-- name: browse_group_letters_newer
-- The same, towards newer ones, oldest first.
select d.id, d.queue, d.message_type, d.reason, d.attempt, d.conversation_key, d.created_at, d.dead_at,
  d.edited_at, d.error_class, d.error_code,
  left(d.error_message, 200) as error_message
from packhorse.dead_letters d where d.fingerprint = %(fingerprint)s and d.id > %(after)s::bigint
order by d.id limit %(limit)s;

-- name: browse_actions_of
-- What operators did with a message, newest first.
select id, acted_at, action, operator, reason from packhorse.operator_actions where message_id = %s
order by id desc limit 50;

-- name: browse_actions
-- What operators did, newest first.
select id, acted_at, action, operator, reason, message_id, details from packhorse.operator_actions
where (%(before)s::bigint is null or id < %(before)s) and (%(action)s::text is null or action = %(action)s)
  and (%(operator)s::text is null or operator = %(operator)s)
  and (%(message_id)s::bigint is null or message_id = %(message_id)s)
order by id desc limit %(limit)s;

-- name: browse_actions_newer
-- The same, towards newer ones, oldest first.
select id, acted_at, action, operator, reason, message_id, details from packhorse.operator_actions
where id > %(after)s::bigint and (%(action)s::text is null or action = %(action)s)
  and (%(operator)s::text is null or operator = %(operator)s)
  and (%(message_id)s::bigint is null or message_id = %(message_id)s)
order by id limit %(limit)s;

-- name: browse_trace
-- The W3C trace context of a message, wherever it is.
select t.trace_context from (
  select q.trace_context::text as trace_context from packhorse.message_queue q where q.id = %(id)s
  union all select a.trace_context from packhorse.message_archive a where a.id = %(id)s
  union all select d.trace_context from packhorse.dead_letters d where d.id = %(id)s) t
where t.trace_context is not null limit 1;

-- name: browse_conversation_of
-- The conversation key of a message, wherever it is.
select c.conversation_key from (
  select q.conversation_key::text as conversation_key from packhorse.message_queue q where q.id = %(id)s
  union all select a.conversation_key from packhorse.message_archive a where a.id = %(id)s
  union all select d.conversation_key from packhorse.dead_letters d where d.id = %(id)s) c
where c.conversation_key is not null limit 1;

-- name: browse_waiting
-- Conversations that wait, longest first, of the first so many by key: one probe of the index for each; and
-- what holds it. What waits is counted up to a share of a budget for all; is_more: so many or more.
with recursive found (conversation_key, since, first_id, place) as (
  (select m.conversation_key::text, greatest(m.created_at, m.run_at), m.id, 1 from packhorse.message_queue m
    where m.state = 'blocked' order by m.conversation_key, m.id limit 1)
  union all
  (select n.conversation_key, n.since, n.first_id, f.place + 1 from found f cross join lateral (
     select m.conversation_key::text, greatest(m.created_at, m.run_at) as since, m.id as first_id
     from packhorse.message_queue m
     where m.state = 'blocked' and m.conversation_key > f.conversation_key
     order by m.conversation_key, m.id limit 1) n
   where f.place < %(probes)s)
)
select c.conversation_key, c.since, w.waiting, h.holder_kind, h.holder_id,
  (select max(f.place) from found f) as looked_at, c.first_id, w.waiting >= c.most as is_more
from (select f.conversation_key, f.since, f.first_id, greatest(100, %(most)s / count(*) over ()) as most
  from (select * from found f order by f.since limit %(limit)s) f) c
cross join lateral (
  select count(*) as waiting
  from (select from packhorse.message_queue m
    where m.state = 'blocked' and m.conversation_key = c.conversation_key limit c.most) b) w
left join lateral (
  select o.holder_kind, o.holder_id
  from packhorse.conversation_holders(c.conversation_key, 9223372036854775807) o
  order by o.holder_kind = 'running' desc, o.holder_kind = 'dead' desc, o.holder_id limit 1) h on true
order by c.since, c.conversation_key;

-- name: browse_archive
-- Where archived messages are.
packhorse.message_archive

-- name: browse_archived_of
-- Archived messages of a conversation that are older than an id and not older than another, newest first.
select a.id, a.queue, a.message_type, a.state, a.reason, a.attempt, a.created_at, null as run_at,
  a.claimed_at, a.finished_at, a.lease_holder, a.error ->> 'class' as error_class
from packhorse.message_archive a
where a.conversation_key = %(key)s and (%(before)s::bigint is null or a.id < %(before)s)
  and (%(edge)s::bigint is null or a.id >= %(edge)s)
order by a.id desc limit %(limit)s;
