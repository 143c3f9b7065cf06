"""Queues: declare, set, pause, resume, and the wake-up hint (SPEC Q8, Q10)."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import HOLDER, Sql


def actions(sql: Sql) -> list[tuple]:
    return sql.rows("select action, operator, details ->> 'queue' from operator_actions order by id")


def test_declaring_a_queue_twice_says_which_was_first(sql: Sql) -> None:
    assert sql.value("select declare_queue('a')") is True
    assert sql.value("select declare_queue('a')") is False


@pytest.mark.parametrize("name", ["", "1a", "a b", "x" * 101, "a'b", None, "é"])
def test_a_bad_queue_name_is_refused(sql: Sql, name: str | None) -> None:
    assert sql.refused("select declare_queue(%s)", name) == ("PH001", "queue")


def test_settings_are_changed_and_the_act_is_recorded(sql: Sql) -> None:
    sql.rows(
        "select set_queue('q', %s, 'ann')",
        Jsonb({"max_attempts": 9, "backoff_max": "1 hour", "on_dead": "block"}),
    )
    row = sql.row("select * from queues where name = 'q'")
    assert (row["max_attempts"], row["backoff_max"].total_seconds(), row["on_dead"], row["crash_limit"]) == (
        9,
        3600,
        "block",
        3,
    )
    assert actions(sql) == [("set_queue", "ann", "q")]


def test_null_resets_a_limit(sql: Sql) -> None:
    sql.set_queue(max_concurrency=1, rate_limit=5)
    sql.set_queue(max_concurrency=None)
    row = sql.row("select * from queues where name = 'q'")
    assert (row["max_concurrency"], row["rate_limit"]) == (None, 5)


BAD_SETTINGS = [
    {"max_concurrency": 0},
    {"max_concurrency": "many"},
    {"max_concurrency": 1e30},
    {"max_concurrency_per_key": -1},
    {"rate_limit": 0},
    {"rate_interval": "0"},
    {"rate_interval": "soon"},
    {"rate_interval": "1e30 days"},
    {"rate_interval": None},
    {"rate_burst": 0},
    {"keep_done": "-1 day"},
    {"keep_done": "infinity"},
    {"max_attempts": 0},
    {"max_attempts": None},
    {"crash_limit": 1001},
    {"backoff_initial": "1 hour", "backoff_max": "1 minute"},
    {"backoff_multiplier": 0.5},
    {"backoff_multiplier": "NaN"},
    {"backoff_multiplier": "1e400"},
    {"backoff_jitter": 1.5},
    {"on_dead": "explode"},
    {"on_dead": 5},
    {"max_attempts": [1]},
]


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_a_setting_out_of_range_is_refused_and_changes_nothing(sql: Sql, settings: dict) -> None:
    before = sql.rows("select q::text from queues q where name = 'q'")
    assert sql.refused("select set_queue('q', %s)", Jsonb(settings)) == ("PH001", list(settings)[-1])
    assert sql.rows("select q::text from queues q where name = 'q'") == before
    assert actions(sql) == []


def test_a_refused_setting_is_named_with_what_is_allowed(sql: Sql) -> None:
    with pytest.raises(psycopg.Error) as caught:
        sql.rows("select set_queue('q', %s)", Jsonb({"crash_limit": 2, "max_attempts": 0}))
    diag = caught.value.diag
    assert (diag.message_primary, diag.message_hint) == (
        "max_attempts: 0 is out of range",
        "Allowed: max_attempts >= 1 AND max_attempts <= 1000000",
    )


@pytest.mark.parametrize(
    ("queue", "answer", "hint"),
    [(None, "PH002", None), ("", "PH002", "declare_queue(name)"), ("Q", "PH002", "declare_queue('Q')")],
)
def test_a_queue_that_cannot_be_is_not_proposed(
    sql: Sql, queue: str | None, answer: str, hint: str | None
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        sql.rows("select require_queue(%s)", queue)
    assert caught.value.sqlstate == answer
    assert (caught.value.diag.message_hint or "").endswith(hint or "")


def test_an_unknown_setting_is_named(sql: Sql) -> None:
    assert sql.refused("select set_queue('q', %s)", Jsonb({"paused_at": "2020-01-01"})) == (
        "PH001",
        "paused_at",
    )
    assert sql.refused("select set_queue('q', '[]')") == ("PH001", "settings")
    assert sql.refused("select set_queue('q', null)") == ("PH001", "settings")


@pytest.mark.parametrize(
    "call",
    ["set_queue('nope', '{}')", "pause_queue('nope')", "resume_queue('nope')", "require_queue('nope')"],
)
def test_an_unknown_queue_is_refused(sql: Sql, call: str) -> None:
    assert sql.refused(f"select {call}") == ("PH002", "queue")


def test_a_paused_queue_gives_nothing_until_it_is_resumed(sql: Sql) -> None:
    message_id = sql.enqueue()
    assert sql.value("select pause_queue('q', 'ann')") is True
    assert sql.value("select pause_queue('q', 'bob')") is False
    assert sql.claim() == []
    assert sql.value("select resume_queue('q', 'bob')") is True
    assert sql.value("select resume_queue('q', 'bob')") is False
    assert [lease.id for lease in sql.claim()] == [message_id]
    assert actions(sql) == [("pause_queue", "ann", "q"), ("resume_queue", "bob", "q")]


def test_a_running_message_of_a_paused_queue_can_finish(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows("select pause_queue('q')")
    assert sql.complete(lease) == [lease.id]


def notifications(client: Sql) -> list[str]:
    words = [notify.payload for notify in client.connection.notifies(timeout=0.2)]
    return [word.split("@")[0] for word in words]  # without the number that says whose turn it is


def test_a_producer_notifies_only_while_somebody_sleeps(clients) -> None:
    listener, producer = clients(), clients()
    listener.rows("listen packhorse_wake")
    producer.enqueue()
    assert notifications(listener) == []
    listener.rows("select announce_sleep('{q}')")
    producer.enqueue()
    producer.enqueue(delay="1 hour")
    assert notifications(listener) == ["q", "q"], "also for the later one: the sleeper sets its alarm"
    listener.rows("select attend_queues('{q}', '{work}')")
    producer.enqueue()
    assert notifications(listener) == [], "somebody looks all the time"


WAYS_BACK = {
    "release": "select release_message({id}, {token})",
    "recover": f"select recover_worker('{HOLDER}', array[{{id}}::bigint])",
    "rescue": "update message_queue set lease_expires_at = clock_timestamp() - interval '1 second'; select rescue_expired_messages()",
    "redrive": "select bury_message({id}, {token}); select redrive_dead_letters(array[{id}::bigint])",
}


@pytest.mark.parametrize("way", WAYS_BACK)
def test_a_message_that_comes_back_wakes_the_sleepers_of_its_queue_and_no_others(clients, way: str) -> None:
    listener, worker = clients(), clients()
    worker.rows("select declare_queue('r')")
    lease = worker.claimed()
    listener.rows("listen packhorse_wake")
    listener.rows("select announce_sleep('{q,r}')")
    for statement in WAYS_BACK[way].format(id=lease.id, token=lease.token).split(";"):
        worker.rows(statement)
    assert notifications(listener) == ["q"]


WAYS_TO_START = {
    "resume": "select pause_queue('q', 'ann'); listen; select resume_queue('q', 'ann')",
    "a wider limit": "listen; select set_queue('q', '{{\"max_concurrency\": 5}}')",
    "payloads": "listen; select enqueue_payloads('q', 'effect', '[{{}}, {{}}]')",
    "messages": 'listen; select enqueue_messages(\'[{{"queue": "q", "message_type": "effect"}}]\')',
    "purge of what held the conversation": "select set_queue('q', '{{\"on_dead\": \"block\"}}'); enqueue; select bury_message({id}, {token}); claim; "
    "listen; select purge_dead_letters(array[{id}::bigint])",
    "cancellation of what was first in the conversation": "enqueue; claim; listen; select cancel_message({id}, p_token => {token})",
    "expiry of what was first in the conversation": "enqueue; claim; select release_message({id}, {token}); "
    "update message_queue set expires_at = clock_timestamp() where id = {id}; listen; select expire_messages()",
}


@pytest.mark.parametrize("way", WAYS_TO_START)
def test_what_lets_messages_start_wakes_the_sleepers_of_their_queue_and_no_others(clients, way: str) -> None:
    listener, worker = clients(), clients()
    worker.rows("select declare_queue('r')")
    lease = worker.claimed(conversation_key="c")
    for statement in WAYS_TO_START[way].format(id=lease.id, token=lease.token).split("; "):
        if statement == "listen":
            listener.rows("select announce_sleep('{q,r}')")
            listener.rows("listen packhorse_wake")
        elif statement == "enqueue":
            worker.enqueue(conversation_key="c")
        elif statement == "claim":
            assert worker.claim() == [], "it waits behind the first"
        else:
            worker.rows(statement)
    # "q!": all of them look at once, for it may be many messages
    assert set(notifications(listener)) == ({"q!"} if way == "a wider limit" else {"q"})


def test_announcing_sleep_again_writes_only_when_half_of_the_time_is_over(sql: Sql) -> None:
    sql.rows("select announce_sleep('{q}', '30 seconds')")
    first = sql.rows("select ctid, wake_until from queue_wakeups where queue = 'q'")
    sql.rows("select announce_sleep('{q}', '30 seconds')")
    assert sql.rows("select ctid, wake_until from queue_wakeups where queue = 'q'") == first
    sql.rows(
        "update queue_wakeups set wake_until = clock_timestamp() + interval '10 seconds' where queue = 'q'"
    )
    sql.rows("select announce_sleep('{q}', '30 seconds')")
    assert sql.value(
        "select wake_until > clock_timestamp() + interval '20 seconds' from queue_wakeups where queue = 'q'"
    )


def test_an_announcement_ends_by_time(clients) -> None:
    listener, producer = clients(), clients()
    listener.rows("listen packhorse_wake")
    listener.rows("select announce_sleep('{q}')")
    listener.rows("update queue_wakeups set wake_until = clock_timestamp() - interval '1 second'")
    producer.enqueue()
    assert notifications(listener) == []


# -- a maintenance window --------------------------------------------------------------------------
def paused(sql: Sql) -> set[str]:
    return {row[0] for row in sql.rows("select name from queues where paused_at is not null")}


def test_the_end_of_a_window_resumes_what_the_window_paused_and_nothing_else(sql: Sql) -> None:
    for name in ("a", "b", "c"):
        sql.rows("select declare_queue(%s)", name)
    sql.rows("select pause_queue('a')")
    assert sql.value("select pause_all_queues('ann', 'upgrade')") == ["b", "c", "default", "q"]
    assert sql.value("select pause_all_queues('ann')") == [], "told again: nothing more"
    assert sql.value("select pause_queue('b', 'bob')") is True, "somebody wants it paused for another reason"
    assert sql.value("select resume_queue('c', 'bob')") is True
    assert sql.value("select resume_all_queues('ann')") == ["default", "q"]
    assert paused(sql) == {"a", "b"} and sql.value("select resume_all_queues()") == []
    assert [row[0] for row in actions(sql)] == [
        "pause_queue",
        "pause_all_queues",
        "pause_queue",
        "resume_queue",
        "resume_all_queues",
    ]


def test_nothing_starts_in_a_window_and_everything_after_it(sql: Sql) -> None:
    message_id = sql.enqueue()
    sql.rows("select pause_all_queues()")
    assert sql.claim(10) == []
    sql.rows("select resume_all_queues()")
    assert sql.claim_one().id == message_id


# -- the end of a queue ----------------------------------------------------------------------------
USES = {
    "1 live message(s)": "select enqueue_message('q', 'effect')",
    "1 dead letter(s)": "select bury_message((select message_id from enqueue_message('q', 'effect')))",
    "1 worker process(es)": "select register_worker(gen_random_uuid(), 'h', 1, 'v', array['q'], array['effect'], 1, '1 minute')",
    "1 schedule(s)": "insert into schedules (name, source, every, queue, message_type) values ('s', 'code', '1 hour', 'q', 'effect')",
}


@pytest.mark.parametrize("said", USES)
def test_a_queue_that_something_uses_is_not_deleted(sql: Sql, said: str) -> None:
    sql.rows(USES[said])
    with pytest.raises(psycopg.Error, match="q is in use") as caught, sql.connection.transaction():
        sql.rows("select delete_queue('q')")
    assert caught.value.sqlstate == "PH005" and said in str(caught.value)


def test_a_queue_that_nothing_uses_is_deleted_and_recorded(sql: Sql) -> None:
    sql.complete(sql.claimed())
    sql.rows("select park_scope('queue:q', '1 hour')")
    sql.rows("select delete_queue('q', 'ann', 'merged')")
    assert sql.enqueue_refused() == ("PH002", "queue")
    assert sql.rows(
        "select operator, reason, details from operator_actions where action = 'delete_queue'"
    ) == [("ann", "merged", {"queue": "q"})]
    assert sql.value("select count(*) from all_messages where queue = 'q'") == 1, "what has ended stays known"
    assert (
        sql.refused("select delete_queue('q')")[0] == "PH002"
        and sql.refused("select delete_queue('default')")[0] == "PH005"
    )
