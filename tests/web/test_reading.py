"""What the page asks: once for all, briefly, in a read-only transaction; old answers with their age during an
outage (SPEC O6).
"""

from __future__ import annotations

import asyncio
import threading
import time

import psycopg
import pytest

from packhorse.worker.config import load_settings
from packhorse.worker.db.queries import Statement
from packhorse.worker.errors import InvalidArgument, StoreRejected
from packhorse.worker.web import live, reading
from packhorse.worker.web.pages import SCREENS
from packhorse.worker.web.reading import MOST_ANSWERS, MOST_BYTES, NoAnswer, Reader, Site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def site(database):
    found = Site("default", "", load_settings({}, database_url=database.url))
    yield found
    found.close()


def one(connection, text, *params):
    return connection.execute(Statement(text), params or None).fetchone()[0]


def ask(site, *questions):
    """Answers to (name, ttl, function, *args), all at once."""

    async def together():
        reader = Reader(site)
        return await asyncio.gather(
            *(reader.ask(*question) for question in questions), return_exceptions=True
        ), reader.outdated

    return asyncio.run(together())


def test_a_question_takes_one_core_and_a_preview_what_the_server_gives(site):
    cores = "select current_setting('max_parallel_workers_per_gather') || current_setting('transaction_read_only')"
    assert ask(site, ("cores", 5.0, one, cores))[0] == ["0on"]
    assert asyncio.run(site.read(one, cores)) == "2on"
    assert ask(site, ("cores again", 5.0, one, cores))[0] == ["0on"]


def test_equal_questions_are_asked_once_and_others_by_themselves(site):
    called = []

    def count(connection, name):
        called.append(name)
        return one(connection, "select pg_sleep(0.05), 1") or len(called)

    answers, _ = ask(site, *[("count", 5.0, count, "a")] * 20, ("count", 5.0, count, "b"))
    assert sorted(called) == ["a", "b"] and len(answers) == 21
    ask(site, ("count", 5.0, count, "a"))
    assert sorted(called) == ["a", "b"], "within its time to live"
    ask(site, ("count", 0.0, count, "a"))
    assert len(called) == 3
    site.forget()
    ask(site, ("count", 60.0, count, "a"))
    assert len(called) == 4, "after an act nothing is fresh"


def test_a_question_can_change_nothing_and_reads_as_the_reader(site, database):
    (answers, _) = ask(
        site,
        (
            "write",
            0.0,
            one,
            "insert into packhorse.operator_actions (action, operator) values ('a', 'b') returning 1",
        ),
        ("role", 0.0, one, "select current_user::text"),
        (
            "timeouts",
            0.0,
            one,
            "select current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')",
        ),
    )
    assert isinstance(answers[0], NoAnswer) and "read-only" in str(answers[0])
    assert answers[2] == "1s 100ms"
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        login = psycopg.conninfo.conninfo_to_dict(database.url)["user"]
        member = admin.execute("select pg_has_role(%s, 'packhorse_reader', 'member')", (login,)).fetchone()[0]
    assert answers[1] == ("packhorse_reader" if member else login)


def test_with_the_role_of_the_reader_no_token_is_seen(database):
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        login = psycopg.conninfo.conninfo_to_dict(database.url)["user"]
        admin.execute(psycopg.sql.SQL("grant packhorse_reader to {}").format(psycopg.sql.Identifier(login)))
        admin.execute("select packhorse.create_access_token('a', 'admin', decode(repeat('ab', 32), 'hex'))")
    site = Site("default", "", load_settings({}, database_url=database.url))
    try:
        answers, _ = ask(
            site,
            ("role", 0.0, one, "select current_user::text"),
            ("tokens", 0.0, one, "select count(*) from packhorse.access_tokens"),
        )
        assert answers == ["packhorse_reader", 0]
        assert ask(site, ("queues", 0.0, one, "select count(*) from packhorse.queues"))[0] == [1]
    finally:
        site.close()
        with psycopg.connect(database.admin_url, autocommit=True) as admin:
            admin.execute(
                psycopg.sql.SQL("revoke packhorse_reader from {}").format(psycopg.sql.Identifier(login))
            )


def test_how_long_the_database_was_busy_is_known_also_of_what_was_given_up(site):
    for seconds, at_least in ((0.2, 0.2), (30, 1.0)):
        before = site.busy_seconds
        ask(site, (f"slow {seconds}", 0.0, one, f"select 1 from pg_sleep({seconds})"))
        assert site.busy_seconds - before >= at_least


