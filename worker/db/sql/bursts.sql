-- name: look_for_work
-- Do these worker processes hold something, and could something of their queues and types start now? No row
-- before one of them has registered. The gates are those of the claim; a rate limit is none here, for it only
-- asks for patience. What ran in one of them when it died is held, too: it runs again after a moment.
select
  exists (select from packhorse.message_queue m
    where m.lease_token is not null and m.lease_holder = any (%(workers)s::uuid[]))
  or exists (select from packhorse.message_queue m
    where m.queue = any (k.queues) and m.state = 'pending' and m.crashes > 0
      and m.run_at <= clock_timestamp() + interval '1 minute'
      and m.history -> -1 ->> 'event' in ('crash', 'lease_expired')
      and m.history -> -1 ->> 'holder' = any (%(workers)s::text[])) as held,
  exists (
    select from packhorse.message_queue m join packhorse.queues q on q.name = m.queue
    where m.queue = any (k.queues) and packhorse.names_type(k.message_types, m.message_type)
      and m.state = 'pending'
      and packhorse.is_due(m.run_at, clock_timestamp())
      and packhorse.is_worth_doing(m.expires_at, clock_timestamp())
      and packhorse.queue_is_open(q)
      and not exists (select from packhorse.resting_scopes(m.message_type, m.queue, clock_timestamp()))
      and (q.max_concurrency is null or packhorse.queue_room(q) > 0)
      and exists (select from packhorse.key_room(q, m.concurrency_key) r
        where m.concurrency_key is null or coalesce(r.room, 1) > 0)
      and (m.conversation_key is null
        or not exists (select from packhorse.conversation_holders(m.conversation_key, m.id)))) as startable
from (select w.queues, w.message_types from packhorse.workers w
  where w.id = any (%(workers)s::uuid[]) limit 1) k;

-- name: what_is_left
-- Of the queues and types of these worker processes: live messages, those of them whose last attempt has
-- failed since then, and dead letters since then.
select
  (select count(*) from packhorse.message_queue m
    where m.queue = any (k.queues) and packhorse.names_type(k.message_types, m.message_type)),
  (select count(*) from packhorse.message_queue m
   where m.queue = any (k.queues) and packhorse.names_type(k.message_types, m.message_type)
     and m.state <> 'running'
     and case when m.error ->> 'at' ~ '^[0-9]{4}-' then (m.error ->> 'at')::timestamptz >= %(since)s end),
  (select count(*) from packhorse.dead_letters d
    where d.dead_at >= %(since)s and d.queue = any (k.queues)
      and packhorse.names_type(k.message_types, d.message_type))
from (select w.queues, w.message_types from packhorse.workers w
  where w.id = any (%(workers)s::uuid[]) limit 1) k;
