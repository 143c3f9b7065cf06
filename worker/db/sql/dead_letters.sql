-- name: list_dead_letters
-- Dead letters by filter, newest first.
select id, queue, message_type, reason, error_class, error_code, left(error_message, 120) as error_message,
  attempt, crashes, conversation_key, dead_at, fingerprint
from packhorse.dead_letters m
where (%(queue)s::text is null or queue = %(queue)s)
  and (%(message_type)s::text is null or message_type = %(message_type)s)
  and (%(fingerprint)s::text is null or fingerprint = %(fingerprint)s)
  and (%(code)s::text is null or error_code = %(code)s) and {filter}
order by dead_at desc, id desc limit %(limit)s;

-- name: show_dead_letter
-- One dead letter, whole; of its steps so many characters of each value.
select id, queue, message_type, reason, error_class, error_code, error_message, error_details, traceback,
  fingerprint, priority, attempt, max_attempts,
  crashes, conversation_key, concurrency_key, fairness_key, correlation_id, blocks_conversation, created_at,
  dead_at, edited_at, lease_holder, payload, options, history,
  packhorse.describe_steps(steps, %(characters)s) as steps
from packhorse.dead_letters where id = %(id)s;

-- name: selected_dead_letters
-- Those that an act is about and that were dead at a given moment.
(%(ids)s::bigint[] is null or m.id = any (%(ids)s)) and (%(queue)s::text is null or m.queue = %(queue)s)
  and (%(fingerprint)s::text is null or m.fingerprint = %(fingerprint)s)
  and (%(code)s::text is null or m.error_code = %(code)s)
  and (%(older_than)s::float8 is null or m.dead_at < %(dead_by)s - make_interval(secs => %(older_than)s))
  and m.dead_at <= %(dead_by)s and {filter}

-- name: page_of_dead_letters
-- The next ids after a given one, oldest message first.
select m.id from packhorse.dead_letters m where m.id > %(after)s and {filter} order by m.id limit %(limit)s;

-- name: redrive
-- Enqueue dead letters again; the ids that were.
select packhorse.redrive_dead_letters(p_ids => %s, p_limit => %s, p_operator => %s, p_reason => %s,
  p_fresh => %s);

-- name: dead_again
-- How many of these ids are dead letters (again).
select count(*) from packhorse.dead_letters where id = any (%s);

-- name: dead_letter_payload
-- The payload of one dead letter, to be edited.
select payload from packhorse.dead_letters where id = %s;

-- name: dead_letter_steps
-- The names of its steps.
select coalesce(array_agg(name), '{}') from packhorse.message_steps(%s);

-- name: edit_dead_letter
-- Replace the payload, which was the last value when it was read; false when there is no such dead letter.
select packhorse.edit_dead_letter(%s, %s::jsonb, %s, %s, %s::jsonb);

-- name: purge
-- Delete dead letters; the ids that were.
select packhorse.purge_dead_letters(p_ids => %s, p_limit => %s, p_operator => %s, p_reason => %s);

-- name: export_dead_letters
-- Dead letters of these ids, whole, oldest first.
select id, queue, message_type, payload, options, priority, reason, error_class, error_message, error_code,
  error_details, traceback, fingerprint, attempt,
  max_attempts, crashes, conversation_key, concurrency_key, fairness_key, correlation_id, trace_context,
  history, steps, lease_holder, blocks_conversation, created_at, dead_at, edited_at
from packhorse.dead_letters where id = any (%s) order by id;
