-- Way back of 0015_grant_privileges. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

-- Policies go with their tables; functions keep working for the owner.
do $$
declare
  v_row record;
begin
  for v_row in select policyname, tablename from pg_policies where schemaname = current_schema()
    and policyname ~ '_(worker|reader|producer|producer_returning)$' loop
    execute format('drop policy %I on %I', v_row.policyname, v_row.tablename);
  end loop;
  for v_row in select distinct table_name from information_schema.role_table_grants
    where table_schema = current_schema() and grantee like 'packhorse\_%' loop
    execute format('revoke all on %I from packhorse_worker, packhorse_producer, packhorse_reader', v_row.table_name);
  end loop;
end
$$;
