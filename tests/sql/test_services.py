"""Circuit breakers and health of services, decided in the database over all processes (SPEC W10)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.sql.client import Sql
from tests.sql.frozen import FrozenSql
from tests.sql.parking import in_background

A, B = "http://a", "http://b"
POLICY: dict[str, Any] = {
    "open_ratio": 0.5,
    "least_calls": 5,
    "close_after": 3,
    "reset_after": 60,
    "judged_over": 60,
    "probe_lease": 40,
    "check_every": 30,
}


@pytest.fixture
def sql(frozen_sql: FrozenSql) -> FrozenSql:
    """A circuit rests until the test lets time pass."""
    return frozen_sql


def declare(sql: Sql, *endpoints: str, service: str = "openai", **changes: Any) -> int:
    rows = [
        {"endpoint": endpoint, "health_url": f"{endpoint}/health"} | POLICY | changes
        for endpoint in endpoints or (A,)
    ]
    return int(sql.value("select declare_service(%s, %s)", service, Jsonb(rows)))


def report(
    sql: Sql,
    calls: int,
    failures: int,
    endpoint: str = A,
    epoch: int | None = None,
    *,
    succeeded: bool | None = None,
) -> bool:
    """One process's report about one endpoint; whether it opened the breaker."""
    known = row(sql, endpoint)
    told = {
        "service": "openai",
        "endpoint": endpoint,
        "epoch": known["epoch"] if epoch is None else epoch,
        "calls": calls,
        "failures": failures,
        "in_row": failures,
        "succeeded": calls > failures if succeeded is None else succeeded,
    }
    found = sql.rows("select endpoint, changed from report_calls(%s, %s)", Jsonb([told]), ["openai"])
    return dict(found)[endpoint]


def row(sql: Sql, endpoint: str = A) -> dict[str, Any]:
    return sql.row("select * from service_endpoints where endpoint = %s", endpoint)


def state(sql: Sql, endpoint: str = A) -> str:
    return str(row(sql, endpoint)["state"])


def begin(sql: Sql, endpoint: str = A) -> int | None:
    return sql.value("select begin_probe('openai', %s)", endpoint)


def end(sql: Sql, token: int | None, succeeded: bool | None, endpoint: str = A) -> str | None:
    return sql.value("select end_probe('openai', %s, %s, %s)", endpoint, token, succeeded)


def opened(sql: Sql, *endpoints: str, **changes: Any) -> None:
    declare(sql, *(endpoints or (A,)), **changes)
    for endpoint in endpoints or (A,):
        assert report(sql, 5, 5, endpoint)


def test_a_breaker_opens_at_the_ratio_and_not_before_enough_calls(sql: Sql) -> None:
    declare(sql)
    assert not report(sql, 4, 4) and state(sql) == "closed", "four calls say little"
    assert not report(sql, 5, 0) and state(sql) == "closed", "4 of 9"
    assert report(sql, 1, 1) and state(sql) == "open", "5 of 10"
    assert row(sql)["opened_total"] == 1 and not report(sql, 9, 9), "an open one does not open"


def test_an_outage_after_hours_of_success_opens_it_by_failures_in_a_row(sql: Sql) -> None:
    """The window of a busy service would see it after as many failures as it has seen successes: half a
    minute of dead letters.
    """
    declare(sql)
    report(sql, 100_000, 0)
    assert not report(sql, 19, 19) and state(sql) == "closed"
    assert not report(sql, 2, 1) and not report(sql, 15, 15), "a success between"
    assert report(sql, 5, 5) and state(sql) == "open"


def test_what_several_processes_report_is_one_window(sql: Sql) -> None:
    declare(sql)
    assert [report(sql, 2, 1) for _ in range(3)] == [False, False, True]


def test_an_ai_agents_breaker_needs_three_calls_and_sixty_percent(sql: Sql) -> None:
    declare(sql, open_ratio=0.6, least_calls=3)
    assert not report(sql, 2, 1) and not report(sql, 2, 1), "half"
    assert report(sql, 1, 1), "3 of 5"


def test_failures_leave_the_window_with_time(sql: FrozenSql) -> None:
    declare(sql)
    report(sql, 4, 4)
    sql.later("31 seconds")
    report(sql, 1, 0)
    assert (row(sql)["earlier_failures"], row(sql)["failures"]) == (4, 0), "the older half"
    sql.later("31 seconds")
    report(sql, 4, 0)
    assert (row(sql)["earlier_failures"], row(sql)["calls"]) == (0, 4)
    sql.later("61 seconds")
    assert not report(sql, 4, 4) and row(sql)["earlier_calls"] == 0


