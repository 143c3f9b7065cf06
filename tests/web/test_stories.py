"""What people do with the page, in Chromium, with real daemons behind it (SPEC O6)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.web.access import Role
from packhorse.worker.web.acts import ACTS
from packhorse.worker.web.pages import SCREENS
from tests.support.chromium import Person, browser
from tests.support.page import Page, declare_bank
from tests.support.postgres import Database
from tests.support.waiting import wait_until
from tests.support.workers import Daemon, Ledger

# a story is a browser, a daemon and many steps: with a processor that is busy it takes longer than the two
# minutes that other tests have
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def chromium() -> Iterator[Any]:
    """Of this test alone: one that could not be launched in time would fail all tests of the file."""
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
    # their contexts end with the browser: closing one by itself can wait without end, and did once for 900 s
    assert [complaint for person in everybody for complaint in person.complaints] == []


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
    wait_until(lambda: database.value("select count(*) from dead_letters") == 12, 90)
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
    wait_until(lambda: len(ledger.counts("effect")) == 12, 90)
    olu.click("See what it works on")
    olu.sees("No letter of this cause is left.")
    assert [row[2] for row in acted(database)] == ["the provider is back"]
    assert database.value("select count(*) from dead_letters") == 0


def test_a_redrive_into_the_same_outage_stops_and_says_so(
    database: Database, daemon: Daemon, outage: Path, people: Callable[..., Person]
) -> None:
    outage.touch()
    enqueue(database, "send_reply", [f"m{number}" for number in range(40)])
    wait_until(lambda: database.value("select count(*) from dead_letters") == 40, 90)
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
    wait_until(lambda: database.value("select count(*) from dead_letters") == 1, 90)
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
    wait_until(lambda: len(ledger.counts("effect")) == 2, 90)
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
    wait_until(lambda: ledger.counts("effect")["nightly"] == 1, 90)
    assert acted(database)[-1][2] == "the customer waits"


def test_a_breaker_is_held_open_and_let_go(
    database: Database, daemon: Daemon, ledger: Ledger, people: Callable[..., Person]
) -> None:
    wait_until(lambda: database.value("select count(*) from service_endpoints") == 1, 90)
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
    wait_until(lambda: ledger.counts("effect")["b"] == 1, 90)


def test_a_worker_is_quiet_and_goes_on(
    database: Database, daemon: Daemon, ledger: Ledger, people: Callable[..., Person]
) -> None:
    ada = people("admin")
    ada.click("Workers")
    ada.act("Quiet", "a look at its memory")
    wait_until(lambda: database.value("select state from workers") == "quiet", 90)
    enqueue(database, "send_reply", ["later"])
    ada.act("Resume", "looked")
    wait_until(lambda: ledger.counts("effect")["later"] == 1, 90)


@pytest.fixture
def shop(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_daemon: Callable[..., Daemon]
) -> Daemon:
    """Orders that a policy of the configuration deletes slowly, users that a backfill walks slowly, and a
    scheduler with the owner's rights. The page reads the same file."""
    toml = tmp_path / "packhorse.toml"
    toml.write_text(
        '[retention.orders]\ntable = "shop.orders"\ncolumn = "done_at"\nkeep = "7d"\nbatch = 50\npause_ratio = 100\n'
        "[gates]\n" + "".join(f"{name} = inf\n" for name in Gates.__dataclass_fields__)
    )
    monkeypatch.setenv("PACKHORSE_CONFIG", str(toml))
    database.query("create schema shop")
    database.query("create table shop.orders (id bigint primary key, done_at timestamptz)")
    database.query("create index on shop.orders (done_at)")
    database.query(
        "insert into shop.orders select n, now() - interval '1 year' from generate_series(1, 20000) n"
    )
    database.query("create table shop.users (id bigint primary key, email text not null)")
    database.query("insert into shop.users select n, 'User@Example.org' from generate_series(1, 400) n")
    database.query("analyze shop.orders, shop.users")
    started = start_daemon(
        database,
        actors="tests.support.story_backfills",
        command="scheduler",
        config=toml,
        maintenance_url=database.admin_url,
    )
    wait_until(
        lambda: database.value("select count(*) from schedules where name = 'retention.orders'") == 1, 60
    )
    return started


