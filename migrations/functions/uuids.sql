-- Ids of messages as UUIDs, for callers that know nothing else.

create or replace function packhorse.message_uuid(p_id bigint) returns uuid
language plpgsql immutable strict parallel safe as $$
-- The UUID (version 8) that carries this id in its low 62 bits: 42 is 00000000-0000-8000-8000-00000000002a.
-- Raises PH001 for an id that no message can have.
declare
  v_bits text;
begin
  if p_id not between 0 and 4611686018427387903 then
    perform packhorse.refuse_argument('id', format('%s is no id of a message', p_id),
      '0 to 4611686018427387903.');
  end if;
  v_bits := to_hex('-9223372036854775808'::bigint | p_id); -- the first two bits are the variant
  return ('00000000-0000-8000-' || left(v_bits, 4) || '-' || right(v_bits, 12))::uuid;
end
$$;
comment on function packhorse.message_uuid(bigint) is 'The UUID that carries the id of a message.';

create or replace function packhorse.message_id_of(p_uuid uuid) returns bigint
language sql immutable strict parallel safe as $$
-- The id that a UUID of message_uuid() carries; null for any other UUID.
  select case when p_uuid::text ~ '^00000000-0000-8000-[89ab]'
    then ('x' || replace(substr(p_uuid::text, 20), '-', ''))::bit(64)::bigint & 4611686018427387903 end;
$$;
comment on function packhorse.message_id_of(uuid) is
  'The id of a message that message_uuid() made this UUID of; null for any other.';
