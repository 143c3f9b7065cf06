-- Way back of 0010_secure_rows. Takes ACCESS EXCLUSIVE locks. Row-level security stays on: without policies
-- nobody but the owner sees a row.

do $$
declare
  v_policy record;
begin
  for v_policy in select p.policyname, p.tablename from pg_policies p
    where p.schemaname = (parse_ident('packhorse.x'))[1] and p.policyname ~ '_(worker|reader)$'
  loop
    execute format('drop policy %I on packhorse.%I', v_policy.policyname, v_policy.tablename);
  end loop;
end
$$;
