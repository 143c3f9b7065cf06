"""enqueue_message and enqueue_messages: what they store, what they refuse and how they say it (SPEC Q2,
Q5).
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql


def test_an_enqueued_message_is_pending_and_due_with_the_defaults(sql: Sql) -> None:
    row = sql.live(sql.enqueue(payload={"key": "a"}))
    assert (row["state"], row["priority"], row["attempt"], row["crashes"], row["max_attempts"]) == (
        "pending",
        5,
        0,
        0,
        None,
    )
    assert row["payload"] == {"key": "a"} and row["options"] == {}
    assert row["run_at"] <= row["created_at"]


def test_ids_grow_in_the_order_of_enqueue(sql: Sql) -> None:
    ids = [sql.enqueue() for _ in range(5)]
    assert ids == sorted(set(ids))


def test_every_argument_reaches_its_column(sql: Sql) -> None:
    row = sql.live(
        sql.enqueue(
            payload={"a": 1},
            options={"b": 2},
            priority=1,
            max_attempts=7,
            conversation_key="c",
            dedup_key="d",
            correlation_id="e",
            trace_context="f",
            expires_at="2999-01-01",
            concurrency_key="g",
            delay="1 hour",
        )
    )
    assert [
        row[name]
        for name in (
            "options",
            "priority",
            "max_attempts",
            "conversation_key",
            "dedup_key",
            "correlation_id",
            "trace_context",
            "concurrency_key",
        )
    ] == [{"b": 2}, 1, 7, "c", "d", "e", "f", "g"]
    assert row["expires_at"].year in (2998, 2999)
    assert 3590 < (row["run_at"] - row["created_at"]).total_seconds() <= 3600


@pytest.mark.parametrize(
    "call",
    [
        "select enqueue_message('q', 'effect')",
        """select count(*) from enqueue_messages('[{"queue": "q", "message_type": "effect"}, {"queue": "q", "message_type": "effect"}]')""",
        "select enqueue_payloads('q', 'effect', '[{}, {}]')",
    ],
)
def test_messages_without_a_correlation_id_get_one_per_call(sql: Sql, call: str) -> None:
    for _ in range(2):
        sql.rows(call)
    made = {row[0] for row in sql.rows("select correlation_id from message_queue")}
    assert len({uuid.UUID(one) for one in made}) == 2, made


def test_a_delay_beside_a_run_at_is_refused(sql: Sql) -> None:
    assert sql.enqueue_refused(delay="1 hour", run_at="2020-01-01 00:00:00+00") == ("PH001", "delay")
    both = "p_delay => '1 hour', p_run_at => '2020-01-01 00:00:00+00'"
    assert sql.refused(f"select enqueue_payloads('q', 'effect', '[{{}}]', {both})") == ("PH001", "delay")


def test_an_enqueue_that_is_rolled_back_leaves_nothing(sql: Sql) -> None:
    with sql.connection.transaction(force_rollback=True):
        message_id = sql.enqueue(dedup_key="k")
    assert sql.state(message_id) is None
    assert sql.enqueue_row(dedup_key="k")[1] is False


ABSURD = [
    ({"message_type": "no spaces"}, "message_type"),
    ({"message_type": ""}, "message_type"),
    ({"message_type": None}, "message_type"),
    ({"message_type": "x" * 101}, "message_type"),
    ({"payload": [1]}, "payload"),
    ({"payload": Jsonb("text")}, "payload"),
    ({"payload": Jsonb(None)}, "payload"),
    ({"payload": None}, "payload"),
    ({"payload": {"blob": "x" * 1048577}}, "payload"),
    ({"options": [1]}, "options"),
    ({"options": None}, "options"),
    ({"options": {"blob": "x" * 1048577}}, "options"),
    ({"priority": 0}, "priority"),
    ({"priority": 11}, "priority"),
    ({"priority": -2147483648}, "priority"),
    ({"priority": None}, "priority"),
    ({"run_at": "infinity"}, "run_at"),
    ({"run_at": "-infinity"}, "run_at"),
    ({"run_at": "9999-01-01"}, "run_at"),
    ({"delay": "20 years"}, "delay"),
    ({"delay": "200000 years"}, "delay"),
    ({"delay": "-20 years"}, "delay"),
    ({"max_attempts": 0}, "max_attempts"),
    ({"max_attempts": 1000001}, "max_attempts"),
    ({"conversation_key": ""}, "conversation_key"),
    ({"conversation_key": "x" * 501}, "conversation_key"),
    ({"concurrency_key": ""}, "concurrency_key"),
    ({"concurrency_key": "x" * 501}, "concurrency_key"),
    ({"correlation_id": "x" * 501}, "correlation_id"),
    ({"trace_context": "x" * 1001}, "trace_context"),
    ({"dedup_key": ""}, "dedup_key"),
    ({"dedup_key": "x" * 501}, "dedup_key"),
    ({"dedup_key": "k", "dedup_window": None}, "dedup_window"),
    ({"dedup_window": "1 hour"}, "dedup_window"),
    ({"dedup_key": "k", "dedup_window": "-1 second"}, "dedup_window"),
    ({"dedup_key": "k", "dedup_window": "367 days"}, "dedup_window"),
    ({"delay": "2 hours", "expires_at": "now"}, "expires_at"),
    ({"delay": "2 hours", "expires_at": "-infinity"}, "expires_at"),
    ({"run_at": "2035-01-01 00:00:00+00", "expires_at": "2034-12-31 23:59:59+00"}, "expires_at"),
]


@pytest.mark.parametrize(
    ("arguments", "column"), ABSURD, ids=[f"{column}-{number}" for number, (_, column) in enumerate(ABSURD)]
)
def test_an_absurd_argument_is_refused_by_name_and_stores_nothing(
    sql: Sql, arguments: dict, column: str
) -> None:
    assert sql.enqueue_refused(**({"message_type": "effect"} | arguments)) == ("PH001", column)
    assert (
        sql.value("select count(*) from message_queue") + sql.value("select count(*) from message_dedup") == 0
    )


def test_a_message_that_is_over_already_may_come_and_ends_as_expired(sql: Sql) -> None:
    for arguments in ({}, {"run_at": "2020-01-01"}, {"delay": "-1 hour"}):
        message_id = sql.enqueue(expires_at="2021-01-01", **arguments)
        sql.rows("select expire_messages()")
        assert sql.row("select state, reason from message_archive where id = %s", message_id) == {
            "state": "cancelled",
            "reason": "expired",
        }


def test_an_infinite_delay_is_refused_by_name(sql: Sql) -> None:
    if sql.connection.info.server_version < 170000:
        pytest.skip("this server has no infinite intervals")
    assert sql.enqueue_refused(delay="infinity") == ("PH001", "delay")


def test_the_limits_themselves_are_accepted(sql: Sql) -> None:
    row = sql.live(
        sql.enqueue(
            message_type="x" * 100,
            priority=10,
            max_attempts=1000000,
            conversation_key="é" * 500,
            concurrency_key="é" * 500,
            correlation_id="é" * 500,
            trace_context="é" * 1000,
            dedup_key="é" * 500,
            dedup_window="366 days",
            delay="3659 days",
            payload={"blob": "x" * 1000000},
        )
    )
    assert row["state"] == "pending"


@pytest.mark.parametrize("column", ["correlation_id", "trace_context"])
def test_a_producer_that_inserts_rows_itself_meets_the_same_limits(sql: Sql, column: str) -> None:
    assert (
        sql.refused(
            f"insert into message_queue (queue, message_type, {column}) values ('q', 'effect', repeat('x', 2000000))"
        )[0]
        == "23514"
    )


def test_json_that_postgres_cannot_hold_is_refused_before_the_queue_sees_it(sql: Sql) -> None:
    deep = "[" * 100000 + "]" * 100000
    assert sql.refused("""select enqueue_message('q', 'effect', '{"a": "\\u0000"}')""")[0] == "22P05"
    assert (
        sql.refused("select enqueue_message('q', 'effect', %s::jsonb)", '{"a": ' + deep + "}")[0] == "54001"
    )
    assert sql.refused("select enqueue_message('q', 'effect', %s::jsonb)", '{"a": NaN}')[0] == "22P02"


def nested(levels: int) -> str:
    return '{"a": ' + "[" * (levels - 1) + "1" + "]" * (levels - 1) + "}"


@pytest.mark.parametrize(
    "payload",
    [
        nested(501),
        nested(5000),
        f'{{"a": {"9" * 4301}}}',
        f'{{"a": [{{"b": -{"9" * 5000}}}]}}',
        '{"a": 1e5000}',
        '{"a": [0, {"b": -1e4300}]}',
    ],
)
def test_json_that_python_cannot_read_is_refused_by_name(sql: Sql, payload: str) -> None:
    assert sql.refused("select enqueue_message('q', 'effect', %s::jsonb)", payload) == ("PH001", "payload")
    assert sql.refused("select enqueue_message('q', 'effect', '{}', %s::jsonb)", payload) == (
        "PH001",
        "options",
    )
    many = f'[{{"queue": "q", "message_type": "effect", "payload": {payload}}}]'
    assert sql.refused("select * from enqueue_messages(%s::jsonb)", many) == ("PH001", "messages[1].payload")
    assert sql.refused("select * from enqueue_payloads('q', 'effect', %s::jsonb)", f"[{{}}, {payload}]") == (
        "PH001",
        "payloads[2]",
    )
    assert (
        sql.refused(
            "insert into message_queue (queue, message_type, payload) values ('q', 'effect', %s::jsonb)",
            payload,
        )[0]
        == "23514"
    )


@pytest.mark.parametrize(
    "payload",
    [
        nested(500),
        f'{{"a": {"9" * 4300}}}',
        f'{{"a": "{"9" * 5000}"}}',
        f'{{"a": 0.{"9" * 5000}}}',
        f'{{"a": "{"[" * 5000}"}}',
        '{"a": 1e4299}',
        '{"a": 1e-5000}',
    ],
)
def test_json_up_to_there_is_taken_and_python_reads_it(sql: Sql, payload: str) -> None:
    message_id = sql.value("select message_id from enqueue_message('q', 'effect', %s::jsonb)", payload)
    assert json.loads(
        sql.value("select payload::text from message_queue where id = %s", message_id)
    ).keys() == {"a"}


PLAIN: list[dict[str, Any]] = [
    {"queue": "q", "message_type": "effect"},
    {"queue": "q", "message_type": "effect", "priority": None, "conversation_key": None},
    {"queue": "q", "message_type": "a", "payload": {"n": 12345678901234567890}, "options": {"retries": 1}},
    {"queue": "other", "message_type": "b", "priority": "7", "max_attempts": 3, "conversation_key": "c"},
    {"queue": "q", "message_type": "b", "run_at": "2030-01-31T12:00:00Z", "expires_at": "2031-01-01"},
    {"queue": "q", "message_type": "b", "correlation_id": "x", "trace_context": "t"},
    {"queue": "q", "message_type": "b", "concurrency_key": "k", "fairness_key": "tenant", "delay": "-1 hour"},
    {"queue": "q", "message_type": "b", "conversation_key": 5, "correlation_id": ""},
]
STORED = """
select queue, message_type, payload::text, options::text, priority, max_attempts, conversation_key,
  correlation_id ~ '^.{36}$', trace_context, expires_at, concurrency_key, fairness_key, dedup_key,
  pending_key, state, round(extract(epoch from run_at - created_at))
