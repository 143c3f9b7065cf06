"""What people do with the page, in Chromium, with real daemons behind it (SPEC O6)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from packhorse.worker.web.pages import SCREENS
from tests.support.chromium import Person, browser
from tests.support.page import Page, declare_bank
from tests.support.postgres import Database
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def outage(tmp_path: Path) -> Path:
    return tmp_path / "outage"


@pytest.fixture
def people(chromium: Any, page: Page) -> Iterator[Callable[..., Person]]:
    """people(role, **how): somebody at a browser. At the end nobody's browser has complained."""
    everybody: list[Person] = []

    def arrives(role: str, **how: Any) -> Person:
        everybody.append(Person(chromium, page, role, **how))
        return everybody[-1]

    yield arrives
    complaints = [complaint for person in everybody for complaint in person.complaints]
    for person in everybody:
        person.context.close()
    assert complaints == []


@pytest.fixture
def daemon(database: Database, ledger: Ledger, start_daemon: Callable[..., Daemon], outage: Path) -> Daemon:
    started = start_daemon(
        database,
        ledger,
        actors="tests.support.story_actors",
        extra={"OUTAGE": str(outage)},
        queues="default,replies",
    )
    return started.wait_ready()


def enqueue(
    database: Database, message_type: str, keys: list[str], queue: str = "default", **arguments: Any
) -> list[int]:
    """As dramatiq's messages carry their arguments."""
    text = "".join(f", p_{name} => %s" for name in arguments)
    return [
        database.query(
            f"select message_id from enqueue_message(%s, %s, %s::jsonb{text})",
            queue,
            message_type,
            json.dumps({"key": key}),
            *arguments.values(),
        )[0][0]
        for key in keys
    ]


def acted(database: Database) -> list[tuple[Any, ...]]:
    return database.query(
        "select distinct action, left(operator, 8), reason from operator_actions where action not like '%%access_token' order by 1"
    )


def test_an_outage_is_seen_grouped_previewed_redriven_and_drained(
    database: Database, daemon: Daemon, ledger: Ledger, outage: Path, people: Callable[..., Person]
) -> None:
    outage.touch()
    keys = [f"m{number}" for number in range(12)]
    enqueue(database, "send_reply", keys)
    wait_until(lambda: database.value("select count(*) from dead_letters") == 12, 30)
    olu = people("operator")
    olu.sees("dead letters")
    olu.picture("overview")
    olu.click("Dead letters")
    olu.click("TimeoutError")
    olu.sees("12 letters")
    olu.picture("dead-letters")
    olu.click("Redrive")
    olu.tab.get_by_label("Messages per second").fill("50")
    olu.tab.get_by_label("Why").fill("the provider is back")
    olu.click("Preview", "button")
    olu.sees("12 dead letters would be enqueued again")
    olu.picture("redrive")
    outage.unlink()
    olu.click("Redrive: 12", "button")
    olu.sees("12 of 12 are enqueued again.")
    wait_until(lambda: len(ledger.counts("effect")) == 12, 30)
    olu.click("See what it works on")
    olu.sees("No letter of this cause is left.")
    assert [row[2] for row in acted(database)] == ["the provider is back"]
    assert database.value("select count(*) from dead_letters") == 0


def test_a_redrive_into_the_same_outage_stops_and_says_so(
    database: Database, daemon: Daemon, outage: Path, people: Callable[..., Person]
) -> None:
    outage.touch()
    enqueue(database, "send_reply", [f"m{number}" for number in range(40)])
    wait_until(lambda: database.value("select count(*) from dead_letters") == 40, 30)
    olu = people("operator")
    olu.go("/dead-letters")
    olu.click("TimeoutError")
    olu.click("Redrive")
    olu.tab.get_by_label("Messages per second").fill("5")
    olu.click("Preview", "button")
    olu.click("Redrive: 40", "button")
    olu.sees("died again: mend the cause first")


def test_a_held_conversation_is_explained_and_released(
    database: Database, daemon: Daemon, ledger: Ledger, outage: Path, people: Callable[..., Person]
) -> None:
    database.query("select set_queue('replies', '{\"on_dead\": \"block\"}')")
    outage.touch()
    first, second = enqueue(
        database, "reply_in_order", ["first", "second"], "replies", conversation_key="+250788000001"
    )
    wait_until(lambda: database.value("select count(*) from dead_letters") == 1, 30)
    olu = people("operator")
    olu.go(f"/messages/{second}")
    olu.sees("does not start:")
    olu.picture("message")
    olu.click("+250788000001")
    olu.sees(f"dead letter {first} blocks it")
    olu.picture("conversation")
    outage.unlink()
    olu.act("Redrive the letter that blocks it", "the provider is back", final="Redrive")
    olu.sees(f"Message {first} is enqueued again")
    wait_until(lambda: len(ledger.counts("effect")) == 2, 30)
    assert [row[1] for row in ledger.lines("effect")] == ["first", "second"]


