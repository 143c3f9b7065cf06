"""Enqueue over HTTP: tokens, one transaction per request, keys, limits, problems (SPEC W8)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from packhorse.worker.db.connection import connect
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, UnknownQueue
from packhorse.worker.store import tokens
from packhorse.worker.web.enqueue_api import MOST_BODY_BYTES, Rates
from tests.support.page import Page
from tests.support.postgres import Database
from tests.support.workers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.one_database]
ORDER = {"queue": "orders", "message_type": "order.created", "payload": {"order": 7}}


class Api:
    """One server with the API, and a token for the queues `orders` and `mail`."""

    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        for queue in ("orders", "mail", "secret"):
            database.query("select declare_queue(%s)", queue)
        self.page = Page(database, **{"web_api": "on", **settings})
        self.token = self.make("shop", ["orders", "mail"])
        self.client = httpx.Client(base_url=f"{self.page.url}/v1", timeout=30)

    def make(self, name: str, queues: list[str] | None, role: str = "producer") -> str:
        connection = connect(self.database.url)
        try:
            with translated():
                return tokens.create(connection, name, role, "test", None, queues)
        finally:
            connection.close()

    def post(self, body: Any, token: str | None = None, **headers: str) -> httpx.Response:
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self.client.post("/messages", content=content, headers=headers)

    def count(self) -> int:
        return int(self.database.value("select count(*) from message_queue"))  # type: ignore[call-overload]

    def close(self) -> None:
        self.client.close()
        self.page.close()


@pytest.fixture
def api(database: Database) -> Iterator[Api]:
    found = Api(database)
    yield found
    found.close()


def problem(answer: httpx.Response, status: int, field: str | None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    said: dict[str, Any] = answer.json()
    assert said["status"] == status and said.get("field") == field and said["detail"]
    return said


def test_one_and_many(api: Api, database: Database) -> None:
    answer = api.post('{"queue": "orders", "message_type": "order.created", "payload": {"price": 1.10}}')
    assert answer.status_code == 201 and answer.json()["duplicate"] is False
    row = "select queue::text, message_type::text, payload::text from message_queue where id = %s"
    assert database.query(row, answer.json()["id"]) == [("orders", "order.created", '{"price": 1.10}')]
    answer = api.post([ORDER, {**ORDER, "queue": "mail", "priority": 1, "delay": "1 hour"}])
    assert answer.status_code == 201
    first, second = (one["id"] for one in answer.json()["messages"])
    assert first < second and api.count() == 3
    assert database.query(
        "select priority::integer, run_at > now() from message_queue where id = %s", second
    ) == [(1, True)]
    assert database.value(
        "select last_used_at > now() - interval '1 minute' from access_tokens where name = 'shop'"
    )


def test_all_or_none(api: Api) -> None:
    answer = api.post([ORDER, {**ORDER, "priority": 11}])
    said = problem(answer, 400, "messages[2].priority")
    assert "1 (first) to 10 (last)" in said["hint"] and api.count() == 0


@pytest.mark.parametrize("many", [False, True])
def test_the_same_key_is_the_same_messages(api: Api, many: bool) -> None:
    body = [ORDER, ORDER] if many else ORDER
    first, second, other = (api.post(body, Idempotency_Key=key) for key in ("k1", "k1", "k2"))
    assert (first.status_code, second.status_code, other.status_code) == (201, 200, 201)

    def ids(answer: httpx.Response) -> list[int]:
        return [one["id"] for one in (answer.json()["messages"] if many else [answer.json()])]

    assert ids(first) == ids(second) and not {*ids(first)} & {*ids(other)}
    assert api.count() == 2 * (1 + many)


def test_with_a_key_numbers_keep_their_digits_too(api: Api, database: Database) -> None:
    payload = '{"a": 12345678901234567890.123456789, "b": 1.10, "c": 1e400}'
    body = f'{{"queue": "orders", "message_type": "order.created", "payload": {payload}}}'
    for sent in (body, f"[{body}]"):
        assert api.post(sent, Idempotency_Key="k").status_code == 201
    stored = [text for (text,) in database.query("select payload::text from message_queue")]
    assert stored == [payload.replace("1e400", "1" + "0" * 400)] * 2


@pytest.mark.parametrize("many", [False, True])
def test_what_is_null_is_not_said_beside_a_key(api: Api, database: Database, many: bool) -> None:
    said = {**ORDER, "dedup_key": None, "dedup_window": None}
    assert api.post([said] if many else said, Idempotency_Key="k").status_code == 201
    assert database.query(
        "select dedup_key, expires_at > now() + interval '23 hours' from message_dedup"
    ) == [("http:k:1" if many else "http:k", True)]
    assert api.post({**ORDER, "dedup_window": "1 hour"}, Idempotency_Key="other").status_code == 201
    assert database.value(
        "select expires_at < now() + interval '2 hours' from message_dedup where dedup_key = 'http:other'"
    )


def test_the_same_key_at_once_is_one_message(api: Api) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: api.post(ORDER, Idempotency_Key="once"), range(64)))
    assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
    assert sorted(answer.status_code for answer in answers) == [200] * 63 + [201] and api.count() == 1


@pytest.mark.parametrize(
    ("body", "headers", "status", "field"),
    [
        ("{", {}, 400, None),
        ('{"queue": NaN}', {}, 400, None),
        (b"\xff", {}, 400, None),
        ("[" * 100_000, {}, 400, None),
        ("[]", {}, 400, "messages"),
        ("7", {}, 400, "messages"),
        ([ORDER] * 1001, {}, 400, "messages"),
        ([7], {}, 400, "messages[1]"),
        ({"queue": "orders"}, {}, 400, "messages[1].message_type"),
        ({**ORDER, "message_type": "a b"}, {}, 400, "messages[1].message_type"),
        ({**ORDER, "surprise": 1}, {}, 400, "messages[1].surprise"),
        ({**ORDER, "payload": [1]}, {}, 400, "messages[1].payload"),
        ({**ORDER, "delay": "soon"}, {}, 400, "messages[1].delay"),
        ({**ORDER, "payload": {"text": "\0"}}, {}, 400, "messages"),
        ({**ORDER, "payload": {"text": "\ud800"}}, {"Idempotency_Key": "k"}, 400, "messages"),
        ([7], {"Idempotency_Key": "k"}, 400, "messages[1]"),
        ([ORDER, {**ORDER, "dedup_key": "x"}], {"Idempotency_Key": "k"}, 400, "Idempotency-Key"),
        ({**ORDER, "queue": "secret"}, {}, 403, "token.queues"),
        ([ORDER, {**ORDER, "queue": "nowhere"}], {}, 403, "token.queues"),
        (ORDER, {"Content_Type": "text/plain"}, 415, "Content-Type"),
        (ORDER, {"Idempotency_Key": "a b"}, 400, "Idempotency-Key"),
        ({**ORDER, "dedup_key": "x"}, {"Idempotency_Key": "k"}, 400, "Idempotency-Key"),
        (ORDER, {"Authorization": "Basic abc"}, 401, "Authorization"),
        (ORDER, {"Authorization": "Bearer phk_" + "x" * 43}, 401, "token"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_stored(
    api: Api, body: Any, headers: dict[str, str], status: int, field: str | None
) -> None:
    problem(api.post(body, **headers), status, field)
    assert api.count() == 0
    assert api.post(ORDER).status_code == 201, "it lives on"


def test_a_large_body_is_not_read_to_its_end(api: Api) -> None:
    def endless() -> Iterator[bytes]:
        sent = 0
        while sent < 50 * MOST_BODY_BYTES:
            yield b" " * 65_536
            sent += 65_536

    headers = {"Authorization": f"Bearer {api.token}", "Content-Type": "application/json"}
    try:
        answer = api.client.post("/messages", content=endless(), headers=headers)
        problem(answer, 413, None)
    except (httpx.WriteError, httpx.ReadError):
        pass  # closed while we sent
    problem(api.post(b" " * (MOST_BODY_BYTES + 1)), 413, None)


def test_a_revoked_token_and_one_of_the_page_may_nothing(api: Api, database: Database) -> None:
    viewer = api.page.token("admin")
    problem(api.post(ORDER, viewer), 401, "token")
    assert api.post(ORDER).status_code == 201
    database.query("select revoke_access_token('shop')")
    problem(api.post(ORDER), 401, "token")


def test_a_producer_may_not_see_the_page(api: Api) -> None:
    api.page.token("admin")
    answer = api.page.browser().log_in(api.token)
    assert answer.status_code == 401 and api.page.browser().get("/").status_code == 303


def test_a_token_is_checked_when_it_is_made(api: Api, database: Database) -> None:
    for role, queues, error, field in (
        ("producer", None, InvalidArgument, "queues"),
        ("producer", [], InvalidArgument, "queues"),
        ("producer", ["order"], UnknownQueue, "queue"),
        ("viewer", ["orders"], InvalidArgument, "queues"),
    ):
        with pytest.raises(error) as refused:
            api.make("x", queues, role)
        assert refused.value.field == field
    assert database.value("select count(*) from access_tokens") == 1
    assert api.token not in str(database.query("select t::text from access_tokens t"))


def test_more_than_its_rate(database: Database) -> None:
    api = Api(database, web_api_rate=0.01)
    try:
        other = api.make("other", ["orders"])
        assert api.post([ORDER] * 1000).status_code == 201, "one full request goes through at once"
        late = api.post(ORDER)
        problem(late, 429, None)
        assert int(late.headers["Retry-After"]) > 1 and api.count() == 1000
        assert api.post(ORDER, other).status_code == 201, "each token has its own"
    finally:
        api.close()


def test_a_bucket_fills_and_never_overflows() -> None:
    now = [0.0]
    rates = Rates(100, lambda: now[0])
    assert rates.take("a", 1000) == 0 and rates.take("a", 1) == pytest.approx(0.01)
    now[0] = 5.0
    assert rates.take("a", 500) == 0 and rates.take("a", 100) == pytest.approx(1.0)
    now[0] = 1000.0
    assert rates.take("a", 1000) == 0 and rates.take("a", 1) > 0
    assert Rates(0).take("a", 10**9) == 0


def test_with_the_rights_of_a_producer_alone(database: Database) -> None:
    """The API instead of the page needs no more than packhorse_producer."""
    api = Api(database, web_api="only")
    login = f"shop_{os.getpid()}"
    try:
        database.query(f"create role {login} login in role packhorse_producer")
        api.close()
        url = (
            database.url.replace(database.url.split("//")[1].split("@")[0], login, 1)
            if "@" in database.url
            else database.server.url(database.name, login)
        )
        only = Page(database, database_url=url, web_api="only")
        try:
            headers = {"Authorization": f"Bearer {api.token}", "Content-Type": "application/json"}
            answer = httpx.post(f"{only.url}/v1/messages", json=ORDER, headers=headers)
            assert answer.status_code == 201, answer.text
            assert [httpx.get(f"{only.url}{path}").status_code for path in ("/", "/login", "/healthz")] == [
                404,
                404,
                200,
            ]
        finally:
            only.close()
    finally:
        database.query(f"drop role {login}")


def test_without_the_option_there_is_no_api(database: Database) -> None:
    page = Page(database)
    try:
        assert httpx.post(f"{page.url}/v1/messages", json=ORDER).status_code in (403, 404)
    finally:
        page.close()


def test_openapi_describes_what_is_taken(api: Api, database: Database) -> None:
    said = httpx.get(f"{api.page.url}/v1/openapi.json").json()
    assert said["openapi"] == "3.1.0" and "/messages" in said["paths"]
    keys = said["components"]["schemas"]["Message"]["properties"]
    known = api.post({**ORDER, "surprise": 1}).json()["hint"].removeprefix("Known keys: ").split(", ")
    assert sorted(keys) == sorted(known)
    for key in keys:
        answer = api.post({**ORDER, key: [{}]})
        assert answer.status_code == 201 or answer.json()["field"] in (f"messages[1].{key}", "token.queues")


@pytest.mark.parametrize(
    ("program", "script", "messages"), [("node", "enqueue.mjs", 3), ("sh", "enqueue.sh", 1)]
)
def test_an_example_runs(api: Api, program: str, script: str, messages: int) -> None:
    if any(shutil.which(name) is None for name in (program, "curl")):
        pytest.skip(f"{program} or curl is not installed")
    environment = {"PACKHORSE_URL": api.page.url, "PACKHORSE_TOKEN": api.token, "PATH": os.environ["PATH"]}

    def run(**changed: str) -> subprocess.CompletedProcess[str]:
        command = [program, str(Path(ROOT) / "examples" / "http" / script)]
        return subprocess.run(
            command, env=environment | changed, capture_output=True, text=True, check=False, timeout=60
        )

    for again in (False, True):
        done = run()
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        told = [one for answer in answers for one in answer.get("messages", [answer])]
        assert [one["duplicate"] for one in told] == [again] * messages
        assert api.count() == messages
    refused = run(PACKHORSE_TOKEN="phk_" + "x" * 43)
    assert refused.returncode != 0 and "no token of a producer in force" in refused.stdout + refused.stderr
