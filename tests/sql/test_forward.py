"""Queues that are forwarded: relays take their messages, workers do not, and nobody looks in vain."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import HOLDER, OTHER, Sql
from tests.sql.test_claim_hints import apart

CLAIM = "select id, lease_token from complete_and_claim_messages('{}', '{}', %s, %s, %s, p_forward => %s) where hints is null"
HINTS = "select hints from complete_and_claim_messages('{}', '{}', %s, %s, %s, p_forward => %s) where hints is not null"


@pytest.fixture(params=[None, "amqp"])
def forward(request: pytest.FixtureRequest, sql: Sql) -> str | None:
    """Where the queue `q` goes; `other` of the tests is the other kind of claim."""
    sql.set_queue(forward=request.param)
    return request.param


def other_than(forward: str | None) -> str | None:
    return "amqp" if forward is None else None


def claimed(sql: Sql, forward: str | None, limit: int = 10, queues: str = "{q}") -> list[int]:
    return [row[0] for row in sql.rows(CLAIM, uuid4(), queues, limit, forward)]


def hints(sql: Sql, forward: str | None, limit: int = 10, queues: str = "{q}") -> dict:
    found = sql.rows(HINTS, uuid4(), queues, limit, forward)
    return found[0][0] if found else {}


def register(sql: Sql, forward: str | None, holder: UUID = HOLDER, types: str = "{}") -> None:
    sql.rows(
        "select register_worker(%s, 'h', 1, '1', '{q}', %s, 1, '30 seconds', p_forward => %s)",
        holder,
        types,
        forward,
    )


def test_the_messages_of_a_queue_are_for_one_kind_of_claim(sql: Sql, forward: str | None) -> None:
    ids = [sql.enqueue(), apart(sql), sql.enqueue(conversation_key="k")]
    assert claimed(sql, other_than(forward)) == []
    assert claimed(sql, forward) == [ids[0], ids[2]]
    isolated = CLAIM.replace("p_forward", "p_isolated => true, p_forward")
    assert sql.rows(isolated, uuid4(), "{q}", 10, other_than(forward)) == []
    assert [row[0] for row in sql.rows(isolated, uuid4(), "{q}", 10, forward)] == [ids[1]]


def test_a_claim_goes_past_a_queue_that_goes_elsewhere(sql: Sql, forward: str | None) -> None:
    sql.rows("select declare_queue('r')")
    sql.set_queue("r", forward=other_than(forward))
    mine, its = sql.enqueue(), sql.enqueue("r")
    assert claimed(sql, forward, queues="{r,q}") == [mine]
    assert claimed(sql, other_than(forward), queues="{q,r}") == [its]


def test_the_setting_works_at_once_and_back(sql: Sql) -> None:
    first, second = sql.enqueue(), sql.enqueue()
    sql.set_queue(forward="amqp")
    assert claimed(sql, None) == []
    assert claimed(sql, "amqp", 1) == [first]
    sql.set_queue(forward=None)
    assert claimed(sql, "amqp") == []
    assert claimed(sql, None) == [second]


def test_a_worker_in_sql_takes_nothing_that_is_forwarded(sql: Sql) -> None:
    message_id = sql.enqueue()
    lock = "select acquire_message_lock(%s, %s)"
    sql.set_queue(forward="amqp")
    assert sql.claim(10) == []
    assert sql.value(lock, message_id, HOLDER) is None
    sql.set_queue(forward=None)
    assert sql.value(lock, message_id, HOLDER) is not None


# -- nobody looks in vain -------------------------------------------------------------------------------
def test_what_will_be_due_wakes_only_who_takes_it(sql: Sql, forward: str | None) -> None:
    sql.enqueue(delay="10 seconds")
    assert hints(sql, forward)["next_in"] == pytest.approx(10, abs=5)
    assert "next_in" not in hints(sql, other_than(forward))


def test_one_that_runs_apart_is_told_only_to_who_takes_it(sql: Sql, forward: str | None) -> None:
    apart(sql)
    assert hints(sql, forward)["isolated"] is True
    assert "isolated" not in hints(sql, other_than(forward))


def test_a_conversation_that_goes_on_elsewhere_is_not_asked_for_again_and_again(
    sql: Sql, forward: str | None
) -> None:
    sql.rows("select declare_queue('r')")
    sql.set_queue("r", forward=other_than(forward))
    sql.enqueue(conversation_key="k")
    then = sql.enqueue("r", conversation_key="k")
    ((first, token),) = sql.rows(CLAIM, HOLDER, "{q}", 10, forward)
    said = sql.rows(
        "select hints from complete_and_claim_messages(array[%s::bigint], array[%s::bigint], %s, '{q,r}', 10, "
        "p_forward => %s) where hints is not null",
        first,
        token,
        HOLDER,
        forward,
    )
    assert all("promoted" not in row[0] for row in said)
    assert claimed(sql, other_than(forward), queues="{q,r}") == [then]


def test_a_queue_is_watched_by_who_takes_its_messages(sql: Sql, forward: str | None) -> None:
    register(sql, other_than(forward), OTHER, "{strange}")  # it would never take them
    attend = "select attend_queues('{q}', '{effect}', '30 seconds', %s)"
    keep = "select keep_attending('{q}', '{effect}', '30 seconds', %s)"
    assert sql.value(attend, other_than(forward)) == []
    assert sql.value(attend, forward) == ["q"]
    assert sql.value(keep, forward) == []
    register(sql, forward, HOLDER, "{strange}")
    assert sql.value(keep, forward) == ["q"]


def test_a_queue_that_goes_elsewhere_from_now_on_is_left_by_who_watches_it(clients) -> None:
    listener, worker = clients(), clients()
    listener.rows("listen packhorse_wake")
    worker.rows("select announce_sleep('{q}')")
    assert worker.value("select attend_queues('{q}', '{}', '30 seconds')") == ["q"]
    worker.set_queue(forward="amqp")
    assert [notify.payload for notify in listener.connection.notifies(timeout=0.2)] == ["q!"]
    assert worker.value("select keep_attending('{q}', '{}', '30 seconds')") == ["q"]
    assert worker.value("select attend_queues('{q}', '{}', '30 seconds', 'amqp')") == ["q"]


# -- what a relay is told, and what becomes of what it held ---------------------------------------------
def test_a_relay_learns_which_queues_are_forwarded_and_when_messages_expire(sql: Sql) -> None:
    sql.rows("select declare_queue('z')")
    assert hints(sql, "amqp") == {"forwarded": [], "expires": {}}
    sql.set_queue(forward="amqp")
    sql.set_queue("z", forward="amqp")
    sql.enqueue()
    expiring = sql.enqueue(expires_at="2100-01-01 00:00:00.25+00")
    sql.enqueue(expires_at="infinity")
    said = hints(sql, "amqp")
    assert said["forwarded"] == ["q", "z"]
    assert said["expires"] == {str(expiring): 4102444800.25}
    assert hints(sql, None) == {}


def test_what_a_dead_relay_held_comes_back_without_a_crash_and_without_an_attempt(sql: Sql) -> None:
    sql.set_queue(forward="amqp", crash_limit=1)
    register(sql, "amqp")
    message_id = sql.enqueue()
    assert [row[0] for row in sql.rows(CLAIM, HOLDER, "{q}", 1, "amqp")] == [message_id]
    sql.rows("update message_queue set lease_expires_at = clock_timestamp() - interval '1 second'")
    assert sql.value("select rescue_expired_messages()") == 1
    row = sql.live(message_id)
    assert (row["state"], row["attempt"], row["crashes"]) == ("pending", 0, 0)


def test_a_type_that_no_worker_of_postgres_knows_stays_on_a_forwarded_queue(sql: Sql) -> None:
    message_id = sql.enqueue(run_at="2000-01-01")
    sql.set_queue(forward="amqp")
    sql.rows("select declare_queue('other')")
    not_forwarded = sql.enqueue("other", run_at="2000-01-01")
    assert sql.value("select bury_unknown_types()") == 1
    assert (sql.state(message_id), sql.state(not_forwarded)) == ("pending", "dead")
    sql.set_queue(forward=None)
    assert sql.value("select bury_unknown_types()") == 1
    assert sql.dead(message_id)["reason"] == "unknown_type"


# -- what is said --------------------------------------------------------------------------------------
def gates(sql: Sql, message_id: int) -> dict[str, tuple[bool, str]]:
    rows = sql.rows("select gate, passed, detail from explain_message(%s)", message_id)
    return {row[0]: (row[1], row[2]) for row in rows}


def test_explain_names_the_relays_in_place_of_workers(sql: Sql) -> None:
    message_id = sql.enqueue()
    register(sql, None, OTHER, "{effect}")
    assert gates(sql, message_id)["worker"] == (True, "1 live worker(s) register the type")
    sql.set_queue(forward="amqp")
    found = gates(sql, message_id)
    assert "worker" not in found
    assert found["forward"] == (False, "forwarded to amqp: no relay takes it, start one: packhorse relay")
    register(sql, "amqp")
    assert gates(sql, message_id)["forward"] == (True, "forwarded to amqp: 1 live relay(s) take it")
    sql.set_queue(forward=None)
    assert gates(sql, message_id)["worker"] == (True, "1 live worker(s) register the type")


@pytest.mark.parametrize("value", ["kafka", "", 1, True])
def test_an_unknown_place_is_refused_by_name(sql: Sql, value: object) -> None:
    assert sql.refused("select set_queue('q', %s)", Jsonb({"forward": value})) == ("PH001", "forward")


def test_a_queue_that_only_the_wrong_kind_serves_counts_as_unserved(sql: Sql, forward: str | None) -> None:
    served = "select has_worker from health_queues(clock_timestamp(), 100, 1000, 60, 600) where queue = 'q'"
    register(sql, other_than(forward))
    assert sql.value(served) is False
    register(sql, forward, OTHER)
    assert sql.value(served) is True


def test_a_relay_leaves_what_rests_and_what_it_publishes_is_no_probe_and_no_success(sql: Sql) -> None:
    sql.set_queue(forward="amqp")
    ids = [sql.enqueue(message_type="effect") for _ in range(5)]
    other = sql.enqueue(message_type="other")
    register(sql, "amqp")
    sql.rows("select park_scope('actor:effect', '1 hour', p_probing => true)")
    sql.rows("update scopes set next_park = '2 seconds', failures = 3")
    lease = "select id, lease_token from complete_and_claim_messages(%s, %s, %s, '{q}', 10, p_forward => 'amqp') where hints is null"
    (kept,) = sql.rows(lease, [], [], HOLDER)
    assert kept[0] == other
    sql.rows("update scopes set parked_until = now() - interval '1 second'")
    found = sql.rows(lease, [], [], HOLDER)
    assert [row[0] for row in found] == ids, "what is probing is for the workers on RabbitMQ to hold back"
    columns = [list(column) for column in zip(kept, *found, strict=True)]
    assert sql.rows(lease, *columns, HOLDER) == []
    assert sql.rows("select probe_id, failures, ends_at is null from scopes") == [(None, 3, False)]


def test_what_a_relay_publishes_does_not_start_a_count_of_failures_over(sql: Sql) -> None:
    sql.set_queue(forward="amqp")
    sql.enqueue(message_type="effect")
    register(sql, "amqp")
    sql.rows("insert into scopes (name, queue, failures, fingerprint) values ('queue:q', 'q', 2, 'f')")
    lease = "select id, lease_token from complete_and_claim_messages(%s, %s, %s, '{q}', 10, p_forward => 'amqp') where hints is null"
    ((message_id, token),) = sql.rows(lease, [], [], HOLDER)
    assert sql.rows(lease, [message_id], [token], HOLDER) == []
    assert sql.rows("select failures from scopes") == [(2,)]
