"""Windows that watch the same get what was made once, and nothing that only others may see (SPEC O6)."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from packhorse.worker.web import refreshes
from packhorse.worker.web.access import Role, Visitor
from packhorse.worker.web.pages import SCREENS
from packhorse.worker.web.refreshes import Refreshes
from tests.support.furnished import RUNNING, furnish

pytestmark = pytest.mark.slow


@pytest.fixture
def long_fresh(monkeypatch):
    """What was made counts until something is done."""
    monkeypatch.setattr(refreshes, "FRESH_SECONDS", 3600.0)


def made_by(answer_of):
    """make() that counts its calls."""
    calls = []

    async def make():
        calls.append(1)
        await asyncio.sleep(0)
        return answer_of(len(calls))

    return make, calls


def test_those_who_come_together_get_one_and_who_comes_later_another(monkeypatch):
    make, calls = made_by(lambda n: b"%d" % n)

    async def fetches():
        found = Refreshes()
        first = await asyncio.gather(*(found.get("a", make) for _ in range(20)))
        other = await found.get("b", make)
        monkeypatch.setattr(refreshes, "FRESH_SECONDS", 0.0)
        later = await found.get("a", make)
        assert len(found._made) == 1, "what is no longer fresh is not kept"
        return {each.body for each in first}, other.body, later.body

    assert asyncio.run(fetches()) == ({b"1"}, b"2", b"3") and len(calls) == 3


def test_after_an_act_nothing_that_was_made_or_begun_before_counts(long_fresh):
    async def fetches():
        found, gate, numbers = Refreshes(), asyncio.Event(), iter((b"before", b"after"))

        async def make():
            number = next(numbers)
            await gate.wait()
            return number

        early = asyncio.ensure_future(found.get("a", make))
        await asyncio.sleep(0)
        found.forget()
        late = asyncio.ensure_future(found.get("a", make))
        await asyncio.sleep(0)
        gate.set()
        return (await early).body, (await late).body

    assert asyncio.run(fetches()) == (b"before", b"after")


def test_who_goes_away_does_not_end_it_for_the_others(long_fresh):
    async def fetches():
        found, gate = Refreshes(), asyncio.Event()

        async def make():
            await gate.wait()
            return b"whole"

        gone, there = (asyncio.ensure_future(found.get("a", make)) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        gate.set()
        return (await there).body

    assert asyncio.run(fetches()) == b"whole"


def test_visitors_of_one_role_share_what_they_see_and_of_another_do_not(page, database, long_fresh):
    furnish(database)
    address = f"/messages/{RUNNING}"
    database.query("update message_queue set correlation_id = 'first' where id = %s", RUNNING)
    ann, ben = (page.browser(page.token("operator", name)) for name in ("ann", "ben"))
    viewer = page.browser(page.token("viewer"))
    seen, masked = ann.fragment(address).text, viewer.fragment(address).text
    assert "first" in seen and ben.fragment(address).text == seen != masked and "/acts/" not in masked
    database.query("update message_queue set correlation_id = 'second' where id = %s", RUNNING)
    page.sites[0]._kept.clear()
    assert ben.fragment(address).text == seen, "made once"
    assert "second" in ben.get(address).text, "who loads the page gets it anew"
    page.sites[0].forget()
    assert "second" in ann.fragment(address).text


def test_a_refresh_of_any_screen_has_no_form_token_and_no_name(page, database, long_fresh):
    """A template that asks for the visitor or a token fails: to a refresh they are not given."""
    furnish(database)
    browser = page.browser(page.token("admin"))
    for screen in SCREENS:
        if "{" not in screen.path:
            answer = browser.fragment(screen.path)
            assert answer.status_code == 200, screen.path
            assert "csrf" not in answer.text, screen.path


def test_what_an_act_has_said_is_for_who_did_it(page, long_fresh):
    ann, ben = (page.browser(page.token("operator", name)) for name in ("ann", "ben"))
    said = page.server.page_frame.notices.put(
        Visitor("ann", Role.OPERATOR, "", "session"), "The queue rests."
    )
    address = f"/queues?said={said}"
    assert "The queue rests." in ann.fragment(address).text
    assert "The queue rests." not in ben.fragment(address).text
    assert "The queue rests." in ann.fragment(address).text


def test_it_is_compressed_once_and_sent_whole_to_who_cannot_read_that(page, long_fresh):
    browser = page.browser()
    squeezed = browser.fragment("/")
    assert squeezed.headers["content-encoding"] == "gzip" and "Accept-Encoding" in squeezed.headers["vary"]
    plain = browser.get("/", headers={"HX-Request": "true", "Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.text == squeezed.text
    with browser.client.stream("GET", "/", headers={"HX-Request": "true"}) as raw:
        assert gzip.decompress(b"".join(raw.iter_raw())).decode() == plain.text