def test_a_schedule_is_run_now(
    database: Database, daemon: Daemon, ledger: Ledger, people: Callable[..., Person]
) -> None:
    database.query(
        "insert into schedules (name, message_type, queue, every, source, payload)"
        " values ('nightly', 'send_reply', 'default', '30 days', 'sql', '{\"key\": \"nightly\"}')"
    )
    olu = people("operator")
    olu.click("Schedules")
    olu.click("nightly")
    olu.act("Run now", "the customer waits")
    olu.sees("of nightly is enqueued")
    wait_until(lambda: ledger.counts("effect")["nightly"] == 1, 30)
    assert acted(database)[-1][2] == "the customer waits"


def test_a_breaker_is_held_open_and_let_go(
    database: Database, daemon: Daemon, ledger: Ledger, people: Callable[..., Person]
) -> None:
    wait_until(lambda: database.value("select count(*) from service_endpoints") == 1, 20)
    olu = people("operator")
    olu.click("Services")
    olu.act("Hold open", "the bank asked for a pause")
    olu.sees("forced open")
    (number,) = enqueue(database, "ask_bank", ["b"])
    olu.go(f"/messages/{number}")
    olu.sees("does not start:")
    assert ledger.counts("effect")["b"] == 0
    olu.go("/services")
    olu.act("Let it work by itself", "they are back")
    olu.go("/services")
    olu.act("Hold closed", "there is nothing to probe")
    wait_until(lambda: ledger.counts("effect")["b"] == 1, 30)


def test_a_worker_is_quiet_and_goes_on(
    database: Database, daemon: Daemon, ledger: Ledger, people: Callable[..., Person]
) -> None:
    ada = people("admin")
    ada.click("Workers")
    ada.act("Quiet", "a look at its memory")
    wait_until(lambda: database.value("select state from workers") == "quiet", 20)
    enqueue(database, "send_reply", ["later"])
    ada.act("Resume", "looked")
    wait_until(lambda: ledger.counts("effect")["later"] == 1, 30)


def test_a_viewer_finds_no_way_to_change_anything(database: Database, people: Callable[..., Person]) -> None:
    (number,) = enqueue(database, "send_reply", ["secret"])
    vera = people("viewer")
    vera.go(f"/messages/{number}")
    assert vera.tab.locator("main a[href*='/acts/']").count() == 0 and "secret" not in vera.tab.content()
    vera.go(f"/acts/message.cancel?id={number}")
    vera.sees("This needs the role operator")
    vera.complaints.clear()  # the browser reports the 403 itself


def test_an_act_works_without_scripts(database: Database, people: Callable[..., Person]) -> None:
    (number,) = enqueue(database, "send_reply", ["x"])
    olu = people("operator", scripts=False)
    olu.go(f"/messages/{number}")
    olu.act("Cancel", "asked for")
    assert database.value("select state from all_messages") == "cancelled"


def paths(database: Database) -> list[str]:
    """Every screen, with something on it."""
    database.query("select set_queue('default', '{\"on_dead\": \"block\"}')")
    first, second = enqueue(database, "send_reply", ["a", "b"], conversation_key="k")
    database.query("select bury_message(%s, null, 'rejected', 'TimeoutError', 'no answer')", first)
    database.query(
        "insert into schedules (name, message_type, queue, every, source) values ('nightly', 'send_reply', 'default', '1 day', 'sql')"
    )
    declare_bank(database)
    database.query("select park_scope('bank', '5 minutes')")
    fingerprint = database.value("select fingerprint from dead_letters")
    named = {
        "/messages/{id}": second,
        "/dead-letters/{id}": first,
        "/queues/{name}": "default",
        "/schedules/{name}": "nightly",
    }
    found = [
        screen.path.split("{")[0] + str(named.get(screen.path, fingerprint))
        if "{" in screen.path
        else screen.path
        for screen in SCREENS
        if screen.path != "/completions"  # a piece of a page
    ]
    forms = [
        f"/acts/message.reschedule?id={second}",
        f"/acts/dead-letters.redrive?fingerprint={fingerprint}",
        "/acts/queue.set?queue=default",
    ]
    return [
        *found,
        "/conversations?key=k",
        "/messages?where=queue%3Ddefault",
        "/messages?where=nonsense",
        *forms,
        "/progress",
    ]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_every_page_is_accessible_fits_and_makes_nobody_complain(
    database: Database, people: Callable[..., Person], width: int, dark: bool
) -> None:
    ada = people("admin", width=width, dark=dark)
    found = {}
    for path in paths(database):
        ada.go(path)
        problems = ada.violations() + [f"wider than its window by {ada.overflow()} px"] * (ada.overflow() > 0)
        if problems:
            found[path] = problems
    ada.go("/")
    ada.picture("overview-narrow-dark" if dark else "overview-quiet")
    ada.complaints = [each for each in ada.complaints if "400" not in each]
    assert found == {}