def test_calls_that_began_before_a_breaker_opened_and_closed_do_not_open_it_again(sql: FrozenSql) -> None:
    opened(sql, close_after=1)
    sql.later("61 seconds")
    assert end(sql, begin(sql), True) == "closed"
    assert not report(sql, 50, 50, epoch=1) and state(sql) == "closed"
    assert row(sql)["failures_total"] == 55 and row(sql)["failures"] == 0, "the totals know of them"


def test_one_probe_at_a_time_when_the_reset_time_is_over(sql: FrozenSql) -> None:
    opened(sql)
    assert begin(sql) is None, "not yet"
    sql.later("61 seconds")
    token = begin(sql)
    assert token is not None and state(sql) == "half_open" and begin(sql) is None
    assert end(sql, token, True) == "half_open"
    assert [end(sql, begin(sql), True) for _ in range(2)] == ["half_open", "closed"], "three successes"
    assert (row(sql)["calls"], row(sql)["failures_in_row"], begin(sql)) == (0, 0, 0), (
        "a closed one needs no probe"
    )


def test_one_failed_probe_opens_again_and_the_successes_before_it_count_no_more(sql: FrozenSql) -> None:
    opened(sql)
    sql.later("61 seconds")
    end(sql, begin(sql), True)
    assert end(sql, begin(sql), False) == "open" and begin(sql) is None
    sql.later("61 seconds")
    assert [end(sql, begin(sql), True) for _ in range(3)] == ["half_open", "half_open", "closed"]
    assert row(sql)["opened_total"] == 1, "it was the same outage"


def test_a_probe_that_says_nothing_lets_the_next_one_begin(sql: FrozenSql) -> None:
    opened(sql)
    sql.later("61 seconds")
    assert end(sql, begin(sql), None) == "half_open"
    assert begin(sql) is not None


def test_the_lease_of_a_probe_ends_by_time_and_who_comes_late_changes_nothing(sql: FrozenSql) -> None:
    opened(sql)
    sql.later("61 seconds")
    lost = begin(sql)
    sql.later("39 seconds")
    assert begin(sql) is None
    sql.later("2 seconds")
    token = begin(sql)
    assert token is not None and token != lost
    assert end(sql, lost, False) is None and state(sql) == "half_open"
    assert end(sql, token, True) == "half_open" and row(sql)["successes"] == 1


def test_probes_that_begin_at_the_same_instant_are_one(clients: Callable[..., Sql]) -> None:
    processes = [clients() for _ in range(6)]
    opened(processes[0])
    processes[0].rows("update service_endpoints set retry_at = clock_timestamp()")
    together = threading.Barrier(len(processes))

    def probe(process: Sql) -> int | None:
        together.wait(10)
        return begin(process)

    found = [work.result(10) for work in [in_background(probe, process) for process in processes]]
    assert sum(token is not None for token in found) == 1


def test_reports_that_come_at_the_same_instant_open_once_and_lose_no_call(
    clients: Callable[..., Sql],
) -> None:
    processes = [clients() for _ in range(6)]
    declare(processes[0], A, B)
    together = threading.Barrier(len(processes))

    def tell(process: Sql) -> list[bool]:
        told = [
            {
                "service": "openai",
                "endpoint": e,
                "epoch": 1,
                "calls": 5,
                "failures": 5,
                "in_row": 5,
                "succeeded": False,
            }
            for e in (B, A)
        ]
        together.wait(10)
        return [
            changed
            for (changed,) in process.rows(
                "select changed from report_calls(%s, %s)", Jsonb(told), ["openai"]
            )
        ]

    found = [
        changed
        for work in [in_background(tell, process) for process in processes]
        for changed in work.result(10)
    ]
    totals = processes[0].rows("select calls_total, opened_total from service_endpoints")
    assert sum(found) == 2 and totals == [(30, 1)] * 2


def test_a_health_check_is_made_by_one_process(sql: FrozenSql) -> None:
    declare(sql, A, B)
    assert sorted(
        endpoint for _, endpoint, _ in sql.rows("select * from due_health_checks(array['openai'])")
    ) == [A, B]
    assert sql.rows("select * from due_health_checks(array['openai'])") == []
    sql.later("31 seconds")
    assert len(sql.rows("select * from due_health_checks(array['openai'], 1)")) == 1


