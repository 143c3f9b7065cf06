"""Parked scopes: messages that share something rest, and spend no attempt (SPEC W10)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import HOLDER, Lease, Sql
from tests.sql.frozen import FrozenSql


def register(sql: Sql, **services: list[str]) -> None:
    """A worker that knows these types, each with the services that it names."""
    policies = {name: {"queue": "q", "services": named} for name, named in services.items()}
    sql.rows(
        "select register_worker(%s, 'h', 1, '0', '{q}', %s, 1, interval '1 minute', p_policies => %s)",
        uuid4(),
        list(services),
        Jsonb(policies),
    )


def park(
    sql: Sql, lease: Lease, seconds: float = 60, scope: str | None = None, reason: str | None = None
) -> str:
    return sql.value(
        "select park_message(%s, %s, make_interval(secs => %s), %s, %s)",
        lease.id,
        lease.token,
        seconds,
        scope,
        reason,
    )


def types_claimed(sql: Sql, limit: int = 10) -> list[str]:
    return [lease.type for lease in sql.claim(limit)]


@pytest.fixture
def sql(frozen_sql: FrozenSql) -> FrozenSql:
    """Its clock stands until the test moves it."""
    return frozen_sql


def let_it_end(sql: Sql, scope: str) -> None:
    """Time passes until the park is over; for clients whose clock goes on its end is put back."""
    if isinstance(sql, FrozenSql):
        sql.until(sql.value("select parked_until from scopes where name = %s", scope))
        sql.later("1 millisecond")
        return
    sql.rows(
        "update scopes set parked_until = clock_timestamp() - interval '1 second', "
        "ends_at = case when probing then ends_at else clock_timestamp() - interval '1 second' end where name = %s",
        scope,
    )


# -- one message meets a 429 ---------------------------------------------------------------------------
def test_a_message_that_is_told_to_wait_parks_its_scope_and_spends_no_attempt(sql: Sql) -> None:
    first = sql.claimed(message_type="ask")
    others = [sql.enqueue(message_type="ask"), sql.enqueue(message_type="other")]
    assert park(sql, first, 60, "api", "429 Too Many Requests") == "parked"
    assert [lease.id for lease in sql.claim(10)] == [others[1]]
    row = sql.live(first.id)
    assert (row["state"], row["attempt"], row["lease_token"]) == ("pending", 0, None)
    assert (
        row["history"][-1]["event"] == "park"
        and row["history"][-1]["error_message"] == "429 Too Many Requests"
    )


def test_it_keeps_its_place_in_line_and_starts_when_the_time_is_over(sql: Sql) -> None:
    first = sql.claimed(message_type="ask", run_at="2000-01-01")
    second = sql.enqueue(message_type="ask")
    park(sql, first, 60, "api")
    let_it_end(sql, "api")
    assert [lease.id for lease in sql.claim(10)] == [first.id, second]


def test_without_a_scope_it_is_the_only_service_of_the_actor(sql: Sql) -> None:
    register(sql, ask=["api"], also=["api"], other=[])
    lease = sql.claimed(message_type="ask")
    assert park(sql, lease) == "parked"
    sql.enqueue(message_type="also")
    sql.enqueue(message_type="other")
    assert types_claimed(sql) == ["other"]


@pytest.mark.parametrize("services", [[], ["api", "payments"]])
def test_without_a_scope_and_without_one_service_only_the_message_rests(
    sql: Sql, services: list[str]
) -> None:
    register(sql, ask=services)
    lease = sql.claimed(message_type="ask")
    assert park(sql, lease, 60) == "snooze"
    other = sql.enqueue(message_type="ask")
    assert [c.id for c in sql.claim(10)] == [other]
    assert sql.value(
        "select run_at = testing.clock() + interval '60 seconds' from message_queue where id = %s", lease.id
    )


def test_a_lost_lease_parks_nothing(sql: Sql) -> None:
    lease = sql.claimed(message_type="ask")
    assert park(sql, lease._replace(token=lease.token + 1), 60, "api") == "lost"
    assert sql.rows("select * from scopes") == []


def test_one_whose_cancellation_was_requested_is_cancelled(sql: Sql) -> None:
    lease = sql.claimed(message_type="ask")
    sql.rows("select cancel_message(%s)", lease.id)
    assert park(sql, lease, 60, "api") == "cancelled"
    assert sql.state(lease.id) == "cancelled"


@pytest.mark.parametrize("scope", ["", "x" * 201])
def test_a_bad_scope_is_refused_and_changes_nothing(sql: Sql, scope: str) -> None:
    lease = sql.claimed(message_type="ask")
    assert sql.refused(
        "select park_message(%s, %s, interval '1 minute', %s)", lease.id, lease.token, scope
    ) == ("PH001", "scope")
    assert sql.state(lease.id) == "running"


@pytest.mark.parametrize("seconds", [-5, 1e9])
def test_what_a_handler_asks_for_is_bounded(sql: Sql, seconds: float) -> None:
    lease = sql.claimed(message_type="ask")
    park(sql, lease, seconds, "api")
    assert sql.value(
        "select parked_until between testing.clock() and testing.clock() + interval '1 day' from scopes"
    )


def test_the_second_of_many_that_meet_the_same_429_writes_nothing(sql: Sql) -> None:
    leases = [sql.claimed(message_type="ask") for _ in range(3)]
    assert [park(sql, lease, 60, "api") for lease in leases] == ["parked", "snooze", "snooze"]
    assert sql.value("select parked_by from scopes") == f"message {leases[0].id}"
    assert sql.claim(10) == []


# -- parking by name -----------------------------------------------------------------------------------
def test_a_park_is_not_shortened_but_by_a_person(sql: Sql) -> None:
    sql.rows("select park_scope('api', interval '1 hour')")
    sql.rows("select park_scope('api', interval '1 minute')")
    left = "select parked_until - testing.clock() = interval '1 hour' from scopes"
    assert sql.value(left) is True
    sql.rows("select park_scope('api', interval '1 minute', p_operator => 'ann')")
    assert sql.value(left) is False
    assert sql.rows("select action, operator, details ->> 'scope' from operator_actions") == [
        ("park_scope", "ann", "api")
    ]


def test_a_longer_park_extends_it(sql: Sql) -> None:
    sql.rows("select park_scope('api', interval '1 minute')")
    since = sql.value("select parked_at from scopes")
    sql.rows("select park_scope('api', interval '1 hour', 'still down')")
    assert sql.rows(
        "select parked_at, reason, parked_until - testing.clock() = interval '1 hour' from scopes"
    ) == [(since, "still down", True)]


def test_only_a_person_parks_for_longer_than_a_day(sql: Sql) -> None:
    day = "select %s::timestamptz <= testing.clock() + interval '1 day'"
    assert sql.value(day, sql.value("select park_scope('api', interval '1 week')"))
    assert not sql.value(day, sql.value("select park_scope('api', interval '1 week', p_operator => 'ann')"))


@pytest.mark.parametrize("argument", ["null", "interval '-1 second'", "interval '11 years'"])
def test_a_time_out_of_range_is_refused(sql: Sql, argument: str) -> None:
    assert sql.refused(f"select park_scope('api', {argument})") == ("PH001", "for")


def test_types_that_name_the_service_rest_and_one_that_is_registered_later_too(sql: Sql) -> None:
    register(sql, ask=["api"], other=["payments"])
    sql.rows("select park_scope('api', interval '1 hour')")
    register(sql, late=["api"])
    for name in ("ask", "late", "other"):
        sql.enqueue(message_type=name)
    assert types_claimed(sql) == ["other"]


def test_what_was_learnt_is_forgotten_when_the_park_is_over(sql: Sql) -> None:
    park(sql, sql.claimed(message_type="ask"), 60, "api")
    let_it_end(sql, "api")
    sql.rows("select park_scope('api', interval '1 hour')")
    assert types_claimed(sql) == ["ask"]


def test_a_type_of_two_scopes_waits_for_both(sql: Sql) -> None:
    register(sql, ask=["api", "payments"])
    sql.rows("select park_scope('api', interval '1 hour'), park_scope('payments', interval '1 hour')")
    sql.enqueue(message_type="ask")
    assert sql.value("select lift_scope('api')") is True
    assert types_claimed(sql) == []
    sql.rows("select lift_scope('payments')")
    assert types_claimed(sql) == ["ask"]


def test_a_lift_is_recorded_and_says_whether_there_was_something_to_lift(sql: Sql) -> None:
    sql.rows("select park_scope('api', interval '1 hour', p_types => '{ask}')")
    sql.enqueue(message_type="ask")
    assert sql.value("select lift_scope('api', 'ann')") is True
    assert sql.value("select lift_scope('api', 'ann')") is False
    assert sql.rows("select action, operator from operator_actions") == [("lift_scope", "ann")]
    assert types_claimed(sql) == ["ask"]


@pytest.mark.parametrize("types", [None, ["ask"]])
def test_a_claim_of_all_types_and_one_of_some_obey(sql: Sql, types: list[str] | None) -> None:
    sql.rows("select park_scope('actor:ask', interval '1 hour')")
    sql.enqueue(message_type="ask")
    assert sql.claim(10, types=types) == []


def test_locks_by_hand_obey(sql: Sql) -> None:
    sql.rows("select park_scope('actor:ask', interval '1 hour')")
    message = sql.enqueue(message_type="ask")
    lock = "select acquire_message_lock(%s, %s)"
    assert sql.value(lock, message, HOLDER) is None
    assert sql.rows("select id from get_next_queue_message('q')") == []
    sql.rows("select lift_scope('actor:ask')")
    assert sql.value(lock, message, HOLDER) is not None


def test_a_claim_that_finds_nothing_knows_when_the_park_ends(sql: Sql) -> None:
    sql.rows("select park_scope('api', interval '20 seconds', p_types => '{ask}')")
    sql.enqueue(message_type="ask")
    hints = sql.value("select hints from complete_and_claim_messages('{}', '{}', %s, '{q}', 10)", HOLDER)
    assert 15 < hints["next_in"] <= 20


def test_what_rests_in_a_process_of_its_own_is_not_said_to_wait_for_one(sql: Sql) -> None:
    sql.rows("select park_scope('actor:ask', interval '1 hour')")
    message = sql.enqueue(message_type="ask")
    sql.rows("update message_queue set crashes = 2 where id = %s", message)
    asked = "select hints ->> 'isolated' from complete_and_claim_messages('{}', '{}', %s, '{q}', 10)"
    assert [row[0] for row in sql.rows(asked, HOLDER)] == [None]
    sql.rows("select lift_scope('actor:ask')")
    assert [row[0] for row in sql.rows(asked, HOLDER)] == ["true"]


# -- probing -------------------------------------------------------------------------------------------
def probing(sql: Sql, types: str = "{ask}") -> None:
    sql.rows("select park_scope('api', interval '1 minute', p_types => %s, p_probing => true)", types)
    let_it_end(sql, "api")


def test_a_probing_scope_lets_one_message_start_at_a_time(sql: Sql) -> None:
    messages = [sql.enqueue(message_type="ask") for _ in range(3)]
    other = sql.enqueue(message_type="other")
    probing(sql)
    claimed = sql.claim(10)
    assert sorted(lease.id for lease in claimed) == [messages[0], other]
    assert sql.claim(10) == []
    probe = next(lease for lease in claimed if lease.type == "ask")
    sql.complete(probe)
    assert [lease.id for lease in sql.claim(10)] == [messages[1]]


def test_the_next_probe_follows_one_that_went_back(sql: Sql) -> None:
    messages = [sql.enqueue(message_type="ask") for _ in range(2)]
    probing(sql)
    probe = sql.claim(10)[0]
    sql.rows("select snooze_message(%s, %s, interval '1 hour')", probe.id, probe.token)
    assert [lease.id for lease in sql.claim(10)] == [messages[1]]


def test_a_probe_whose_holder_was_lost_does_not_hold_up_the_next_one(sql: Sql) -> None:
    messages = [sql.enqueue(message_type="ask") for _ in range(2)]
    probing(sql)
    probe = sql.claim(10)[0]
    sql.crash(probe)
    sql.due_now()
    assert len(sql.claim(10)) == 1
    assert len(messages) == 2 and sql.claim(10) == []


def test_when_it_is_lifted_all_start(sql: Sql) -> None:
    for _ in range(3):
        sql.enqueue(message_type="ask")
    probing(sql)
    sql.claim(10)
    sql.rows("select lift_scope('api')")
    assert len(sql.claim(10)) == 2


def test_a_park_while_it_is_probing_goes_on_probing(sql: Sql) -> None:
    for _ in range(2):
        sql.enqueue(message_type="ask")
    probing(sql)
    sql.complete(*sql.claim(10))
    sql.rows("select park_scope('api', interval '1 minute')")
    let_it_end(sql, "api")
    sql.enqueue(message_type="ask")
    assert len(sql.claim(10)) == 1


def test_a_probe_that_outlives_another_park_is_the_probe_still(sql: Sql) -> None:
    for _ in range(2):
        sql.enqueue(message_type="ask")
    probing(sql)
    sql.claim(10)
    probing(sql)
    assert sql.claim(10) == []


def test_a_claim_of_several_queues_starts_one_probe(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    for queue in ("q", "r"):
        sql.enqueue(queue, "ask")
    probing(sql)
    assert len(sql.rows("select id from claim_messages(%s, '{q,r}', 10)", HOLDER)) == 1


def test_a_lock_by_hand_is_a_probe(sql: Sql) -> None:
    first, second = (sql.enqueue(message_type="ask") for _ in range(2))
    probing(sql)
    assert sql.value("select acquire_message_lock(%s, %s)", second, HOLDER) is not None
    assert sql.value("select acquire_message_lock(%s, %s)", first, HOLDER) is None
    assert sql.claim(10) == []


def test_one_that_runs_apart_can_be_the_probe(sql: Sql) -> None:
    messages = [sql.enqueue(message_type="ask") for _ in range(2)]
    sql.rows("update message_queue set crashes = 2")
    probing(sql)
    assert [lease.id for lease in sql.claim(10, isolated=True)] == messages[:1]
    assert sql.claim(10, isolated=True) == []


def test_a_probing_queue_lets_one_message_start_of_whatever_type(sql: Sql) -> None:
    for name in ("ask", "other"):
        sql.enqueue(message_type=name)
    sql.rows("select park_scope('queue:q', interval '1 minute', p_probing => true)")
    assert sql.claim(10) == []
    let_it_end(sql, "queue:q")
    assert types_claimed(sql) == ["ask"]
    assert types_claimed(sql) == []


def test_a_type_of_a_parked_and_a_probing_scope_does_not_probe(sql: Sql) -> None:
    sql.enqueue(message_type="ask")
    sql.enqueue(message_type="also")
    probing(sql, "{ask,also}")
    sql.rows("select park_scope('actor:ask', interval '1 hour')")
    assert types_claimed(sql) == ["also"]


def test_one_message_probes_all_its_scopes(sql: Sql) -> None:
    for name in ("ask", "ask", "also"):
        sql.enqueue(message_type=name)
    probing(sql, "{ask,also}")
    sql.rows("select park_scope('payments', interval '1 minute', p_types => '{ask}', p_probing => true)")
    let_it_end(sql, "payments")
    assert types_claimed(sql) == ["ask"]
    assert types_claimed(sql) == []


def test_two_claims_at_once_start_one_probe(clients: Callable[..., Sql]) -> None:
    one, two = clients(), clients()
    for _ in range(4):
        one.enqueue(message_type="ask")
    probing(one)
    with one.connection.transaction():
        assert len(one.claim(2)) == 1
        assert two.claim(2) == []  # its transaction is open: the row of the scope is locked
    assert two.claim(2) == []


def test_a_probe_takes_no_more_than_the_queue_allows(sql: Sql) -> None:
    for name in ("other", "ask"):
        sql.enqueue(message_type=name)
    probing(sql)
    sql.set_queue(max_concurrency=1)
    assert len(sql.claim(10)) == 1
    assert sql.claim(10) == []


def test_a_conversation_is_in_order_while_its_first_message_rests(sql: Sql) -> None:
    first = sql.enqueue(message_type="ask", conversation_key="c")
    second = sql.enqueue(message_type="other", conversation_key="c")
    sql.rows("select park_scope('actor:ask', interval '1 hour')")
    assert sql.claim(10) == []
    sql.rows("select lift_scope('actor:ask')")
    assert [lease.id for lease in sql.claim(10)] == [first]
    assert sql.state(second) in ("pending", "blocked")


# -- what goes on meanwhile ----------------------------------------------------------------------------
def test_what_is_not_worth_doing_any_more_ends_while_it_rests(sql: Sql) -> None:
    message = sql.enqueue(message_type="ask", expires_at="2999-01-01")
    sql.rows("select park_scope('actor:ask', interval '1 hour')")
    sql.rows("update message_queue set expires_at = testing.clock() - interval '1 second'")
    assert sql.value("select expire_messages()") == 1
    assert sql.state(message) == "cancelled"


def test_upkeep_does_not_take_what_rests_for_what_nobody_runs(sql: Sql) -> None:
    register(sql, ask=["api"])
    message = sql.enqueue(message_type="ask", run_at="2000-01-01")
    sql.rows("select park_scope('api', interval '3 hours')")
    assert sql.value("select bury_unknown_types(interval '1 hour')") == 0
    assert sql.state(message) == "pending"


def test_a_crash_while_its_scope_is_parked_costs_what_it_costs(sql: Sql) -> None:
    """It ran when the scope was parked; what becomes of it then waits like the others."""
    lease = sql.claimed(message_type="ask")
    sql.rows("select park_scope('actor:ask', interval '1 hour')")
    sql.crash(lease)
    sql.due_now()
    assert (sql.live(lease.id)["crashes"], sql.live(lease.id)["attempt"]) == (1, 0)
    assert sql.claim(10) == []


# -- what people see -----------------------------------------------------------------------------------
def scope_gates(sql: Sql, message: int) -> list[tuple]:
    return sql.rows(
        "select passed, detail, earliest_start from explain_message(%s) where gate = 'scope'", message
    )


def test_explain_names_the_scope_its_reason_and_the_earliest_start(sql: Sql) -> None:
    message = sql.enqueue(message_type="ask")
    assert scope_gates(sql, message) == []
    until = sql.value("select park_scope('api', interval '1 hour', '429', '{ask}', p_by => 'message 7')")
    ((passed, detail, earliest),) = scope_gates(sql, message)
    assert (passed, earliest) == (False, until)
    assert detail.startswith("api is parked until") and detail.endswith("by message 7: 429")


def test_explain_says_that_a_probe_runs_or_may_start(sql: Sql) -> None:
    messages = [sql.enqueue(message_type="ask") for _ in range(2)]
    probing(sql)
    assert [
        (passed, "one message may start" in detail) for passed, detail, _ in scope_gates(sql, messages[1])
    ] == [(True, True)]
    sql.claim(10)
    assert [
        (passed, f"message {messages[0]} runs" in detail)
        for passed, detail, _ in scope_gates(sql, messages[1])
    ] == [(False, True)]


def test_the_view_lists_what_is_parked_with_what_waits(sql: Sql) -> None:
    register(sql, ask=["api"])
    for name in ("ask", "ask", "other"):
        sql.enqueue(message_type=name)
    sql.rows("select park_scope('api', interval '1 hour', '429'), park_scope('gone', interval '1 minute')")
    let_it_end(sql, "gone")
    assert sql.rows("select scope, message_types, probing, reason, waiting from parked_scopes") == [
        ("api", ["ask"], False, "429", 2)
    ]


# -- a backlog that rests ------------------------------------------------------------------------------
def fill(sql: Sql, count: int, message_type: str, minutes: int) -> None:
    sql.rows(
        "insert into message_queue (queue, message_type, run_at) select 'q', %s, clock_timestamp() - make_interval(mins => %s) "
        "from generate_series(1, %s)",
        message_type,
        minutes,
        count,
    )


def look_again(sql: Sql) -> None:
    """Time for the next walk."""
    sql.rows("update claim_marks set looked_at = looked_at - interval '1 hour'")


def test_a_backlog_that_rests_is_passed_over(sql: Sql) -> None:
    fill(sql, 20_000, "ask", 60)
    other = sql.enqueue(message_type="other")
    sql.rows("select park_scope('actor:ask', interval '1 hour')")
    assert [lease.id for lease in sql.claim(10)] == [other]
    sql.rows("update claim_marks set took = interval '1 second'")  # whatever this machine needs for it
    late = sql.enqueue(message_type="other")
    assert [lease.id for lease in sql.claim(10)] == [late]
    before = sql.enqueue(message_type="other", run_at="2000-01-01")
    assert sql.claim(10) == [], "it was not passed over"
    look_again(sql)
    assert [lease.id for lease in sql.claim(10)] == [before]
    sql.rows("select lift_scope('actor:ask')")
    assert len(sql.claim(10)) == 10


def test_a_probe_is_found_behind_a_backlog_of_others(sql: Sql) -> None:
    fill(sql, 5_000, "other", 60)
    probe = sql.enqueue(message_type="ask")
    probing(sql)
    assert probe in [lease.id for lease in sql.claim(10)]


class Prober(threading.Thread):
    """Claims whatever may start, keeps it for a moment and completes it, until all is done."""

    def __init__(self, sql: Sql, running: list[int], most: list[int], lock: threading.Lock) -> None:
        super().__init__(daemon=True)
        self.sql, self.running, self.most, self.lock = sql, running, most, lock
        self.done = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            deadline = time.monotonic() + 60
            while self.sql.value("select exists (select from message_queue)") and time.monotonic() < deadline:
                for lease in self.sql.claim(3, holder=uuid4()):
                    with self.lock:
                        self.running.append(lease.id)
                        self.most.append(len(self.running))
                    time.sleep(0.002)
                    with self.lock:
                        self.running.remove(lease.id)
                    self.done += len(self.sql.complete(lease))
        except BaseException as error:  # shown by the test
            self.error = error


@pytest.mark.slow
def test_many_workers_never_run_two_probes_of_one_scope(clients: Callable[..., Sql]) -> None:
    sql = clients()
    for _ in range(60):
        sql.enqueue(message_type="ask")
    probing(sql)
    running: list[int] = []
    most: list[int] = []
    lock = threading.Lock()
    workers = [Prober(clients(), running, most, lock) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
    assert [worker.error for worker in workers] == [None] * 6
    assert sum(worker.done for worker in workers) == 60 and set(most) == {1}
