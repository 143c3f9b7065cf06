"""The scenarios of the source systems, end to end: a webhook made with the library, a real worker, an AI
agent that a test directs (PLATFORM 10).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from packhorse import platform
from packhorse.worker.broker.postgres import PostgresBroker
from tests.support.fake_service import FakeService
from tests.support.platform import broker_on, platform_database
from tests.support.platform_actors import webhook_on
from tests.support.postgres import Database, Server
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

pytestmark = pytest.mark.slow
pytest.importorskip("httpx")
ANN, BOB = "250788000111", "250788000222"
Send = Callable[..., platform.SafeResponse]


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    yield from platform_database(server)


@pytest.fixture
def broker(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresBroker]:
    made = broker_on(database)
    monkeypatch.setattr("dramatiq.broker.global_broker", made)
    yield made
    made.close()


@pytest.fixture
def agent() -> Iterator[FakeService]:
    found = FakeService()
    yield found
    found.close()


@pytest.fixture
def worker(
    database: Database, ledger: Ledger, agent: FakeService, start_daemon: Callable[..., Daemon]
) -> Callable[..., Daemon]:
    def start(**extra: str) -> Daemon:
        made = start_daemon(
            database,
            ledger,
            actors="tests.support.platform_actors",
            extra={"SERVICE_URL": agent.url, **extra},
            lease_seconds=10,
        )
        return made.wait_ready()

    return start


@pytest.fixture
def send(database: Database) -> Send:
    webhook = webhook_on(database.url)

    def post(
        text: str, phone: str = ANN, message_id: str | None = None, **headers: str
    ) -> platform.SafeResponse:
        message = {"id": message_id or f"wamid.{uuid4().hex}", "from": phone, "text": text}
        return webhook(
            {"message": message},
            {
                "Authorization": "Bearer x",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            },
        )

    return post


def settled(database: Database) -> None:
    wait_until(lambda: database.value("select not exists (select from message_queue)"), 40, "no message left")


# -- S001


def test_1_the_same_message_twice_is_handled_once(
    database: Database, ledger: Ledger, worker: Any, send: Send
) -> None:
    worker()
    first = send("hi", message_id="wamid.1", X_Correlation_ID="first")
    assert (first.status, first.body) == (200, {"status": "accepted"})
    settled(database)
    second = send("hi", message_id="wamid.1")
    assert (second.status, second.body) == (200, {"status": "duplicate"})
    settled(database)
    assert ledger.counts("effect") == {"wamid.1": 1}
    assert database.value("select count(*) from webhook_events") == 1


def test_1_two_deliveries_at_the_same_instant_are_one(
    database: Database, ledger: Ledger, worker: Any, send: Send
) -> None:
    answers: list[Any] = []
    barrier = threading.Barrier(6)

    def deliver() -> None:
        barrier.wait(10)
        answers.append(send("hi", message_id="wamid.2").body["status"])

    threads = [threading.Thread(target=deliver) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == ["accepted"] + ["duplicate"] * 5
    worker()
    settled(database)
    assert ledger.counts("effect") == {"wamid.2": 1}


def test_2_an_agent_that_answers_late_is_waited_for(
    database: Database, ledger: Ledger, agent: FakeService, worker: Any, send: Send
) -> None:
    agent.slow = 5.0
    worker()
    send("slow", message_id="late")
    settled(database)
    assert ledger.counts("effect") == {"late": 1} and ledger.counts("start") == {"late": 1}
    assert database.value("select processing_ms >= 5000 from processed_messages") is True


def test_2_an_agent_that_does_not_answer_ends_as_timeout_and_after_three_tries_dead(
    database: Database, ledger: Ledger, agent: FakeService, worker: Any, send: Send
) -> None:
    agent.mode = "hang"
    worker(AI_TIMEOUT_MS="300")
    send("never", message_id="never")
    settled(database)
    assert ledger.counts("start") == {"never": 3} and not ledger.counts("effect")
    row = database.query(
        "select error_code, attempt, error_details -> 'context' -> 'timeout_ms' from dead_letters"
    )
    assert row == [("TIMEOUT", 3, 300)]
    session = database.query("select jsonb_array_length(conversation_history) from agent_chat_sessions")
    assert session == [(1,)], "three attempts have said it once"


def test_3_a_normal_message_is_handled_once_and_noted(
    database: Database, ledger: Ledger, agent: FakeService, worker: Any, send: Send
) -> None:
    worker()
    answer = send("hi", message_id="wamid.3", X_Correlation_ID="the-request")
    assert answer.headers["X-Correlation-ID"] == "the-request"
    settled(database)
    assert ledger.counts("effect") == {"wamid.3": 1}
    noted = "select correlation_id, processed_at is not null, processing_ms >= 0 from processed_messages"
    assert database.query(noted) == [("the-request", True, True)]
    assert [request.headers["x-correlation-id"] for request in agent.requests] == ["the-request"]
    assert database.query(
        "select headers ? 'Authorization', headers ->> 'X-Correlation-ID' from webhook_events"
    ) == [(False, "the-request")]
    assert (
        database.value("select conversation_history -> 0 ->> 'content' from ai_conversation_memory")
        == "/answer"
    )


def test_4_a_handler_that_fails_runs_again_after_one_second_and_after_two(
    database: Database, ledger: Ledger, worker: Any, send: Send
) -> None:
    worker()
    send("fail 2", ANN, "twice")
    send("fail 9", BOB, "always")
    settled(database)
    assert ledger.counts("start") == {"twice": 3, "always": 3} and ledger.counts("effect") == {"twice": 1}
    assert database.query("select payload ->> 'id', error_code, attempt from dead_letters") == [
        ("always", "NOT_YET", 3)
    ]
    # at least so long: the times of the failures are the database's
    waits = (
        "select extract(epoch from (h -> 1 ->> 'at')::timestamptz - (h -> 0 ->> 'at')::timestamptz) >= 1, "
    )
    waits += "extract(epoch from (h -> 2 ->> 'at')::timestamptz - (h -> 1 ->> 'at')::timestamptz) >= 2 from (select history as h from dead_letters) d"
    assert database.query(waits) == [(True, True)]


def test_5_a_burst_is_handled_in_order_and_what_is_above_the_limit_waits(
    database: Database, ledger: Ledger, worker: Any, send: Send
) -> None:
    sent = [f"m{number}" for number in range(8)]
    for name in sent:
        assert send("hi", message_id=name).body == {"status": "accepted"}
    worker()
    settled(database)
    assert [row[1] for row in ledger.lines("effect")] == sent, "all, in order"
    snoozed = database.query(
        "select payload ->> 'id' from message_archive where jsonb_path_exists(history, '$[*] ? (@.event == \"snooze\")') order by id"
    )
    assert {row[0] for row in snoozed} <= set(sent[5:]) and snoozed, "the burst of five did not wait"
    assert database.value("select max(attempt) from message_archive") == 1, "waiting spends no attempt"


def test_6_a_workflow_of_three_steps_in_order(
    database: Database, ledger: Ledger, worker: Any, send: Send
) -> None:
    worker()
    for text in ("order food", "show menu"):
        send(text)
        settled(database)
    assert database.query("select workflow_type, current_step, step_number, status from workflow_states") == [
        ("order", "show_menu", 2, "active")
    ]
    send("choose items")
    settled(database)
    row = database.query(
        "select status, current_step, jsonb_path_query_array(history, '$[*].step'), completed_at is not null from workflow_states"
    )
    assert row == [("completed", "choose_items", ["order_food", "show_menu"], True)]


def test_a_request_that_no_repetition_helps_is_400_and_others_are_500(database: Database) -> None:
    webhook = webhook_on(database.url)
    bad = webhook({"message": {"id": "x"}}, {"X-Correlation-ID": "c"})
    assert (bad.status, bad.body) == (400, {"error": "the message has no sender", "correlationId": "c"})
    broken = webhook_on("postgresql://127.0.0.1:1/x")(
        {"message": {"id": "x", "from": ANN}}, {"X-Correlation-ID": "c"}
    )
    assert (broken.status, broken.body) == (500, {"error": "internal error", "correlationId": "c"})


# -- S000


def test_a_to_d_a_session_lives_from_message_to_message_and_ends_after_24_hours(
    database: Database, worker: Any, send: Send
) -> None:
    worker()
    send("context blue")
    settled(database)
    sessions = "select id, status, jsonb_array_length(conversation_history), context from agent_chat_sessions order by created_at"
    ((first, status, length, context),) = database.query(sessions)
    assert (status, length, context) == ("active", 1, {"said": "blue"})
    send("again", f"+{ANN}")
    settled(database)
    assert database.query(sessions) == [(first, "active", 2, {"said": "blue"})]
    assert (
        database.value(
            "select round(extract(epoch from expires_at - created_at)) = 86400 from agent_chat_sessions"
        )
        is True
    )
    database.query("update agent_chat_sessions set expires_at = clock_timestamp() - interval '1 second'")
    send("the next day")
    settled(database)
    (old, new) = database.query(sessions)
    assert old[:2] == (first, "expired") and new[1:] == ("active", 1, {})


def test_e_two_callers_at_once_have_one_session(database: Database, broker: PostgresBroker) -> None:
    found: set[Any] = set()
    barrier = threading.Barrier(10)

    def call() -> None:
        barrier.wait(10)
        found.add(platform.get_or_create_session(ANN, "shop").id)

    threads = [threading.Thread(target=call) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 1


# -- S002


def as_role(connection: psycopg.Connection[Any], role: str, **settings: str) -> None:
    connection.execute("reset role")
    for name in ("request.jwt.claims", "request.headers"):
        connection.execute(
            "select set_config(%s, %s, true)", (name, settings.get(name.rpartition(".")[2], ""))
        )
    connection.execute(f"set local role {role}".encode())


def test_a_marketplace_keeps_conversations_guests_and_events(database: Database) -> None:
    user = str(uuid4())
    with psycopg.connect(database.admin_url) as connection:
        for role in ("anon", "authenticated"):
            connection.execute(
                f"do $$ begin create role {role}; exception when duplicate_object then null; end $$".encode()
            )
        connection.execute("select public.refresh_platform_access()")
        claims = json.dumps({"sub": user})
        as_role(connection, "authenticated", claims=claims)
        talk = connection.execute(
            "insert into public.amara_conversations (user_id) values (%s) returning id", (user,)
        ).fetchone()
        assert talk is not None
        for role in ("user", "assistant"):
            connection.execute(
                "insert into public.amara_messages (conversation_id, role, content) values (%s, %s, 'x')",
                (talk[0], role),
            )
        assert connection.execute("select count(*) from public.amara_messages").fetchone() == (2,)
        as_role(connection, "authenticated", claims=json.dumps({"sub": str(uuid4())}))
        assert connection.execute("select count(*) from public.amara_conversations").fetchone() == (0,)
        as_role(connection, "anon")
        made = connection.execute(
            "select session_token from public.create_guest_session('ann@example.com', 'Ann')"
        ).fetchone()
        connection.execute("select * from public.create_guest_session('bob@example.com', 'Bob')")
        assert made is not None
        found = connection.execute("select full_name from public.get_guest_session(%s)", made).fetchall()
        assert found == [("Ann",)] and connection.execute(
            "select count(*) from public.guest_sessions"
        ).fetchone() == (0,)
        as_role(connection, "anon", headers=json.dumps({"x-guest-session": made[0]}))
        assert connection.execute("select full_name from public.guest_sessions").fetchall() == [("Ann",)], (
            "nobody sees another's"
        )
        connection.execute(
            "insert into public.platform_events (event_type, session_id) values ('SearchStarted', 's')"
        )
        connection.execute("reset role")
        connection.execute("create table public.notifications (user_id uuid, text text)")
        connection.execute("insert into public.notifications values (%s, 'n')", (user,))
        assert connection.execute("select event_count from public.get_event_counts_by_type()").fetchall() == [
            (1,)
        ]
        exported = connection.execute("select public.export_person_data(%s)", (user,)).fetchone()
        assert exported is not None and [
            len(exported[0][name]) for name in ("amara_messages", "notifications")
        ] == [2, 1]


# -- S003


def test_a_salon_has_its_tables_keys_partitions_and_queries(database: Database) -> None:
    tables = [
        "companies",
        "clients",
        "services",
        "staff",
        "staff_schedules",
        "bookings",
        "appointments_cache",
        "dialog_contexts",
        "reminders",
        "sync_status",
    ]
    with psycopg.connect(database.admin_url, autocommit=True) as connection:

        def value(statement: str) -> Any:
            row = connection.execute(statement.encode()).fetchone()
            assert row is not None
            return row[0]

        names = "array['" + "','".join([*tables, "messages"]) + "']"
        assert (
            value(
                f"select count(*) from pg_class where relnamespace = 'public'::regnamespace and relname = any ({names})"
            )
            == 11
        )
        assert value("select count(*) from pg_inherits where inhparent = 'public.messages'::regclass") == 6
        assert (
            value(
                f"select count(*) from pg_indexes where schemaname = 'public' and tablename = any ({names})"
            )
            >= 60
        )
        touched = f"select count(*) from pg_trigger where tgfoid = 'public.touch_updated_at'::regproc and tgrelid::regclass::text = any ({names})"
        connection.execute("set search_path = public")
        assert value(touched) == 9
        load_salon(connection)
        booked = value(
            "select count(*) from bookings b join clients c on c.id = b.client_id join services s on s.id = b.service_id join staff t on t.id = b.staff_id "
            "where b.company_id = 1 and b.datetime between '2026-01-01' and '2026-12-31'"
        )
        assert booked == 38
        assert value("select sum(cost) from bookings where status = 'confirmed'") == 38 * 100
        with pytest.raises(psycopg.errors.Error) as refused:
            connection.execute("delete from clients where id = 1")
        assert refused.value.sqlstate in ("23001", "23503")
        plan = connection.execute(
            "explain select * from messages where phone = '1' and created_at >= date_trunc('month', now()) and created_at < date_trunc('month', now()) + "
            "interval '20 days'"
        ).fetchall()
        opened = {word for row in plan for word in row[0].split() if word.startswith("messages_2")}
        assert len({word for word in opened if word.count("_") == 2}) == 1, plan


def load_salon(connection: psycopg.Connection[Any]) -> None:
    """S003's sizes: 1 company, 1299 clients, 63 services, 12 staff, 56 schedules, 38 bookings, 21 dialog
    contexts.
    """
    for statement in (
        "insert into companies (id, name) values (1, 'Salon')",
        "insert into clients (id, company_id, phone) select n, 1, '+250 ' || n from generate_series(1, 1299) n",
        "insert into services (id, company_id, title) select n, 1, 'Cut ' || n from generate_series(1, 63) n",
        "insert into staff (id, company_id, name) select n, 1, 'Ann ' || n from generate_series(1, 12) n",
        "insert into staff_schedules (company_id, staff_id, date) select 1, 1 + n % 12, date '2026-11-01' + n / 12 from generate_series(0, 55) n",
        "insert into bookings (company_id, client_id, service_id, staff_id, datetime, duration, status, cost) "
        "select 1, n, n, 1 + n % 12, timestamptz '2026-06-01 08:00Z' + n * interval '1 hour', 60, 'confirmed', 100 from generate_series(1, 38) n",
        "insert into dialog_contexts (company_id, phone) select 1, '+250 ' || n from generate_series(1, 21) n",
        "insert into messages (company_id, phone, direction, message) select 1, '+250 ' || n % 100, 'inbound', 'x' from generate_series(1, 5000) n",
    ):
        connection.execute(statement.encode())