@pytest.fixture
def page(database: Database, open_page: Callable[..., Page], request: pytest.FixtureRequest) -> Page:
    """With the owner's connection where a story is about maintenance."""
    owner = {"maintenance_url": database.admin_url} if "shop" in request.fixturenames else {}
    return open_page(database, **owner)


def test_a_retention_run_is_tried_run_watched_and_cancelled(
    database: Database, shop: Daemon, people: Callable[..., Person]
) -> None:
    olu = people("operator")
    olu.click("Maintenance")
    row = olu.tab.get_by_role("row", name="retention.orders")
    assert "deletes where done_at is older than 7 days" in row.inner_text()
    row.get_by_role("link", name="Run now").click()
    olu.tab.get_by_label("Why").fill("the disk fills")
    olu.click("Preview", "button")
    olu.sees("20,000 rows of shop.orders would be deleted")
    assert database.value("select count(*) from shop.orders") == 20_000, "a preview deletes nothing"
    olu.click("Run now", "button")
    olu.sees("is enqueued: a process of")
    olu.sees("rows/s")
    olu.sees("of about")
    olu.picture("maintenance")
    olu.act("Cancel the run", "it was the wrong week")
    wait_until(
        lambda: (
            database.value("select state from maintenance_runs where task = 'retention.orders'")
            == "cancelled"
        ),
        60,
    )
    olu.go("/maintenance?task=retention.orders")
    olu.sees("cancelled")
    assert 0 < database.value("select count(*) from shop.orders") < 20_000
    assert {row[0]: row[2] for row in acted(database)} == {
        "run_schedule": "the disk fills",
        "cancel_maintenance": "it was the wrong week",
    }


