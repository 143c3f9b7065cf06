-- Way back of platform/0002_create_agent_tables. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.
-- Adopted tables stay, with what was added to them.
do $$
declare
  v_name text;
begin
  foreach v_name in array array['workflow_states', 'ai_conversation_memory', 'agent_chat_sessions',
    'whatsapp_users'] loop
    if not exists (select from platform.platform_adopted_tables a where a.name = v_name) then
      execute format('drop table platform.%I', v_name);
    end if;
  end loop;
end
$$;