def test_a_slow_or_locked_question_ends_and_the_old_answer_counts(site, database):
    slow = threading.Event()

    def maybe(connection):
        return one(
            connection, "select 'new'::text from pg_sleep(30)" if slow.is_set() else "select 'old'::text"
        )

    assert ask(site, ("maybe", 0.0, maybe)) == (["old"], None)
    slow.set()
    assert site._kept.pop(("maybe", ())), "nothing newer than a minute"
    answers, _ = ask(site, ("maybe", 0.0, maybe))
    assert isinstance(answers[0], NoAnswer) and "longer than a second" in str(answers[0])
    with psycopg.connect(database.admin_url) as locker:
        locker.execute("lock table packhorse.queues in access exclusive mode")
        answers, _ = ask(site, ("locked", 0.0, one, "select count(*) from packhorse.queues"))
        assert isinstance(answers[0], NoAnswer) and "locked" in str(answers[0])
    slow.clear()
    assert ask(site, ("maybe", 0.0, maybe)) == (["old"], None), "the connection is of use again"


def test_nobody_waits_for_a_newer_answer_when_there_is_one_of_the_last_minute(site):
    """The page shows the last one at once, and the question goes on for the next page."""
    asked, slow = [], threading.Event()

    def slowly(connection):
        asked.append(1)
        return one(connection, f"select {len(asked)} from pg_sleep({0.6 if slow.is_set() else 0})")

    async def pages():
        assert await Reader(site).ask("slowly", 0.0, slowly) == 1
        slow.set()
        begun = Reader(site)
        first, again = await asyncio.gather(
            begun.ask("slowly", 0.0, slowly), begun.ask("slowly", 0.0, slowly)
        )
        assert (first, again) == (1, 1) and begun.outdated is None
        assert begun.moment is not None, "its age is shown"
        assert len(asked) == 2, "one question for all"
        later = Reader(site)
        await asyncio.gather(*site._flights.values())
        assert await later.ask("slowly", 5.0, slowly) == 2
        assert later.moment > begun.moment and len(asked) == 2

    asyncio.run(pages())


def test_an_answer_older_than_a_minute_is_waited_for(site, monkeypatch):
    monkeypatch.setattr(reading, "GRACE_SECONDS", 0.0)

    numbers = iter(range(9))

    def slowly(connection):
        return one(connection, f"select {next(numbers)} from pg_sleep(0.3)")

    async def pages():
        return [await Reader(site).ask("slowly", 0.0, slowly) for _ in range(2)]

    assert asyncio.run(pages()) == [0, 1]


def test_a_question_that_fails_behind_the_last_answer_is_said_on_the_next_page(site):
    slow = threading.Event()

    def maybe(connection):
        return one(connection, f"select 7 from pg_sleep({30 if slow.is_set() else 0})")

    async def pages():
        await Reader(site).ask("maybe", 0.0, maybe)
        slow.set()
        silent = Reader(site)
        assert await silent.ask("maybe", 0.0, maybe) == 7 and silent.outdated is None
        await asyncio.gather(*site._flights.values(), return_exceptions=True)
        told = Reader(site)
        assert await told.ask("maybe", 0.0, maybe) == 7
        assert told.outdated is not None and "longer than a second" in told.outdated.problem

    asyncio.run(pages())


@pytest.mark.parametrize("is_overtaken", [False, True])
def test_what_was_asked_before_an_act_is_not_the_answer_after_it(site, is_overtaken):
    """Neither when it comes after the act, nor when it comes after what was asked later."""
    going, value, asked = threading.Event(), ["before"], []

    def slowly(connection):
        found = value[0]
        asked.append(found)
        going.set()
        one(connection, f"select 1 from pg_sleep({0.6 if found == 'before' else 0})")
        return found

    async def pages():
        earlier = asyncio.ensure_future(Reader(site).ask("slowly", 60.0, slowly))
        await asyncio.to_thread(going.wait)
        value[0] = "after"
        site.forget()
        if is_overtaken:
            assert await Reader(site).ask("slowly", 60.0, slowly) == "after" and not earlier.done()
        assert await earlier == "before"
        assert await Reader(site).ask("slowly", 60.0, slowly) == "after"
        assert asked == ["before", "after"], "the newer answer is kept"

    asyncio.run(pages())


def test_a_question_at_fault_is_told_so_and_keeps_nothing(site):
    def wrong(connection):
        raise InvalidArgument("where: no", field="where")

    def refused(connection):
        raise StoreRejected("no right")

    answers, outdated = ask(site, ("wrong", 5.0, wrong), ("refused", 5.0, refused))
    assert isinstance(answers[0], InvalidArgument) and not isinstance(answers[0], NoAnswer)
    assert isinstance(answers[1], NoAnswer) and outdated is None