def test_a_backfill_is_checked_started_paused_and_taken_back(
    database: Database, shop: Daemon, people: Callable[..., Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.support.story_backfills  # noqa: F401 -- declares it, as the setting `actors` of the page would

    ada = people("admin")
    ada.go("/maintenance")
    row = ada.tab.get_by_role("row", name="lower_emails")
    assert "Addresses in small letters." in row.inner_text()
    row.get_by_role("link", name="Start").click()
    ada.tab.get_by_label("Why").fill("logins are compared in small letters")
    ada.click("Preview", "button")
    ada.sees("400 rows of shop.users. The first 400 were tried and taken back")
    assert database.value("select count(*) from shop.users where email = 'user@example.org'") == 0
    ada.click("Start", "button")
    ada.sees("Workers carry lower_emails")
    state = "select state from backfill_progress where name = 'lower_emails'"
    wait_until(
        lambda: database.value("select count(*) from shop.users where email = 'user@example.org'") > 0, 60
    )
    ada.go("/maintenance")
    ada.act("Pause", "a look at the load")
    wait_until(lambda: database.value(state) == "paused", 90)
    ada.go("/maintenance")
    ada.picture("backfill")
    ada.act("Resume", "looked")
    wait_until(lambda: database.value(state) == "verified", 120)
    ada.go("/maintenance")
    ada.click("Way back")
    ada.tab.get_by_label("Why").fill("the shop was not ready")
    ada.click("Preview", "button")
    ada.click("Way back", "button")
    ada.sees("lower_emails is taken back.")
    assert database.value("select count(*) from shop.users where email = 'user@example.org'") == 0
    assert database.value(state) == "rolled_back"


def test_a_queue_lets_tenants_take_turns_and_a_bad_limit_is_told_at_its_field(
    database: Database, people: Callable[..., Person]
) -> None:
    olu = people("operator")
    olu.go("/queues/default")
    olu.sees("are not told apart")
    olu.click("Change settings")
    limit = olu.tab.get_by_label("Starts per interval and concurrency key")
    limit.fill("0")
    olu.tab.get_by_label("Tenants take turns").select_option("true")
    olu.tab.get_by_label("Why").fill("one customer fills it")
    olu.click("Preview", "button")
    olu.sees("+rate_limit_per_key: 0")
    olu.click("Change settings", "button")
    olu.sees("rate_limit_per_key: 0 is out of range")
    assert olu.tab.locator("[aria-invalid=true]").get_attribute("name") == "rate_limit_per_key"
    assert olu.violations() == []
    assert database.query("select fair_share from queues where name = 'default'") == [(False,)]
    limit.fill("10")
    olu.tab.get_by_label("The interval of a key").fill("1 minute")
    olu.click("Preview", "button")
    olu.sees("+rate_interval_per_key: 1 minute")
    olu.sees("packhorse queue set default fair_share=true")
    olu.click("Change settings", "button")
    olu.sees("take turns (fair share)")
    olu.sees("10 starts per 00:01:00")
    assert [row[:3] for row in acted(database)] == [("set_queue", "olu", "one customer fills it")]
    olu.complaints = [said for said in olu.complaints if "400" not in said]  # the refusal, as it should be


def test_an_operator_is_refused_what_cannot_be_taken_back(
    database: Database, people: Callable[..., Person]
) -> None:
    enqueue(database, "send_reply", ["a", "b"])
    olu = people("operator")
    olu.go("/messages?where=queue%3Ddefault")
    olu.tab.get_by_text("Act on all that match").click()
    assert olu.tab.get_by_role("link", name="Move").count() and not olu.tab.locator("a.danger").count()
    for name in sorted(act.name for act in ACTS.values() if act.role is Role.ADMIN):
        olu.go(f"/acts/{name}?id=1&queue=default&where=queue%3Ddefault&name=x&worker=x")
        olu.sees("This needs the role admin; you are operator.")
    olu.complaints.clear()  # the browser reports each 403 itself


def test_a_chart_says_its_values_is_looked_at_closer_and_loads_quickly(
    database: Database, chromium: Any, people: Callable[..., Person]
) -> None:
    for number in enqueue(database, "send_reply", [f"m{place}" for place in range(7)]):
        database.query("select cancel_message(%s)", number)
    database.query("update message_archive set state = 'done', claimed_at = now() - interval '1 second'")
    vera = people("viewer")
    vera.go("/")
    chart = vera.tab.locator("[data-chart]")
    area = chart.locator(".u-over")
    box = wait_until(area.bounding_box)  # none in the moment of a refresh, which draws it anew
    vera.tab.mouse.move(box["x"] + box["width"] - 1, box["y"] + 20)
    assert "this minute" in chart.inner_text() and "7" in chart.locator(".u-legend").inner_text()
    chart.evaluate("place => place.dataset.seen = 'before'")
    vera.tab.locator("[data-chart]:not([data-seen])").wait_for()
    assert "this minute" in chart.inner_text(), "a refresh leaves what the pointer shows"
    vera.tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    assert "min ago" in chart.inner_text()
    vera.tab.mouse.down()
    vera.tab.mouse.move(box["x"] + box["width"] - 10, box["y"] + 30)
    vera.tab.mouse.up()
    vera.tab.locator("[data-chart][data-busy]").wait_for()
    area.dblclick()
    vera.tab.locator("[data-chart]:not([data-busy])").wait_for()
    fresh = chromium.new_context(storage_state=vera.context.storage_state()).new_page()
    fresh.goto(vera.page.url + "/", wait_until="load")
    fetched = fresh.evaluate(
        "['navigation', 'resource'].flatMap(kind => performance.getEntriesByType(kind))"
        ".map(each => each.transferSize).filter(size => size)"
    )
    assert len(fetched) >= 7 and sum(fetched) < 150_000, "a first load"
    plain = people("operator", scripts=False)
    plain.go("/")
    assert plain.tab.get_by_role("img", name="Messages done per minute").is_visible()


def test_keys_find_filter_walk_and_open(database: Database, people: Callable[..., Person]) -> None:
    first, second = enqueue(database, "send_reply", ["a", "b"])
    vera = people("viewer")
    vera.tab.keyboard.press("?")
    dialog = vera.tab.get_by_role("dialog", name="Keys")
    dialog.wait_for()
    vera.tab.keyboard.press("?")
    dialog.wait_for(state="hidden")
    for said in ("paused", "live"):
        vera.tab.keyboard.press("p")
        vera.tab.locator("#connection", has_text=said).wait_for()
    vera.tab.keyboard.press("g")
    vera.tab.keyboard.press("3")
    vera.tab.wait_for_url("**/messages")
    vera.tab.keyboard.press("/")
    vera.tab.keyboard.type("queue=def")
    assert vera.tab.locator("[data-filter]").input_value() == "queue=def"
    vera.tab.locator("datalist option[value='queue=default']").wait_for(state="attached")
    # leaving while its completions are on the way would be an error of the connection
    with vera.tab.expect_request_finished(lambda request: "queue%3Ddefault" in request.url):
        vera.tab.locator("[data-filter]").fill("queue=default")
    vera.tab.keyboard.press("Enter")
    vera.tab.wait_for_url("**/messages?where=*")
    vera.tab.locator("tbody tr").first.wait_for()
    vera.tab.locator("main").focus()
    for key, wanted in (("j", second), ("j", first), ("k", second)):
        vera.tab.keyboard.press(key)
        assert vera.tab.locator("tr.marked a").first.inner_text() == str(wanted)
    vera.tab.keyboard.press("Enter")
    vera.tab.wait_for_url(f"**/messages/{second}")
    moment = vera.tab.locator("main time").first
    assert moment.get_attribute("title").endswith("Z") and "ago" in moment.inner_text()


def test_a_narrow_window_keeps_its_place_over_a_refresh_and_words_whole(
    database: Database, people: Callable[..., Person]
) -> None:
    enqueue(database, "send_reply", ["a"])
    vera = people("viewer", width=360)
    vera.go("/messages")
    tall = vera.tab.evaluate(
        "document.querySelector('tbody tr').clientHeight / parseFloat(getComputedStyle(document.body).lineHeight)"
    )
    assert tall < 3, "no word of a row is broken into lines"
    vera.go("/queues")
    table = vera.tab.locator(".table").first
    table.evaluate("table => { table.scrollLeft = 60; table.dataset.seen = 'before'; }")
    vera.tab.locator(".table:not([data-seen])").first.wait_for()
    assert table.evaluate("table => table.scrollLeft") == 60
    for name in ("Overview", "Audit"):
        vera.go({"Overview": "/", "Audit": "/audit"}[name])
        box = vera.tab.locator("nav.main").get_by_role("link", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, f"{name} is in the window"


#: A browser without a window hides no tab: what the page hears of it is all that counts.
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_who_does_not_see_the_page_listens_to_nothing(page: Page, people: Callable[..., Person]) -> None:
    vera = people("viewer")
    listeners = page.server.page_frame.tickers["default"]._listeners
    wait_until(lambda: len(listeners) == 1, 60)
    vera.tab.evaluate(HIDE, True)
    wait_until(lambda: not listeners, 60)
    with vera.tab.expect_response(lambda answer: answer.request.headers.get("hx-request") == "true"):
        vera.tab.evaluate(HIDE, False)  # and refreshes at once
    wait_until(lambda: len(listeners) == 1, 60)


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


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True), (2560, False)])
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
    ada.picture({360: "overview-narrow-dark", 1280: "overview-quiet", 2560: "overview-wide"}[width])
    ada.complaints = [each for each in ada.complaints if "400" not in each]
    assert found == {}
