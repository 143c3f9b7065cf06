"""workflow_states: steps, timeouts, ends that last; workflow_health (SPEC C7, C8, M2)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from tests.sql.client import Sql
from tests.sql.parking import blocked_behind, in_background

pytestmark = pytest.mark.slow

START = "select start_workflow('booking', 'choose_service', p_data => '{\"a\": 1}')"
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
    assert (row["step"], row["data"], row["status"]) == ("confirm", {"a": 3, "b": 2}, "running")
    assert [entry["step"] for entry in row["history"]] == ["choose_service", "choose_time"]


def test_each_step_starts_the_timeout_anew(sql: Sql) -> None:
    workflow = start(sql)
    run_out(sql)
    sql.rows("select advance_workflow(%s, 'next')", workflow)  # late, but before anybody called it timed out
    assert sql.value("select mark_timed_out_workflows()") == 0


def test_a_workflow_past_its_timeout_is_ended_and_says_at_which_step(sql: Sql) -> None:
    workflow = start(sql)
    run_out(sql)
    assert sql.value("select mark_timed_out_workflows()") == 1
    row = sql.row("select * from workflow_states where id = %s", workflow)
    assert row["status"] == "timed_out" and "'choose_service'" in row["error"] and row["finished_at"] is not None
    assert sql.refused("select advance_workflow(%s, 'next')", workflow) == ("PH005", "id")
    assert sql.refused(FINISH, workflow, "completed") == ("PH005", "id")


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_an_end_lasts_and_is_told_apart_from_a_repetition(sql: Sql, end: str) -> None:
    workflow = start(sql)
    assert sql.value(FINISH, workflow, end) is True
    assert sql.value(FINISH, workflow, end) is False
    other = "failed" if end == "completed" else "completed"
    assert sql.refused(FINISH, workflow, other) == ("PH005", "id")
    run_out(sql)
    assert sql.value("select mark_timed_out_workflows()") == 0


def test_a_step_that_is_being_written_is_not_timed_out(clients: Callable[..., Sql]) -> None:
    writer, sweeper = clients(), clients()
    workflow = start(writer)
    run_out(writer)
    with writer.connection.transaction():
        writer.rows("select advance_workflow(%s, 'next')", workflow)
        assert sweeper.value("select mark_timed_out_workflows()") == 0
    assert sweeper.value("select status from workflow_states") == "running"


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
    assert sql.rows("select jsonb_array_length(history), history -> 0 ->> 'step', step_number from workflow_states") == [(50, "s4", 56)]


@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        ("select start_workflow('', 's')", ("PH001", "workflow_type")),
        ("select start_workflow('w', null)", ("PH001", "step")),
        ("select start_workflow('w', 's', '0')", ("PH001", "timeout")),
        ("select start_workflow('w', 's', '367 days')", ("PH001", "timeout")),
        ("select start_workflow('w', 's', null)", ("PH001", "timeout")),
        ("select start_workflow('w', 's', p_data => '[]')", ("PH001", "data")),
        ("select start_workflow('w', 's', p_conversation_key => '')", ("PH001", "conversation_key")),
        ("select advance_workflow(gen_random_uuid(), 's')", ("PH004", "id")),
        ("select advance_workflow(null, 's')", ("PH004", "id")),
        ("select advance_workflow(gen_random_uuid(), '')", ("PH001", "step")),
        ("select finish_workflow(gen_random_uuid())", ("PH004", "id")),
        ("select finish_workflow(gen_random_uuid(), 'timed_out')", ("PH001", "status")),
        ("select finish_workflow(gen_random_uuid(), null)", ("PH001", "status")),
    ],
)
def test_bad_arguments_are_refused_by_name(sql: Sql, statement: str, refusal: tuple[str, str]) -> None:
    assert sql.refused(statement) == refusal


def test_a_row_is_finished_exactly_when_it_has_an_end(sql: Sql) -> None:
    start(sql)
    assert sql.refused("update workflow_states set status = 'completed'")[0] == "23514"
    assert sql.refused("update workflow_states set finished_at = now()")[0] == "23514"


def test_health_counts_by_type_and_sees_what_is_overdue(sql: Sql) -> None:
    workflows = [start(sql) for _ in range(5)]
    sql.rows("update workflow_states set timeout_at = now() - interval '1 minute' where id = %s", workflows[0])
    for workflow, end in zip(workflows[1:4], ["completed", "failed", "cancelled"], strict=True):
        sql.rows(FINISH, workflow, end)
    sql.rows("select start_workflow('other', 's')")
    row = sql.row("select * from workflow_health where workflow_type = 'booking'")
    assert {key: row[key] for key in ("running", "overdue", "completed_24h", "failed_24h", "cancelled_24h", "timed_out_24h")} == {
        "running": 2,
        "overdue": 1,
        "completed_24h": 1,
        "failed_24h": 1,
        "cancelled_24h": 1,
        "timed_out_24h": 0,
    }
    sql.rows("update workflow_states set finished_at = now() - interval '25 hours' where finished_at is not null")
    assert sql.value("select completed_24h from workflow_health where workflow_type = 'booking'") == 0
    assert sql.value("select count(*) from workflow_health") == 2
