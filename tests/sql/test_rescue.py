"""Workers, heartbeats, rescue, quarantine, unknown types (SPEC P2, P5, W1b, W5)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import HOLDER, OTHER, Lease, Sql
from tests.sql.frozen import FrozenSql
from tests.support.postgres import Database
from tests.support.waiting import wait_until

MINUTE = timedelta(minutes=1)


@pytest.fixture
def sql(frozen_sql: FrozenSql) -> FrozenSql:
    """Leases, silence and waits are of a clock that stands until a test moves it."""
    return frozen_sql


def register(sql: Sql, holder: UUID = HOLDER, types: tuple[str, ...] = ("effect",)) -> None:
    sql.rows("select register_worker(%s, 'host', 1, '1', '{q}', %s, 8, '30 seconds')", holder, list(types))


def beat(sql: Sql, *leases: Lease, holder: UUID = HOLDER) -> list[tuple]:
    return sql.rows(
        "select id, lease_held, cancel_requested from beat_worker(%s, %s::bigint[], %s::bigint[], '1 minute')",
        holder,
        [lease.id for lease in leases],
        [lease.token for lease in leases],
    )


def overdue(sql: FrozenSql, lease: Lease, living: UUID = HOLDER) -> int:
    """The lease ends, rescue runs, and this process is there; how many were returned."""
    sql.until(sql.live(lease.id)["lease_expires_at"])
    beat(sql, holder=living)
    return sql.crash(lease)


def test_a_registered_worker_declares_its_queues_and_types(sql: Sql) -> None:
    sql.rows("select register_worker(%s, 'host', 7, '1.0', '{fresh,q}', '{a,b}', 8, '30 seconds')", HOLDER)
    assert sql.rows("select name from queues where name = 'fresh'") == [("fresh",)]
    assert sql.rows("select name from message_types order by name") == [("a",), ("b",)]
    assert sql.rows("select hostname, pid, state from workers") == [("host", 7, "running")]
    assert sql.value("select deregister_worker(%s)", HOLDER) is True
    assert sql.rows("select deregister_worker(%s)", HOLDER) == [(None,)]


def test_a_beat_extends_every_held_lease_and_is_silent_when_all_is_well(sql: FrozenSql) -> None:
    register(sql)
    held = [sql.claimed() for _ in range(3)]
    sql.later("4 minutes 59 seconds")
    assert beat(sql, *held) == []
    assert sql.rows("select lease_expires_at from message_queue") == [(sql.now + MINUTE,)] * 3


def test_a_beat_names_what_is_lost_and_what_is_to_be_cancelled(sql: FrozenSql) -> None:
    register(sql)
    lost = sql.claimed()
    sql.later("1 second")
    kept, unwanted = sql.claimed(), sql.claimed()
    sql.crash(lost)
    sql.rows("select cancel_message(%s)", unwanted.id)
    assert sorted(beat(sql, kept, lost, unwanted)) == [(lost.id, False, False), (unwanted.id, True, True)]


def test_a_beat_passes_over_a_row_that_somebody_has_locked(clients: Callable[..., Sql]) -> None:
    """One open psql session must not end the leases of all other messages of the process."""
    worker, operator = clients(), clients()
    register(worker)
    held = [worker.claimed() for _ in range(3)]
    worker.rows("update message_queue set lease_expires_at = clock_timestamp() + interval '1 second'")
    with operator.connection.transaction():
        operator.rows("select from message_queue where id = %s for update", held[1].id)
        assert worker.rows(
            "select id, lease_held, renewed from beat_worker(%s, %s::bigint[], %s::bigint[], '1 minute')",
            HOLDER,
            [lease.id for lease in held],
            [lease.token for lease in held],
        ) == [(held[1].id, True, False)]
        assert worker.rows(
            "select id from message_queue where lease_expires_at > clock_timestamp() + interval '50 seconds' order by id"
        ) == [(held[0].id,), (held[2].id,)]


def test_a_beat_records_state_and_counters(sql: Sql) -> None:
    register(sql)
    sql.rows("select * from beat_worker(%s, '{}', '{}', '1 minute', 'draining', 17, 4)", HOLDER)
    assert sql.rows("select state, running, done_total, failed_total from workers") == [
        ("draining", 0, 17, 4)
    ]


def test_a_beat_keeps_the_types_of_the_worker_alive(sql: FrozenSql) -> None:
    register(sql, types=("mine",))
    sql.later("2 minutes")
    beat(sql)
    assert sql.value("select last_seen_at from message_types where name = 'mine'") == sql.now


def test_a_beat_of_a_forgotten_worker_says_so_and_its_leases_go_on(sql: FrozenSql) -> None:
    lease = sql.claimed()
    sql.later("4 minutes 59 seconds")
    assert beat(sql, lease) == [(None, False, False)]
    assert sql.live(lease.id)["lease_expires_at"] == sql.now + MINUTE


def test_silent_workers_are_forgotten_and_their_messages_are_not_touched(sql: FrozenSql) -> None:
    register(sql)
    lease = sql.claimed()
    sql.later("10 minutes")
    assert sql.value("select forget_dead_workers()") == 0
    sql.later("1 millisecond")
    assert sql.value("select forget_dead_workers()") == 1
    assert sql.state(lease.id) == "running"


def test_silent_workers_and_their_requests_are_forgotten_in_bounded_steps(sql: FrozenSql) -> None:
    for _ in range(5):
        register(sql, uuid4())
    sql.rows("insert into daemon_requests select daemon, 'quiet', 'ann', '2020-01-01' from workers")
    sql.later("11 minutes")
    left = []
    for _ in range(4):
        count = sql.value("select forget_dead_workers(p_limit => 2)")
        left.append((count, sql.value("select count(*) from daemon_requests")))
    assert left == [(2, 3), (2, 1), (1, 0), (0, 0)]


def test_a_dead_workers_row_that_somebody_holds_keeps_no_other(own_clients: Callable[..., Sql]) -> None:
    sql, other = own_clients(), own_clients()
    register(sql, HOLDER)
    register(sql, OTHER)
    sql.rows("update workers set last_seen_at = clock_timestamp() - interval '11 minutes'")
    sql.rows("set lock_timeout = '10s'")
    with other.connection.transaction():
        other.rows("select from workers where id = %s for update", HOLDER)
        assert sql.value("select forget_dead_workers()") == 1
        assert sql.rows("select id from workers") == [(HOLDER,)]
    assert sql.value("select forget_dead_workers()") == 1


def test_rescue_returns_what_is_over_and_nothing_else(sql: FrozenSql) -> None:
    over = sql.claimed()
    sql.later("1 millisecond")
    held = sql.claimed()
    sql.until(sql.live(over.id)["lease_expires_at"])
    assert sql.value("select rescue_expired_messages()") == 0
    assert sql.crash(over) == 1
    assert (sql.state(over.id), sql.state(held.id)) == ("pending", "running")


def test_that_a_relay_lives_makes_no_crash_of_another_holder_good(sql: Sql) -> None:
    """What a relay holds runs nowhere, so the end of its lease is no crash; of others it is."""
    sql.rows(
        "select register_worker(%s, 'host', 1, '1', '{}', '{}', 8, '30 seconds', p_forward => 'broker')",
        OTHER,
    )
    lease = sql.claimed()
    sql.crash(lease)
    assert sql.live(lease.id)["crashes"] == 1


def test_rescue_needs_no_row_in_workers(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows("delete from workers")
    assert sql.value("select cleanup_stale_message_locks()") == 0
    assert sql.crash(lease) == 1


def test_rescue_is_bounded_and_ends(sql: FrozenSql) -> None:
    for _ in range(7):
        sql.enqueue()
    assert len(sql.claim(10)) == 7
    sql.later("6 minutes")
    assert [sql.value("select rescue_expired_messages(3)") for _ in range(4)] == [3, 3, 1, 0]


def test_one_message_that_cannot_be_returned_keeps_no_other(clients: Callable[..., Sql]) -> None:
    """A sequence that was not copied gives out the ids of dead letters again."""
    sql, notices = clients(), []
    sql.connection.add_notice_handler(
        lambda notice: notices.append((notice.sqlstate, notice.message_primary))
    )
    sql.set_queue(crash_limit=1)
    dead = sql.enqueue()
    sql.rows("select bury_message(%s)", dead)
    sql.rows("insert into message_queue (id, queue, message_type) values (%s, 'q', 'effect')", dead)
    ids = [dead, sql.enqueue(), sql.enqueue()]
    assert sorted(lease.id for lease in sql.claim(10)) == ids
    sql.rows("update message_queue set lease_expires_at = clock_timestamp() - interval '1 second'")
    held = sql.claimed()
    assert sql.value("select rescue_expired_messages()") == 2
    assert sql.state(held.id) == "running", "its lease goes on"
    assert [sql.live(dead)["state"], sql.state(ids[1]), sql.state(ids[2])] == ["running", "dead", "dead"]
    ((sqlstate, text),) = notices
    assert sqlstate == "23505" and text.startswith(f"message {dead} cannot be rescued: ")
    sql.rows("select purge_dead_letters(%s)", [dead])
    assert sql.value("select rescue_expired_messages()") == 1
    assert sql.dead(dead)["reason"] == "quarantined"


def test_a_crash_costs_no_attempt_and_is_counted_apart(sql: Sql) -> None:
    lease = sql.claimed(max_attempts=1)
    sql.crash(lease)
    row = sql.live(lease.id)
    assert (row["state"], row["attempt"], row["crashes"]) == ("pending", 0, 1)
    assert [(entry["event"], entry["error_class"], entry["attempt"]) for entry in row["history"]] == [
        ("lease_expired", "WorkerLost", 1)
    ]


def test_the_first_crash_is_followed_at_once_and_the_next_one_by_the_backoff(sql: FrozenSql) -> None:
    sql.set_queue(backoff_initial="60 seconds", backoff_max="100 seconds")
    message_id = sql.enqueue()
    sql.crash(sql.claim_one())
    assert sql.now <= sql.live(message_id)["run_at"] <= sql.now + timedelta(seconds=1)
    sql.due_now()
    sql.crash(sql.claim_one())
    assert (sql.live(message_id)["crashes"], sql.live(message_id)["run_at"]) == (2, sql.now + MINUTE)


def test_what_ran_beside_each_other_comes_back_at_different_times(sql: FrozenSql) -> None:
    """Beside a message that kills its process they should not all be a second time."""
    for _ in range(50):
        sql.enqueue()
    assert len(sql.claim(50)) == 50
    sql.later("6 minutes")
    assert sql.value("select rescue_expired_messages()") == 50
    assert sql.value("select max(run_at) - min(run_at) > interval '0.3 seconds' from message_queue")


@pytest.mark.parametrize("limit", [1, 3])
def test_a_message_that_kills_its_process_is_quarantined_at_the_crash_limit(sql: Sql, limit: int) -> None:
    sql.set_queue(crash_limit=limit)
    message_id = sql.enqueue()
    for _ in range(limit):
        assert sql.state(message_id) == "pending"
        sql.crash(sql.claim_one())
        sql.due_now()
    row = sql.dead(message_id)
    assert (row["reason"], row["crashes"], row["attempt"], row["error_class"]) == (
        "quarantined",
        limit,
        0,
        "WorkerLost",
    )


def test_errors_and_crashes_are_counted_apart(sql: Sql) -> None:
    sql.set_queue(max_attempts=3, crash_limit=3)
    message_id = sql.enqueue()
    for number in range(2):
        sql.fail(sql.claim_one())
        sql.due_now()
        sql.crash(sql.claim_one())
        sql.due_now()
        row = sql.live(message_id)
        assert (row["attempt"], row["crashes"]) == (number + 1, number + 1)
    assert sql.fail(sql.claim_one()) == "dead"


def recover(
    sql: Sql, *started: int, crashed: bool = True, refused: tuple[int, ...] = (), holder: UUID = HOLDER
) -> int:
    return sql.value(
        "select recover_worker(%s, %s::bigint[], 'signal 9', %s, %s::bigint[])",
        holder,
        list(started),
        crashed,
        list(refused),
    )


def events(sql: Sql, message_id: int) -> list[str]:
    history = sql.value("select history from message_queue where id = %s", message_id)
    return [entry["event"] for entry in history or []]


def test_a_parent_returns_what_its_child_held_and_only_what_had_started_counts_a_crash(sql: Sql) -> None:
    register(sql)
    started, unstarted = sql.claimed(), sql.claimed()
    foreign = sql.enqueue()
    assert [lease.id for lease in sql.claim(1, holder=OTHER)] == [foreign]
    assert recover(sql, started.id) == 2
    assert [sql.live(lease.id)["crashes"] for lease in (started, unstarted)] == [1, 0]
    assert [sql.live(lease.id)["attempt"] for lease in (started, unstarted)] == [0, 0]
    assert sql.state(foreign) == "running"
    assert sql.rows("select id from workers") == []
    assert [events(sql, lease.id) for lease in (started, unstarted)] == [["crash"], []], (
        "every start is in the history, and nothing else"
    )


def test_a_start_that_an_ordered_end_interrupted_is_in_the_history_and_no_crash(sql: Sql) -> None:
    lease = sql.claimed()
    assert recover(sql, lease.id, crashed=False) == 1
    assert (sql.live(lease.id)["crashes"], events(sql, lease.id)) == (0, ["release"])


def test_the_lease_of_a_process_that_turns_out_to_live_was_no_crash(sql: Sql) -> None:
    register(sql)
    lease = sql.claimed()
    sql.crash(lease)
    sql.due_now()
    assert [again.id for again in sql.claim(1, holder=OTHER)] == [lease.id]
    withdraw = "select withdraw_crashes(array[%s::bigint], %s, 'its process lives')"
    assert [sql.value(withdraw, lease.id, holder) for holder in (OTHER, HOLDER, HOLDER)] == [0, 1, 0]
    assert (sql.live(lease.id)["crashes"], sql.state(lease.id)) == (0, "running"), (
        "whoever has it now keeps it"
    )
    assert events(sql, lease.id) == ["lease_expired", "crash_withdrawn"]


def test_nothing_is_rescued_in_the_first_seconds_of_a_server(sql: FrozenSql) -> None:
    """Workers that live get the chance to renew after an outage of all."""
    sql.claimed()
    sql.rows("update message_queue set lease_expires_at = pg_postmaster_start_time()")
    sql.rows("update testing.clock_stands set at = pg_postmaster_start_time() + interval '5 seconds'")
    assert sql.value("select rescue_expired_messages()") == 0
    sql.later("1 millisecond")
    assert sql.value("select rescue_expired_messages()") == 1


WITHDRAW = "select withdraw_crashes(array[%s::bigint], %s, 'its process lives')"


def test_a_crash_is_withdrawn_of_the_named_messages_only_and_never_below_none(sql: Sql) -> None:
    named, other = sql.claimed(), sql.claimed()
    for lease in named, other:
        sql.crash(lease)
    assert sql.value(WITHDRAW, named.id, HOLDER) == 1
    assert [sql.live(lease.id)["crashes"] for lease in (named, other)] == [0, 1]
    sql.rows("update message_queue set crashes = 0")  # by hand
    assert sql.value(WITHDRAW, other.id, HOLDER) == 0


def test_the_crash_of_another_process_is_not_withdrawn_by_one_that_has_withdrawn_its_own(sql: Sql) -> None:
    lease = sql.claimed()
    sql.crash(lease)
    assert sql.value(WITHDRAW, lease.id, HOLDER) == 1
    sql.due_now()
    (again,) = sql.claim(1, holder=OTHER)
    sql.crash(again)
    assert sql.value(WITHDRAW, lease.id, HOLDER) == 0
    assert sql.live(lease.id)["crashes"] == 1


def test_a_process_that_ended_itself_in_good_order_crashed_nothing(sql: Sql) -> None:
    """It was out of contact: somebody else has rescued its message before its parent could say so."""
    lease = sql.claimed()
    sql.crash(lease)
    assert recover(sql, lease.id, crashed=False) == 0
    assert sql.live(lease.id)["crashes"] == 0


def test_a_message_that_always_stalls_its_process_is_not_excused_for_ever(sql: Sql) -> None:
    sql.set_queue(crash_limit=3)
    message_id = sql.enqueue()
    for _ in range(20):
        if sql.state(message_id) == "dead":
            break
        sql.crash(sql.claim_one())
        sql.rows("select withdraw_crashes(array[%s::bigint], %s, 'its process lives')", message_id, HOLDER)
        sql.rows(
            "update message_queue set history = replace(history::text, %s, gen_random_uuid()::text)::jsonb",
            str(HOLDER),
        )
        sql.due_now()
    assert sql.dead(message_id)["reason"] == "quarantined"


def test_the_last_crash_is_not_counted_while_the_holder_may_come_back(sql: FrozenSql) -> None:
    register(sql)
    sql.set_queue(crash_limit=2)
    message_id = sql.enqueue()
    assert overdue(sql, sql.claim_one()) == 1, "the first one is"
    sql.due_now()
    lease = sql.claim_one()
    assert overdue(sql, lease) == 0 and sql.state(message_id) == "running"
    sql.later("89 seconds")
    assert sql.crash(lease) == 0, "three leases of 30 s have not passed since its beat"
    sql.later("1 second")
    assert sql.crash(lease) == 1 and sql.dead(message_id)["reason"] == "quarantined"


def test_that_another_worker_lives_says_nothing_of_the_holder(sql: FrozenSql) -> None:
    register(sql, OTHER)
    sql.set_queue(crash_limit=1)
    assert overdue(sql, sql.claimed(), OTHER) == 1


def test_a_parent_marks_refused_completions_of_its_child_once(sql: Sql) -> None:
    mine = sql.claimed()
    of_another = sql.enqueue()
    assert [lease.id for lease in sql.claim(1, holder=OTHER)] == [of_another]
    for _ in range(2):  # it may ask again
        recover(sql, refused=(mine.id, of_another))
    assert [events(sql, message_id) for message_id in (mine.id, of_another)] == [["completion_refused"], []]


@pytest.mark.slow
def test_a_parent_waits_a_moment_for_a_row_that_somebody_has_locked_and_returns_the_others(
    clients: Callable[..., Sql],
) -> None:
    sql, somebody = clients(), clients()
    locked, free = sql.claimed(), sql.claimed()
    with somebody.connection.transaction():
        somebody.rows("select from message_queue where id = %s for update", locked.id)
        assert recover(sql, locked.id, free.id) == 1
    assert [sql.state(lease.id) for lease in (locked, free)] == ["running", "pending"]


def test_a_completion_that_is_refused_is_not_run_again(sql: Sql) -> None:
    register(sql)
    first, second = sql.claimed(conversation_key="c"), sql.enqueue(conversation_key="c")
    assert recover(sql, refused=(first.id,)) == 0
    assert sql.claim(10) == [] and sql.state(first.id) == "running"
    assert sql.crash(first) == 0, "its lease does not end"
    assert events(sql, first.id) == ["completion_refused"]
    gates = dict(sql.rows("select gate, detail from explain_message(%s)", first.id))
    assert "refused to write that" in gates["state"]
    assert sql.value("select complete_refused_messages()") == 1
    assert sql.state(first.id) == "done"
    assert [lease.id for lease in sql.claim(10)] == [second]


def test_a_completion_that_is_refused_is_not_run_again_when_a_beat_gave_its_lease_an_end(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows(
        "select mark_completion_refused(array[%s::bigint], array[%s::bigint], '23514')", lease.id, lease.token
    )
    beat(sql, lease)
    assert sql.crash(lease) == 0 and sql.state(lease.id) == "running"


def test_an_attempt_that_succeeded_too_late_has_not_failed(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows(
        "select mark_completion_refused(array[%s::bigint], array[%s::bigint], '23514')", lease.id, lease.token
    )
    assert sql.value("select fail_overdue_message(%s, %s, 'late')", lease.id, lease.token) == "lost"
    assert sql.value("select complete_refused_messages()") == 1 and sql.state(lease.id) == "done"


def test_what_runs_again_by_decision_of_an_operator_is_no_longer_marked(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows(
        "select mark_completion_refused(array[%s::bigint], array[%s::bigint], '23514')", lease.id, lease.token
    )
    sql.rows("select release_message(%s, %s)", lease.id, lease.token)
    assert sql.crash(sql.claim_one()) == 1, "its lease ends like any other"


def test_a_parent_leaves_what_it_will_come_back_for(sql: Sql) -> None:
    register(sql)
    kept, other = sql.claimed(), sql.claimed()
    assert (
        sql.value(
            "select recover_worker(%s, %s::bigint[], 'x', true, '{}', %s::bigint[])",
            HOLDER,
            [kept.id, other.id],
            [kept.id],
        )
        == 1
    )
    assert (sql.state(kept.id), sql.live(kept.id)["crashes"]) == ("running", 0)


def test_a_message_of_a_queue_that_was_removed_is_returned_with_all_others(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    sql = own_clients()
    sql.rows("select declare_queue('gone')")
    stranger, other = sql.claimed("gone"), sql.claimed()
    any_database.query("delete from queues where name = 'gone'")
    assert recover(sql, stranger.id, other.id) == 2
    assert {sql.state(lease.id) for lease in (stranger, other)} == {"pending"}


@pytest.mark.parametrize(
    ("decision", "state"),
    [
        ("select bury_message(%s)", "dead"),
        ("select cancel_message(%s)", "cancelled"),
        ("select release_message(id, lease_token) from message_queue where id = %s", "pending"),
    ],
)
def test_an_operator_decides_about_a_refused_completion(sql: Sql, decision: str, state: str) -> None:
    lease = sql.claimed()
    assert (
        sql.value(
            "select mark_completion_refused(array[%s::bigint], array[%s::bigint], '23514')",
            lease.id,
            lease.token,
        )
        == 1
    )
    sql.rows(decision, lease.id)
    assert sql.state(lease.id) == state
    assert sql.value("select complete_refused_messages()") == 0


def test_completions_that_stay_refused_hide_no_other(
    own_clients: Callable[..., Sql], any_database: Database
) -> None:
    sql = own_clients()
    leases = [sql.claimed() for _ in range(8)]
    for lease in leases:
        sql.rows(
            "select mark_completion_refused(array[%s::bigint], array[%s::bigint], 'x')", lease.id, lease.token
        )
    any_database.query(f"alter table message_archive add constraint mine check (id > {leases[5].id})")
    wait_until(
        lambda: (
            sql.value("select complete_refused_messages()") >= 0
            and sql.value("select count(*) from message_queue") == 6
        )
    )


def policy(sql: Sql, **said: object) -> None:
    sql.rows(
        "select register_worker(%s, 'host', 1, '1', '{q}', '{effect,gave_up}', 8, '30 seconds', false, %s)",
        HOLDER,
        Jsonb({"effect": {"queue": "q", **said}, "gave_up": {"queue": "q"}}),
    )


def test_an_attempt_that_no_code_of_the_actor_ends_is_decided_by_what_that_code_says(sql: FrozenSql) -> None:
    policy(sql, max_attempts=2, min_backoff=60_000, max_backoff=70_000, on_retry_exhausted="gave_up")
    message_id = sql.enqueue(payload=Jsonb({"key": "k"}))
    lease = sql.claim_one()
    assert sql.value("select fail_overdue_message(%s, %s, 'late')", lease.id, lease.token) == "retry"
    assert sql.live(message_id)["run_at"] == sql.now + MINUTE
    sql.due_now()
    lease = sql.claim_one()
    assert sql.value("select fail_overdue_message(%s, %s, 'late')", lease.id, lease.token) == "dead"
    ((kind, options),) = sql.rows("select message_type, options from message_queue")
    data, info = options["args"]
    assert (kind, data["actor_name"], data["kwargs"], data["message_id"]) == (
        "gave_up",
        "effect",
        {"key": "k"},
        str(message_id),
    )
    assert info == {"retries": 1, "max_retries": 1}


def test_the_last_crash_tells_who_waits_for_the_end_of_the_retries(sql: FrozenSql) -> None:
    policy(sql, on_retry_exhausted="gave_up")
    sql.set_queue(crash_limit=1)
    lease = sql.claimed()
    assert overdue(sql, lease) == 0, "its holder may come back, and this crash would be its last"
    sql.later("90 seconds")
    sql.crash(lease)
    assert sql.rows("select message_type from message_queue") == [("gave_up",)]


def test_only_who_died_now_is_told_of_and_only_to_who_asked_for_it(sql: Sql) -> None:
    policy(sql, max_attempts=1, on_retry_exhausted="gave_up")
    warnings: list[str] = []
    sql.connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary))
    before, silent, now = sql.claimed(), sql.claimed(message_type="gave_up", max_attempts=1), sql.claimed()
    sql.rows("select bury_message(%s, %s)", before.id, before.token)
    for lease in silent, now:
        assert sql.value("select fail_overdue_message(%s, %s, 'late')", lease.id, lease.token) == "dead"
    ((options,),) = sql.rows("select options from message_queue")
    assert options["args"][0]["message_id"] == str(now.id) and warnings == []


@pytest.mark.parametrize(
    ("options", "said", "own", "answer"),
    [
        ({}, {}, None, "retry"),  # the queue's: 3
        ({}, {"max_retries": 0}, None, "dead"),
        ({"max_retries": 1}, {"max_retries": 0}, None, "retry"),
        ({"max_retries": 1}, {"max_attempts": 1}, None, "dead"),
        ({}, {"max_attempts": 1}, 2, "retry"),
        ({"max_retries": "many"}, {}, None, "retry"),
        ({"max_retries": None}, {}, None, "retry"),
    ],
)
def test_message_then_actor_then_queue(
    sql: Sql, options: dict, said: dict, own: int | None, answer: str
) -> None:
    policy(sql, **said)
    sql.enqueue(options=Jsonb(options), max_attempts=own)
    lease = sql.claim_one()
    assert sql.value("select fail_overdue_message(%s, %s, 'late')", lease.id, lease.token) == answer


def test_a_handler_whose_transaction_is_cut_again_and_again_fails(sql: Sql) -> None:
    """Nobody else may see it: what happens to one message five times in a row is its own doing."""
    message_id = sql.enqueue(max_attempts=1)
    answers = []
    for _ in range(5):
        lease = sql.claim_one()
        answers.append(
            sql.value(
                "select return_uncommitted_message(%s, %s, '1 second', 'cut off')", lease.id, lease.token
            )
        )
        sql.due_now()
    assert answers == ["snooze"] * 4 + ["dead"] and sql.state(message_id) == "dead"


def test_one_that_nobody_bounds_goes_on_and_waits_longer_each_time(sql: FrozenSql) -> None:
    message_id = sql.enqueue(max_attempts=1)
    waits = []
    for _ in range(7):
        lease = sql.claim_one()
        assert (
            sql.value(
                "select return_uncommitted_message(%s, %s, '1 second', 'refused', null)",
                lease.id,
                lease.token,
            )
            == "snooze"
        )
        waits.append((sql.live(message_id)["run_at"] - sql.now).total_seconds())
        sql.due_now()
    assert waits == [1, 2, 4, 8, 16, 30, 30] and sql.live(message_id)["attempt"] == 0


def test_a_history_that_is_no_array_keeps_no_message_from_its_end(sql: Sql) -> None:
    lease = sql.claimed()
    sql.rows("""update message_queue set history = '{"made": "by hand"}'""")
    assert sql.crash(lease) == 1
    assert events(sql, lease.id) == ["lease_expired"]


def test_a_running_row_without_an_end_of_its_lease_is_rescued(sql: Sql) -> None:
    sql.claimed()
    sql.rows("update message_queue set lease_expires_at = null")
    assert sql.value("select rescue_expired_messages()") == 1


def test_a_long_error_class_is_stored_bounded(sql: Sql) -> None:
    lease = sql.claimed()
    assert sql.fail(lease, error="E" * 1_000_000) == "retry"
    row = sql.live(lease.id)
    assert len(row["error"]["class"]) == len(row["history"][0]["error_class"]) == 200


def test_recovering_twice_returns_nothing_more(sql: Sql) -> None:
    sql.claimed()
    assert [sql.value("select recover_worker(%s, null)", HOLDER) for _ in range(2)] == [1, 0]


def test_types_that_a_pattern_stands_for_are_known_while_its_workers_are_there(sql: FrozenSql) -> None:
    register(sql, types=("crm.*",))
    known, unknown = sql.enqueue(message_type="crm.sync"), sql.enqueue(message_type="shop.sync")
    sql.later("59 minutes")
    register(sql, types=("crm.*",))
    sql.later("2 minutes")
    assert sql.value("select bury_unknown_types('1 hour')") == 1
    assert [sql.state(message_id) for message_id in (known, unknown)] == ["pending", "dead"]
    sql.later("59 minutes")
    assert sql.value("select bury_unknown_types('1 hour')") == 1 and sql.state(known) == "dead"


def test_one_of_a_type_without_worker_that_somebody_keeps_locked_keeps_no_other(
    clients: Callable[..., Sql],
) -> None:
    sql, somebody = clients(), clients()
    locked, free = (sql.enqueue(message_type="nobody", run_at="2000-01-01") for _ in range(2))
    with somebody.connection.transaction():
        somebody.rows("select from message_queue where id = %s for update", locked)
        assert sql.value("select bury_unknown_types()") == 1
    assert [sql.state(message_id) for message_id in (locked, free)] == ["pending", "dead"]


def test_a_message_of_a_type_without_worker_is_buried_after_the_stated_time(sql: FrozenSql) -> None:
    unknown, known = sql.enqueue(message_type="unknown"), sql.enqueue(message_type="known")
    sql.later("1 second")
    register(sql, uuid4(), ("known",))
    fresh = sql.enqueue(message_type="unknown")
    sql.until(sql.live(unknown)["run_at"] + 60 * MINUTE)
    assert sql.value("select bury_unknown_types('1 hour')") == 0
    sql.later("1 millisecond")
    assert sql.value("select bury_unknown_types('1 hour')") == 1
    assert [sql.state(message_id) for message_id in (unknown, known, fresh)] == ["dead", "pending", "pending"]
    assert (sql.dead(unknown)["reason"], sql.dead(unknown)["error_class"]) == (
        "unknown_type",
        "UnknownMessageType",
    )


def test_a_type_that_no_worker_has_named_for_the_stated_time_is_unknown_again(sql: FrozenSql) -> None:
    register(sql, types=("old",))
    message_id = sql.enqueue(message_type="old")
    sql.later("2 hours")
    assert sql.value("select bury_unknown_types('1 hour')") == 1 and sql.state(message_id) == "dead"


def test_a_message_that_crashed_a_process_is_buried_too_when_nobody_knows_its_type(sql: FrozenSql) -> None:
    """It held its conversation for ever."""
    lease = sql.claimed(conversation_key="c")
    sql.crash(lease)
    sql.later("2 hours")
    later = sql.enqueue(conversation_key="c")
    assert sql.value("select bury_unknown_types('1 hour')") == 1
    assert sql.dead(lease.id)["reason"] == "unknown_type"
    assert [lease.id for lease in sql.claim(10)] == [later]


def test_burying_a_message_of_a_queue_that_nobody_declared_does_not_lose_it(sql: FrozenSql) -> None:
    """Rows may be inserted by hand; the move to the dead letters once joined the queues, and the row was
    gone.
    """
    row = sql.rows(
        "insert into message_queue (queue, message_type, conversation_key) values ('nobody_declared_this', 'unknown', 'c') returning id"
    )
    sql.later("1 millisecond")
    assert sql.value("select bury_unknown_types('0 seconds')") == 1
    assert sql.state(row[0]["id"] if isinstance(row[0], dict) else row[0][0]) == "dead"