def test_three_failed_checks_make_unhealthy_and_one_success_healthy(sql: Sql) -> None:
    declare(sql)
    check = "select was, healthy from record_health('openai', 'http://a', %s)"
    assert [sql.rows(check, "timed out")[0][1] for _ in range(3)] == [None, None, False]
    assert sql.rows(check, None) == [(False, True)]
    assert [sql.rows(check, "503")[0][1] for _ in range(3)] == [True, True, False]
    assert row(sql)["last_error"] == "503"


def test_a_health_check_that_succeeds_starts_the_probes_early(sql: Sql) -> None:
    opened(sql)
    sql.rows("select record_health('openai', 'http://a', 'refused')")
    assert begin(sql) is None
    sql.rows("select record_health('openai', 'http://a')")
    assert begin(sql) is not None and row(sql)["retry_at"] is not None
    declare(sql, B)
    sql.rows("select record_health('openai', 'http://b')")
    assert row(sql, B)["retry_at"] is None, "nothing to start"


def test_an_operator_holds_a_breaker_open_and_lets_it_go_on_by_probes(sql: Sql) -> None:
    declare(sql, A, B)
    force = "select force_service('openai', %s, %s, 'ann', 'maintenance')"
    assert sql.value(force, "open", A) == 1 and sql.value(force, "open", A) == 0
    assert (row(sql)["forced"], row(sql, B)["forced"], begin(sql)) == ("open", None, None)
    assert sql.value(force, "automatic", None) == 1
    assert state(sql) == "open" and begin(sql) is not None
    found = sql.rows(
        "select operator, reason, details ->> 'state' from operator_actions where action = 'force_service' order by id"
    )
    assert found == [("ann", "maintenance", "open"), ("ann", "maintenance", "automatic")]


def test_a_breaker_that_is_held_closed_counts_and_begins_anew_afterwards(sql: Sql) -> None:
    opened(sql)
    sql.rows("select force_service('openai', 'closed')")
    assert sql.rows("select forced, state from endpoint_states(array['openai'])") == [("closed", "closed")]
    report(sql, 50, 50)
    sql.rows("select force_service('openai', 'automatic')")
    assert state(sql) == "closed" and row(sql)["failures"] == 0


def test_bad_arguments_are_named(sql: Sql) -> None:
    declare(sql)
    assert sql.refused("select force_service('openia', 'open')") == ("PH001", "service")
    assert sql.refused("select force_service('openai', 'ajar')") == ("PH001", "state")
    assert sql.refused("select force_service('openai', 'open', 'http://c')") == ("PH001", "endpoint")
    assert sql.refused("select declare_service('1 2', '[]')") == ("PH001", "service")
    assert sql.refused("select due_health_checks('{}', 0)") == ("PH001", "limit")


def test_a_declaration_is_written_when_it_is_new_or_different(sql: Sql) -> None:
    assert (declare(sql), declare(sql), declare(sql, reset_after=1)) == (1, 0, 1)
    opened(sql, B)
    assert declare(sql, B) == 0 and state(sql, B) == "open", "the breaker stays as it is"


def test_what_nobody_declares_any_more_is_not_judged_and_forgotten_after_a_day(sql: FrozenSql) -> None:
    declare(sql, A, B)
    sql.later("11 minutes")
    declare(sql, A)
    assert sql.rows("select endpoint from endpoint_states()") == [(A,)]
    sql.later("2 days")
    declare(sql, A)
    assert sql.rows("select endpoint from service_endpoints") == [(A,)]


def test_the_health_check_names_what_cannot_be_called(sql: Sql) -> None:
    check = "select status, summary, details -> 'services_down' from health_circuit_breakers()"
    assert sql.rows(check)[0][0] == "absent"
    declare(sql, A, B)
    assert sql.rows(check)[0][0] == "ok"
    report(sql, 5, 5)
    assert sql.rows(check)[0][0] == "warn"
    report(sql, 5, 5, B)
    status, summary, down = sql.rows(check)[0]
    assert (status, int(down)) == ("fail", 1) and summary.endswith("cannot be called: openai")
    sql.rows("select force_service('openai', 'closed')")
    assert sql.rows(check)[0][0] == "warn", "an operator's state is not to be forgotten"


