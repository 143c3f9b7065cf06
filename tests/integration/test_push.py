"""A message type that an endpoint handles: what it is sent, and what its answer means (SPEC W8)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from packhorse.worker.calls.registry import ServiceRegistry
from packhorse.worker.config import load_settings
from packhorse.worker.runtime.pushes import declare_pushes
from tests.support.fake_service import FakeService
from tests.support.harness import House
from tests.support.postgres import Database
from tests.support.pushing import OTHER_SECRET, SECRET, push_toml, secret_file
from tests.support.waiting import wait_until

standardwebhooks = pytest.importorskip("standardwebhooks")
pytest.importorskip("aiohttp")
pytestmark = [pytest.mark.slow, pytest.mark.one_database]
Begin = Callable[..., House]


@pytest.fixture
def fake() -> Iterator[FakeService]:
    found = FakeService()
    yield found
    found.close()


@pytest.fixture
def begin(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake: FakeService
) -> Iterator[Begin]:
    """Start a worker whose packhorse.toml has these tables; `order.*` goes to the fake service."""
    houses: list[House] = []

    def start(declare: Callable[[], object] = lambda: None, **tables: dict[str, Any]) -> House:
        own = tables.pop("order", {})
        toml = push_toml(tmp_path, **{"order.*": {"url": f"{fake.url}/hook", **own}, **tables})
        monkeypatch.setenv("PACKHORSE_CONFIG", str(toml))
        services = ServiceRegistry()
        monkeypatch.setattr("packhorse.worker.calls.registry._default", services)
        house = House("runtime", database, monkeypatch, poll_seconds=0.05)
        houses.append(house)
        declare()
        declare_pushes(house.broker)
        return house.start()

    database.query("select declare_queue('default')")
    yield start
    for house in houses:
        house.stop()


def send(database: Database, message_type: str = "order.created", **options: Any) -> int:
    names = "".join(f", {name} => %s" for name in options)
    return int(
        database.value(  # type: ignore[call-overload]
            f"select message_id from enqueue_message('default', %s, %s{names})",
            message_type,
            '{"order": 7, "price": 1.10}',
            *options.values(),
        )
    )


def ended(database: Database, message: int) -> tuple[str, int, str]:
    """State, attempt and last error of a message that has ended."""
    wait_until(
        lambda: database.value("select not exists (select from message_queue where id = %s)", message), 20
    )
    return database.query(
        "select state, attempt, coalesce(error_message, reason, '') from all_messages where id = %s", message
    )[0]


def failed_once(database: Database, message: int) -> str:
    """The text of its first failure, after which it waits for the next attempt."""
    return str(
        wait_until(
            lambda: database.value(
                "select max(error ->> 'message') from message_queue where id = %s and attempt = 1 and state = 'pending'",
                message,
            ),
            20,
        )
    )


def test_what_is_sent(database: Database, begin: Begin, fake: FakeService) -> None:
    begin()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    message = send(database, p_correlation_id="corr-1", p_trace_context=trace)
    assert ended(database, message)[:2] == ("done", 1)
    (request,) = fake.requests
    assert request.method == "POST" and request.path == "/hook"
    assert json.loads(request.body) == {"order": 7, "price": 1.1}
    said = {
        name: value
        for name, value in request.headers.items()
        if name.startswith(("packhorse-", "trace", "content-type"))
    }
    assert said == {
        "content-type": "application/json",
        "packhorse-queue": "default",
        "packhorse-type": "order.created",
        "packhorse-attempt": "1",
        "packhorse-correlation-id": "corr-1",
        "traceparent": trace,
    }
    standardwebhooks.Webhook(SECRET).verify(request.body, request.headers)
    assert b"1.10" in request.body, "the payload as the database has it"


def test_both_secrets_sign_while_one_replaces_the_other(
    database: Database, begin: Begin, fake: FakeService, tmp_path: Path
) -> None:
    secret_file(tmp_path, OTHER_SECRET, SECRET)
    begin()
    ended(database, send(database))
    for secret in (SECRET, OTHER_SECRET):
        standardwebhooks.Webhook(secret).verify(fake.requests[0].body, fake.requests[0].headers)
    secret_file(tmp_path, OTHER_SECRET)

    def one_is_left() -> bool:
        ended(database, send(database))
        return " " not in fake.requests[-1].headers["webhook-signature"]

    wait_until(one_is_left, 20, "the file is read again")
    standardwebhooks.Webhook(OTHER_SECRET).verify(fake.requests[-1].body, fake.requests[-1].headers)


@pytest.mark.parametrize(
    ("mode", "state", "text"),
    [
        ("200", "done", ""),
        ("204", "done", ""),
        ("400", "dead", "status 400"),
        ("404", "dead", "status 404"),
        ("422", "dead", 'status 422: {"path": "/hook"}'),
        ("410", "cancelled", "does not want"),
    ],
)
def test_an_answer_that_ends_it_at_once(
    database: Database, begin: Begin, fake: FakeService, mode: str, state: str, text: str
) -> None:
    fake.mode = mode
    begin()
    found = ended(database, send(database))
    assert found[:2] == (state, 1) and text in found[2]
    assert len(fake.requests) == 1
    assert database.value("select sum(failures_in_row) from service_endpoints") == 0, "the endpoint works"


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("500", "status 500"),
        ("503", "status 503"),
        ("408", "status 408"),
        ("425", "status 425"),
        ("429", "status 429"),
        ("302", "status 302; redirects are not followed"),
        ("reset", "broke off"),
        ("hang", "did not answer within 0.5 s (timeout)"),
        ("drip", "did not answer within 0.5 s (timeout)"),
    ],
)
def test_a_failure_is_tried_again_and_the_id_stays(
    database: Database, begin: Begin, fake: FakeService, mode: str, text: str
) -> None:
    fake.mode = mode
    fake.answer_headers = {"Location": f"{fake.url}/elsewhere"}
    database.query('select set_queue(\'default\', \'{"backoff_initial": "1 s", "backoff_max": "1 s"}\')')
    begin(order={"timeout": 500})
    message = send(database)
    assert text in failed_once(database, message)
    fake.mode = "ok"
    assert ended(database, message)[:2] == ("done", 2)
    first, second = fake.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert (first.headers["packhorse-attempt"], second.headers["packhorse-attempt"]) == ("1", "2")
    assert {request.path for request in fake.requests} == {"/hook"}


@pytest.mark.parametrize("mode", ["huge", "endless", "bomb", "hollow", "trailing"])
def test_an_answer_without_end_is_not_read_to_the_end(
    database: Database, begin: Begin, fake: FakeService, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """It was taken: the status says so, and to send it again would do it twice."""
    fake.mode = mode
    begin(order={"timeout": 5000})
    assert ended(database, send(database))[:2] == ("done", 1)
    assert "push_answer_cut" in caplog.text and "max_answer_bytes=65536" in caplog.text
    assert len(fake.requests) == 1 and fake.sent_bytes < 64 * 1_048_576


def test_retry_after_rests_and_spends_no_attempt(database: Database, begin: Begin, fake: FakeService) -> None:
    fake.mode, fake.answer_headers = "503", {"Retry-After": "2"}
    begin()
    first = send(database, "order.created")
    scope = str(wait_until(lambda: database.value("select max(name) from scopes where ends_at > now()"), 20))
    second = send(database, "order.paid")
    assert scope.startswith("push.127.0.0.1.")
    gates = database.query("select gate, passed from explain_message(%s)", second)
    assert ("scope", False) in gates and ("worker", True) in gates, "another type of the pattern rests, too"
    fake.mode = "ok"
    assert ended(database, first)[:2] == ended(database, second)[:2] == ("done", 1)
    assert fake.requests[0].headers["packhorse-type"] == "order.created"


def test_an_endpoint_that_is_away_makes_no_dead_letters(
    database: Database, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    database.query(
        'select set_queue(\'default\', \'{"max_attempts": 5, "backoff_initial": "10 ms", "backoff_max": "50 ms"}\')'
    )
    breaker = {"least_calls": 5, "reset_seconds": 0.3, "trials": 1}
    house = begin(order={"url": f"http://127.0.0.1:{port}", "breaker": breaker, "max_in_flight": 2})
    for _ in range(30):
        send(database)
    wait_until(
        lambda: database.value("select bool_or(state = 'half_open') from service_endpoints"),
        30,
        "the time of the first probe",
    )
    assert database.value("select count(*) from dead_letters") == 0
    back = FakeService(port=port)
    try:
        house.drained(30)
    finally:
        back.close()
    assert database.value("select count(*) from dead_letters") == 0 and len(back.requests) == 30


def test_a_name_with_a_forbidden_address_is_not_connected_to(
    database: Database, begin: Begin, fake: FakeService
) -> None:
    """The name of this host says nothing about its address until it is looked up."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        pytest.skip("this host's own name has no address")
    begin(order={"url": f"https://{name}:{fake.port}", "allow_private": None})
    text = failed_once(database, send(database))
    assert f"url: the host {name} has the address {address}" in text and "allow_private = true" in text
    assert fake.requests == []


