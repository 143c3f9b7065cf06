-- name: complete_and_claim
-- Complete these, claim those; plain columns only, so that no value can break the fetch (FAILURES 80): before
-- PostgreSQL 17 an infinite time cannot be subtracted, and one row of somebody with all rights would end
-- every claim.
select hints::text, id, lease_token, queue, message_type, payload, options, priority, attempt, max_attempts,
  crashes, conversation_key, correlation_id, trace_context, run_at::text,
  date_part('epoch', clock_timestamp() - least(greatest(created_at, '1970-01-01'), '9999-01-01')),
  date_part('epoch', clock_timestamp() - least(greatest(run_at, '1970-01-01'), '9999-01-01')), steps
from packhorse.complete_and_claim_messages(%s::bigint[], %s::bigint[], %s, %s, %s, %s, %s, %s::timestamptz[],
  %s, %s::bigint[], %s::timestamptz[], %s::text);

-- name: complete
-- Complete messages; the ids that were completed.
select packhorse.complete_messages(%s, %s);

-- name: complete_as_text
-- The same of one message, its id and token in the text: was it completed?
select cardinality(packhorse.complete_messages('{{{}}}', '{{{}}}')) operator(pg_catalog.>) 0;

-- name: enqueue
-- One message, in the transaction of the connection.
select message_id, duplicate, merged from packhorse.enqueue_message(%s, %s, %s::jsonb, %s::jsonb, {options});

-- name: enqueue_plain
-- The common case of enqueue: nothing but queue, type, payload and options. Not in FROM: one row needs no
-- store for rows.
select (packhorse.enqueue_message(%s, %s, %s::jsonb, %s::jsonb, %s)).message_id;

-- name: enqueue_telling
-- The same as enqueue, and the channel on which sleeping workers are to be woken, if any sleep.
select message_id, duplicate, merged, packhorse.wake_channel(%s)
from packhorse.enqueue_message(%s, %s, %s::jsonb, %s::jsonb, {options});

-- name: enqueue_plain_telling
-- The same as enqueue_plain, and that channel.
select (packhorse.enqueue_message(%s, %s, %s::jsonb, %s::jsonb, %s)).message_id, packhorse.wake_channel(%s);

-- name: wake_channel
-- The channel on which workers are woken.
select packhorse.wake_channel();

-- name: wake_channels
-- That of each of these queues on which somebody sleeps.
select packhorse.wake_channel(q), q from unnest(%s::text[]) q where packhorse.wake_channel(q) is not null;

-- name: insert_alike
-- Bulk enqueue of messages that differ in payload and options only.
select packhorse.enqueue_alike({columns});

-- name: insert_messages
-- Bulk enqueue: a column per parameter, values separated by chr(30), chr(31) for null. COPY would be faster,
-- but not under row-level security.
select packhorse.enqueue_rows({columns});

-- name: insert_messages_with_state
-- The same, by a role that may say which messages are blocked behind an earlier one of the batch.
select packhorse.enqueue_rows_with_states({columns});

-- name: database_now
-- The database clock.
select clock_timestamp();

-- name: can_write
-- Does this server take writes?
select current_setting('transaction_read_only') = 'off';

-- name: wake_queues
-- Wake sleeping workers of these queues; a queue that nobody has declared is refused.
select packhorse.announce_messages(%s::text[]);

-- name: declare_queue
-- Make a queue known.
select packhorse.declare_queue(%s);

-- name: retry
-- running -> pending after a delay.
select packhorse.schedule_message_retry(%s, %s, make_interval(secs => %s), %s, %s, p_details => %s::jsonb,
  p_traceback => %s, p_options => %s::jsonb) is not null;

-- name: fail
-- An attempt failed: retry, dead or lost.
select packhorse.fail_message(%s, %s, %s, %s, p_traceback => %s, p_frame => %s, p_max_attempts => %s,
  p_delay => make_interval(secs => %s), p_backoff_initial => make_interval(secs => %s),
  p_backoff_max => make_interval(secs => %s), p_details => %s::jsonb, p_options => %s::jsonb);

-- name: snooze
-- Later, not a failure.
select packhorse.snooze_message(%s, %s, make_interval(secs => %s), %s);

-- name: reject
-- An attempt failed and no other one can help.
select packhorse.reject_message(%s, %s, %s, %s, %s, %s, %s, p_details => %s::jsonb);

-- name: park
-- What it calls asked for a pause: it and its scope rest.
select packhorse.park_message(%s, %s, make_interval(secs => %s), %s, %s);

-- name: release
-- Hand messages back; why, when their handlers had started.
select packhorse.release_messages(%s, %s, %s);

-- name: uncommitted
-- A handler's transaction was not committed: snooze, or what a failed attempt becomes.
select packhorse.return_uncommitted_message(%s, %s, make_interval(secs => %s), %s, %s);

-- name: fail_overdue
-- The attempt of a handler that ignored its hard time limit has failed.
select packhorse.fail_overdue_message(%s, %s, %s);

-- name: store_steps
-- Store steps; what became of each, and each value as the database has it: that is what a later attempt will
-- see.
select packhorse.store_message_steps(%(ids)s::bigint[], %(tokens)s::bigint[], %(names)s::text[],
  %(values)s::jsonb[]), %(values)s::jsonb[]::text[];

-- name: store_step_and_wait
-- Store one step; waits for a locked row. False when the lease was lost.
select packhorse.store_message_step(%s, %s, %s, %s::jsonb);

-- name: mark_completion_refused
-- Handlers are done, the database refuses to write that, and their process has to stop; how many are marked.
select packhorse.mark_completion_refused(%s, %s, %s);

-- name: complete_refused
-- Try the completion of marked messages again; how many worked.
select packhorse.complete_refused_messages();

-- name: bury
-- Give up: dead letter.
select packhorse.bury_message(%s, %s, %s, %s, %s, %s, %s, %s::jsonb);

-- name: cancel
-- Cancel by an operator: cancelled, requested or gone.
select packhorse.cancel_message(%s, %s, %s);

-- name: cancel_held
-- The holder ends its own message as cancelled.
select packhorse.cancel_message(%s, %s, p_token => %s);

-- name: explain
-- Why is this message not running?
select gate, passed, detail, earliest_start from packhorse.explain_message(%s);

-- name: announce_sleep
-- Ask producers for a NOTIFY.
select packhorse.announce_sleep(%s, make_interval(secs => %s));

-- name: attend_queues
-- Watch queues that nobody watches; which ones.
select packhorse.attend_queues(%s::text[], %s::text[], make_interval(secs => %s), %s::text);

-- name: keep_attending
-- Watch them for longer; which ones not.
select packhorse.keep_attending(%s::text[], %s::text[], make_interval(secs => %s), %s::text);

-- name: hand_over_queues
-- Wake who sleeps; watch no longer, or go on.
select packhorse.hand_over_queues(%s::text[], %s, %s);

-- name: call_workers
-- Wake some who sleep; what was notified.
select packhorse.call_workers(%s::text[], %s::bigint[], %s);

-- name: is_superseded
-- Is there a later message of its conversation or pending key?
select packhorse.is_superseded(%s);

-- name: next_of_conversations
-- The first pending message of each of these conversations.
select packhorse.next_of_conversations(%s);

-- name: release_unknown
-- Hand back what this holder leased without learning of it; how many.
select packhorse.release_unknown_messages(%s, %s::bigint[]);
