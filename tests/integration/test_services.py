"""Services that handlers call: requests, endpoints, breakers of one process (SPEC W10)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from packhorse.calls import CircuitOpen, RemoteService, ServiceFailed, ServiceRegistry
from packhorse.worker.errors import Bury, ConfigError, InvalidArgument
from tests.support.fake_service import FakeService
from tests.support.harness import quick_settings
from tests.support.http import free_port
from tests.support.postgres import Database
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("httpx")
QUICK = {"least_calls": 3, "reset_seconds": 0.3, "trials": 2}


@pytest.fixture
def fakes() -> Iterator[Callable[..., FakeService]]:
    made: list[FakeService] = []

    def make(mode: str = "ok") -> FakeService:
        made.append(FakeService(mode))
        return made[-1]

    yield make
    for fake in made:
        fake.close()


@pytest.fixture
def fake(fakes: Callable[..., FakeService]) -> FakeService:
    return fakes()


@pytest.fixture
def registry(database: Database) -> Iterator[ServiceRegistry]:
    """One that has a database; ended afterwards."""
    found = ServiceRegistry(quick_settings(database))
    yield found
    found.stop()


def declared(registry: ServiceRegistry, *fakes: FakeService, **changes: Any) -> RemoteService:
    options: dict[str, Any] = {
        "endpoints": [fake.url for fake in fakes],
        "breaker": QUICK,
        "timeout": 2000,
    } | changes
    service = registry.register("ai", **options)
    registry.start()
    wait_until(lambda: not service.breakers.unknown, 10, "the database has answered")
    return service


def states(registry: ServiceRegistry) -> list[str]:
    return [stats.state for stats in registry.get_circuit_breaker_stats()]


def fail_until_open(service: RemoteService) -> None:
    def refused() -> bool:
        try:
            service.request("GET", "/x")
        except CircuitOpen:
            return True
        except ServiceFailed:
            return False
        return False

    wait_until(refused, 10, "the breaker opens")


async def _ask(service: RemoteService, way: str, *arguments: Any, **options: Any) -> Any:
    if way == "async":
        return await service.request_async(*arguments, **options)
    return await asyncio.to_thread(service.request, *arguments, **options)


def ask(service: RemoteService, way: str, *arguments: Any, **options: Any) -> Any:
    return asyncio.run(_ask(service, way, *arguments, **options))


WAYS = pytest.mark.parametrize("way", ["sync", "async"])


@WAYS
def test_a_request_comes_to_the_endpoint_and_back(
    registry: ServiceRegistry, fake: FakeService, way: str
) -> None:
    service = declared(registry, fake, headers={"Authorization": "Bearer 1"})
    answer = ask(service, way, "post", "/chat?x=1", json={"a": 1}, headers={"X-Own": "2"})
    assert (answer.status_code, answer.json(), answer.endpoint) == (200, {"path": "/chat?x=1"}, fake.url)
    asked = fake.requests[0]
    assert (asked.method, asked.body, asked.headers["authorization"], asked.headers["x-own"]) == (
        "POST",
        b'{"a":1}',
        "Bearer 1",
        "2",
    )
    assert asked.headers["content-type"] == "application/json" and "idempotency-key" not in asked.headers, (
        "no message runs here"
    )
    ask(service, way, "GET", "")
    assert "cookie" not in fake.requests[1].headers, "nothing is remembered from one call to the next"


@WAYS
def test_a_status_of_4xx_is_the_requests_fault(
    registry: ServiceRegistry, fakes: Callable[..., FakeService], way: str
) -> None:
    fake = fakes("404")
    service = declared(registry, fake)
    for _ in range(6):
        with pytest.raises(ServiceFailed) as caught:
            ask(service, way, "GET", "/x")
        assert caught.value.status_code == 404
    assert ask(service, way, "GET", "/x", check=False).status_code == 404
    time.sleep(0.6)
    assert states(registry) == ["closed"] and len(fake.requests) == 7


@WAYS
@pytest.mark.parametrize("mode", ["500", "429", "reset", "hang"])
def test_what_fails_opens_the_breaker_and_is_not_asked_any_more(
    registry: ServiceRegistry, fakes: Callable[..., FakeService], mode: str, way: str
) -> None:
    fake = fakes(mode)
    service = declared(registry, fake, timeout=200, breaker={**QUICK, "reset_seconds": 60})
    for _ in range(3):
        with pytest.raises(ServiceFailed):
            ask(service, way, "POST", "/x")
    wait_until(lambda: states(registry) == ["open"], 5, "open")
    with pytest.raises(CircuitOpen) as caught:
        ask(service, way, "POST", "/x")
    assert caught.value.service == "ai" and 50 < caught.value.seconds < 70
    assert len(fake.requests) == 3


@WAYS
@pytest.mark.parametrize("mode", ["huge", "endless", "drip"])
def test_an_answer_is_bounded_in_size_and_time(
    registry: ServiceRegistry, fakes: Callable[..., FakeService], mode: str, way: str
) -> None:
    fake = fakes(mode)
    service = declared(registry, fake, max_bytes=3_000_000)
    with pytest.raises(ServiceFailed, match="within 1 s" if mode == "drip" else "more than 3000000 bytes"):
        ask(service, way, "GET", "/x", timeout_ms=1000)
    assert fake.sent_bytes < 100_000_000 and len(fake.requests) == 1


def test_nobody_listens(registry: ServiceRegistry) -> None:
    service = registry.register("ai", f"http://127.0.0.1:{free_port()}", breaker=QUICK)
    with pytest.raises(ServiceFailed, match="no connection to the service ai"):
        service.request("POST", "/x")


def test_a_breaker_closes_when_probes_succeed(registry: ServiceRegistry, fake: FakeService) -> None:
    fake.mode = "500"
    service = declared(registry, fake)
    fail_until_open(service)
    time.sleep(0.4)
    with pytest.raises(ServiceFailed):
        service.request("GET", "/x")
    wait_until(lambda: states(registry) == ["open"], 5, "a failed probe opens again")
    fake.mode = "ok"

    def answered() -> bool:
        try:
            return bool(service.request("GET", "/x").status_code == 200)
        except CircuitOpen:
            return False

    wait_until(answered, 5, "the first probe")
    wait_until(lambda: answered() and states(registry) == ["closed"], 5, "the second closes")


def test_the_endpoint_that_fails_is_left_and_comes_back(
    registry: ServiceRegistry, fakes: Callable[..., FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packhorse.worker.calls.breakers.FORGIVEN_SECONDS", 0.05)
    well, ill = fakes(), fakes("500")
    service = declared(registry, well, ill, breaker={**QUICK, "reset_seconds": 1})

    def one_is_open() -> bool:
        assert service.request("GET", "/x").status_code == 200, "GET is asked of the other one"
        return sorted(states(registry)) == ["closed", "open"]

    wait_until(one_is_open, 10, "one is open")
    ill.mode = "ok"

    def both() -> bool:
        service.request("GET", "/x")
        return states(registry) == ["closed", "closed"]

    wait_until(both, 10, "probed while the other one does the work")


def test_equal_endpoints_are_asked_in_turn(
    registry: ServiceRegistry, fakes: Callable[..., FakeService]
) -> None:
    three = [fakes() for _ in range(3)]
    service = declared(registry, *three)
    for _ in range(9):
        service.request("GET", "/x")
    assert [len(fake.requests) for fake in three] == [3, 3, 3]


def test_a_post_goes_elsewhere_only_when_it_was_not_sent(
    registry: ServiceRegistry, fakes: Callable[..., FakeService]
) -> None:
    fallback = fakes()
    ill = fakes("500")
    service = registry.register("ai", ill.url, fallback=[fallback.url], breaker={**QUICK, "least_calls": 100})
    with pytest.raises(ServiceFailed):
        service.request("POST", "/x")
    assert len(fallback.requests) == 0
    gone = registry.register("gone", f"http://127.0.0.1:{free_port()}", fallback=[fallback.url])
    assert gone.request("POST", "/x").endpoint == fallback.url


def test_retries_of_a_declared_policy(registry: ServiceRegistry, fakes: Callable[..., FakeService]) -> None:
    fake = fakes("500")
    service = declared(
        registry,
        fake,
        retry_policy={"max_retries": 2, "backoff_ms": 10},
        breaker={**QUICK, "least_calls": 100},
    )
    with pytest.raises(ServiceFailed):
        service.request("GET", "/x")
    assert len(fake.requests) == 3
    with pytest.raises(ServiceFailed):
        service.request("POST", "/x")
    assert len(fake.requests) == 4, "what may have been done is not done again"


def test_any_other_client_goes_through_the_same_breaker(registry: ServiceRegistry) -> None:
    service = registry.register("ai", endpoints=["eu", "us"], breaker=QUICK)
    registry.start()
    wait_until(lambda: not service.breakers.unknown, 10, "known")
    with service.call() as endpoint:
        assert endpoint in ("eu", "us")

    async def fails() -> None:
        async with service.call():
            raise ConnectionError("refused")

    for _ in range(8):
        with pytest.raises((ConnectionError, CircuitOpen)):
            asyncio.run(fails())
    wait_until(lambda: states(registry) == ["open", "open"], 5, "open")


@pytest.mark.parametrize("error", [TypeError("mine"), Bury("enough"), KeyboardInterrupt(), KeyError("k")])
def test_mistakes_of_the_caller_are_not_counted(registry: ServiceRegistry, error: BaseException) -> None:
    service = registry.register("ai", endpoints=["eu"], breaker={**QUICK, "least_calls": 1})
    with pytest.raises(type(error)), service.call():
        raise error
    assert service.breakers.take() == []


def test_a_hook_says_what_is_a_failure(registry: ServiceRegistry) -> None:
    service = registry.register("ai", endpoints=["eu"], is_failure=lambda error: "busy" in str(error))
    for text in ("busy", "no such customer"):
        with pytest.raises(ValueError), service.call():
            raise ValueError(text)
    with pytest.raises(ValueError), service.call(is_failure=lambda error: True):
        raise ValueError("x")
    assert [(report["calls"], report["failures"]) for report in service.breakers.take()] == [(2, 2)]


def test_health_checks_choose_the_endpoint_and_find_it_again(
    registry: ServiceRegistry, fakes: Callable[..., FakeService]
) -> None:
    well, ill = fakes(), fakes()
    ill.health = 503
    service = declared(registry, well, ill, health_check_url="/health", health_check_interval_ms=100)
    wait_until(
        lambda: [s.healthy for s in registry.get_circuit_breaker_stats()] == [True, False], 10, "unhealthy"
    )
    assert registry.get_health_report() == {"ai": "degraded"}
    assert {registry.discover_service("ai") for _ in range(4)} == {well.url}
    ill.health = 200
    wait_until(lambda: registry.get_health_report() == {"ai": "healthy"}, 10, "healthy")
    assert {service.discover() for _ in range(4)} == {well.url, ill.url}


def test_when_none_is_healthy_the_first_that_answers_is_taken(
    registry: ServiceRegistry, fakes: Callable[..., FakeService]
) -> None:
    one, two = fakes(), fakes()
    one.health = two.health = 503
    service = declared(registry, one, two, health_check_url="health", health_check_interval_ms=100)
    wait_until(lambda: registry.get_health_report() == {"ai": "down"}, 10, "down")
    for breaker in service.breakers.breakers:  # as it is known until the next check
        breaker.healthy = False
    with pytest.raises(ServiceFailed, match="no endpoint of the service ai is healthy: status 503"):
        service.discover()
    two.health = 200
    found = service.breakers.unhealthy()
    if found:
        assert service.first_that_answers(()).endpoint == two.url


def test_a_health_check_that_hangs_ends_in_time(
    registry: ServiceRegistry, fakes: Callable[..., FakeService]
) -> None:
    fake = fakes("hang")
    declared(registry, fake, health_check_url="/health", health_check_interval_ms=100)
    wait_until(lambda: registry.get_health_report() == {"ai": "down"}, 20, "three of them have failed")


def test_a_health_check_that_succeeds_starts_the_probes_early(
    registry: ServiceRegistry, fake: FakeService
) -> None:
    fake.mode = "500"
    fake.health = 500
    service = declared(
        registry,
        fake,
        breaker={**QUICK, "reset_seconds": 600},
        health_check_url="/health",
        health_check_interval_ms=200,
    )
    for _ in range(3):
        with pytest.raises(ServiceFailed):
            service.request("POST", "/x")
    wait_until(lambda: states(registry) == ["open"], 5, "open")
    fake.mode, fake.health = "ok", 200

    def answered() -> bool:
        try:
            service.request("POST", "/x")
        except (CircuitOpen, ServiceFailed):
            return False
        return True

    wait_until(answered, 10, "long before its reset time")


def test_an_operators_state_is_obeyed(
    registry: ServiceRegistry, fake: FakeService, database: Database
) -> None:
    service = declared(registry, fake)
    database.query("select force_service('ai', 'open')")
    wait_until(lambda: states(registry) == ["open"], 5, "open")
    with pytest.raises(CircuitOpen):
        service.request("GET", "/x")
    database.query("select force_service('ai', 'closed')")
    wait_until(lambda: states(registry) == ["closed"], 5, "closed")
    fake.mode = "500"
    for _ in range(10):
        with pytest.raises(ServiceFailed):
            service.request("POST", "/x")
    time.sleep(0.7)
    assert states(registry) == ["closed"] and len(fake.requests) == 10


def test_without_a_database_a_process_decides_alone(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    known = ServiceRegistry()
    service = known.register("ai", fake.url, breaker=QUICK)
    fake.mode = "500"
    for _ in range(3):
        with pytest.raises(ServiceFailed):
            service.request("POST", "/x")
    with pytest.raises(CircuitOpen):
        service.request("POST", "/x")
    time.sleep(0.35)
    fake.mode = "ok"
    assert [service.request("POST", "/x").status_code for _ in range(3)] == [200, 200, 200] and states(
        known
    ) == ["closed"]


def test_the_toml_file_declares_services(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packhorse.toml").write_text(
        '[services.openai]\nurl = "https://api.example.com/v1/"\nkind = "ai_agent"\nhealth_check_url = "models"\nbreaker = { reset_seconds = 5 }\n'
    )
    found = ServiceRegistry().service("openai").declaration
    assert (
        found.endpoints == ("https://api.example.com/v1",)
        and found.health_url(found.endpoints[0]) == "https://api.example.com/v1/models"
    )
    assert (
        found.timeout_ms,
        found.breaker.failure_ratio,
        found.breaker.reset_seconds,
        found.breaker.trials,
    ) == (120_000, 0.6, 5.0, 2)
    with pytest.raises(InvalidArgument, match="Did you mean 'openai'"):
        ServiceRegistry().service("openia")
    (tmp_path / "packhorse.toml").write_text(
        '[services.a]\nurl = "http://user@h"\n[services.b]\nurll = "x"\n'
    )
    with pytest.raises(ConfigError) as caught:
        ServiceRegistry().start()
    assert len(caught.value.problems) == 3, "user and password; a field that there is not; no endpoint"
    assert not any("u:p" in problem for problem in caught.value.problems)


def test_a_request_that_cannot_be_sent_is_refused(registry: ServiceRegistry, fake: FakeService) -> None:
    service = declared(registry, fake)
    for arguments, options in (
        (("GET", "http://elsewhere/x"), {}),
        (("GET", "//elsewhere/x"), {}),
        (("GET X", "/x"), {}),
        (("GET", "/x y"), {}),
        (("POST", "/x"), {"json": {1, 2}}),
        (("POST", "/x"), {"json": 1, "content": "x"}),
        (("POST", "/x"), {"jsn": 1}),
        (("GET", "/x"), {"timeout_ms": 1}),
        (("GET", "/x"), {"headers": {"X-A": "line\nbreak"}}),
    ):
        with pytest.raises(InvalidArgument):
            service.request(*arguments, **options)  # type: ignore[arg-type]
    assert fake.requests == [] and service.breakers.take() == []