from message_queue where id = any (%s) order by id
"""


def test_plain_messages_in_one_insert_are_stored_as_singly(sql: Sql) -> None:
    """A dedup_key beside them sends all one by one."""
    sql.rows("select declare_queue('q'), declare_queue('other')")
    together = [row[0] for row in sql.rows("select message_id from enqueue_messages(%s)", Jsonb(PLAIN))]
    with_key = [*PLAIN, {"queue": "q", "message_type": "effect", "dedup_key": "d"}]
    singly = [row[0] for row in sql.rows("select message_id from enqueue_messages(%s)", Jsonb(with_key))]
    assert together == sorted(together) and len(together) == len(PLAIN)
    assert sql.rows(STORED, together) == sql.rows(STORED, singly[:-1])


@pytest.mark.parametrize(
    ("wrong", "column"),
    [
        ({"queue": "q", "message_type": "effect", "priority": 11}, "messages[2].priority"),
        ({"queue": "q", "message_type": "effect", "priority": "x"}, "messages[2].priority"),
        ({"queue": "q", "message_type": "effect", "payload": [1]}, "messages[2].payload"),
        ({"queue": "q", "message_type": "effect", "payload": None}, "messages[2].payload"),
        ({"queue": "q", "message_type": "effect", "options": None}, "messages[2].options"),
        ({"queue": "q", "message_type": "no type"}, "messages[2].message_type"),
        ({"queue": "q", "message_type": "effect", "delay": "4000 days"}, "messages[2].delay"),
        ({"queue": "q", "message_type": "effect", "colour": 1}, "messages[2].colour"),
        ({"message_type": "effect"}, "messages[2].queue"),
    ],
)
def test_a_wrong_one_among_plain_messages_is_named_and_nothing_is_stored(
    sql: Sql, wrong: dict[str, Any], column: str
) -> None:
    sql.rows("select declare_queue('q')")
    messages = [{"queue": "q", "message_type": "effect"}, wrong]
    assert sql.refused("select * from enqueue_messages(%s)", Jsonb(messages))[1] == column
    assert sql.value("select count(*) from message_queue") == 0


def test_an_unknown_queue_is_refused_and_a_near_miss_is_named(sql: Sql) -> None:
    sql.rows("select declare_queue('payments')")
    with pytest.raises(psycopg.Error) as caught, sql.connection.transaction():
        sql.enqueue("payment")
    assert (caught.value.sqlstate, caught.value.diag.column_name) == ("PH002", "queue")
    assert "payments" in (caught.value.diag.message_hint or "")
    assert sql.enqueue_refused(None) == ("PH002", "queue")
    assert sql.enqueue_refused("x" * 10000) == ("PH002", "queue")


def test_bulk_enqueue_keeps_the_order_and_every_argument(sql: Sql) -> None:
    rows = sql.rows(
        "select message_id, duplicate from enqueue_messages(%s)",
        Jsonb(
            [
                {
                    "queue": "q",
                    "message_type": "effect",
                    "payload": {"n": 1},
                    "priority": 2,
                    "delay": "1 hour",
                    "conversation_key": "c",
                },
                {"queue": "q", "message_type": "effect", "payload": {"n": 2}, "dedup_key": "d"},
                {
                    "queue": "q",
                    "message_type": "effect",
                    "payload": {"n": 3},
                    "dedup_key": "d",
                    "dedup_window": "1 hour",
                },
            ]
        ),
    )
    assert [duplicate for _, duplicate in rows] == [False, False, True]
    assert rows[1][0] == rows[2][0]
    assert [sql.live(row[0])["payload"]["n"] for row in rows[:2]] == [1, 2]
    first = sql.live(rows[0][0])
    assert (first["priority"], first["conversation_key"]) == (2, "c") and first["run_at"] > first[
        "created_at"
    ]


def test_bulk_enqueue_of_nothing_answers_nothing(sql: Sql) -> None:
    assert sql.rows("select * from enqueue_messages('[]')") == []


BAD_BULK = [
    ({}, "messages"),
    (None, "messages"),
    ([1], "messages[1]"),
    (
        [{"queue": "q", "message_type": "effect"}, {"queue": "q", "message_type": "effect", "pritority": 1}],
        "messages[2].pritority",
    ),
    (
        [{"queue": "q", "message_type": "effect"}, {"queue": "q", "message_type": "effect", "priority": 0}],
        "messages[2].priority",
    ),
    ([{"queue": "q", "message_type": "effect", "payload": []}], "messages[1].payload"),
    ([{"queue": "q", "message_type": "effect", "payload": None}], "messages[1].payload"),
    ([{"queue": "q"}], "messages[1].message_type"),
    ([{"queue": "q", "message_type": "effect", "delay": "soon"}], "messages[1].delay"),
    ([{"queue": "q", "message_type": "effect", "max_attempts": "many"}], "messages[1].max_attempts"),
    ([{"queue": "q", "message_type": "effect", "priority": 5.5}], "messages[1].priority"),
    (
        [{"queue": "q", "message_type": "effect", "dedup_key": "messages", "dedup_window": "messages"}],
        "messages[1].dedup_window",
    ),
    ([{"queue": "q", "message_type": "effect", "dedup_window": "1 hour"}], "messages[1].dedup_window"),
    (
        [{"queue": "q", "message_type": "effect", "dedup_key": None, "dedup_window": "1 hour"}],
        "messages[1].dedup_window",
    ),
    ([{"queue": "q", "message_type": "effect", "run_at": 1700000000}], "messages[1].run_at"),
    (
        [{"queue": "q", "message_type": "effect", "delay": "2 hours", "expires_at": "now"}],
        "messages[1].expires_at",
    ),
]


def test_a_refusal_of_a_bulk_has_a_hint_or_none(sql: Sql) -> None:
    """An empty one is shown by psql as a line that says HINT and nothing."""
    hints = []
    for messages in ("[5]", '[{"queue": "q", "message_type": "effect", "run_at": 1700000000}]'):
        with pytest.raises(psycopg.Error) as caught, sql.connection.transaction():
            sql.rows("select enqueue_messages(%s)", messages)
        hints.append(caught.value.diag.message_hint)
    assert hints[0] is None and "2030-01-31T12:00:00Z" in hints[1]


@pytest.mark.parametrize(
    ("messages", "column"),
    BAD_BULK,
    ids=[f"{number}-{column}" for number, (_, column) in enumerate(BAD_BULK)],
)
def test_a_bad_element_of_a_bulk_is_named_by_its_position_and_nothing_is_stored(
    sql: Sql, messages: object, column: str
) -> None:
    assert sql.refused("select * from enqueue_messages(%s::jsonb)", json.dumps(messages)) == ("PH001", column)
    assert sql.value("select count(*) from message_queue") == 0


def test_an_unknown_queue_in_a_bulk_is_named_by_its_position(sql: Sql) -> None:
    messages = [{"queue": "q", "message_type": "effect"}, {"message_type": "effect"}]
    assert sql.refused("select * from enqueue_messages(%s)", Jsonb(messages)) == (
        "PH002",
        "messages[2].queue",
    )


def test_many_payloads_become_messages_in_their_order_that_share_every_argument(sql: Sql) -> None:
    count = sql.value(
        "select enqueue_payloads('q', 'effect', %s, p_options => '{\"o\": 1}', p_priority => 2, p_delay => '1 hour', p_max_attempts => 3, "
        "p_conversation_key => 'c', p_correlation_id => 'r', p_trace_context => 't', p_expires_at => '2999-01-01', p_concurrency_key => 'k')",
        Jsonb([{"n": n} for n in range(50)]),
    )
    assert count == 50
    rows = sql.rows("select (payload ->> 'n')::int from message_queue order by id")
    assert [row[0] for row in rows] == list(range(50))
    shared = """select distinct message_type, options, priority, max_attempts, conversation_key, correlation_id, trace_context, concurrency_key,
                expires_at = '2999-01-01', run_at between clock_timestamp() + interval '59 minutes' and clock_timestamp() + interval '1 hour' from message_queue"""
    assert sql.rows(shared) == [("effect", {"o": 1}, 2, 3, "c", "r", "t", "k", True, True)]


def test_of_payloads_of_one_conversation_one_runs_at_a_time(sql: Sql) -> None:
    sql.value("select enqueue_payloads('q', 'effect', '[{\"n\": 1}, {\"n\": 2}]', p_conversation_key => 'c')")
    assert sql.rows(
        "select payload ->> 'n' from claim_messages(gen_random_uuid(), array['q'], 10, '1 minute')"
    ) == [("1",)]


def test_many_payloads_wake_a_sleeping_worker_once_and_none_are_none(clients) -> None:
    listener, producer = clients(), clients()
    listener.rows("listen packhorse_wake")
    assert producer.value("select enqueue_payloads('q', 'effect', '[]')") == 0
    producer.value("select announce_sleep(array['q'])")
    assert producer.value("select enqueue_payloads('q', 'effect', '[{}, {}, {}]')") == 3
    (note,) = listener.connection.notifies(timeout=10, stop_after=1)
    assert note.payload.split("@")[0] == "q"
    assert list(listener.connection.notifies(timeout=0.2)) == []


BAD_PAYLOADS = [
    ("{}", "", "payloads"),
    ("null", "", "payloads"),
    (None, "", "payloads"),
    ("[{}, {}, 1]", "", "payloads[3]"),
    ("[{}, null]", "", "payloads[2]"),
    ("[[]]", "", "payloads[1]"),
    (json.dumps([{}, {"blob": "x" * 2_000_000}]), "", "payloads[2]"),
    (f'[{{}}, {{}}, {{"deep": {"[" * 5000}{"]" * 5000}}}]', "", "payloads[3]"),
    (f'[{{}}, {{"long": {"9" * 5000}}}]', "", "payloads[2]"),
    ("[{}]", ", p_priority => 11", "priority"),
    ("[{}]", ", p_priority => null", "priority"),
    ("[{}]", ", p_delay => '400000 days'", "delay"),
    ("[{}]", ", p_run_at => 'infinity'", "run_at"),
    ("[{}]", ", p_options => '[]'", "options"),
    ("[{}]", ", p_conversation_key => ''", "conversation_key"),
    ("[{}]", ", p_max_attempts => 0", "max_attempts"),
    ("[{}]", ", p_correlation_id => repeat('x', 501)", "correlation_id"),
    ("[{}]", ", p_trace_context => repeat('x', 1001)", "trace_context"),
    ("[]", ", p_concurrency_key => ''", "concurrency_key"),
    ("[{}]", ", p_delay => '2 hours', p_expires_at => now() + interval '1 hour'", "expires_at"),
]


@pytest.mark.parametrize(
    ("payloads", "more", "column"),
    BAD_PAYLOADS,
    ids=[f"{number}-{column}" for number, (*_, column) in enumerate(BAD_PAYLOADS)],
)
def test_a_bad_argument_of_many_payloads_is_named_and_nothing_is_stored(
    sql: Sql, payloads: str | None, more: str, column: str
) -> None:
    assert sql.refused(f"select enqueue_payloads('q', 'effect', %s::jsonb{more})", payloads) == (
        "PH001",
        column,
    )
    assert sql.value("select count(*) from message_queue") == 0


def test_many_payloads_want_a_known_queue_and_a_message_type(sql: Sql) -> None:
    assert sql.refused("select enqueue_payloads('nobody', 'effect', '[{}]')") == ("PH002", "queue")
    assert sql.refused("select enqueue_payloads('q', 'no type', '[{}]')") == ("PH001", "message_type")
