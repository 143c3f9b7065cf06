"""The library for handlers of a platform, on connections of every kind: the broker's, the caller's, a
handler's (PLATFORM 8).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import psycopg
import pytest
from dramatiq.brokers.stub import StubBroker
from psycopg.rows import dict_row, namedtuple_row

import packhorse
from packhorse import calls, platform
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, StoreRejected, StoreUnavailable
from tests.support.harness import House, quick_settings
from tests.support.pages import Page, working
from tests.support.platform import broker_on, platform_database
from tests.support.postgres import ROLE, Database, Server

PHONE = "+250 788 000-456"


@pytest.fixture(scope="module")
def on_platform(server: Server) -> Iterator[Database]:
    yield from platform_database(server)


@pytest.fixture
def database(on_platform: Database) -> Iterator[Database]:
    yield on_platform
    on_platform.query(
        "truncate agent_chat_sessions, ai_conversation_memory, workflow_states, webhook_events, processed_messages, rate_limiters, message_queue"
    )


@pytest.fixture
def broker(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresBroker]:
    made = broker_on(database)
    monkeypatch.setattr("dramatiq.broker.global_broker", made)
    yield made
    made.close()


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch, database: Database) -> Iterator[None]:
    """A broker whose database is not there."""
    settings = quick_settings(database).model_copy(
        update={"database_url": type(quick_settings(database).database_url)("postgresql://127.0.0.1:1/x")}
    )
    made = PostgresBroker(settings=settings)
    monkeypatch.setattr("dramatiq.broker.global_broker", made)
    yield
    made.close()


def connect(database: Database, **options: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(database.url, **options)


def test_a_session_lives_through_its_calls(broker: PostgresBroker) -> None:
    session = platform.get_or_create_session(PHONE, "shop")
    assert isinstance(session.id, UUID) and (session.user_phone, session.agent_type, session.status) == (
        PHONE,
        "shop",
        "active",
    )
    assert session.expires_at is not None
    lasts = session.expires_at.astimezone(UTC) - session.created_at.astimezone(UTC)
    assert round(lasts.total_seconds()) == 86400
    assert platform.get_or_create_session("00250788000456", "shop").id == session.id
    assert platform.add_message(session.id, "user", "Muraho", {"from": "test"}) is True
    assert platform.update_context(session.id, {"language": "rw"}) is True
    again = platform.get_or_create_session(PHONE, "shop")
    assert again.context == {"language": "rw"} and [
        (m["role"], m["content"], m["metadata"]) for m in again.conversation_history
    ] == [("user", "Muraho", {"from": "test"})]
    found = platform.get_conversation(str(session.id), limit=1)
    assert found is not None and found["context"] == {"language": "rw"} and len(found["messages"]) == 1
    assert platform.update_context(session.id, {"b": 1}) and platform.get_or_create_session(
        PHONE, "shop"
    ).context == {"b": 1}, "replaced whole"
    assert [platform.end_session(session.id, "expired") for _ in range(2)] == [True, False]
    assert (platform.add_message(session.id, "user", "x"), platform.update_context(session.id, {})) == (
        False,
        False,
    )
    assert platform.get_conversation(uuid4()) is None and platform.end_session(uuid4()) is False


def test_memory_is_kept_and_updated(broker: PostgresBroker) -> None:
    memory = platform.get_or_create_conversation_memory(PHONE, "shop")
    assert (
        platform.update_conversation_memory(memory.id, {"role": "user", "content": "hi"}, {"a": 1, "b": 2})
        is True
    )
    assert (
        platform.update_conversation_memory(memory.id, {"role": "assistant", "content": "hello"}, {"a": None})
        is True
    )
    again = platform.get_or_create_conversation_memory(PHONE, "shop")
    assert (again.id, again.context, [m["content"] for m in again.conversation_history]) == (
        memory.id,
        {"b": 2},
        ["hi", "hello"],
    )
    named = platform.get_or_create_conversation_memory(PHONE, "shop", session_id=uuid4())
    assert named.id != memory.id
    assert platform.update_conversation_memory(uuid4(), {"role": "user", "content": "hi"}) is False


def test_a_workflow_goes_through_its_steps(broker: PostgresBroker, database: Database) -> None:
    workflow = platform.start_workflow(
        "order", "menu", {"n": 1}, user_phone=PHONE, timeout=timedelta(minutes=1), correlation_id="c"
    )
    with pytest.raises(StoreRejected, match=str(workflow)) as refused:
        platform.start_workflow("order", "menu", user_phone=PHONE)
    assert refused.value.sqlstate == "PH005"
    assert platform.advance_workflow(workflow, "choose", {"dish": "ugali"}, timeout=30) == 2
    assert [platform.finish_workflow(workflow) for _ in range(2)] == [True, False]
    row = database.query("select status, workflow_data, correlation_id from workflow_states")
    assert row == [("completed", {"n": 1, "dish": "ugali"}, "c")]
    with pytest.raises(StoreRejected) as missing:
        platform.advance_workflow(uuid4(), "x")
    assert missing.value.sqlstate == "PH004"


@pytest.mark.parametrize("factory", [None, dict_row, namedtuple_row])
def test_on_the_callers_connection_all_is_the_callers_transaction(
    broker: PostgresBroker, database: Database, factory: Any
) -> None:
    with connect(database, **({} if factory is None else {"row_factory": factory})) as connection:
        session = platform.get_or_create_session(PHONE, "shop", connection=connection)
        platform.add_message(session.id, "user", "x", connection=connection)
        assert platform.is_new_message("w", connection=connection.cursor()) is True
        assert database.value("select count(*) from agent_chat_sessions") == 0, "not committed yet"
        connection.rollback()
    assert database.query(
        "select (select count(*) from agent_chat_sessions), (select count(*) from processed_messages)"
    ) == [(0, 0)]


def test_the_search_path_and_the_jsons_of_the_caller_do_not_matter(
    broker: PostgresBroker, database: Database
) -> None:
    with connect(database, autocommit=True) as connection:
        connection.execute("set search_path = ''")
        psycopg.types.json.set_json_loads(lambda text: {"of": "the caller"}, connection)
        session = platform.get_or_create_session(PHONE, "shop", connection=connection)
        assert session.context == {} and session.conversation_history == []


def test_a_coroutine_has_the_same_without_blocking_the_loop(
    broker: PostgresBroker, database: Database
) -> None:
    async def scenario(connection: Any) -> list[Any]:
        session = await platform.get_or_create_session_async(PHONE, "shop", connection=connection)
        memory = await platform.get_or_create_conversation_memory_async(PHONE, "shop", connection=connection)
        workflow = await platform.start_workflow_async(
            "order", "menu", user_phone=PHONE, connection=connection
        )
        conversation = await platform.get_conversation_async(session.id, connection=connection)
        answers = [
            await platform.add_message_async(session.id, "user", "x", connection=connection),
            await platform.update_context_async(session.id, {"a": 1}, connection=connection),
            await platform.update_conversation_memory_async(
                memory.id, {"role": "user", "content": "x"}, connection=connection
            ),
            await platform.advance_workflow_async(workflow, "next", connection=connection),
            await platform.finish_workflow_async(workflow, connection=connection),
            await platform.is_new_message_async("w", "c", connection=connection),
            await platform.is_new_message_async("w", "c", connection=connection),
            await platform.mark_message_processed_async("w", processing_time_ms=12.4, connection=connection),
            await platform.take_turn_async("k", connection=connection),
            len(
                (await platform.export_person_data_async(phone=PHONE, connection=connection))[
                    "agent_chat_sessions"
                ]
            ),
            await platform.end_session_async(session.id, connection=connection),
            sum(e.rows for e in await platform.erase_person_data_async(phone=PHONE, connection=connection)),
        ]
        assert conversation == {"messages": [], "context": {}}
        assert isinstance(
            await platform.record_webhook_event_async("incoming", "x", connection=connection), UUID
        )
        await platform.limit_person_async(PHONE, connection=connection)
        return answers

    async def on_own_connection() -> list[Any]:
        async with await psycopg.AsyncConnection.connect(database.url) as connection:
            found = await scenario(connection)
            await connection.rollback()
        return found

    expected = [True, True, True, 2, True, True, False, None, 0.0, 1, True, 3]
    assert asyncio.run(on_own_connection()) == expected
    assert database.value("select count(*) from agent_chat_sessions") == 0
    assert asyncio.run(scenario(None)) == expected


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (lambda database: object(), lambda given: platform.take_turn("k", connection=given)),
        (lambda database: "postgresql://", lambda given: platform.is_new_message("w", connection=given)),
        (connect, lambda given: asyncio.run(platform.take_turn_async("k", connection=given))),
    ],
)
def test_what_is_no_connection_is_refused_by_name(
    broker: PostgresBroker, database: Database, make: Any, call: Callable[[Any], Any]
) -> None:
    given = make(database)
    with pytest.raises(InvalidArgument) as refused:
        call(given)
    assert refused.value.field == "connection" and refused.value.hint
    if isinstance(given, psycopg.Connection):
        given.close()


def test_without_a_connection_and_a_broker_of_ours_the_hint_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dramatiq.broker.global_broker", StubBroker())
    with pytest.raises(InvalidArgument, match="StubBroker") as refused:
        platform.take_turn("k")
    assert refused.value.field == "connection" and "set_broker" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: platform.get_or_create_session("", "shop"), "user_phone"),
        (lambda: platform.get_or_create_session("1", "shop", user_id=uuid4()), "user_id"),
        (lambda: platform.add_message(uuid4(), "bot", "x"), "role"),
        (lambda: platform.add_message(uuid4(), "user", "x", [1]), "metadata"),  # type: ignore[arg-type]
        (lambda: platform.update_context(uuid4(), {"a": object()}), "context"),
        (lambda: platform.end_session(uuid4(), "active"), "status"),
        (lambda: platform.update_conversation_memory(uuid4(), "x"), "message"),  # type: ignore[arg-type]
        (lambda: platform.start_workflow("w", "s", timeout=0), "timeout"),
        (lambda: platform.start_workflow("w", "s", {"a": float("nan")}), "data"),
        (lambda: platform.is_new_message(""), "external_id"),
        (lambda: platform.export_person_data(), "user_id"),
        (lambda: platform.take_turn(""), "key"),
        (lambda: platform.take_turn("k", per_minute=0), "per_minute"),
        (lambda: platform.take_turn("k", burst=0), "burst"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    broker: PostgresBroker, call: Callable[[], Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        call()
    assert refused.value.field == field


def test_a_duplicate_is_told_from_a_new_message(broker: PostgresBroker, database: Database) -> None:
    assert [platform.is_new_message("w", "c") for _ in range(3)] == [True, False, False]
    assert platform.is_new_message("w", enabled=False) is True
    assert platform.is_new_message("w", window_ms=0) is True, "its window is over, and it was never marked"
    platform.mark_message_processed("w", "c", 12.6)
    assert platform.is_new_message("w", window_ms=0) is False
    assert database.query("select correlation_id, processing_ms from processed_messages") == [("c", 13)]


def test_of_many_at_the_same_instant_one_is_new(broker: PostgresBroker) -> None:
    barrier = threading.Barrier(8)
    answers: list[bool] = []

    def ask() -> None:
        barrier.wait(10)
        answers.append(platform.is_new_message("at once"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == [False] * 7 + [True]


def test_a_database_that_is_not_there_fails_open_and_is_logged(
    lost: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "packhorse.platform"):
        assert platform.is_new_message("+250788123456", "c") is True
        assert asyncio.run(platform.is_new_message_async("w")) is True
        platform.mark_message_processed("w")
        asyncio.run(platform.mark_message_processed_async("w"))
        platform.mark_message_processed(None)  # type: ignore[arg-type]
    lines = [record.getMessage() for record in caplog.records if record.name == "packhorse.platform"]
    assert [line.split()[0] for line in lines] == ["dedup_failed_open"] * 2 + ["message_not_marked"] * 3
    assert "+250788***456" in lines[0] and "StoreUnavailable" in lines[0]
    with pytest.raises(StoreUnavailable):
        platform.is_new_message("w", fail_open=False)
    with pytest.raises(StoreUnavailable):
        platform.get_or_create_session("1", "shop")


def test_a_bucket_gives_its_turns_and_says_when_the_next_one_comes(
    broker: PostgresBroker, database: Database
) -> None:
    assert [platform.take_turn("a", per_minute=6, burst=3) for _ in range(3)] == [0.0] * 3
    wait = platform.take_turn("a", per_minute=6, burst=3)
    assert 9 < wait <= 10 and 9 < platform.take_turn("a", per_minute=6, burst=3) <= wait, "nothing is taken"
    assert platform.take_turn("b", per_minute=6, burst=3) == 0.0
    database.query("update rate_limiters set value = value - 10000000 where limiter_key like '%:a'")
    assert (
        platform.take_turn("a", per_minute=6, burst=3) == 0.0
        and platform.take_turn("a", per_minute=6, burst=3) > 9
    )
    database.query("update rate_limiters set value = value - 3600000000")
    assert [platform.take_turn("a", per_minute=6, burst=3) > 0 for _ in range(4)] == [
        False,
        False,
        False,
        True,
    ], "full, and no fuller"


def test_turns_taken_at_once_are_never_too_many(broker: PostgresBroker) -> None:
    barrier = threading.Barrier(8)
    waits: list[float] = []

    def take() -> None:
        barrier.wait(10)
        waits.extend(platform.take_turn("shared", per_minute=1, burst=10) for _ in range(4))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(wait == 0 for wait in waits) == 10 and len(waits) == 32


def test_a_person_above_its_limit_is_snoozed(broker: PostgresBroker) -> None:
    for _ in range(2):
        platform.limit_person(PHONE, per_minute=60, burst=2)
    with pytest.raises(packhorse.Snooze) as later:
        platform.limit_person(PHONE, per_minute=60, burst=2)
    assert 0 < later.value.seconds <= 1


def test_a_webhook_is_recorded_without_what_proves_who_somebody_is(
    broker: PostgresBroker, database: Database
) -> None:
    headers = {
        "Content-Type": "json",
        "Authorization": "Bearer x",
        "Cookie": "a",
        "Set-Cookie": "a",
        "X-Hub-Signature-256": "sha256=1",
        "x-twilio-signature": "1",
        "X-Api-Key": "k",
        "X-Request-Id": "1",
    }
    made = platform.record_webhook_event(
        "incoming",
        "message",
        webhook_id="wamid.1",
        source="whatsapp",
        payload=[1],
        headers=headers,
        status="delivered",
        correlation_id="c",
    )
    row = database.query(
        "select id, headers, payload, delivered_at is not null, correlation_id, metadata from webhook_events"
    )
    assert row == [(made, {"Content-Type": "json", "X-Request-Id": "1"}, [1], True, "c", {})]


def test_an_answer_for_every_exception(broker: PostgresBroker) -> None:
    def handler(body: Any, headers: Any) -> Any:
        if isinstance(body, Exception):
            raise body
        return body

    safe = platform.safe_http_handler("webhook")(handler)
    given = {"x-correlation-id": "from-outside"}
    ok = safe({"a": 1}, given)
    assert (ok.status, ok.body, ok.headers) == (200, {"a": 1}, {"X-Correlation-ID": "from-outside"})
    assert safe((202, {"a": 1}), given).status == 202
    made = safe(platform.SafeResponse(201, {"b": 2}, {"X-More": "1"}), given)
    assert (made.status, made.headers) == (201, {"X-More": "1", "X-Correlation-ID": "from-outside"})
    ours = safe(platform.WorkflowError("call +250788123456", recoverable=False), given)
    assert (ours.status, ours.body) == (400, {"error": "call +250788***456", "correlationId": "from-outside"})
    assert ours.headers == {"X-Correlation-ID": "from-outside"}
    assert safe(platform.AgentError("tired"), given).status == 500
    foreign = safe(ValueError("password of the database"), given)
    assert (foreign.status, foreign.body["error"]) == (500, "internal error")
    assert safe("no dict", given).status == 500
    fresh = safe({}, {}).headers["X-Correlation-ID"]
    assert UUID(fresh).version == 4


def test_an_asynchronous_handler_has_the_same(broker: PostgresBroker) -> None:
    @platform.safe_http_handler("webhook")
    async def handler(body: Any, headers: Any) -> Any:
        if body == "bad":
            raise platform.WorkflowError("no", recoverable=False)
        return {"id": packhorse.correlation_id()}

    good = asyncio.run(handler("x", [(b"x-correlation-id", b"abc")]))
    assert (good.status, good.body) == (200, {"id": "abc"})
    assert asyncio.run(handler("bad", {})).status == 400


@pytest.mark.parametrize("value", ["", "x" * 201, "a\nb", "caf\u00e9"])
def test_a_correlation_id_that_no_header_could_carry_counts_as_none(value: str) -> None:
    assert UUID(platform.request_correlation_id({"X-Correlation-ID": value}))
    assert UUID(platform.request_correlation_id(None))


def test_the_correlation_id_of_a_request_goes_with_what_it_enqueues(
    broker: PostgresBroker, database: Database
) -> None:
    @dramatiq.actor(broker=broker)
    def work(n: int) -> None:
        """Never run here."""

    @platform.safe_http_handler("webhook")
    def handler(body: Any, headers: Any) -> Any:
        work.send(n=1)
        with connect(database, autocommit=True) as connection:
            packhorse.enqueue(connection, "work", {"n": 2})
        return {}

    handler({}, {"X-Correlation-ID": "the-request"})
    assert database.query("select distinct correlation_id from message_queue") == [("the-request",)]


@pytest.mark.parametrize("house_name", ["runtime"])
def test_in_a_transactional_handler_its_connection_is_the_transaction(
    database: Database, monkeypatch: pytest.MonkeyPatch, house_name: str
) -> None:
    database.query(
        "do $$ begin create role packhorse_tenant nologin; exception when duplicate_object then null; end $$"
    )
    database.query(f"grant packhorse_tenant to {ROLE}")
    house = House(house_name, database, monkeypatch, threads=2)
    try:

        @dramatiq.actor(transactional=True, max_attempts=1)
        def say(fail: bool) -> None:
            connection = packhorse.current_connection()
            connection.execute("set local role packhorse_tenant")  # which has no right to anything of ours
            session = platform.get_or_create_session(f"+{int(fail)}", "shop", connection=connection)
            platform.add_message(session.id, "user", "x", connection=connection)
            if fail:
                raise packhorse.Bury("no")

        @dramatiq.actor(transactional=True, max_attempts=1)
        async def say_async() -> None:
            connection = packhorse.current_async_connection()
            await connection.execute("set local role packhorse_tenant")
            session = await platform.get_or_create_session_async("+3", "shop", connection=connection)
            await platform.add_message_async(session.id, "user", "x", connection=connection)

        house.start()
        say.send(fail=False)
        say.send(fail=True)
        say_async.send()
        house.drained()
    finally:
        house.stop()
    assert database.query("select user_phone, message_count from agent_chat_sessions order by 1") == [
        ("+0", 1),
        ("+3", 1),
    ]


def test_personal_data_is_masked() -> None:
    assert (
        platform.mask_personal_data("call +250788123456 or 250788123456")
        == "call +250788***456 or 250788***456"
    )
    assert platform.mask_personal_data({"to": ["ann@example.com"], "password": "x"}) == {
        "to": ["a***@example.com"],
        "password": "***",
    }


def test_a_person_is_exported_and_erased(broker: PostgresBroker) -> None:
    platform.get_or_create_session(PHONE, "shop")
    assert len(platform.export_person_data(phone="250788000456")["agent_chat_sessions"]) == 1
    done = platform.erase_person_data(phone=PHONE, reason="asked")
    assert platform.Erasure("agent_chat_sessions", "deleted", 1) in done
    assert platform.export_person_data(phone=PHONE)["agent_chat_sessions"] == []


@pytest.mark.slow
def test_an_erasure_may_take_longer_than_other_calls(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a row that somebody has locked for longer than the deadline of a call."""
    made = PostgresBroker(settings=quick_settings(database, call_deadline_seconds=0.5))
    monkeypatch.setattr("dramatiq.broker.global_broker", made)
    platform.get_or_create_session(PHONE, "shop")
    locked = threading.Event()

    def hold() -> None:
        with connect(database) as other:
            other.execute("select from agent_chat_sessions for update")
            locked.set()
            other.execute("select pg_sleep(1.5)")

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        locked.wait()
        assert platform.Erasure("agent_chat_sessions", "deleted", 1) in platform.erase_person_data(
            phone=PHONE
        )
        with pytest.raises(StoreUnavailable), made.pool.connection() as same, translated():
            same.execute("select pg_sleep(1)")  # the connection has its deadline again
    finally:
        holder.join()
        made.close()


