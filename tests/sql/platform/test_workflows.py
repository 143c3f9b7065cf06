"""workflow_states: steps, time limits, ends that last, one active per person and type (SPEC C7, M2, PLATFORM
3.2).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest

from tests.sql.client import Sql
from tests.sql.parking import blocked_behind, in_background

pytestmark = pytest.mark.slow

START = "select start_workflow('booking', 'choose_service', p_data => '{\"a\": 1}')"
ORDER = "select start_workflow('order', 'menu', p_user_phone => %s)"
FINISH = "select finish_workflow(%s, %s)"


def start(sql: Sql) -> UUID:
    return sql.value(START)


def run_out(sql: Sql) -> None:
    sql.rows("update workflow_states set timeout_at = clock_timestamp() - interval '1 second'")


def test_a_workflow_goes_from_step_to_step_with_its_data(sql: Sql) -> None:
    workflow = start(sql)
    assert sql.value("select advance_workflow(%s, 'choose_time', '{\"b\": 2}')", workflow) == 2
    assert sql.value("select advance_workflow(%s, 'confirm', '{\"a\": 3}', '1 hour')", workflow) == 3
    row = sql.row("select * from workflow_states where id = %s", workflow)
    assert (row["current_step"], row["workflow_data"], row["status"], row["step_number"]) == (
        "confirm",
        {"a": 3, "b": 2},
        "active",
        3,
    )
    assert [entry["step"] for entry in row["history"]] == ["choose_service", "choose_time"]


@pytest.mark.parametrize(
    ("kind", "minutes"),
    [
        ("order", 15),
        ("payment", 10),
        ("job_application", 30),
        ("property_inquiry", 60),
        ("ride_request", 5),
        ("insurance_claim", 60),
        ("x", 30),
    ],
)
def test_the_time_limit_is_that_of_the_type_unless_it_is_said(sql: Sql, kind: str, minutes: int) -> None:
    workflow = sql.value("select start_workflow(%s, 's')", kind)
    limit = "select round(extract(epoch from timeout_at - clock_timestamp()) / 60) from workflow_states where id = %s"
    assert sql.value(limit, workflow) == minutes
    sql.rows("select advance_workflow(%s, 't', '{}', '2 hours')", workflow)
    assert sql.value(limit, workflow) == 120
    sql.rows("select advance_workflow(%s, 'u')", workflow)
    assert sql.value(limit, workflow) == minutes


def test_what_is_given_with_a_workflow_is_kept(sql: Sql) -> None:
    workflow = sql.value("select start_workflow('order', 's', null, '{}', 'wa:1', 'corr', '+1', 'shop')")
    columns = (
        "select user_phone, agent_type, conversation_key, correlation_id from workflow_states where id = %s"
    )
    assert sql.rows(columns, workflow) == [("+1", "shop", "wa:1", "corr")]


def test_a_person_has_one_active_workflow_of_a_type(sql: Sql) -> None:
    first = sql.value(ORDER, "+250788000456")
    with pytest.raises(psycopg.Error, match=str(first)) as refused, sql.connection.transaction():
        sql.value(ORDER, "00250 788 000 456")
    assert (refused.value.sqlstate, refused.value.diag.column_name) == ("PH005", "user_phone")
    sql.rows("select start_workflow('payment', 's', p_user_phone => '+250788000456')")
    sql.rows(FINISH, first, "completed")
    assert sql.value(ORDER, "+250788000456") != first
    assert sql.value(ORDER, None) != sql.value(ORDER, None), "nobody's may be many"


def test_one_that_is_past_its_time_gives_way_to_a_new_one(sql: Sql) -> None:
    old = sql.value(ORDER, "+1")
    run_out(sql)
    new = sql.value(ORDER, "+1")
    assert dict(sql.rows("select id, status from workflow_states")) == {old: "timeout", new: "active"}


def test_of_many_at_the_same_instant_one_starts(clients: Callable[..., Sql]) -> None:
    callers = [clients() for _ in range(20)]
    barrier = threading.Barrier(len(callers))

    def call(caller: Sql) -> str | None:
        barrier.wait(20)
        try:
            caller.value(ORDER, "+1")
        except psycopg.Error as error:
            return error.sqlstate
        return None

    answers = [future.result(30) for future in [in_background(call, caller) for caller in callers]]
    assert sorted(answers, key=str) == [None, *["PH005"] * 19]


def test_each_step_starts_the_time_limit_anew(sql: Sql) -> None:
    workflow = start(sql)
    run_out(sql)
    sql.rows("select advance_workflow(%s, 'next')", workflow)  # late, but before anybody called it timed out
    assert sql.value("select mark_timed_out_workflows()") == 0


def test_a_workflow_past_its_time_is_ended_and_says_at_which_step(sql: Sql) -> None:
    workflow = start(sql)
    run_out(sql)
    assert sql.value("select mark_timed_out_workflows()") == 1
    row = sql.row("select * from workflow_states where id = %s", workflow)
    assert (
        row["status"] == "timeout"
        and "'choose_service'" in row["error_info"]["message"]
        and row["completed_at"] is not None
    )
    assert sql.refused("select advance_workflow(%s, 'next')", workflow) == ("PH005", "id")
    assert sql.refused(FINISH, workflow, "completed") == ("PH005", "id")


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_an_end_lasts_and_is_told_apart_from_a_repetition(sql: Sql, end: str) -> None:
    workflow = start(sql)
    assert [sql.value("select finish_workflow(%s, %s, 'why')", workflow, end) for _ in range(2)] == [
        True,
        False,
    ]
    assert sql.value("select error_info from workflow_states") == {"message": "why"}
    other = "failed" if end == "completed" else "completed"
    assert sql.refused(FINISH, workflow, other) == ("PH005", "id")
    run_out(sql)
    assert sql.value("select mark_timed_out_workflows()") == 0


def test_a_paused_one_does_not_advance_and_may_end(sql: Sql) -> None:
    workflow = start(sql)
    sql.rows("update workflow_states set status = 'paused'")
    assert sql.refused("select advance_workflow(%s, 'next')", workflow) == ("PH005", "id")
    assert sql.value(FINISH, workflow, "cancelled") is True


def test_a_step_that_is_being_written_is_not_timed_out(clients: Callable[..., Sql]) -> None:
    writer, sweeper = clients(), clients()
    workflow = start(writer)
    run_out(writer)
    with writer.connection.transaction():
        writer.rows("select advance_workflow(%s, 'next')", workflow)
        assert sweeper.value("select mark_timed_out_workflows()") == 0
    assert sweeper.value("select status from workflow_states") == "active"


def test_two_steps_at_once_come_one_after_the_other(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    workflow = start(first)
    with first.connection.transaction():
        first.rows("select advance_workflow(%s, 'a')", workflow)
        answer = in_background(second.value, "select advance_workflow(%s, 'b')", workflow)
        blocked_behind(watcher, second, first)
    assert answer.result(10) == 3


def test_the_history_is_bounded(sql: Sql) -> None:
    workflow = start(sql)
    for number in range(55):
        sql.rows("select advance_workflow(%s, %s)", workflow, f"s{number}")
    assert sql.rows(
        "select jsonb_array_length(history), history -> 0 ->> 'step', step_number from workflow_states"
    ) == [(50, "s4", 56)]


@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        ("select start_workflow('', 's')", ("PH001", "workflow_type")),
        ("select start_workflow('w', null)", ("PH001", "step")),
        ("select start_workflow('w', 's', '0')", ("PH001", "timeout")),
        ("select start_workflow('w', 's', '367 days')", ("PH001", "timeout")),
        ("select start_workflow('w', 's', p_data => '[]')", ("PH001", "data")),
        ("select start_workflow('w', 's', p_conversation_key => '')", ("PH001", "conversation_key")),
        ("select start_workflow('w', 's', p_user_phone => ' ')", ("PH001", "user_phone")),
        ("select advance_workflow(gen_random_uuid(), 's')", ("PH004", "id")),
        ("select advance_workflow(null, 's')", ("PH004", "id")),
        ("select advance_workflow(gen_random_uuid(), '')", ("PH001", "step")),
        ("select advance_workflow(gen_random_uuid(), 's', '{}', '0')", ("PH001", "timeout")),
        ("select finish_workflow(gen_random_uuid())", ("PH004", "id")),
        ("select finish_workflow(gen_random_uuid(), 'timeout')", ("PH001", "status")),
        ("select finish_workflow(gen_random_uuid(), null)", ("PH001", "status")),
    ],
)
def test_bad_arguments_are_refused_by_name(sql: Sql, statement: str, refusal: tuple[str, str]) -> None:
    assert sql.refused(statement) == refusal
