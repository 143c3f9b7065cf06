"""Names, parameters, defaults and results of the functions are those of the contract, written down here from
it (PLATFORM 3, 6, 11).
"""

from __future__ import annotations

import re

import pytest

from tests.sql.client import Sql

pytestmark = pytest.mark.slow

TS = "timestamp with time zone"
#: function -> (parameters as PostgreSQL writes them, result); further ones of ours may stand behind those of
#: the contract.
CONTRACT = {
    # 3.1
    "get_or_create_agent_session": (
        "p_user_phone text, p_agent_type text, p_user_id uuid DEFAULT NULL, p_agent_id uuid DEFAULT NULL",
        "uuid",
    ),
    "add_agent_message": (
        "p_session_id uuid, p_role text, p_content text, p_metadata jsonb DEFAULT '{}'",
        "boolean",
    ),
    "get_agent_conversation": ("p_session_id uuid, p_limit integer DEFAULT 20", "jsonb"),
    "set_agent_session_status": ("p_session_id uuid, p_status text", "boolean"),
    "expire_agent_chat_sessions": ("p_limit integer DEFAULT 1000", "integer"),
    "get_or_create_conversation_memory": (
        "p_user_phone text, p_agent_type text, p_session_id uuid DEFAULT NULL",
        "ai_conversation_memory",
    ),
    "update_conversation_memory": (
        "p_memory_id uuid, p_message jsonb, p_context jsonb DEFAULT NULL",
        "boolean",
    ),
    "cleanup_old_conversations": (
        "p_older_than interval DEFAULT '7 days', p_limit integer DEFAULT NULL",
        "integer",
    ),
    # 3.2
    "start_workflow": (
        "p_workflow_type text, p_step text, p_timeout interval DEFAULT NULL, p_data jsonb DEFAULT '{}', p_conversation_key text DEFAULT NULL, "
        "p_correlation_id text DEFAULT NULL, p_user_phone text DEFAULT NULL, p_agent_type text DEFAULT NULL",
        "uuid",
    ),
    "advance_workflow": (
        "p_id uuid, p_step text, p_data jsonb DEFAULT '{}', p_timeout interval DEFAULT NULL",
        "integer",
    ),
    "finish_workflow": ("p_id uuid, p_status text DEFAULT 'completed', p_error text DEFAULT NULL", "boolean"),
    "mark_timed_out_workflows": ("p_limit integer DEFAULT 1000", "integer"),
    # 3.3
    "current_guest_token": ("", "text"),
    "current_guest_session_id": ("", "uuid"),
    "get_guest_session": (
        "p_session_token text",
        f"TABLE(id uuid, email text, full_name text, phone text, metadata jsonb, expires_at {TS}, created_at {TS})",
    ),
    "create_guest_session": (
        "p_email text, p_full_name text, p_phone text DEFAULT NULL, p_metadata jsonb DEFAULT '{}'",
        f"TABLE(id uuid, session_token text, expires_at {TS})",
    ),
    "cleanup_expired_guest_sessions": ("p_limit integer DEFAULT NULL", "integer"),
    "convert_guest_to_user": ("p_guest_session_id uuid, p_user_id uuid", "integer"),
    "claim_guest_bookings": ("p_session_token text", "integer"),
    "get_event_counts_by_type": (
        f"p_start_date {TS} DEFAULT (now - '30 days'), p_end_date {TS} DEFAULT now",
        "TABLE(event_type text, event_count bigint, users bigint, sessions bigint)",
    ),
    "get_conversion_funnel": (
        f"p_start_date {TS} DEFAULT (now - '30 days'), p_end_date {TS} DEFAULT now, "
        "p_stages text[] DEFAULT ARRAY['SearchStarted', 'ProfessionalViewed', 'CheckoutStarted', 'BookingConfirmed']",
        "TABLE(stage text, unique_users bigint, conversion_rate numeric)",
    ),
    "cleanup_old_platform_events": (
        "p_older_than interval DEFAULT '90 days', p_limit integer DEFAULT NULL",
        "integer",
    ),
    "get_user_referral_credits": ("p_user_id uuid", "integer"),
    "cleanup_old_webhook_events": (
        "p_older_than interval DEFAULT '30 days', p_limit integer DEFAULT NULL",
        "integer",
    ),
    "cleanup_old_audit_events": (
        "p_older_than interval DEFAULT '365 days', p_limit integer DEFAULT NULL",
        "integer",
    ),
    # 3.4
    "create_messages_partition": ("partition_date date", "text"),
    "maintain_messages_partitions": (
        "p_months_ahead integer DEFAULT 5, p_keep_months integer DEFAULT 6",
        "TABLE(action text, partition_name text)",
    ),
    "get_messages_stats": (
        "",
        "TABLE(partition_name text, partition_start date, partition_end date, row_count bigint, table_size text, total_bytes bigint, months_ahead integer)",
    ),
    "get_recent_messages": (
        "p_phone text, p_company_id bigint DEFAULT NULL, p_limit integer DEFAULT 50, p_within interval DEFAULT '6 mons'",
        f"TABLE(id bigint, direction text, message text, created_at {TS}, processed boolean, company_id bigint, conversation_id uuid, message_type text, "
        "status text, message_id text, metadata jsonb)",
    ),
    "cleanup_expired_dialog_contexts": ("p_limit integer DEFAULT NULL, OUT deleted_count bigint", "bigint"),
    "cleanup_expired_appointments_cache": (
        "p_limit integer DEFAULT NULL, OUT deleted_count bigint",
        "bigint",
    ),
    "cleanup_expired_whatsapp_keys": ("p_limit integer DEFAULT NULL, OUT deleted_count bigint", "bigint"),
    "get_database_stats": (
        "",
        "TABLE(table_name text, row_count bigint, table_size text, partitions integer, dead_rows bigint, table_bytes bigint, index_bytes bigint, "
        "total_bytes bigint)",
    ),
    "get_whatsapp_auth_stats": (
        "",
        "TABLE(total_companies bigint, total_keys bigint, expired_keys bigint, active_keys bigint, db_size_bytes bigint)",
    ),
    "enqueue_due_reminders": ("p_limit integer DEFAULT 100", "integer"),
    "normalize_phone": ("p_phone text", "text"),
    # 11
    "export_person_data": ("p_user_id uuid DEFAULT NULL, p_phone text DEFAULT NULL", "jsonb"),
    "erase_person_data": (
        "p_user_id uuid DEFAULT NULL, p_phone text DEFAULT NULL, p_reason text DEFAULT NULL",
        "TABLE(table_name text, action text, rows bigint)",
    ),
}
#: Section 6, in the queue's schema, beside the forms of its own.
OLD = {
    "get_next_queue_message": (
        "p_lock_id uuid, p_queue text DEFAULT 'default'",
        "TABLE(message_id uuid, message_external_id text, user_phone text, message_type text, payload jsonb, retry_count integer, correlation_id uuid)",
    ),
    "acquire_message_lock": (
        "p_message_id uuid, p_lock_id uuid, p_lock_duration_seconds integer DEFAULT 60",
        "boolean",
    ),
    "release_message_lock": (
        "p_message_id uuid, p_lock_id uuid, p_status text DEFAULT 'completed'",
        "boolean",
    ),
    "schedule_message_retry": ("p_message_id uuid, p_error_details jsonb DEFAULT NULL", "boolean"),
    "acquire_conversation_lock": ("p_conversation_id uuid, p_lock_id uuid", "boolean"),
    "release_conversation_lock": ("p_conversation_id uuid, p_lock_id uuid", "boolean"),
    "is_new_message": (
        "p_external_id text, p_correlation_id text DEFAULT NULL, p_reclaim_after interval DEFAULT '00:05:00'",
        "boolean",
    ),
    "mark_message_processed": (
        "p_external_id text, p_correlation_id text DEFAULT NULL, p_processing_ms integer DEFAULT NULL",
        "void",
    ),
    "message_uuid": ("p_id bigint", "uuid"),
    "message_id_of": ("p_uuid uuid", "bigint"),
}
#: STABLE, IMMUTABLE and SECURITY DEFINER where the contract says so; all others are INVOKER.
DEFINERS = {
    "current_guest_session_id",
    "get_guest_session",
    "create_guest_session",
    "claim_guest_bookings",
    "create_messages_partition",
    "maintain_messages_partitions",
    "export_person_data",
    "erase_person_data",
    "get_whatsapp_auth_stats",  # ours: a reader may count what it may not read
}