def test_the_longest_pattern_and_an_actor_of_that_name_win(
    database: Database, begin: Begin, fake: FakeService
) -> None:
    import dramatiq

    ran = []

    def declare() -> None:
        @dramatiq.actor(actor_name="order.refund")
        def refund(order: int, price: float) -> None:
            ran.append(order)

    house = begin(
        declare,
        **{"order.item.*": {"url": f"{fake.url}/items"}, "order.item.lost": {"url": f"{fake.url}/lost"}},
    )
    for message_type in ("order.created", "order.refund", "order.item.added", "order.item.lost"):
        for _ in range(10):
            send(database, message_type)
    house.drained(20)
    went = {(request.path, request.headers["packhorse-type"]) for request in fake.requests}
    assert went == {("/hook", "order.created"), ("/items", "order.item.added"), ("/lost", "order.item.lost")}
    assert ran == [7] * 10 and len(fake.requests) == 30


def test_no_more_than_max_in_flight(database: Database, begin: Begin, fake: FakeService) -> None:
    fake.slow = 0.05
    house = begin(order={"max_in_flight": 3})
    for _ in range(30):
        send(database)
    house.drained(30)
    assert fake.most_at_once == 3


def test_positional_arguments_are_refused(database: Database, begin: Begin, fake: FakeService) -> None:
    begin()
    message = send(database, p_options=json.dumps({"args": [1]}))
    found = ended(database, message)
    assert found[0] == "dead" and "args: order.created goes to an endpoint" in found[2]
    assert fake.requests == []


@pytest.mark.parametrize(
    ("said", "kept"),
    [("a" * 36, True), ("a\r\nevil: 1", False), ("a.b", False), ("", False), ("x" * 101, False)],
)
def test_an_id_that_no_header_can_carry_is_replaced(
    database: Database, begin: Begin, fake: FakeService, said: str, kept: bool
) -> None:
    begin()
    message = send(database, p_options=json.dumps({"message_id": said, "message_timestamp": 1}))
    ended(database, message)
    assert fake.requests[0].headers["webhook-id"] == (
        said if kept else f"msg_{message}" if said else str(message)
    )
    assert "evil" not in fake.requests[0].headers


def test_no_push_in_the_file_changes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PACKHORSE_CONFIG", str(push_toml(tmp_path)))
    house = House("runtime", database, monkeypatch)
    count = len(house.broker.middleware)
    declare_pushes(house.broker)
    assert house.broker.actors == {} and len(house.broker.middleware) == count
    assert load_settings({"PACKHORSE_CONFIG": str(tmp_path / "packhorse.toml")}).queues == ()
