"""What an operator does with one message: each verb in each state, its record, races with a claim, and P4
afterwards (SPEC Q5).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.parking import blocked_behind, in_background

PAYLOAD = {"to": "+250788000456", "text": "Muraho", "nested": {"a": 1}}
#: verb -> (its call, the word when it is done)
VERBS = {
    "edit": ("edit_message(%s, '{\"new\": 1}', 'ann', 'why')", "edited"),
    "reschedule": (
        "reschedule_message(%s, p_delay => '1 hour', p_operator => 'ann', p_reason => 'why')",
        "rescheduled",
    ),
    "move": ("move_message(%s, 'r', 'ann', 'why')", "moved"),
    "set_priority": ("set_message_priority(%s, 2, 'ann', 'why')", "changed"),
    "set_limits": ("set_message_limits(%s, 9, null, 'ann', 'why')", "changed"),
    "bury": ("bury_waiting_message(%s, 'ann', 'why')", "buried"),
    "clone": ("answer from clone_message(%s, p_operator => 'ann', p_reason => 'why')", "cloned"),
    "retry_now": ("retry_message(%s, 'ann', 'why')", "due"),
}
STATES = ("pending", "blocked", "running", "done", "cancelled", "dead", "gone")


def do(sql: Sql, verb: str, message_id: int) -> str:
    return sql.value("select " + VERBS[verb][0], message_id)


def actions(sql: Sql) -> list[tuple]:
    return sql.rows("select action, operator, reason, message_id from operator_actions")


@pytest.fixture(autouse=True)
def second_queue(request: pytest.FixtureRequest) -> None:
    if "sql" in request.fixturenames:
        request.getfixturevalue("sql").rows("select declare_queue('r')")


def message_in(sql: Sql, state: str) -> int:
    if state == "gone":
        return 10**12
    if state == "blocked":
        sql.enqueue(conversation_key="c", delay="1 hour")
    message_id = sql.enqueue(payload=PAYLOAD, conversation_key="c")
    if state == "running":
        sql.claim_one()
    elif state == "done":
        sql.complete(sql.claim_one())
    elif state == "cancelled":
        sql.rows("select cancel_message(%s, p_operator => 'x')", message_id)
    elif state == "dead":
        sql.rows("select bury_message(%s)", message_id)
    elif state == "blocked":
        sql.claim(10)
    assert sql.state(message_id) == state
    return message_id


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", STATES)
def test_each_verb_in_each_state_says_what_it_did_or_what_forbids_it(sql: Sql, verb: str, state: str) -> None:
    message_id = message_in(sql, state)
    before, recorded = sql.snapshot(), len(actions(sql))
    expected = VERBS[verb][1] if state in ("pending", "blocked") else state
    expected = {
        ("clone", "done"): "cloned",
        ("clone", "cancelled"): "cloned",
        ("clone", "dead"): "cloned",
    }.get((verb, state), expected)
    expected = {("retry_now", "blocked"): "blocked", ("retry_now", "dead"): "redriven"}.get(
        (verb, state), expected
    )
    assert do(sql, verb, message_id) == expected
    if expected == state and (verb, state) != ("retry_now", "blocked"):
        assert sql.snapshot() == before and len(actions(sql)) == recorded, (
            "what is forbidden changes nothing and is not recorded"
        )
    else:
        assert actions(sql)[recorded:] == [
            ("redrive" if expected == "redriven" else verb, "ann", "why", message_id)
        ]


def test_an_edit_replaces_the_payload_and_keeps_everything_else(sql: Sql) -> None:
    message_id = sql.enqueue(payload=PAYLOAD, priority=3, dedup_key="d", correlation_id="r1", delay="1 hour")
    before = sql.live(message_id)
    assert (
        sql.value(
            "select edit_message(%s, %s, 'ann', 'typo')", message_id, Jsonb({**PAYLOAD, "text": "Mwaramutse"})
        )
        == "edited"
    )
    after = sql.live(message_id)
    assert {name for name in before if before[name] != after[name]} == {"payload"} and after["payload"][
        "text"
    ] == "Mwaramutse"


def test_the_record_of_an_edit_has_keys_and_hashes_and_no_value(sql: Sql) -> None:
    message_id = sql.enqueue(payload=PAYLOAD)
    sql.rows(
        "select edit_message(%s, %s)", message_id, Jsonb({"to": "+250788000457", "text": "Muraho", "more": 1})
    )
    details = sql.value("select details from operator_actions")
    assert details["changed"] == ["more", "nested", "to"] and set(details) == {"changed", "before", "after"}
    assert details["before"] == sql.value("select md5(%s::jsonb::text)", Jsonb(PAYLOAD))
    assert "250788" not in str(details) and "Muraho" not in str(details)


def test_an_edit_of_what_somebody_has_changed_meanwhile_is_refused(sql: Sql) -> None:
    message_id = sql.enqueue(payload=PAYLOAD)
    assert sql.value("select edit_message(%s, '{}', p_before => %s)", message_id, Jsonb(PAYLOAD)) == "edited"
    assert sql.refused(
        "select edit_message(%s, '{\"a\": 1}', p_before => %s)", message_id, Jsonb(PAYLOAD)
    ) == ("PH005", "payload")
    assert sql.live(message_id)["payload"] == {}


@pytest.mark.parametrize("payload", ["[1]", "null", '"text"', None])
def test_a_payload_that_is_no_object_is_refused(sql: Sql, payload: str | None) -> None:
    assert sql.refused("select edit_message(%s, %s::jsonb)", sql.enqueue(), payload) == ("PH001", "payload")


def test_an_edit_keeps_the_steps_unless_it_is_to_be_fresh(sql: Sql) -> None:
    lease = sql.claimed(payload=PAYLOAD)
    sql.rows("select store_message_step(%s, %s, 'paid', '1')", lease.id, lease.token)
    sql.rows("select release_message(%s, %s)", lease.id, lease.token)
    sql.rows("select edit_message(%s, '{}')", lease.id)
    assert sql.live(lease.id)["steps"] is not None
    sql.rows("select edit_message(%s, '{}', p_fresh => true)", lease.id)
    assert sql.live(lease.id)["steps"] is None


def test_a_rescheduled_message_starts_then_and_not_before(sql: Sql) -> None:
    message_id = sql.enqueue(delay="1 hour")
    assert sql.claim(1) == []
    assert sql.value("select reschedule_message(%s, p_delay => '0')", message_id) == "rescheduled"
    assert sql.claim_one().id == message_id


def test_a_time_that_is_over_means_now(sql: Sql) -> None:
    """A message does not overtake those that have been due for longer."""
    message_id = sql.enqueue(delay="1 hour")
    sql.rows("select reschedule_message(%s, '2020-01-01T00:00Z')", message_id)
    assert sql.value(
        "select run_at > clock_timestamp() - interval '1 minute' from message_queue where id = %s", message_id
    )


def test_a_message_that_would_expire_first_is_not_rescheduled(sql: Sql) -> None:
    message_id = sql.enqueue(expires_at="2999-01-01")
    sql.rows("update message_queue set expires_at = clock_timestamp() + interval '1 hour'")
    assert sql.value("select reschedule_message(%s, p_delay => '2 hours')", message_id) == "expires"
    assert sql.claim_one().id == message_id and actions(sql) == []


@pytest.mark.parametrize(
    ("call", "column"),
    [
        ("reschedule_message(%s)", "run_at"),
        ("reschedule_message(%s, now(), '1 hour')", "run_at"),
        ("reschedule_message(%s, p_delay => '-1 second')", "delay"),
        ("reschedule_message(%s, p_delay => '11 years')", "delay"),
        ("reschedule_message(%s, 'infinity')", "run_at"),
        ("set_message_priority(%s, 0)", "priority"),
        ("set_message_priority(%s, 11)", "priority"),
        ("set_message_priority(%s, null)", "priority"),
        ("set_message_limits(%s)", "max_attempts"),
        ("set_message_limits(%s, 0)", "max_attempts"),
        ("set_message_limits(%s, 1000001)", "max_attempts"),
        ("set_message_limits(%s, 5, now())", "expires_at"),
        ("set_message_limits(%s, 5, '-infinity')", "expires_at"),
    ],
)
def test_bad_arguments_are_named(sql: Sql, call: str, column: str) -> None:
    assert sql.refused("select " + call, sql.enqueue()) == ("PH001", column)


def test_a_move_to_a_queue_that_does_not_exist_is_refused_with_the_near_miss(sql: Sql) -> None:
    assert sql.refused("select move_message(%s, 'qq')", sql.enqueue())[0] == "PH002"


def test_a_moved_message_runs_on_the_other_queue_and_its_dedup_window_stays(sql: Sql) -> None:
    message_id = sql.enqueue(dedup_key="d")
    sql.rows("select move_message(%s, 'r')", message_id)
    assert sql.claim(1, "q") == [] and sql.claim_one("r").id == message_id
    assert sql.enqueue_row(dedup_key="d") == (message_id, True)
    assert sql.enqueue_row("r", dedup_key="d")[1] is False
    assert [do(sql, "move", sql.enqueue("r")) for _ in range(2)] == ["unchanged"] * 2


def test_priority_is_within_the_queue_and_recorded_from_to(sql: Sql) -> None:
    first, second = sql.enqueue(), sql.enqueue()
    assert [do(sql, "set_priority", second) for _ in range(2)] == ["changed", "unchanged"]
    assert [lease.id for lease in sql.claim(2)] == [second, first]
    assert sql.rows("select details from operator_actions") == [({"from": 5, "to": 2},)]


def test_the_attempts_of_a_message_can_be_raised_and_lowered_but_not_below_those_it_has_made(
    sql: Sql,
) -> None:
    lease = sql.claimed(max_attempts=5)
    sql.rows("select fail_message(%s, %s, 'E', 'once', p_delay => '0')", lease.id, lease.token)
    assert sql.refused("select set_message_limits(%s, 1)", lease.id) == ("PH001", "max_attempts")
    assert [sql.value("select set_message_limits(%s, 2)", lease.id) for _ in range(2)] == [
        "changed",
        "unchanged",
    ]
    again = sql.claim_one()
    sql.rows("select fail_message(%s, %s, 'E', 'twice')", again.id, again.token)
    assert sql.state(lease.id) == "dead", "the second attempt was its last"


def test_an_expiry_can_be_set_moved_and_taken_away_and_is_recorded_from_to(sql: Sql) -> None:
    message_id = sql.enqueue(max_attempts=3, delay="1 hour")
    assert sql.refused(
        "select set_message_limits(%s, p_expires_at => now() + interval '30 min')", message_id
    ) == ("PH001", "expires_at")
    assert sql.value("select set_message_limits(%s, p_expires_at => '2999-01-01')", message_id) == "changed"
    assert sql.live(message_id)["max_attempts"] == 3 and sql.live(message_id)["expires_at"].year == 2999
    assert [
        sql.value("select set_message_limits(%s, p_expires_at => 'infinity')", message_id) for _ in range(2)
    ] == ["changed", "unchanged"]
    assert sql.live(message_id)["expires_at"] is None
    details = [row[0] for row in sql.rows("select details from operator_actions order by id")]
    assert details[1]["from"] == details[0]["to"] and details[1]["to"] == details[0]["from"] == {
        "max_attempts": 3,
        "expires_at": None,
    }


def test_a_buried_message_is_a_dead_letter_with_the_reason_and_its_conversation_goes_on(sql: Sql) -> None:
    first, second = (sql.enqueue(conversation_key="c") for _ in range(2))
    do(sql, "bury", first)
    assert (sql.dead(first)["reason"], sql.dead(first)["error_message"]) == ("buried", "why")
    assert sql.claim_one().id == second


def test_a_completion_that_is_refused_can_be_buried_and_retried(sql: Sql) -> None:
    for verb, answer in (("bury", "buried"), ("retry_now", "due")):
        lease = sql.claimed()
        sql.rows(
            "select mark_completion_refused(array[%s::bigint], array[%s::bigint], 'no')",
            lease.id,
            lease.token,
        )
        assert do(sql, "edit", lease.id) == "running"
        assert do(sql, verb, lease.id) == answer


OLD_OPTIONS = {
    "message_id": "m1",
    "args": [1],
    "retries": 2,
    "group_completion_uuid": "g",
    "group_completion_callbacks": [],
    "pipe_target": {"a": 1},
}


@pytest.mark.parametrize("state", ["pending", "done", "cancelled", "dead"])
def test_a_clone_is_the_same_message_again_and_says_where_it_comes_from(sql: Sql, state: str) -> None:
    given: dict[str, Any] = {
        "payload": PAYLOAD,
        "options": OLD_OPTIONS,
        "priority": 2,
        "conversation_key": "k",
        "correlation_id": "r1",
    }
    message_id = sql.enqueue(dedup_key="d", **given)
    if state == "done":
        sql.complete(sql.claim_one())
    elif state != "pending":
        sql.rows(
            "select cancel_message(%s)" if state == "cancelled" else "select bury_message(%s)", message_id
        )
    clone_id = sql.value("select clone_id from clone_message(%s)", message_id)
    clone = sql.live(clone_id)
    assert {name: clone[name] for name in given if name != "options"} == {
        name: value for name, value in given.items() if name != "options"
    }
    assert clone["options"] == {"args": [1], "pipe_target": {"a": 1}}, (
        "no result key and no group of the first message"
    )
    assert (clone["dedup_key"], clone["attempt"], clone["state"]) == (None, 0, "pending")
    assert (clone["history"][0]["event"], clone["history"][0]["error_message"]) == (
        "clone",
        f"of message {message_id}",
    )
    assert sql.rows("select message_id, details from operator_actions where action = 'clone'") == [
        (message_id, {"clone": clone_id})
    ]


def test_a_clone_waits_for_its_delay_and_leaves_an_expiry_that_is_over(sql: Sql) -> None:
    message_id = sql.enqueue(expires_at="2020-01-01")
    clone = sql.live(sql.value("select clone_id from clone_message(%s, '1 hour')", message_id))
    assert clone["expires_at"] is None and clone["run_at"] > clone["created_at"]


# -- the order of a conversation -------------------------------------------------------------------
def run_all(sql: Sql) -> list[int]:
    """Run everything that is due on both queues, one at a time; the ids in the order of their start."""
    order: list[int] = []
    while leases := [*sql.claim(10, "q"), *sql.claim(10, "r")]:
        assert len({lease.conversation for lease in leases}) == len(leases), (
            "two of one conversation at a time"
        )
        order += [lease.id for lease in leases]
        sql.complete(*leases)
    return order


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("verb", ["edit", "move", "set_priority"])
@pytest.mark.parametrize("met", [False, True], ids=["pending", "blocked"])
def test_the_order_of_a_conversation_stays_whatever_is_done_with_one_of_it(
    sql: Sql, verb: str, place: int, met: bool
) -> None:
    ids = [sql.enqueue(conversation_key="c") for _ in range(3)]
    if met:  # a claim has blocked those behind the first
        lease = sql.claim_one()
        sql.claim(10)
        sql.rows("select release_message(%s, %s)", lease.id, lease.token)
    do(sql, verb, ids[place])
    assert run_all(sql) == ids


def test_the_first_of_a_conversation_holds_the_others_until_its_new_time(sql: Sql) -> None:
    ids = [sql.enqueue(conversation_key="c") for _ in range(2)]
    do(sql, "reschedule", ids[0])
    assert run_all(sql) == []
    sql.due_now()
    assert run_all(sql) == ids


def test_a_first_message_on_a_paused_queue_holds_its_conversation(sql: Sql) -> None:
    ids = [sql.enqueue(conversation_key="c") for _ in range(2)]
    sql.rows("select pause_queue('r')")
    do(sql, "move", ids[0])
    assert run_all(sql) == []
    sql.rows("select resume_queue('r')")
    assert run_all(sql) == ids


# -- races -----------------------------------------------------------------------------------------
@pytest.mark.oldest_and_newest
def test_an_edit_beside_a_claim_is_seen_by_the_handler_or_refused(clients: Callable[..., Sql]) -> None:
    worker, operator = clients(), clients()
    for run in range(20):
        message_id = worker.enqueue(payload={"run": run})
        start = threading.Barrier(2)

        def edit(message_id: int = message_id, start: threading.Barrier = start) -> str:
            start.wait()
            return operator.value("select edit_message(%s, '{\"edited\": true}')", message_id)

        answer = in_background(edit)
        start.wait()
        claimed: list[tuple] = []
        while not claimed:  # one that is being edited is passed over
            claimed = worker.rows("select payload from claim_messages(gen_random_uuid(), array['q'], 1)")
        assert (answer.result(10), claimed[0][0]) in [("edited", {"edited": True}), ("running", {"run": run})]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "clone"])
def test_a_verb_while_a_worker_claims_the_message_finds_it_running(
    clients: Callable[..., Sql], verb: str
) -> None:
    worker, operator, watcher = clients(), clients(), clients()
    operator.rows("select declare_queue('r')")
    message_id = worker.enqueue()
    with worker.connection.transaction():
        worker.claim_one()
        answer = in_background(lambda: do(operator, verb, message_id))
        blocked_behind(watcher, operator, worker)
    assert answer.result(10) == "running"


def test_a_message_runs_until_its_holder_has_given_it_back_for_good(clients: Callable[..., Sql]) -> None:
    worker, operator = clients(), clients()
    lease = worker.claimed()
    with worker.connection.transaction():
        worker.rows("select release_message(%s, %s)", lease.id, lease.token)
        assert do(operator, "edit", lease.id) == "running", "its lease is held until that is committed"
    assert do(operator, "edit", lease.id) == "edited" and operator.live(lease.id)["payload"] == {"new": 1}
