"""Order per conversation: the interleavings that the head of conversations.sql speaks of, parked on purpose
(SPEC P4, Q7).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sql.client import HOLDER, OTHER, Lease, Sql
from tests.sql.conversations import violations
from tests.sql.parking import blocked_behind, in_background
from tests.support.waiting import wait_until

Clients = Callable[..., Sql]


def ids(leases: list[Lease]) -> list[int]:
    return [lease.id for lease in leases]


def in_conversation(sql: Sql, count: int, key: str = "c", **arguments: object) -> list[int]:
    return [sql.enqueue(conversation_key=key, **arguments) for _ in range(count)]


def test_a_conversation_runs_one_at_a_time_in_the_order_of_enqueue(sql: Sql) -> None:
    messages = in_conversation(sql, 5)
    for expected in messages:
        (lease,) = sql.claim(10)
        assert lease.id == expected and sql.claim(10) == []
        sql.complete(lease)
    assert violations(sql) == []


def test_priority_and_delay_do_not_change_the_order_of_a_conversation(sql: Sql) -> None:
    first = sql.enqueue(conversation_key="c", priority=10, delay="1 hour")
    second = sql.enqueue(conversation_key="c", priority=1)
    assert sql.claim(10) == [] and sql.state(second) == "blocked"
    sql.due_now()
    assert ids(sql.claim(10)) == [first]


def test_a_waiting_retry_holds_its_conversation(sql: Sql) -> None:
    first, second = in_conversation(sql, 2)
    sql.fail(sql.claim(10)[0])
    assert sql.claim(10) == []
    sql.due_now()
    assert ids(sql.claim(10)) == [first] and sql.state(second) == "blocked"


@pytest.mark.parametrize(
    "outcome",
    [
        "complete_messages(array[{id}::bigint], array[{token}::bigint])",
        "bury_message({id}, {token})",
        "cancel_message({id}, p_token => {token})",
        "fail_message({id}, {token}, 'E', 'm', p_max_attempts => 1)",
    ],
)
def test_every_ending_lets_the_conversation_go_on(sql: Sql, outcome: str) -> None:
    _, second, third = in_conversation(sql, 3)
    lease = sql.claim(10)[0]
    assert sql.claim(10) == []
    sql.rows("select " + outcome.format(id=lease.id, token=lease.token))
    assert ids(sql.claim(10)) == [second] and sql.state(third) == "blocked"
    assert violations(sql) == []


def test_conversations_do_not_wait_for_each_other(sql: Sql) -> None:
    firsts = [in_conversation(sql, 3, key)[0] for key in "abc"]
    assert ids(sql.claim(10)) == firsts


def test_on_dead_block_holds_the_conversation_until_the_dead_letter_goes(sql: Sql) -> None:
    sql.set_queue(on_dead="block")
    first, second = in_conversation(sql, 2)
    lease = sql.claim(10)[0]
    sql.rows("select bury_message(%s, %s)", lease.id, lease.token)
    assert sql.claim(10) == [] and sql.state(second) == "blocked"
    assert sql.value("select redrive_dead_letters(array[%s::bigint])", first) == [first]
    assert ids(sql.claim(10)) == [first]
    assert violations(sql) == []


def test_purging_the_blocking_dead_letter_lets_the_conversation_go_on(sql: Sql) -> None:
    sql.set_queue(on_dead="block")
    first, second = in_conversation(sql, 2)
    sql.rows("select bury_message(%s)", first)
    assert sql.claim(10) == []
    sql.rows("select purge_dead_letters(array[%s::bigint])", first)
    assert ids(sql.claim(10)) == [second]


def test_two_blocking_dead_letters_hold_until_both_are_gone(sql: Sql) -> None:
    sql.set_queue(on_dead="block")
    first, second, third = in_conversation(sql, 3)
    sql.rows("select bury_message(%s), bury_message(%s)", first, second)
    assert sql.claim(10) == []
    sql.rows("select purge_dead_letters(array[%s::bigint])", second)
    assert sql.state(third) == "blocked", "no claim has to meet it again"
    assert sql.claim(10) == [] and sql.state(third) == "blocked"
    sql.rows("select purge_dead_letters(array[%s::bigint])", first)
    assert ids(sql.claim(10)) == [third]


def test_a_redriven_message_enters_its_conversation_at_its_place(sql: Sql) -> None:
    first, second, third = in_conversation(sql, 3)
    lease = sql.claim(10)[0]
    sql.rows("select bury_message(%s, %s)", lease.id, lease.token)
    running = sql.claim(10)[0]
    assert running.id == second and sql.claim(10) == []
    sql.rows("select redrive_dead_letters(array[%s::bigint])", first)
    assert sql.claim(10) == []
    sql.complete(running)
    order = []
    while leases := sql.claim(10):
        order += ids(leases)
        sql.complete(*leases)
    assert order == [first, third]


@pytest.mark.parametrize("stuck", [12, 300])
def test_redriven_messages_of_busy_conversations_do_not_hide_what_stands_behind_them(
    sql: Sql, stuck: int
) -> None:
    """They are not blocked, for their ids are smaller than those of the running messages; a claim of one met
    ten of them and gave up.
    """
    sql.rows(
        "select bury_message(message_id) from (select message_id from generate_series(1, %s) n, enqueue_message('q', 't', p_conversation_key => 'c' || n)) m",
        stuck,
    )
    sql.rows(
        "select enqueue_message('q', 't', p_conversation_key => 'c' || n) from generate_series(1, %s) n",
        stuck,
    )
    running = sql.claim(stuck)
    assert len(running) == stuck
    sql.rows("select redrive_dead_letters(p_queue => 'q')")
    first, second = (sql.enqueue(conversation_key="free") for _ in range(2))
    alone = sql.enqueue()
    assert ids(sql.claim()) == [first], "of a conversation that waits for nobody, the first one"
    assert ids(sql.claim()) == [alone] and sql.state(second) in ("blocked", "pending")
    assert sql.claim() == []
    sql.complete(running[0])
    assert [lease.conversation for lease in sql.claim()] == [running[0].conversation]
    assert violations(sql) == []


def test_what_a_claim_of_one_passes_over_is_not_locked(clients: Clients) -> None:
    """It looks at a hundred messages behind the one that has to wait; another worker wants those that may
    start.
    """
    one, other = clients(), clients()
    held = [one.claimed(conversation_key=key) for key in "abc"]
    waiting = [one.enqueue(conversation_key=key) for key in "abc"]
    free = [one.enqueue() for _ in range(3)]
    with one.connection.transaction():
        assert ids(one.claim()) == free[:1]
        assert ids(other.claim(10, holder=OTHER)) == free[1:]
    assert {one.state(message) for message in waiting} == {"blocked"}
    assert sorted(one.complete(*held)) == sorted(ids(held)) and {
        one.state(message) for message in waiting
    } == {"pending"}


def test_a_message_with_a_smaller_id_that_commits_late_goes_first(clients: Clients) -> None:
    late, sql = clients(), clients()
    with late.connection.transaction():
        (smaller,) = in_conversation(late, 1)
        larger = in_conversation(sql, 2)
    order = []
    while leases := sql.claim(10):
        order += ids(leases)
        sql.complete(*leases)
    assert order == [smaller, *larger]


def test_a_batch_that_loses_to_a_claim_of_the_same_instant_is_asked_for_again(clients: Clients) -> None:
    """Each claims the first of the conversation as far as it can see. The whole batch of the second one is
    still pending.
    """
    late, winner, loser, watcher = clients(), clients(), clients(), clients()
    late.rows("begin")
    in_conversation(late, 1)
    (larger,) = in_conversation(watcher, 1)
    with winner.connection.transaction():
        assert ids(winner.claim(1)) == [larger]
        late.rows("commit")
        claim = "select outcome, run_at <= clock_timestamp() from claim_story('{}', '{}', %s, '{q}', 10)"
        answer = in_background(loser.rows, claim, OTHER)
        blocked_behind(watcher, loser, winner)
    assert answer.result(10) == [("next", True)]


def test_waiting_messages_are_taken_out_of_the_claim_index(sql: Sql) -> None:
    in_conversation(sql, 60)
    other = sql.enqueue()
    assert len(sql.claim(1)) == 1
    assert ids(sql.claim(1)) == [other] or ids(sql.claim(100)) == [other]
    while sql.claim(100):
        raise AssertionError("nothing else may start")
    assert sql.value("select count(*) from message_queue where state = 'pending'") == 0


def test_blocking_while_the_holder_completes_loses_no_wake_up(clients: Clients) -> None:
    """The completion waits for the claim that blocks behind its message, then it sees the blocked one and
    promotes it.
    """
    claimer, completer, watcher = clients(), clients(), clients()
    _, second = in_conversation(watcher, 2)
    lease = completer.claim_one()
    with claimer.connection.transaction():
        assert claimer.claim(10, holder=OTHER) == []
        assert claimer.state(second) == "blocked"
        done = in_background(lambda: completer.complete(lease))
        blocked_behind(watcher, completer, claimer)
    assert done.result(10) == [lease.id]
    assert watcher.state(second) == "pending" and violations(watcher) == []


def test_a_completion_in_an_open_transaction_is_not_waited_for(clients: Clients) -> None:
    """The other side: the holder is about to leave, so nothing is blocked behind it and nobody waits."""
    completer, claimer = clients(), clients()
    _, second = in_conversation(completer, 2)
    lease = completer.claim_one()
    with completer.connection.transaction():
        completer.complete(lease)
        assert claimer.claim(10, holder=OTHER) == []
        assert claimer.state(second) == "pending"
    assert ids(claimer.claim(10, holder=OTHER)) == [second]


def test_an_open_transaction_of_a_handler_does_not_hold_up_its_queue(clients: Clients) -> None:
    """A claim of one message meets messages that it can neither start nor block; what stands behind them
    still starts.
    """
    completer, claimer = clients(), clients()
    in_conversation(completer, 4)
    lease = completer.claim_one()
    with completer.connection.transaction():
        completer.complete(lease)
        other = claimer.enqueue()
        assert ids(claimer.claim(1, holder=OTHER)) == [other]


def test_blocking_while_the_earlier_message_is_cancelled_loses_no_wake_up(clients: Clients) -> None:
    claimer, operator, watcher = clients(), clients(), clients()
    first = watcher.enqueue(conversation_key="c", delay="1 hour")
    second = watcher.enqueue(conversation_key="c")
    with claimer.connection.transaction():
        assert claimer.claim(10) == [] and claimer.state(second) == "blocked"
        cancelled = in_background(lambda: operator.value("select cancel_message(%s)", first))
        blocked_behind(watcher, operator, claimer)
    assert cancelled.result(10) == "cancelled"
    assert watcher.state(second) == "pending" and violations(watcher) == []


def test_a_purge_while_a_claim_blocks_behind_the_dead_letter_loses_no_wake_up(clients: Clients) -> None:
    claimer, operator, watcher = clients(), clients(), clients()
    watcher.set_queue(on_dead="block")
    first, second = in_conversation(watcher, 2)
    watcher.rows("select bury_message(%s)", first)
    with claimer.connection.transaction():
        assert claimer.claim(10) == [] and claimer.state(second) == "blocked"
        purged = in_background(lambda: operator.value("select purge_dead_letters(array[%s::bigint])", first))
        blocked_behind(watcher, operator, claimer)
    assert purged.result(10) == [first]
    assert watcher.state(second) == "pending" and violations(watcher) == []


def test_a_retry_while_a_claim_blocks_behind_it_keeps_the_conversation_held(clients: Clients) -> None:
    holder, claimer = clients(), clients()
    first, second = in_conversation(holder, 2)
    lease = holder.claim_one()
    with holder.connection.transaction():
        holder.fail(lease)
        assert claimer.claim(10, holder=OTHER) == []
    assert claimer.state(second) in ("blocked", "pending") and claimer.claim(10, holder=OTHER) == []
    claimer.due_now()
    assert ids(claimer.claim(10, holder=OTHER)) == [first] and violations(claimer) == []


def test_a_parent_recovers_a_message_while_a_claim_blocks_behind_it(clients: Clients) -> None:
    """Found under load: the share lock of the claim hid the message, and it waited for its lease to run
    out.
    """
    holder, claimer = clients(), clients()
    first, second = in_conversation(holder, 2)
    lease = holder.claim_one()
    with claimer.connection.transaction():
        assert claimer.claim(10, holder=OTHER) == [] and claimer.state(second) == "blocked"
        assert holder.value("select recover_worker(%s, array[%s::bigint])", HOLDER, lease.id) == 1
    assert holder.state(first) == "pending" and violations(holder) == []


def test_a_parent_looks_again_at_a_message_that_somebody_has_locked(clients: Clients) -> None:
    """A claim that saw the message pending locks it for an instant although it runs: it must not be passed
    over.
    """
    holder, other, watcher = clients(), clients(), clients()
    lease = holder.claimed()
    with other.connection.transaction():
        other.rows("select id from message_queue where id = %s for update", lease.id)
        recovered = in_background(lambda: holder.value("select recover_worker(%s, null)", HOLDER))
        wait_until(
            lambda: watcher.value(
                "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s",
                holder.connection.info.backend_pid,
            )
        )
    assert recovered.result(10) == 1


def test_two_claims_of_one_conversation_at_the_same_instant_start_one_message(clients: Clients) -> None:
    """Claim A starts 2 before 1 is committed, claim B then starts 1: the unique index lets one of them
    win.
    """
    late, first_claimer, second_claimer, watcher = clients(), clients(), clients(), clients()
    with first_claimer.connection.transaction():
        with late.connection.transaction():
            (smaller,) = in_conversation(late, 1)
            (larger,) = in_conversation(watcher, 1)
            assert ids(first_claimer.claim(10)) == [larger]
        answer = in_background(lambda: second_claimer.claim(10, holder=OTHER))
        blocked_behind(watcher, second_claimer, first_claimer)
    assert answer.result(10) == []
    assert (watcher.state(smaller), watcher.state(larger)) == ("pending", "running") and violations(
        watcher
    ) == []


def test_a_given_message_is_not_locked_while_another_of_its_conversation_starts(clients: Clients) -> None:
    late, claimer, other, watcher = clients(), clients(), clients(), clients()
    with claimer.connection.transaction():
        with late.connection.transaction():
            (smaller,) = in_conversation(late, 1)
            in_conversation(watcher, 1)
            assert len(claimer.claim(10)) == 1
        answer = in_background(lambda: other.value("select acquire_message_lock(%s, %s)", smaller, OTHER))
        blocked_behind(watcher, other, claimer)
    assert answer.result(10) is None and violations(watcher) == []


def test_a_batch_that_met_a_conflict_is_claimed_by_the_next_claim(clients: Clients) -> None:
    late, first_claimer, second_claimer, watcher = clients(), clients(), clients(), clients()
    with first_claimer.connection.transaction():
        with late.connection.transaction():
            in_conversation(late, 1)
            in_conversation(watcher, 1)
            assert len(first_claimer.claim(10)) == 1
        neighbours = [watcher.enqueue() for _ in range(3)]
        answer = in_background(lambda: second_claimer.claim(10, holder=OTHER))
        blocked_behind(watcher, second_claimer, first_claimer)
    assert answer.result(10) == []
    assert ids(second_claimer.claim(10, holder=OTHER)) == neighbours


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_leaving_a_conversation_under_a_lasting_snapshot_is_refused(clients: Clients, level: str) -> None:
    """Such a completion could not see who was blocked behind it in the meantime: the conversation would wait
    for ever.
    """
    completer, claimer = clients(), clients()
    _, second = in_conversation(completer, 2)
    lease = completer.claim_one()
    completer.connection.autocommit = False
    completer.rows(f"set transaction isolation level {level}")
    assert completer.state(second) == "pending"
    assert claimer.claim(10, holder=OTHER) == [] and claimer.state(second) == "blocked"
    call = "select complete_messages(array[%s::bigint], array[%s::bigint])"
    assert completer.refused(call, lease.id, lease.token) == ("PH001", "transaction_isolation")
    completer.connection.rollback()
    completer.connection.autocommit = True
    assert completer.complete(lease) == [lease.id] and violations(claimer) == []


def test_a_message_without_conversation_is_completed_under_any_snapshot(clients: Clients) -> None:
    sql = clients()
    lease = sql.claimed()
    sql.connection.autocommit = False
    sql.rows("set transaction isolation level repeatable read")
    assert sql.complete(lease) == [lease.id]
    sql.connection.commit()
    assert sql.state(lease.id) == "done"


@pytest.mark.parametrize(
    "comes_back",
    [
        "fail_message({id}, {token}, 'E', 'm', p_delay => '0')",
        "snooze_message({id}, {token}, '0')",
        "release_message({id}, {token})",
        "recover_worker((select lease_holder from message_queue where id = {id}), null)",
    ],
)
def test_late_commits_behind_a_running_message_that_comes_back_keep_their_order(
    clients: Clients, comes_back: str
) -> None:
    """The third was started first, for the others committed late. The first was once blocked behind it, and
    when the third came back to pending nothing held the second any more: it started before the first."""
    early, late, worker = clients(), clients(), clients()
    with late.connection.transaction():
        second_client = clients()
        with early.connection.transaction():
            first = early.enqueue(conversation_key="c")
            second = late.enqueue(conversation_key="c", priority=1)
            third = second_client.enqueue(conversation_key="c")
            lease = worker.claim_one()
            assert lease.id == third
        assert worker.claim(10) == []  # the first is seen: it must wait, and stay in front
    worker.rows("select " + comes_back.format(id=third, token=lease.token))
    started: list[int] = []
    for _ in range(6):  # a claim that meets one that waits leaves its conversation to the next claim
        leases = worker.claim(1)
        started += ids(leases)
        worker.complete(*leases)
    assert started == [first, second, third]
    assert violations(worker) == []


@pytest.mark.slow
def test_what_waits_behind_messages_that_somebody_holds_is_not_asked_for_again_and_again(
    clients: Clients,
) -> None:
    """None of them can be blocked, so the next claim would not get further: it is for the poll, not for
    now.
    """
    sql = clients()
    for _ in range(2):
        sql.rows(
            "select enqueue_message('q', 'effect', p_conversation_key => 'c' || n) from generate_series(1, 1500) n"
        )
    other = clients()
    other.rows("begin")
    other.rows(
        "select from message_queue where id in (select min(id) from message_queue group by conversation_key) for update"
    )
    assert sql.rows("select outcome from claim_story('{}', '{}', %s, '{q}', 1)", HOLDER) == []
    other.rows("rollback")