def test_what_is_kept_has_a_bound(site):
    big = "x" * (MOST_BYTES // 4)
    for number in range(10):
        ask(site, (f"big {number}", 60.0, lambda connection: big))
    assert len(site._kept) <= 4 and site._kept_bytes <= MOST_BYTES
    for number in range(MOST_ANSWERS + 50):
        site._keep(number, site._kept[next(reversed(site._kept))].__class__(1, 0.0, None, 60))
    assert len(site._kept) <= MOST_ANSWERS
    assert site._kept_bytes == sum(kept.size for kept in site._kept.values())


def test_while_the_database_is_away_pages_show_old_data_with_its_age(own_server, open_page):
    database = own_server.create_database()
    page = open_page(database)
    browser = page.browser()
    assert "Old data" not in browser.get("/").text
    own_server.kill()
    wait_until(lambda: "Old data" in browser.get("/").text, 20)
    answer = browser.get("/")
    assert (
        answer.status_code == 200
        and "the database is away" in answer.text
        and 'href="/queues/default"' in answer.text
    )
    assert "<time" in answer.text.split("Old data")[1].split("</p>")[0], "how old"
    assert browser.get("/audit").status_code == 503, "a page that nobody had opened says so"
    assert "Traceback" not in browser.get("/audit").text
    own_server.start()
    wait_until(
        lambda: "Old data" not in browser.get("/").text and browser.get("/audit").status_code == 200, 30
    )


class Asking:
    """A database whose pages ask so much between two ticks: what a Ticker sees of a site."""

    def __init__(self):
        self.asked_total = 0
        self.busy_seconds = 0.0


@pytest.mark.parametrize("counted", ["asked_total", "busy_seconds"])
def test_a_tick_waits_until_what_the_last_one_cost_is_within_the_budget(monkeypatch, counted):
    """However much is asked, and however long it takes: between two ticks lies the time that it may take."""
    monkeypatch.setattr(live, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(live, "MOST_SECONDS", 0.5)
    monkeypatch.setattr(live, "MOST_QUERIES_PER_SECOND", 400.0)
    monkeypatch.setattr(live, "MOST_BUSY", 400.0)
    monkeypatch.setattr(live, "MOST_BUSY_SECONDS", 0.5)
    site, moments, clock = Asking(), [], time.monotonic

    async def watch():
        ticker = live.Ticker(site)
        asked = iter([0, 40, 80, 10, 1000, 0, 0])
        moments.append((clock(), 0))
        async for event in ticker.events():
            if event.startswith(b"event: tick"):
                many = next(asked, None)
                setattr(site, counted, getattr(site, counted) + (many or 0))
                moments.append((clock(), many))
                if many is None:
                    return

    asyncio.run(watch())
    assert len(moments) == 9
    for (earlier, cost), (tick, _), (later, _) in zip(moments, moments[1:], moments[2:], strict=False):
        assert later - tick >= min(0.5, cost / 400.0) - 1e-3, (
            "what was asked before this tick delays the next"
        )
        assert tick > earlier


def test_twenty_viewers_stay_within_the_budget_of_the_page(page):
    """Each opens a screen, listens, and fetches at every tick, as app.js does."""
    site = page.sites[0]
    paths = [screen.path for screen in SCREENS if screen.nav]
    browsers = [page.browser() for _ in range(20)]
    for place, browser in enumerate(browsers):
        browser.get(paths[place % len(paths)])
    stop, trouble = threading.Event(), []
    ticks = [0] * len(browsers)
    round_of_all, began = site.asked_total, time.monotonic()

    def look(place, browser):
        path = paths[place % len(paths)]
        try:
            with browser.client.stream("GET", "/live", timeout=60) as stream:
                for line in stream.iter_lines():
                    if stop.is_set():
                        return
                    if line == "event: tick":
                        assert browser.fragment(path).status_code == 200
                        ticks[place] += 1
        except Exception as error:
            trouble.append(error)

    threads = [threading.Thread(target=look, args=each) for each in enumerate(browsers)]
    for thread in threads:
        thread.start()
    wait_until(lambda: min(ticks) >= 3 or trouble, 120)
    stop.set()
    for thread in threads:
        thread.join(60)
    asked, seconds = site.asked_total - round_of_all, time.monotonic() - began
    assert trouble == [] and asked > 0
    # what the last tick has cost is paid by the pause behind it
    assert asked <= live.MOST_QUERIES_PER_SECOND * seconds + round_of_all, f"{asked} in {seconds:.1f} s"
