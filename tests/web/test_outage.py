"""The database is away: each screen shows its last data and how old that is, or says that there is none; it
is never blank, nor a 500 (SPEC O6).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from packhorse.worker.web.acting import ENTRIES
from tests.conftest import FIRST, SERVERS
from tests.support.furnished import furnish
from tests.support.page import Browser, Page
from tests.support.postgres import Database, Server, open_for_everyone
from tests.support.waiting import wait_until
from tests.web.test_screens import addresses

pytestmark = pytest.mark.slow

KEY = "plain words"
SHOWN = [*addresses(KEY), "/conversations?key=nobody"]
ACTS = sorted({entry.path for entry in ENTRIES if entry.method == "GET"})


@contextmanager
def furnished() -> Iterator[tuple[Server, Database]]:
    """A server of this file's own, which it may kill, with rows for every screen."""
    open_for_everyone(SERVERS[FIRST])
    server = Server(FIRST, SERVERS[FIRST])
    try:
        database = server.create_database()
        furnish(database, KEY)
        yield server, database
    finally:
        server.close()


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    """Every screen has been looked at; then the server died."""
    with furnished() as (server, database):
        page = Page(database)
        browser = page.browser()
        for address in SHOWN:
            assert browser.get(address).status_code == 200, address
        server.kill()
        wait_until(lambda: "Old data" in browser.get("/").text, 20)
        yield browser
        page.close()


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    """A page that has started while the server was down already."""
    with furnished() as (server, database):
        server.kill()
        page = Page(database)
        yield page.browser()
        page.close()


@pytest.mark.parametrize("address", SHOWN)
def test_a_screen_that_somebody_has_seen_shows_that_and_its_age(opened: Browser, address: str) -> None:
    for answer in (opened.get(address), opened.fragment(address)):
        assert answer.status_code == 200, answer.text
        if address.startswith("/completions") or "where-problem" in answer.text:
            continue  # words for a filter; a filter that cannot be read: no data
        assert "<h1>" in answer.text
        banner = re.search(r"<strong>Old data\.</strong>.*?</p>", answer.text, re.DOTALL)
        assert banner and "<time" in banner[0] and "the database is away" in banner[0]


@pytest.mark.parametrize("address", SHOWN)
def test_a_page_that_starts_without_its_database_says_so_on_every_screen(
    started: Browser, address: str
) -> None:
    for answer in (started.get(address), started.fragment(address)):
        assert answer.status_code == 503
        assert re.search(r"<h1>The database (is away|does not answer)", answer.text), answer.text
        assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", ACTS)
def test_the_form_of_an_act_says_that_the_database_is_away(opened: Browser, path: str) -> None:
    target = "?id=1&where=age%3E0s&queue=default&key=k&name=hourly&fingerprint=cause&task=t&service=bank&endpoint=a"
    answer = opened.get(path.replace("{id}", "none") + target)
    assert answer.status_code in (200, 400, 503), answer.text  # a form that asks nothing is there
    assert "<h1>" in answer.text and "Traceback" not in answer.text


def test_what_nobody_has_seen_is_not_there_and_says_so(opened: Browser) -> None:
    answer = opened.get("/messages?where=queue%3Dunseen")
    assert answer.status_code == 503 and "<h1>The database does not answer" in answer.text


def test_the_page_works_as_soon_as_its_database_is_there(own_server: Server) -> None:
    database = own_server.create_database()
    own_server.kill()
    page = Page(database)
    try:
        browser = page.browser()
        assert browser.get("/").status_code == 503
        assert browser.get("/healthz").status_code == 200, "it is no reason to restart it"
        own_server.start()
        wait_until(lambda: browser.get("/").status_code == 200, 30)
        assert "Old data" not in browser.get("/").text
    finally:
        page.close()
