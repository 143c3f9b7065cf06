"""What must hold for conversations at every moment and at the end, told from the database alone (SPEC P4)."""

from __future__ import annotations

from tests.sql.client import Sql

ORPHANS = """
select m.conversation_key, min(m.id) from message_queue m
where m.state = 'blocked'
  and not exists (select from message_queue h where h.conversation_key = m.conversation_key and h.state in ('running', 'pending'))
  and not exists (select from dead_letters d where d.conversation_key = m.conversation_key and d.blocks_conversation)
group by m.conversation_key
"""
RUNNING_TWICE = """
select conversation_key, count(*) from message_queue where state = 'running' and conversation_key is not null
group by conversation_key having count(*) > 1
"""


def violations(sql: Sql) -> list[str]:
    """Conversations that nobody will ever wake, or in which two messages run; empty when all is well."""
    return [
        f"conversation {key}: message {first} is blocked behind nobody" for key, first in sql.rows(ORPHANS)
    ] + [f"conversation {key}: {count} messages run" for key, count in sql.rows(RUNNING_TWICE)]
