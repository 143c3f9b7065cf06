"""The queue's functions as old clients call them: by name, by type, with rights of EXECUTE only; lock ids
fence as leases do (PLATFORM 6).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from tests.sql.client import Sql
from tests.sql.conftest import old_enough_for_rescue
from tests.support.postgres import Database, Server

pytestmark = pytest.mark.slow

#: Types as PostgREST knows them of its schema cache: it makes a record of the JSON body, and calls by name.
REST = {
    "get_next_queue_message": {"p_lock_id": "uuid", "p_queue": "text"},
    "acquire_message_lock": {
        "p_message_id": "uuid",
        "p_lock_id": "uuid",
        "p_lock_duration_seconds": "integer",
    },
    "release_message_lock": {"p_message_id": "uuid", "p_lock_id": "uuid", "p_status": "text"},
    "schedule_message_retry": {"p_message_id": "uuid", "p_error_details": "jsonb"},
    "acquire_conversation_lock": {"p_conversation_id": "uuid", "p_lock_id": "uuid"},
    "release_conversation_lock": {"p_conversation_id": "uuid", "p_lock_id": "uuid"},
    "is_new_message": {"p_external_id": "text", "p_correlation_id": "text"},
    "mark_message_processed": {
        "p_external_id": "text",
        "p_correlation_id": "text",
        "p_processing_ms": "integer",
    },
    "cleanup_old_messages": {},
    "cleanup_stale_message_locks": {},
    "cleanup_stuck_webhook_conversations": {},
    "message_uuid": {"p_id": "bigint"},
    "message_id_of": {"p_uuid": "uuid"},
}
LOCK, OTHER = UUID(int=11), UUID(int=12)


def rest(sql: Sql, function: str, schema: str = "packhorse", **arguments: Any) -> Any:
    """A call in the shape of PostgREST: the arguments as one JSON text, named notation; all rows as JSON."""
    types = REST[function]
    given = {name: types[name] for name in arguments}
    columns = ", ".join(f"{name} {kind}" for name, kind in given.items())
    call = ", ".join(f"{name} => a.{name}" for name in given)
    source = f"from json_to_record(%s::json) as a({columns}) cross join lateral" if given else "from"
    body = [json.dumps(arguments, default=str)] if given else []
    found = sql.value(f"select coalesce(json_agg(r), '[]') {source} {schema}.{function}({call}) r", *body)
    return [
        next(iter(row.values())) if isinstance(row, dict) and list(row) == [function] else row
        for row in found
    ]


def next_message(sql: Sql, lock: UUID = LOCK, **more: Any) -> dict[str, Any] | None:
    rows = rest(sql, "get_next_queue_message", p_lock_id=lock, p_queue="q", **more)
    return rows[0] if rows else None


def uuid_of(message_id: int) -> UUID:
    return UUID(f"00000000-0000-8000-8000-{message_id:012x}")


def test_an_id_goes_into_a_uuid_and_comes_back(sql: Sql) -> None:
    assert sql.value("select message_uuid(42)::text") == "00000000-0000-8000-8000-00000000002a"
    for number in (0, 1, 42, 2**31, 2**48, 2**62 - 1):
        made = sql.value("select message_uuid(%s)", number)
        assert made.version == 8 and made.variant == "specified in RFC 4122"
        assert sql.value("select message_id_of(%s)", made) == number
    for bad in (-1, 2**62):
        assert sql.refused("select message_uuid(%s)", bad) == ("PH001", "id")
    for other in (
        uuid4(),
        UUID(int=0),
        UUID("00000000-0000-4000-8000-00000000002a"),
        UUID("00000000-0000-8000-c000-00000000002a"),
    ):
        assert sql.value("select message_id_of(%s)", other) is None
    assert sql.rows("select message_uuid(null), message_id_of(null)") == [(None, None)]


def test_the_next_message_is_claimed_in_the_old_form(sql: Sql) -> None:
    late = sql.enqueue(payload={"n": 2}, priority=5)
    payload = {"message_id": "wamid.1", "from": "whatsapp:+250 788-1"}
    first = sql.enqueue(
        message_type="text",
        payload=payload,
        priority=1,
        correlation_id="7471F4F7-0edd-41cd-82b6-3ddf5e66f86b",
    )
    assert next_message(sql) == {
        "message_id": str(uuid_of(first)),
        "message_external_id": "wamid.1",
        "user_phone": "2507881",
        "message_type": "text",
        "payload": payload,
        "retry_count": 0,
        "correlation_id": "7471f4f7-0edd-41cd-82b6-3ddf5e66f86b",
    }
    second = next_message(sql)
    assert (
        second is not None
        and second["message_id"] == str(uuid_of(late))
        and second["message_external_id"] is None
    )
    assert next_message(sql) is None
    assert sql.live(first)["lease_holder"] == LOCK
    assert (
        sql.value(
            "select round(extract(epoch from lease_expires_at - claimed_at)) from message_queue where id = %s",
            first,
        )
        == 300
    )


def test_the_dedup_key_is_the_external_id_and_a_strange_correlation_id_is_none(sql: Sql) -> None:
    sql.enqueue(
        payload={"message_id": "x", "user_phone": "+1", "phone": "+2"},
        dedup_key="wamid.9",
        correlation_id="not a uuid",
    )
    found = next_message(sql)
    assert found is not None
    assert (found["message_external_id"], found["user_phone"], found["correlation_id"]) == (
        "wamid.9",
        "1",
        None,
    )


def test_a_typed_call_and_the_default_queue(sql: Sql) -> None:
    sql.rows("select declare_queue('default')")
    message_id = sql.enqueue("default")
    assert sql.value("select message_id from get_next_queue_message(%s::uuid)", LOCK) == uuid_of(message_id)
    other = sql.enqueue()
    assert sql.value(
        "select message_id from get_next_queue_message(%s::uuid, %s::text)", LOCK, "q"
    ) == uuid_of(other)
    third = sql.enqueue()
    assert sql.value("select id from get_next_queue_message('q')") == third, (
        "an untyped literal means a queue"
    )


def test_a_message_is_locked_renewed_and_not_taken_from_another(sql: Sql) -> None:
    message_id = sql.enqueue()

    def acquire(lock: UUID, message: UUID | None = None, **more: Any) -> bool:
        return rest(
            sql, "acquire_message_lock", p_message_id=message or uuid_of(message_id), p_lock_id=lock, **more
        )[0]

    def remaining() -> int:
        return sql.value(
            "select round(extract(epoch from lease_expires_at - clock_timestamp())) from message_queue where id = %s",
            message_id,
        )

    assert acquire(LOCK) is True and remaining() == 60
    assert acquire(OTHER) is False
    assert acquire(LOCK, p_lock_duration_seconds=600) is True and remaining() == 600
    assert sql.live(message_id)["attempt"] == 1
    assert acquire(LOCK, uuid4()) is False and acquire(LOCK, uuid_of(message_id + 1000)) is False
    later = sql.enqueue(delay="1 hour")
    assert acquire(LOCK, uuid_of(later)) is False
    for seconds in (0, 86401):
        call = "select acquire_message_lock(%s::uuid, %s::uuid, %s::integer)"
        assert sql.refused(call, uuid_of(later), LOCK, seconds) == ("PH001", "lock_duration_seconds")
    assert sql.refused("select acquire_message_lock(%s::uuid, null::uuid)", uuid_of(later)) == (
        "PH001",
        "lock_id",
    )


@pytest.mark.parametrize(
    ("status", "state", "attempt"),
    [("completed", "done", 1), ("failed", "dead", 1), ("pending", "pending", 0), ("retry", "pending", 0)],
)
def test_a_lock_is_released_with_what_became_of_the_message(
    sql: Sql, status: str, state: str, attempt: int
) -> None:
    message_id = sql.enqueue()
    next_message(sql)
    released = rest(
        sql, "release_message_lock", p_message_id=uuid_of(message_id), p_lock_id=LOCK, p_status=status
    )
    assert released == [True] and sql.state(message_id) == state
    assert sql.value("select attempt from all_messages where id = %s", message_id) == attempt
    if state == "pending":
        assert next_message(sql) is not None, "due at once"
    if state == "dead":
        assert sql.dead(message_id)["reason"] == "failed"
    assert rest(
        sql, "release_message_lock", p_message_id=uuid_of(message_id), p_lock_id=OTHER, p_status=status
    ) == [False]


def test_a_status_that_is_none_is_refused(sql: Sql) -> None:
    assert sql.refused("select release_message_lock(%s::uuid, %s::uuid, 'done')", uuid_of(1), LOCK) == (
        "PH001",
        "status",
    )
    assert sql.refused("select release_message_lock(%s::uuid, %s::uuid, null::text)", uuid_of(1), LOCK) == (
        "PH001",
        "status",
    )


def test_a_lock_that_was_cleared_costs_a_try_and_the_third_one_ends_the_message(
    shared_database: Database, sql: Sql
) -> None:
    """PLATFORM 6: the attempt stays counted. SPEC P5: what kills its workers ends."""
    old_enough_for_rescue(shared_database)
    message_id = sql.enqueue()
    for tries in range(3):
        found = next_message(sql)
        assert found is not None and found["retry_count"] == tries
        sql.rows("update message_queue set lease_expires_at = clock_timestamp() - interval '1 second'")
        assert rest(sql, "cleanup_stale_message_locks") == [1]
        sql.due_now()
    assert next_message(sql) is None
    assert sql.rows("select id, reason, attempt, crashes from dead_letters") == [
        (message_id, "quarantined", 3, 3)
    ]


def test_a_lock_that_was_cleared_leaves_a_try(shared_database: Database, sql: Sql) -> None:
    """Of one try, too: it goes back to pending, and whoever takes it then has the last one."""
    old_enough_for_rescue(shared_database)
    message_id = sql.enqueue(max_attempts=1)
    assert next_message(sql) is not None
    sql.rows("update message_queue set lease_expires_at = clock_timestamp() - interval '1 second'")
    assert rest(sql, "cleanup_stale_message_locks") == [1]
    sql.due_now()
    again = next_message(sql)
    assert again is not None and again["retry_count"] == 0
    assert rest(sql, "schedule_message_retry", p_message_id=uuid_of(message_id)) == [False]
    assert sql.rows("select id, attempt from dead_letters") == [(message_id, 1)]


def test_a_lock_that_a_worker_held_costs_no_try(shared_database: Database, sql: Sql) -> None:
    """SPEC P5: neighbours lose no attempt. Nor does what a worker rescues, whoever held it."""
    old_enough_for_rescue(shared_database)
    worker, other = uuid4(), uuid4()
    sql.rows("select register_worker(%s, 'host', 1, '1', array['q'], array['effect'], 1, '1 minute')", worker)
    sql.rows("update workers set last_seen_at = clock_timestamp() - interval '1 hour'")
    for holder, function in [(worker, "cleanup_stale_message_locks"), (other, "rescue_expired_messages")]:
        message_id = sql.enqueue()
        assert [row[0] for row in sql.rows("select id from claim_messages(%s, array['q'])", holder)] == [
            message_id
        ]
        sql.rows("update message_queue set lease_expires_at = clock_timestamp() - interval '1 second'")
        assert sql.value(f"select {function}()") == 1
        assert sql.live(message_id)["attempt"] == 0
        assert sql.live(message_id)["crashes"] == 1
        sql.rows("delete from message_queue")


@pytest.mark.parametrize("status", ["completed", "failed", "pending", "retry"])
def test_a_lock_id_whose_lease_was_lost_changes_nothing(
    shared_database: Database, sql: Sql, status: str
) -> None:
    old_enough_for_rescue(shared_database)
    message_id = sql.enqueue()
    next_message(sql)
    sql.rows("update message_queue set lease_expires_at = clock_timestamp() - interval '1 second'")
    assert rest(sql, "cleanup_stale_message_locks") == [1]
    sql.due_now()
    again = next_message(sql, OTHER)
    assert again is not None and sql.live(message_id)["crashes"] == 1, "what was begun stays counted"
    before = sql.snapshot()
    assert rest(
        sql, "release_message_lock", p_message_id=uuid_of(message_id), p_lock_id=LOCK, p_status=status
    ) == [False]
    assert rest(sql, "acquire_message_lock", p_message_id=uuid_of(message_id), p_lock_id=LOCK) == [False]
    assert sql.snapshot() == before
    assert rest(sql, "release_message_lock", p_message_id=uuid_of(message_id), p_lock_id=OTHER) == [True]


def test_a_retry_comes_after_the_backoff_until_no_attempt_is_left(sql: Sql) -> None:
    message_id = sql.enqueue()
    waits = []
    for attempt in (1, 2, 3):
        assert next_message(sql) is not None
        details = {"errorName": "TimeoutError", "error": "no answer"} if attempt < 3 else {"code": 7}
        answer = rest(
            sql, "schedule_message_retry", p_message_id=uuid_of(message_id), p_error_details=details
        )
        assert answer == [attempt < 3]
        if attempt < 3:
            live = sql.live(message_id)
            assert (live["error"]["class"], live["error"]["message"]) == ("TimeoutError", "no answer")
            waits.append(
                sql.value("select round(extract(epoch from run_at - clock_timestamp())) from message_queue")
            )
            sql.due_now()
    assert waits == [1, 2] and sql.state(message_id) == "dead"
    assert sql.dead(message_id)["error_message"] == '{"code": 7}'
    assert rest(sql, "schedule_message_retry", p_message_id=uuid_of(message_id)) == [False]
    assert rest(sql, "schedule_message_retry", p_message_id=uuid4(), p_error_details={}) == [False]
    waiting = sql.enqueue()
    assert rest(sql, "schedule_message_retry", p_message_id=uuid_of(waiting)) == [False], "it does not run"
    long = {"error": "x" * 3000}
    assert (
        next_message(sql) is not None
        and sql.value("select schedule_message_retry(%s::uuid, %s)", uuid_of(waiting), Jsonb(long)) is True
    )
    assert len(sql.live(waiting)["error"]["message"]) <= 2000


def test_a_conversation_lock_has_one_holder(sql: Sql) -> None:
    talk = uuid4()

    def call(function: str, lock: UUID) -> bool:
        return rest(sql, function, p_conversation_id=talk, p_lock_id=lock)[0]

    assert [call("acquire_conversation_lock", lock) for lock in (LOCK, OTHER, LOCK)] == [True, False, True]
    assert sql.value("select acquire_conversation_lock(%s, 'ann')", str(talk)) is False, (
        "the text form means the same lock"
    )
    assert [call("release_conversation_lock", lock) for lock in (OTHER, LOCK, LOCK)] == [False, True, False]


def test_webhooks_and_upkeep_are_called_as_ever(sql: Sql) -> None:
    assert [rest(sql, "is_new_message", p_external_id="w", p_correlation_id="c") for _ in range(2)] == [
        [True],
        [False],
    ]
    rest(sql, "mark_message_processed", p_external_id="w", p_correlation_id="c", p_processing_ms=12)
    assert sql.rows("select correlation_id, processing_ms from processed_messages") == [("c", 12)]
    for function in (
        "cleanup_old_messages",
        "cleanup_stale_message_locks",
        "cleanup_stuck_webhook_conversations",
    ):
        assert rest(sql, function) == [0]


def test_an_untyped_positional_call_to_a_name_with_two_forms_is_refused_and_not_guessed(sql: Sql) -> None:
    with pytest.raises(psycopg.errors.AmbiguousFunction), sql.connection.transaction():
        sql.connection.execute(f"select release_message_lock('{uuid_of(1)}', '{LOCK}')".encode())


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest) -> Iterator[Callable[[Server], Database]]:
    """A database with platform and public API, the platform added later."""
    made: dict[str, Database] = {}

    def of(server: Server) -> Database:
        if server.name not in made:
            made[server.name] = server.create_database()
            connection = connect(made[server.name].admin_url, deadline_seconds=120)
            migrate.up(connection, sets=["public-api"])
            assert connection.execute("select to_regproc('public.message_uuid')").fetchone() == (None,)
            migrate.up(connection, sets=["platform"])
            assert migrate.up(connection) == []
            connection.close()
        return made[server.name]

    yield of
    for database in made.values():
        database.drop()


@pytest.mark.parametrize("schema", ["packhorse", "public"])
def test_a_client_with_rights_of_execute_only_works_through_a_message(
    both: Callable[[Server], Database], any_server: Server, schema: str
) -> None:
    """In both schemas: what it calls needs no right on a table of its own, and the search_path says
    nothing.
    """
    database = both(any_server)
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(
            "do $$ begin create role old_client; exception when duplicate_object then null; end $$"
        )
        connection.execute("grant packhorse_worker to old_client")
        client = Sql(connection)
        client.rows("select packhorse.declare_queue('q')")
        message_id = client.value(
            "select message_id from packhorse.enqueue_message('q', 'text', '{\"from\": \"+1\"}')"
        )
        client.rows("set local role old_client")
        client.rows("set local search_path = ''")
        (found,) = rest(client, "get_next_queue_message", schema, p_lock_id=LOCK, p_queue="q")
        assert found["message_id"] == str(uuid_of(message_id)) and found["user_phone"] == "1"
        given = {"p_message_id": uuid_of(message_id), "p_lock_id": LOCK}
        assert rest(client, "acquire_message_lock", schema, **given, p_lock_duration_seconds=30) == [True]
        assert rest(
            client,
            "schedule_message_retry",
            schema,
            p_message_id=uuid_of(message_id),
            p_error_details={"error": "x"},
        ) == [True]
        assert rest(client, "release_message_lock", schema, **given, p_status="completed") == [False]
        lock = {"p_conversation_id": uuid4(), "p_lock_id": LOCK}
        assert [
            rest(client, f"{verb}_conversation_lock", schema, **lock) for verb in ("acquire", "release")
        ] == [[True], [True]]
        assert rest(client, "message_id_of", schema, p_uuid=uuid_of(message_id)) == [message_id]
        connection.rollback()


@pytest.mark.parametrize("schema", ["packhorse", "public"])
def test_others_are_refused(both: Callable[[Server], Database], any_server: Server, schema: str) -> None:
    database = both(any_server)
    for role in ("packhorse_reader", "packhorse_producer"):
        with psycopg.connect(database.admin_url) as connection:
            client = Sql(connection)
            client.rows(f"set local role {role}")
            assert (
                client.refused(f"select * from {schema}.get_next_queue_message(%s::uuid)", LOCK)[0] == "42501"
            )
            assert (
                client.refused(f"select {schema}.release_message_lock(%s::uuid, %s::uuid)", LOCK, LOCK)[0]
                == "42501"
            )


def test_the_way_back_leaves_the_queue_its_own_forms(own_database: Database) -> None:
    connection = connect(own_database.admin_url, deadline_seconds=120)
    theirs = "create function public.is_new_message(text) returns boolean language sql as 'select true'"
    connection.execute(theirs.encode(), prepare=False)
    migrate.down(connection)
    forms = "select count(*) from pg_proc where proname = 'get_next_queue_message' and pronamespace = 'packhorse'::regnamespace"
    assert own_database.value(forms) == 1
    assert own_database.value("select to_regprocedure('public.is_new_message(text)') is not null") is True, (
        "nobody else's goes"
    )
    migrate.up(connection)
    assert own_database.value(forms) == 2
    connection.close()
