-- Roles of the queue: who may produce, work and read (SPEC O9).
--
-- Lock and duration: catalogue only, milliseconds. Roles belong to the whole server, so a second
-- database on it (or a second migrator) finds them there: "already exists" is a normal outcome.
-- They cannot log in; grant them to the login roles of your applications.

do $$
declare
  v_role text;
begin
  foreach v_role in array array['packhorse_worker', 'packhorse_producer', 'packhorse_reader'] loop
    if not exists (select from pg_roles where rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception when duplicate_object or unique_violation then
        null; -- another migrator was faster
      end;
    end if;
  end loop;
end
$$;