def test_the_page_does_what_it_says(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dramatiq.broker.global_broker
    monkeypatch.setenv("DATABASE_URL", database.url)
    asked: list[Any] = []

    def ask_the_agent(history: list[Any], text: str) -> str:
        asked.append((len(history), text))
        return "Hello"

    names: dict[str, Any] = {"DATABASE_URL": database.url, "ask_the_agent": ask_the_agent}
    try:
        exec(Page("platform-library.md").block("safe_http_handler"), names)  # noqa: S102
        with working(dramatiq.get_broker(), database, monkeypatch) as house:
            for _ in range(2):
                answer = names["webhook"](
                    {"messages": [{"id": "w1", "from": PHONE, "text": "Muraho"}]}, {"X-Correlation-ID": "c"}
                )
            assert answer == (200, {"status": "duplicate"}, {"X-Correlation-ID": "c"})
            house.drained()
            names["webhook"]({"messages": [{"id": "w2", "from": PHONE, "text": "again"}]}, {})
            house.drained()
    finally:
        dramatiq.broker.global_broker = before
    assert asked == [(0, "Muraho"), (2, "again")]
    memory = database.query(
        "select jsonb_path_query_array(conversation_history, '$[*].content') from ai_conversation_memory"
    )
    assert memory == [(["Muraho", "Hello", "again", "Hello"],)]
    assert database.query("select count(*) from processed_messages where processed_at is not null") == [(2,)]


def test_all_that_handlers_call_is_there_too() -> None:
    for name in calls.__all__:
        assert getattr(platform, name) is getattr(calls, name)
    assert set(calls.__all__) <= set(dir(platform))
