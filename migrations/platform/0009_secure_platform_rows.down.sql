-- Way back of platform/0009_secure_platform_rows. Takes ACCESS EXCLUSIVE locks. Row-level security stays on;
-- an adopted table does not get back the policies that it had.
do $$
declare
  v_policy record;
begin
  for v_policy in select p.policyname, p.tablename from pg_policies p
    where p.schemaname = (parse_ident('platform.x'))[1]
      and p.policyname ~ ('^' || p.tablename
        || '_(worker|reader|producer|service|own|guest|admin|anon|authenticated)')
  loop
    execute format('drop policy %I on platform.%I', v_policy.policyname, v_policy.tablename);
  end loop;
end
$$;