def plain(arguments: str) -> str:
    """Without the casts, schemas and names of the clock that PostgreSQL writes into a default."""
    short = re.sub(r"::[a-z ]+(?:\[\])?", "", arguments)
    return short.replace("clock_timestamp()", "now").replace("NULL::", "NULL")


def found(sql: Sql, schema: str) -> dict[str, list[tuple[str, str]]]:
    rows = sql.rows(
        "select proname::text, pg_get_function_arguments(oid), pg_get_function_result(oid) from pg_proc where pronamespace = %s::regnamespace",
        schema,
    )
    made: dict[str, list[tuple[str, str]]] = {}
    for name, arguments, result in rows:
        made.setdefault(name, []).append((plain(arguments), result.removeprefix("public.")))
    return made


@pytest.mark.parametrize(("schema", "contract"), [("public", CONTRACT), ("packhorse", OLD)])
def test_every_signature_is_that_of_the_contract(
    sql: Sql, schema: str, contract: dict[str, tuple[str, str]]
) -> None:
    there = found(sql, schema)
    assert {
        name: there.get(name) for name, wanted in contract.items() if wanted not in there.get(name, [])
    } == {}


def test_only_those_that_the_contract_names_run_with_the_owners_rights(sql: Sql) -> None:
    rows = sql.rows(
        "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and prosecdef"
    )
    assert {row[0] for row in rows} & set(CONTRACT) == DEFINERS


def test_a_function_of_the_invoker_has_no_settings_of_its_own(sql: Sql) -> None:
    rows = sql.rows(
        "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and not prosecdef and proconfig is not null"
    )
    assert {row[0] for row in rows} & set(CONTRACT) == set()
