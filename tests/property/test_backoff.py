"""The backoff for every attempt and every legal setting: between 0 and its maximum, never an error (SPEC
Q3).
"""

from __future__ import annotations

import math

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.sql.client import Sql

DAY = 86400.0
MICROSECOND = 1e-6
CALL = (
    "select extract(epoch from message_backoff(%s, make_interval(secs => %s), %s, make_interval(secs => %s), %s))::float8, "
    "extract(epoch from make_interval(secs => %s))::float8"
)


def seconds(largest: float) -> st.SearchStrategy[float]:
    return st.one_of(st.floats(0, largest), st.sampled_from([0.0, MICROSECOND, 0.001, 1.0, 30.0, largest]))


attempts = st.one_of(st.integers(0, 10**6), st.integers(0, 40))
multipliers = st.one_of(st.floats(1, 1000), st.sampled_from([1.0, 1.0000001, 2.0, 1000.0]))
FUNCTION_FIXTURE = [HealthCheck.function_scoped_fixture]


@settings(max_examples=300, deadline=None, suppress_health_check=FUNCTION_FIXTURE)
@given(
    attempt=attempts,
    initial=seconds(366 * DAY),
    multiplier=multipliers,
    longest=seconds(366 * DAY),
    jitter=st.floats(0, 1),
)
@example(attempt=10**6, initial=366 * DAY, multiplier=1000.0, longest=366 * DAY, jitter=0.0)
@example(attempt=10**6, initial=MICROSECOND, multiplier=1000.0, longest=366 * DAY, jitter=1.0)
@example(attempt=10**6, initial=MICROSECOND, multiplier=1.0, longest=366 * DAY, jitter=0.0)
def test_the_delay_is_between_zero_and_the_maximum(
    sql: Sql, attempt: int, initial: float, multiplier: float, longest: float, jitter: float
) -> None:
    initial = min(initial, longest)  # a constraint of the table queues
    delay, most = sql.rows(CALL, attempt, initial, multiplier, longest, jitter, longest)[0]
    assert 0 <= delay <= most


@settings(max_examples=200, deadline=None, suppress_health_check=FUNCTION_FIXTURE)
@given(
    attempt=st.integers(1, 40),
    initial_ms=st.integers(1, 100_000),
    multiplier=st.floats(1, 10),
    longest=st.integers(100, 10**6),
)
def test_without_jitter_the_delay_is_the_formula(
    sql: Sql, attempt: int, initial_ms: int, multiplier: float, longest: int
) -> None:
    initial = initial_ms / 1000  # whole microseconds, as an interval holds them
    expected = min(longest, initial * math.pow(multiplier, attempt - 1))
    delay, _ = sql.rows(CALL, attempt, initial, multiplier, longest, 0.0, longest)[0]
    assert math.isclose(delay, expected, rel_tol=1e-9, abs_tol=2 * MICROSECOND)


@settings(max_examples=100, deadline=None, suppress_health_check=FUNCTION_FIXTURE)
@given(
    attempt=st.integers(0, 10**6), initial=seconds(100), multiplier=multipliers, longest=st.floats(100, 10**6)
)
def test_the_delay_never_shrinks_from_one_attempt_to_the_next(
    sql: Sql, attempt: int, initial: float, multiplier: float, longest: float
) -> None:
    first = sql.rows(CALL, attempt, initial, multiplier, longest, 0.0, longest)[0][0]
    second = sql.rows(CALL, attempt + 1, initial, multiplier, longest, 0.0, longest)[0][0]
    assert second >= first


@settings(max_examples=60, deadline=None, suppress_health_check=FUNCTION_FIXTURE)
@given(jitter=st.floats(0, 1))
def test_jitter_takes_off_at_most_its_share(sql: Sql, jitter: float) -> None:
    delay, _ = sql.rows(CALL, 1, 100.0, 2.0, 100.0, jitter, 100.0)[0]
    assert 100 * (1 - jitter) - MICROSECOND <= delay <= 100


@settings(max_examples=60, deadline=None, suppress_health_check=FUNCTION_FIXTURE)
@given(
    multiplier=st.sampled_from([0.0, -1.0, 0.5, 1e300, float("nan"), float("inf")]),
    attempt=st.sampled_from([-(2**31), 0, 1, 2**31 - 1]),
    jitter=st.sampled_from([-5.0, 0.0, 7.0]),
)
def test_a_worker_that_overrides_with_nonsense_gets_a_bounded_delay(
    sql: Sql, multiplier: float, attempt: int, jitter: float
) -> None:
    delay, _ = sql.rows(CALL, attempt, 1.0, multiplier, 30.0, jitter, 30.0)[0]
    assert 0 <= delay <= 30
