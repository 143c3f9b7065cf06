"""Least privilege: what a producer and a reader may do, and everything else that they may not (SPEC O9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.sql.client import HOLDER, Sql
from tests.sql.parking import blocked_behind, in_background
from tests.support.postgres import Database

DENIED = "42501"
#: What a producer is for; the arguments make each call valid.
PRODUCER_CALLS = [
    "enqueue_message('q', 'effect')",
    "enqueue_message('q', 'effect', p_dedup_key => 'k')",
    """enqueue_messages('[{"queue": "q", "message_type": "effect"}]')""",
    "enqueue_payloads('q', 'effect', '[{}, {}]')",
    "is_new_message('w')",
    "mark_message_processed('w')",
    "acquire_conversation_lock('c', 'ann')",
    "release_conversation_lock('c', 'ann')",
    "cancel_own_message(1)",
    "get_message_result('k')",
    "message_uuid(1)",
    "message_id_of(message_uuid(1))",
    "announce_messages('{q}')",
    "enqueue_alike('q', 'effect', 5::smallint, now(), null, null, null, null, null, null, null, '{}', '{}')",
    "enqueue_rows('q', 'effect', '{}', '{}', '5', '2020-01-01', chr(31), chr(31), chr(31), chr(31), chr(31), chr(31), chr(31))",
]


@pytest.fixture
def as_role(shared_database: Database) -> Iterator[Callable[[str], Sql]]:
    """Clients in a role, each in a transaction that is rolled back; the queue `q` and one message exist in
    it.
    """
    made: list[psycopg.Connection] = []

    def connect(role: str) -> Sql:
        connection = shared_database.connect(admin=True)
        connection.autocommit = False
        made.append(connection)
        client = Sql(connection)
        client.rows("select declare_queue('q')")
        client.enqueue(payload={"secret": 1}, dedup_key="before")
        client.rows("update message_queue set created_at = clock_timestamp() - interval '2 seconds'")
        client.rows(f"set local role {role}")
        return client

    yield connect
    for connection in made:
        connection.rollback()
        connection.close()


@pytest.mark.parametrize("call", PRODUCER_CALLS)
def test_a_producer_can_produce(as_role: Callable[[str], Sql], call: str) -> None:
    producer = as_role("packhorse_producer")
    assert len(producer.rows(f"select {call}")) == 1


def test_a_producer_cancels_what_its_login_has_enqueued_and_nothing_else(
    as_role: Callable[[str], Sql],
) -> None:
    producer = as_role("packhorse_producer")
    mine, other = producer.enqueue(), producer.enqueue()
    producer.rows("reset role")
    producer.rows("update message_queue set enqueued_by = 'somebody' where id = %s", other)
    producer.rows("set local role packhorse_producer")
    assert producer.value("select cancel_own_message(%s, 'changed my mind')", mine) == "cancelled"
    assert [producer.value("select cancel_own_message(%s)", each) for each in (other, mine, 10**12)] == [
        "gone"
    ] * 3
    producer.rows("reset role")
    assert producer.rows("select state, reason from all_messages where id = %s", mine) == [
        ("cancelled", "changed my mind")
    ]
    assert producer.value(
        "select operator from operator_actions where message_id = %s", mine
    ) == producer.value("select session_user::text")
    assert producer.state(other) == "pending"


def test_a_producer_gets_the_id_of_a_duplicate(as_role: Callable[[str], Sql]) -> None:
    producer = as_role("packhorse_producer")
    first = producer.enqueue_row(dedup_key="k")
    assert producer.enqueue_row(dedup_key="k") == (first[0], True)


def test_a_producer_is_told_what_was_wrong_with_its_arguments(as_role: Callable[[str], Sql]) -> None:
    producer = as_role("packhorse_producer")
    assert producer.enqueue_refused(priority=0) == ("PH001", "priority")
    assert producer.enqueue_refused("nope") == ("PH002", "queue")


def functions(sql: Sql) -> list[tuple[str, str]]:
    return sql.rows(
        "select p.proname, p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace "
        "where n.nspname = 'packhorse' order by 1"
    )


def test_a_producer_can_call_nothing_else(as_role: Callable[[str], Sql]) -> None:
    producer = as_role("packhorse_producer")
    allowed = {
        name
        for name, signature in functions(producer)
        if producer.value("select has_function_privilege(%s, 'execute')", signature)
    }
    assert allowed == {
        "announce_messages",
        "cancel_own_message",
        "enqueue_alike",
        "enqueue_by_token",
        "enqueue_message",
        "enqueue_messages",
        "enqueue_payloads",
        "enqueue_rows",
        "is_new_message",
        "mark_message_processed",
        "acquire_conversation_lock",
        "release_conversation_lock",
        "get_message_result",
        "types_instead",
        "wake_channel",
        "message_id_of",
        "message_uuid",
    }


@pytest.mark.parametrize(
    "statement",
    [
        "select payload from message_queue",
        "select id from message_queue",
        "select * from message_queue",
        "select payload from all_messages",
        "select * from dead_letters",
        "select * from message_archive",
        "select * from operator_actions",
        "select * from workers",
        "update message_queue set priority = 1",
        "delete from message_queue",
        "insert into message_queue (queue, message_type, state) values ('q', 'effect', 'blocked')",
        "insert into message_queue (queue, message_type, attempt) values ('q', 'effect', 5)",
        "update queues set max_attempts = 1",
        "insert into message_queue (id, queue, message_type) values (0, 'q', 'effect')",
        "insert into message_queue (queue, message_type, created_at) values ('q', 'effect', '-infinity')",
        "insert into message_queue (queue, message_type, run_at) values ('q', 'effect', '-infinity')",
        "insert into message_queue (queue, message_type, run_at) values ('q', 'effect', 'infinity')",
        "delete from queues",
        "select * from queues",
        "delete from message_dedup",
        "truncate message_queue",
        "delete from processed_messages",
        f"select * from claim_messages('{HOLDER}', '{{q}}')",
        "select complete_messages('{1}', '{1}')",
        "select cancel_message(1)",
        "select nextval('message_lease_token_seq')",
        "update queue_wakeups set wake_until = null",
        "insert into message_queue (queue, message_type) values ('q', 'effect')",
        "insert into message_dedup (queue, dedup_key, message_id, expires_at) values ('q', 'k', 1, 'infinity')",
        "select * from message_dedup",
        "select * from processed_messages",
        "delete from conversation_locks",
        "select * from message_results",
        "select name from queues",
        "select wake_queue('q')",
        "select require_queue('q')",
        "select * from packhorse_migrations",
        "lock table message_queue in access share mode",
    ],
)
def test_a_producer_cannot_do_anything_else(as_role: Callable[[str], Sql], statement: str) -> None:
    assert as_role("packhorse_producer").refused(statement)[0] == DENIED


@pytest.mark.slow
def test_a_producer_that_waits_behind_a_migration_still_enqueues(clients: Callable[..., Sql]) -> None:
    """No right of a producer depends on how long its statement takes."""
    watcher, owner, producer = clients(), clients(admin=True), clients(admin=True)
    producer.rows("set role packhorse_producer")
    with owner.connection.transaction():
        owner.rows("lock table message_queue in access exclusive mode")
        answer = in_background(producer.enqueue)
        blocked_behind(watcher, producer, owner)
        owner.rows("select pg_sleep(1.1)")  # longer than any grace that a policy on created_at would give
    assert watcher.state(answer.result(10)) == "pending"


READABLE = [
    "all_messages",
    "blocked_conversations",
    "message_queue_health",
    "dead_letter_groups",
    "queues",
    "message_queue",
    "message_archive",
    "dead_letters",
    "operator_actions",
    "workers",
    "message_types",
    "explain_message(1)",
]


@pytest.mark.parametrize("what", READABLE)
def test_a_reader_can_look(as_role: Callable[[str], Sql], what: str) -> None:
    as_role("packhorse_reader").rows(f"select * from {what}")


def test_a_reader_sees_steps(as_role: Callable[[str], Sql]) -> None:
    reader = as_role("packhorse_reader")
    reader.rows("reset role")
    message_id = reader.value(
        """update message_queue set steps = '{"answer": {"value": 42, "at": "2026-01-01T00:00:00Z", "attempt": 1}}' returning id"""
    )
    reader.rows("set local role packhorse_reader")
    assert reader.rows("select name, value from message_steps(%s)", message_id) == [("answer", 42)]
    assert (
        reader.value("select detail from explain_message(%s) where gate = 'steps'", message_id)
        == "1 stored, not run again: answer"
    )
    assert reader.value("select describe_steps(steps, 10) -> 0 ->> 'value' from all_messages") == "42"


def test_a_reader_sees_every_row(as_role: Callable[[str], Sql]) -> None:
    assert as_role("packhorse_reader").rows("select payload from all_messages") == [({"secret": 1},)]


@pytest.mark.parametrize(
    "statement",
    [
        "select enqueue_message('q', 'effect')",
        f"select * from claim_messages('{HOLDER}', '{{q}}')",
        "select pause_queue('q')",
        "update message_queue set priority = 1",
        "delete from dead_letters",
        "insert into queues (name) values ('r')",
        "delete from operator_actions",
        "select redrive_dead_letters(p_queue => 'q')",
        "select cleanup_old_messages()",
        "select ensure_message_archive_partitions()",
        "select nextval('message_queue_id_seq')",
    ],
)
def test_a_reader_can_only_look(as_role: Callable[[str], Sql], statement: str) -> None:
    assert as_role("packhorse_reader").refused(statement)[0] == DENIED


@pytest.mark.parametrize(
    "statement",
    [
        "drop table message_queue",
        "alter table message_queue disable row level security",
        "truncate message_archive",
        "delete from operator_actions",
        "update operator_actions set reason = 'x'",
        "create table elsewhere (id integer)",
        "drop function pause_queue(text, text, text)",
        "delete from packhorse_migrations",
    ],
)
def test_a_worker_cannot_change_the_schema_or_the_audit_trail(
    as_role: Callable[[str], Sql], statement: str
) -> None:
    worker = as_role("packhorse_worker")
    if statement.startswith("create table") and worker.connection.info.server_version < 150000:
        pytest.skip("before PostgreSQL 15 everybody may create in the schema public")
    assert worker.refused(statement)[0] == DENIED


def test_roles_have_no_special_rights(shared_database: Database) -> None:
    rows = shared_database.query(
        "select rolname from pg_roles where rolname in ('packhorse_worker', 'packhorse_producer', 'packhorse_reader') "
        "and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)"
    )
    assert rows == []


def test_partitions_are_closed_to_direct_access(as_role: Callable[[str], Sql]) -> None:
    worker = as_role("packhorse_worker")
    partition = worker.value(
        "select inhrelid::regclass::text from pg_inherits where inhparent = 'message_archive'::regclass limit 1"
    )
    assert worker.refused(f"select * from {partition}")[0] == DENIED


#: Privilege -> the tables and views on which a role has it; what is not listed nobody has.
EVERYTHING = set(READABLE) - {"explain_message(1)"} | {
    "access_tokens",
    "claim_marks",
    "key_rates",
    "forwarded_messages",
    "queue_turns",
    "conversation_locks",
    "daemon_requests",
    "detached_partitions",
    "fleet_statistics",
    "installation",
    "maintenance_health",
    "maintenance_runs",
    "maintenance_tasks",
    "backfills",
    "backfill_copies",
    "backfill_progress",
    "message_dedup",
    "message_results",
    "parked_scopes",
    "processed_messages",
    "queue_wakeups",
    "rate_limiters",
    "schedule_health",
    "schedule_runs",
    "schedules",
    "scopes",
    "service_endpoints",
    "packhorse_migrations",
}
VIEWS = {
    "all_messages",
    "blocked_conversations",
    "message_queue_health",
    "dead_letter_groups",
    "backfill_progress",
    "maintenance_health",
    "parked_scopes",
    "schedule_health",
}
TABLES = EVERYTHING - VIEWS - {"packhorse_migrations", "installation", "access_tokens"}
GRANTED: dict[str, dict[str, set[str]]] = {
    "packhorse_reader": {"select": EVERYTHING},
    "packhorse_worker": {
        "select": EVERYTHING,
        "insert": TABLES | {"access_tokens"},
        "update": TABLES - {"operator_actions"} | {"installation", "access_tokens"},
        "delete": TABLES - {"operator_actions"},
    },
    "packhorse_producer": {},
}


@pytest.mark.parametrize("role", GRANTED)
def test_a_role_has_these_privileges_on_tables_and_no_other(shared_database: Database, role: str) -> None:
    """Every privilege of PostgreSQL on every table and view: a grant too many is one that no list of
    statements tries.
    """
    found: dict[str, set[str]] = {}
    for privilege in ("select", "insert", "update", "delete", "truncate", "references", "trigger"):
        found[privilege] = {
            row[0]
            for row in shared_database.query(
                "select relname::text from pg_class where relnamespace = 'packhorse'::regnamespace and relkind in ('r', 'p', 'v', 'm') and not relispartition "
                "and has_table_privilege(%s, oid, %s)",
                role,
                privilege,
            )
        }
    assert found == {privilege: GRANTED[role].get(privilege, set()) for privilege in found}


@pytest.mark.parametrize(
    ("role", "columns", "sequences"),
    [
        ("packhorse_reader", {}, set()),
        ("packhorse_worker", {}, {"message_queue_id_seq usage", "message_lease_token_seq usage"}),
        ("packhorse_producer", {}, set()),
    ],
)
def test_a_role_has_these_privileges_on_columns_and_sequences_and_makes_nothing(
    shared_database: Database, role: str, columns: dict[str, set[str]], sequences: set[str]
) -> None:
    rows = shared_database.query(
        "select c.relname || ' ' || p.name, array_agg(a.attname::text) from pg_class c join pg_attribute a on a.attrelid = c.oid and attnum > 0 and not attisdropped "
        "cross join (values ('select'), ('insert'), ('update'), ('references')) as p (name) where c.relnamespace = 'packhorse'::regnamespace "
        "and c.relkind in ('r', 'p', 'v') and not relispartition and has_column_privilege(%s, c.oid, a.attname, p.name) "
        "and not has_table_privilege(%s, c.oid, p.name) group by 1",
        role,
        role,
    )
    assert {name: set(found) for name, found in rows} == columns
    assert {
        row[0]
        for row in shared_database.query(
            "select c.relname || ' ' || p.name from pg_class c cross join (values ('usage'), ('select'), ('update')) as p (name) where relkind = 'S' "
            "and relnamespace = 'packhorse'::regnamespace and has_sequence_privilege(%s, c.oid, p.name)",
            role,
        )
    } == sequences
    assert shared_database.query(
        "select has_database_privilege(%s, current_database(), 'create'), count(*) filter (where relowner = %s::regrole) from pg_class",
        role,
        role,
    ) == [(False, 0)], "and owns nothing"


def test_a_reader_can_call_nothing_that_changes_a_row(shared_database: Database) -> None:
    """Volatile functions may write; these are volatile because they ask the planner for an estimate, or draw
    a random number.
    """
    rows = shared_database.query(
        "select proname::text from pg_proc where pronamespace = 'packhorse'::regnamespace and provolatile = 'v' "
        "and has_function_privilege('packhorse_reader', oid, 'execute')"
    )
    assert {row[0] for row in rows} == {
        "count_dead_letters",
        "count_queue_messages",
        "count_undeclared_messages",
        "count_undeclared_states",
        "ends_by_hour",
        "estimated_dead_letters",
        "estimated_messages",
        "health_checks",
        "health_error_rate",
        "health_glance",
        "health_queue_health",
        "health_queues",
        "health_system_summary",
        "message_backoff",
        "retry_span",
    }


def test_rights_are_what_the_catalogue_of_the_queue_says(shared_database: Database) -> None:
    """What `packhorse migrate up` runs and `packhorse doctor` shows: nothing differs."""
    assert shared_database.query("select * from packhorse.queue_rights()") == []


@pytest.mark.parametrize(
    ("given", "mended"),
    [
        (
            "grant truncate on message_queue to packhorse_producer",
            "revoke TRUNCATE on table {} from packhorse_producer",
        ),
        (
            "grant select (payload) on message_queue to public",
            "revoke SELECT (payload) on table {} from public",
        ),
        (
            "revoke delete on message_queue from packhorse_worker",
            "grant DELETE on table {} to packhorse_worker",
        ),
        (
            "grant execute on function cancel_message(bigint, text, text, bigint) to public",
            "revoke EXECUTE on routine cancel_message",
        ),
        (
            "grant usage on sequence message_queue_id_seq to packhorse_producer",
            "revoke USAGE on sequence message_queue_id_seq from packhorse_producer",
        ),
        (
            "grant select on all_messages to packhorse_producer",
            "revoke SELECT on table all_messages from packhorse_producer",
        ),
        (
            "grant create on schema packhorse to packhorse_worker",
            "revoke CREATE on schema packhorse from packhorse_worker",
        ),
        (
            "revoke usage on schema packhorse from packhorse_reader",
            "grant usage on schema packhorse to packhorse_reader",
        ),
        (
            "grant usage on type message_key to packhorse_producer",
            "revoke USAGE on type message_key from packhorse_producer",
        ),
    ],
)
def test_each_right_that_differs_is_found_with_the_statement_that_mends_it(
    shared_database: Database, given: str, mended: str
) -> None:
    with shared_database.connect(admin=True) as owner, owner.transaction(force_rollback=True):
        owner.execute(given)  # type: ignore[call-overload]
        statements = [row[0] for row in owner.execute("select * from packhorse.queue_rights()")]
        assert any(statement.startswith(mended.format("message_queue")) for statement in statements), (
            statements
        )
        for statement in statements:
            owner.execute(statement)
        assert owner.execute("select * from packhorse.queue_rights()").fetchall() == []
