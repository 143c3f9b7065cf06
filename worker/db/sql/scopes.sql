-- name: list_scopes
-- What is parked or probing, longest first.
select scope, case when parked_until > clock_timestamp() then 'parked' else 'probing' end as state,
  parked_until, probing, probe_id, parked_at, parked_by, reason,
  message_types, queue, waiting
from packhorse.parked_scopes order by parked_at, scope;

-- name: known_scopes
-- Names that somebody could mean: services that actors name, types, queues, and what was parked before.
select name from (
  select jsonb_array_elements_text(t.policy -> 'services') as name from packhorse.message_types t
  where jsonb_typeof(t.policy -> 'services') = 'array'
  union select 'actor:' || t.name from packhorse.message_types t
  union select 'queue:' || q.name from packhorse.queues q
  union select s.name from packhorse.scopes s) n
order by name limit 10000;

-- name: park_scope
-- By a person: recorded; returns until when.
select packhorse.park_scope(%(scope)s::text, make_interval(secs => %(seconds)s), %(reason)s::text,
  %(types)s::text[], %(probing)s::boolean, p_operator => %(operator)s::text);

-- name: lift_scope
-- By a person: recorded; false when it was not parked.
select packhorse.lift_scope(%s::text, %s::text, %s::text);
