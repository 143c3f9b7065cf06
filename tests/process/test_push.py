"""Pushes of a real daemon without any module of actors: kill, drain, and an endpoint that never answers
(SPEC W8).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_service import FakeService
from tests.support.postgres import Database
from tests.support.pushing import push_toml
from tests.support.waiting import wait_until
from tests.support.workers import Daemon

pytest.importorskip("standardwebhooks")
pytest.importorskip("aiohttp")
pytestmark = pytest.mark.slow
Push = Callable[..., Daemon]


@pytest.fixture
def fake() -> Iterator[FakeService]:
    found = FakeService()
    yield found
    found.close()


@pytest.fixture
def push(start_daemon: Callable[..., Daemon], database: Database, tmp_path: Path, fake: FakeService) -> Push:
    """A daemon that pushes `order.*` to the fake service; database and endpoint are all it knows."""

    def start(said: dict[str, Any] | None = None, *options: str, **settings: Any) -> Daemon:
        toml = push_toml(tmp_path, **{"order.*": {"url": fake.url, **(said or {})}})
        extra = {"PACKHORSE_CONFIG": str(toml)}
        return start_daemon(database, actors="--threads", options=("1", *options), extra=extra, **settings)

    database.query("select declare_queue('default')")
    return start


def send(database: Database, count: int = 1) -> None:
    database.query(
        "select enqueue_message('default', 'order.created', jsonb_build_object('n', n)) from generate_series(1, %s) n",
        count,
    )


def test_killed_in_the_middle_it_is_sent_again_with_the_same_id(
    database: Database, push: Push, fake: FakeService
) -> None:
    fake.mode = "hang"
    daemon = push().wait_ready()
    send(database)
    wait_until(lambda: fake.requests, 20, "the request is there")
    os.kill(daemon.children()[0], signal.SIGKILL)
    fake.mode = "ok"
    wait_until(lambda: database.value("select not exists (select from message_queue)"), 30, "done")
    assert {request.headers["webhook-id"] for request in fake.requests} == {
        fake.requests[0].headers["webhook-id"]
    }
    assert len(fake.requests) == 2 and database.value("select count(*) from dead_letters") == 0
    assert daemon.stop() == 0, daemon.log
    assert "Unclosed" not in daemon.log and "Traceback" not in daemon.log


def test_a_drain_waits_for_the_answer(database: Database, push: Push, fake: FakeService) -> None:
    fake.slow = 1.0
    daemon = push().wait_ready()
    send(database, 30)
    wait_until(lambda: fake.at_once == 20, 20, "as many as max_in_flight")
    assert daemon.stop() == 0, daemon.log
    done = database.value("select count(*) from message_archive where state = 'done'")
    assert done == len(fake.requests) == 20, "every request has been answered and counted"
    assert database.value("select count(*) from message_queue where state = 'pending' and attempt = 0") == 10
    assert "Unclosed" not in daemon.log and "Traceback" not in daemon.log


def test_past_the_limit_of_a_drain_it_goes_back(database: Database, push: Push, fake: FakeService) -> None:
    fake.mode = "hang"
    daemon = push(drain_seconds=0.5).wait_ready()
    send(database)
    wait_until(lambda: fake.requests, 20, "the request is there")
    assert daemon.stop() == 0, daemon.log
    assert database.query("select state, attempt from message_queue") == [("pending", 0)]


def test_a_burst_ends_when_all_are_pushed(database: Database, push: Push, fake: FakeService) -> None:
    send(database, 50)
    daemon = push(None, "--burst")
    assert daemon.process.wait(60) == 0, daemon.log
    assert len(fake.requests) == 50
    fake.mode = "404"
    send(database)
    daemon = push(None, "--burst")
    assert daemon.process.wait(60) == 1, "one died"


def test_what_is_wrong_ends_the_start(database: Database, push: Push, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    daemon = push({"url": "https://10.0.0.1/", "allow_private": False})
    assert daemon.process.wait(60) == 2
    assert "url: 10.0.0.1 is in a private network" in daemon.log and "holds no secret" in daemon.log
