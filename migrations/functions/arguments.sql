-- Refusals of bad arguments, for all functions (SPEC Q2).
--
-- The whole SQL API refuses with private SQLSTATEs:
--   PH001 bad argument (its name in COLUMN)   PH002 unknown queue   PH003 lease lost
--   PH004 no such message                     PH005 not possible in the message's state
--   PH006 a copy that nobody has accepted

create or replace function packhorse.refuse_argument(p_name text, p_problem text, p_hint text default '')
returns void
language plpgsql immutable as $$
-- Raise PH001 for one argument: its name, what is wrong, what to do.
begin
  if p_hint = '' then
    raise exception using errcode = 'PH001', column = p_name, message = format('%s: %s', p_name, p_problem);
  end if;
  raise exception using errcode = 'PH001', column = p_name, message = format('%s: %s', p_name, p_problem),
    hint = p_hint;
end
$$;
comment on function packhorse.refuse_argument(text, text, text) is 'Raise PH001 that names the argument.';

create or replace function packhorse.refuse_delay(p_run_at timestamptz) returns void
language plpgsql immutable as $$
-- Raise PH001 for a delay: beside a run_at, or too long.
begin
  perform packhorse.refuse_argument('delay',
    case when p_run_at is null then 'must be at most ten years' else 'give delay or run_at, not both' end);
end
$$;
comment on function packhorse.refuse_delay(timestamptz) is
  'Raise PH001 for a delay beside a run_at, or for one that is too long.';

create or replace function packhorse.check_lease(p_lease interval) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a lease is 1 second to 1 day long: an endless one would lose its message for ever.
begin
  if p_lease is null or p_lease not between interval '1 second' and interval '1 day' then
    perform packhorse.refuse_argument('lease', format('%s is out of range', coalesce(p_lease::text, 'null')),
      '1 second to 1 day.');
  end if;
end
$$;
comment on function packhorse.check_lease(interval) is
  'Raise PH001 unless the length of a lease is in range.';

create or replace function packhorse.check_age(p_name text, p_age interval) returns void
language plpgsql immutable as $$
-- Raise PH001 unless an age is 0 to 1000 years: a negative one would mean the future, none at all everything
-- or nothing.
begin
  if p_age is null or p_age not between interval '0' and interval '1000 years' then
    perform packhorse.refuse_argument(p_name, format('%s is out of range', coalesce(p_age::text, 'null')),
      '0 to 1000 years.');
  end if;
end
$$;
comment on function packhorse.check_age(text, interval) is 'Raise PH001 unless an age is in range.';

create or replace function packhorse.check_batch(p_limit integer) returns void
language plpgsql immutable as $$
-- Raise PH001 unless a batch has 1 to 100000 rows: no statement of the upkeep is unbounded.
begin
  if p_limit is null or p_limit not between 1 and 100000 then
    perform packhorse.refuse_argument('limit', format('%s is out of range', coalesce(p_limit::text, 'null')),
      '1 to 100000.');
  end if;
end
$$;
comment on function packhorse.check_batch(integer) is 'Raise PH001 unless the size of a batch is in range.';