def test_an_endpoint_that_nobody_has_declared_for_days_is_registered_and_not_judged(sql: FrozenSql) -> None:
    declare(sql, A)
    report(sql, 5, 5)
    sql.later("2 days")
    assert sql.rows("select status, summary from health_circuit_breakers()") == [
        ("ok", "no service was declared in the last day")
    ]


def test_the_metrics_of_services(sql: Sql) -> None:
    opened(sql)
    found = sql.value("select service_statistics()")
    assert found["service_breaker_state"] == [{"service": "openai", "endpoint": A, "value": 2}]
    assert found["service_calls_total"][0]["value"] == found["service_failures_total"][0]["value"] == 5


def name_it(sql: Sql, *services: str) -> None:
    """An actor `effect` that says what it calls."""
    sql.rows(
        "insert into message_types (name, queue, policy) values ('effect', 'q', %s)",
        Jsonb({"services": list(services)}),
    )


def parked(sql: Sql) -> list[tuple[Any, ...]]:
    """(probing, seconds until the end of the park) of the service."""
    return sql.rows(
        "select probing, round(greatest(extract(epoch from parked_until - testing.clock()), 0))::integer from scopes where name = 'openai' and ends_at > testing.clock()"
    )


def test_messages_of_a_service_rest_while_no_endpoint_can_be_called(sql: Sql) -> None:
    name_it(sql, "openai")
    message_id = sql.enqueue()
    opened(sql, A)
    declare(sql, A, B)
    report(sql, 5, 5, B)
    assert parked(sql) == [(True, 60)] and sql.claim(1) == []
    assert "the circuit is open" in str(sql.rows("select * from explain_message(%s)", message_id))
    sql.rows("select force_service('openai', 'closed', 'http://b')")
    assert parked(sql) == [] and len(sql.claim(1)) == 1


def test_one_open_endpoint_of_two_parks_nothing(sql: Sql) -> None:
    name_it(sql, "openai")
    declare(sql, A, B)
    assert report(sql, 5, 5) and parked(sql) == []


def test_nothing_is_parked_when_no_actor_names_the_service(sql: Sql) -> None:
    name_it(sql, "other")
    opened(sql)
    assert sql.rows("select * from scopes") == []


def test_one_message_at_a_time_while_a_breaker_is_probed_and_all_when_it_is_closed(sql: FrozenSql) -> None:
    name_it(sql, "openai")
    for _ in range(5):
        sql.enqueue()
    opened(sql, close_after=2)
    sql.later("61 seconds")
    first = sql.claim(5)
    assert len(first) == 1 and sql.claim(5) == []
    end(sql, begin(sql), True)
    sql.complete(*first)
    second = sql.claim(5)
    assert len(second) == 1, "half open"
    end(sql, begin(sql), True)
    assert parked(sql) == [] and len(sql.claim(5)) == 3


def test_a_failed_probe_parks_again(sql: FrozenSql) -> None:
    name_it(sql, "openai")
    opened(sql)
    sql.later("61 seconds")
    assert parked(sql) == [(True, 0)]
    end(sql, begin(sql), False)
    assert parked(sql) == [(True, 60)]


def test_a_health_check_shortens_the_park(sql: Sql) -> None:
    name_it(sql, "openai")
    opened(sql)
    sql.rows("select record_health('openai', 'http://a')")
    assert parked(sql) == [(True, 0)]


def test_an_operators_state_parks_and_lifts(sql: Sql) -> None:
    name_it(sql, "openai")
    declare(sql)
    sql.rows("select force_service('openai', 'open')")
    assert parked(sql) == [(True, 86400)]
    sql.rows("select force_service('openai', 'automatic')")
    assert parked(sql) == [(True, 0)], "probes begin"
    sql.rows("select force_service('openai', 'closed')")
    assert parked(sql) == []


def test_a_longer_park_of_somebody_else_is_left_alone(sql: FrozenSql) -> None:
    name_it(sql, "openai")
    sql.rows("select park_scope('openai', '1 hour', p_operator => 'ann')")
    opened(sql, close_after=1)
    assert parked(sql) == [(False, 3600)]
    sql.later("61 seconds")
    end(sql, begin(sql), True)
    assert state(sql) == "closed" and parked(sql) == [(False, 3600 - 61)]
