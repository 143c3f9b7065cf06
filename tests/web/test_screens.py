"""Every screen: with nothing, with something, with what an enemy wrote (SPEC O6, FAILURES 73)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from packhorse.worker.exits import EXIT_FAILED, EXIT_OK
from packhorse.worker.store import browse
from packhorse.worker.web.access import Role, Visitor
from packhorse.worker.web.acts import ACTS
from packhorse.worker.web.pages import SCREENS, message, partitions
from tests.support.cli import Cli
from tests.support.furnished import BLOCKED, DEAD, DONE, HOSTILE, RUNNING, SCHEDULED, WAITING, furnish
from tests.support.page import Browser, Page
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

#: An address of each screen, by its path; several where one shows different things.
ADDRESSES = {
    "/": ["/"],
    "/queues": ["/queues"],
    "/queues/{name}": ["/queues/default", "/queues/nobody"],
    "/messages": [
        "/messages",
        "/messages?where=state%3Ddead",
        "/messages?where=queue%3D",
        "/messages?where=payload.n%3E1",
    ],
    "/messages/{id}": [
        f"/messages/{number}" for number in (DEAD, DONE, RUNNING, WAITING, BLOCKED, SCHEDULED)
    ],
    "/completions": ["/completions", "/completions?where=queue%3D", "/completions?where=error%3D&of=dead"],
    "/conversations": ["/conversations", "/conversations?key={key}", "/conversations?key={key}&before=99"],
    "/dead-letters": [
        "/dead-letters",
        "/dead-letters?where=attempts%3E1",
        "/dead-letters?where=state%3Ddead",
    ],
    "/dead-letters/groups/{fingerprint}": ["/dead-letters/groups/cause"],
    "/dead-letters/{id}": [f"/dead-letters/{DEAD}"],
    "/workers": ["/workers"],
    "/schedules": ["/schedules"],
    "/schedules/{name}": ["/schedules/hourly", "/schedules/often"],
    "/maintenance": ["/maintenance", "/maintenance?task=retention.events"],
    "/partitions": ["/partitions"],
    "/services": ["/services"],
    "/database": ["/database"],
    "/audit": ["/audit", f"/audit?message={WAITING}", "/audit?operator={key}"],
}


def addresses(key: str) -> Iterator[str]:
    for screen in SCREENS:
        for address in ADDRESSES[screen.path]:
            yield address.replace("{key}", quote(key, safe=""))


def shown(browser: Browser, address: str) -> str:
    answer = browser.get(address)
    assert answer.status_code == 200, f"{address}: {answer.status_code} {answer.text[:2000]}"
    assert "Old data" not in answer.text, address
    return answer.text


def words(html: str) -> str:
    """What a person reads."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_empty_screens_say_what_would_be_there(page: Page) -> None:
    browser = page.browser()
    for address, said in {
        "/messages": "There is no message yet.",
        "/messages?where=queue%3Dother": "No message matches.",
        "/conversations": "No conversation waits.",
        "/conversations?key=nobody": "No message of this conversation.",
        "/dead-letters": "There are no dead letters.",
        "/dead-letters?where=queue%3Dother": "No dead letter matches.",
        "/dead-letters/groups/gone": "No letter of this cause is left.",
        "/workers": "No worker process is known",
        "/schedules": "No schedule yet",
        "/maintenance": "not planned by a scheduler",
        "/services": "No service has been declared today",
        "/audit": "Nobody has changed anything yet",
    }.items():
        assert said in words(shown(browser, address)), address


@pytest.mark.parametrize("role", ["viewer", "admin"])
def test_hostile_texts_are_texts_on_every_screen(database: Database, page: Page, role: str) -> None:
    furnish(database, HOSTILE)
    browser = page.browser(page.token(role))
    without = set()
    for address in addresses(HOSTILE[:500]):
        html = shown(browser, address)
        assert "alert(1)</script>" not in html and "<img" not in html and "</textarea>" not in html, address
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html), address
        if "&lt;script&gt;" not in html:
            without.add(address)
    quiet = {
        "/",
        "/queues",
        "/queues/default",
        "/queues/nobody",
        "/database",
        "/completions",
        "/completions?where=queue%3D",
        f"/messages/{SCHEDULED}",
        "/schedules/often",
        "/messages?where=queue%3D",
        "/messages?where=payload.n%3E1",
        "/dead-letters?where=state%3Ddead",
    }
    if role == "viewer":
        quiet.add("/conversations")  # keys alone
    assert without <= quiet, "the hostile text is on the others, as text"
    assert "{{7*7}}{% raise %}${7*7}\\u001b[2J\\u202egnp.exe\\u2066" in unescape(
        shown(browser, f"/messages/{WAITING}")
    )


def test_no_screen_shows_values_of_payloads_and_steps_to_anybody(database: Database, page: Page) -> None:
    furnish(
        database, payload={"customer": "ada@example.com", "pin": 840275913, "deep": [{"note": "qzxmark"}]}
    )
    database.query(
        "update dead_letters set steps = %s::jsonb",
        '{"sent": {"value": "qzxmark", "attempt": 1, "at": "2026-11-30T04:00:00Z"}}',
    )
    database.query(
        "update operator_actions set details = %s::jsonb",
        '{"before": {"note": "qzxmark"}, "after": {"note": "qzxmark"}, "queue": "default"}',
    )
    browser = page.browser(page.token("admin"))
    for address in addresses("plain words"):
        html = shown(browser, address)
        assert "qzxmark" not in html and "840275913" not in html and "ada@example.com" not in html, address
    assert "customer" in words(shown(browser, f"/messages/{WAITING}")), "names are shown"
    assert "15 characters" in words(shown(browser, f"/messages/{WAITING}"))


#: Quotes a payload: a name, which no pattern finds, and a phone number.
QUOTED = "no room for Zanzibar Smith, call +250788123456"


def with_quoted_payload(database: Database) -> None:
    """Errors everywhere whose texts, and nothing else, are QUOTED."""
    furnish(database, QUOTED)
    texts = "conversation_key = null, concurrency_key = null, correlation_id = null, steps = null, payload = '{}', options = '{}'"
    history = (
        'select jsonb_agg(e || \'{"error_class": "E", "error_code": "c"}\') from jsonb_array_elements(history) e'
        " where jsonb_typeof(e) = 'object' and e ? 'traceback'"
    )
    database.query(
        f"update dead_letters set {texts}, error_class = 'E', error_code = null, error_details = null, history = ({history})"
    )
    error = "error = error - 'code' - 'details' || '{\"class\": \"E\"}'"
    database.query(f"update message_queue set {texts}, dedup_key = null, {error}, history = ({history})")
    archived = texts.replace(" concurrency_key = null,", "").replace(" steps = null,", "")
    database.query(f"update message_archive set {archived}, reason = null, {error}, history = ({history})")
    for table in ("operator_actions", "scopes", "daemon_requests", "backfills", "detached_partitions"):
        database.query(f"delete from {table}")
    database.query("update maintenance_runs set gate = null, triggered_by = 'ann'")
    database.query("update maintenance_tasks set policy = '{}'")
    database.query("update schedule_runs set triggered_by = 'ann'")
    database.query("update workers set hostname = 'h', problems = '{}'")
    database.query("update service_endpoints set endpoint = 'a'")


#: Where texts of errors stand.
TELLING = (
    "/dead-letters",
    "/dead-letters/groups/cause",
    f"/dead-letters/{DEAD}",
    f"/messages/{DEAD}",
    f"/messages/{DONE}",
    f"/messages/{RUNNING}",
    f"/messages/{WAITING}",
    f"/messages/{BLOCKED}",
    "/services",
)


def test_texts_of_errors_are_hidden_from_viewers_and_without_personal_data_for_others(
    database: Database, page: Page
) -> None:
    with_quoted_payload(database)
    browsers = {role: page.browser(page.token(role)) for role in ("viewer", "operator", "admin")}
    for address in (*addresses("nobody"), f"/messages/{BLOCKED}"):
        seen = {
            role: [unescape(shown(browser, address)), unescape(browser.fragment(address).text)]
            for role, browser in browsers.items()
        }
        for role, htmls in seen.items():
            for html in htmls:
                # what schedules and maintenance say is of the operators' own work
                if role == "viewer" or not address.startswith(("/schedules", "/maintenance", "/workers")):
                    assert "+250788123456" not in html, (role, address)
        if address.startswith(("/schedules", "/maintenance", "/workers")):
            continue
        assert not any("Zanzibar" in html for html in seen["viewer"]), address
        if address in TELLING:
            assert f"••• {len(QUOTED)} characters" in words(seen["viewer"][0]), address
            assert "Zanzibar Smith, call +250788***456" in words(seen["operator"][0]), address
            assert "Zanzibar Smith, call +250788***456" in words(seen["admin"][0]), address


def test_a_whole_error_is_revealed_with_its_message_and_that_is_recorded(
    database: Database, page: Page
) -> None:
    with_quoted_payload(database)
    operator = page.browser(page.token("operator", "olu"))
    for number in (DEAD, WAITING, DONE):
        form = f"/acts/message.reveal?id={number}"
        answer = operator.post(
            "/acts/message.reveal", {"id": number, "reason": "a call", "step": "do"}, form_on=form
        )
        assert answer.status_code == 200, answer.text
        said = words(answer.text)
        assert f"Text of its last error {QUOTED}" in said
        assert said.count(QUOTED) >= 3, "the text, and those of the attempts with a traceback"
        assert ("Traceback" in said.replace("traceback", "")) == (number == DEAD)
    assert database.query(
        "select operator, reason, message_id from operator_actions where action = 'reveal_message' order by id"
    ) == [("olu", "a call", number) for number in (DEAD, WAITING, DONE)]


def test_why_the_database_refuses_a_completion_is_not_for_viewers(database: Database, page: Page) -> None:
    with_quoted_payload(database)
    database.query("update message_queue set completion_refused_at = now() where id = %s", RUNNING)
    viewer, operator = page.browser(page.token("viewer")), page.browser(page.token("operator"))
    said = words(shown(viewer, f"/messages/{RUNNING}"))
    assert "the database refused to write that. It does not run again" in said
    assert "refused to write that: no room for Zanzibar" in words(shown(operator, f"/messages/{RUNNING}"))
    assert "Zanzibar" not in words(shown(viewer, "/"))


def test_what_a_worker_cannot_do_is_shown_to_viewers_as_in_the_log(database: Database, page: Page) -> None:
    furnish(database)
    database.query("update workers set problems = '{claim of +250788123456 fails}'")
    viewer, operator = page.browser(page.token("viewer")), page.browser(page.token("operator"))
    for address in ("/", "/workers"):
        html = unescape(shown(viewer, address))
        assert "claim of +250788***456 fails" in html and "+250788123456 fails" not in html, address
        assert "claim of +250788123456 fails" in unescape(shown(operator, address)), address


def test_a_correlation_id_that_looks_personal_is_shown_to_viewers_as_in_the_log(
    database: Database, page: Page
) -> None:
    furnish(database)
    database.query("update message_queue set correlation_id = '+250788123456' where id = %s", WAITING)
    viewer, operator = page.browser(page.token("viewer")), page.browser(page.token("operator"))
    html = shown(viewer, f"/messages/{WAITING}")
    assert "250788123456" not in html and "+250788***456" in html
    assert "+250788123456" in shown(operator, f"/messages/{WAITING}")
    assert "is compared exactly" in shown(viewer, "/messages?where=correlation%3D%2B25*")
    assert f'href="/messages/{WAITING}"' in shown(
        viewer, "/messages?where=correlation%3D%22%2B250788123456%22"
    )


def test_a_large_payload_is_a_small_page(database: Database, page: Page) -> None:
    furnish(database, payload={"text": "\u202e" * 230_000, "many": list(range(20_000))})
    browser = page.browser()
    for address in addresses("plain words"):
        answer = browser.get(address)
        assert answer.status_code == 200 and len(answer.content) < 600_000, (address, len(answer.content))
    assert "which is not shown" in shown(browser, f"/messages/{WAITING}")


def test_a_message_says_why_it_does_not_run(database: Database, page: Page) -> None:
    furnish(database)
    browser = page.browser()
    blocked = words(shown(browser, f"/messages/{BLOCKED}"))
    assert f"does not start: conversation: held by message {RUNNING} (running)" in blocked
    assert "note steps" in blocked and "in line rank" in blocked
    assert "scope" in blocked and "actor:effect is parked until" in blocked
    running = words(shown(browser, f"/messages/{RUNNING}"))
    assert "held by plain words:4242" in running
    scheduled = shown(browser, f"/messages/{SCHEDULED}")
    assert (
        'href="/schedules/hourly"' in scheduled
        and "0af7651916cd43dd8448eb211c80319c" in scheduled
        and "nobody has declared it" in unescape(scheduled)
    )
    assert "ended exists" in words(shown(browser, f"/messages/{DONE}")), "nothing stops what has ended"
    assert f'href="/dead-letters/{DEAD}"' in shown(browser, f"/messages/{DEAD}")


def test_a_conversation_in_order_and_what_holds_it(database: Database, page: Page) -> None:
    furnish(database)
    html = shown(page.browser(), "/conversations?key=plain%20words")
    assert "2 messages wait" in words(html) and f"message {RUNNING} runs" in words(html)
    assert [int(number) for number in re.findall(r'<td class="right"><a href="/messages/(\d+)"', html)] == [
        DEAD,
        DONE,
        RUNNING,
        WAITING,
        BLOCKED,
    ]


def test_the_filter_bar_says_what_is_wrong_and_keeps_what_was_written(page: Page) -> None:
    html = shown(page.browser(), "/messages?where=quue%3Ddefault")
    assert "there is no field" in unescape(html) and "Did you mean 'queue'?" in unescape(html)
    assert 'value="quue=default"' in html and 'aria-invalid="true"' in html


def test_pages_of_messages_are_addresses_that_keep_the_filter(database: Database, page: Page) -> None:
    database.query(
        "insert into message_queue (id, queue, message_type) select n, 'default', 'effect' from generate_series(1, 120) n"
    )
    browser = page.browser()
    seen: list[int] = []
    address = "/messages?where=state%3Dpending"
    for _ in range(3):
        html = unescape(shown(browser, address))
        assert "120 messages match" in words(html)
        seen += [int(number) for number in re.findall(r'<td class="right"><a href="/messages/(\d+)"', html)]
        older = re.search(r'href="(/messages\?[^"]*before=\d+[^"]*)" rel="next"', html)
        if older:
            assert "where=state%3Dpending" in older[1]
            address = older[1]
    assert seen == list(range(120, 0, -1)) and older is None
    newer = re.search(r'href="(/messages\?[^"]*after=\d+[^"]*)" rel="prev"', html)
    assert newer and "where=state%3Dpending" in newer[1]


@pytest.mark.parametrize(
    "address, status",
    [
        ("/messages/9999", 404),
        ("/messages/x", 400),
        ("/dead-letters/9999", 404),
        ("/dead-letters/x", 400),
        ("/queues/other", 400),
        ("/schedules/other", 400),
        ("/messages?before=x", 400),
        ("/messages?before=99999999999999999999", 400),
        ("/conversations?key=%00", 400),
        ("/dead-letters/groups/%3Cx%3E", 400),
        ("/audit?message=x", 400),
    ],
)
def test_an_address_of_nothing_is_a_page_that_says_so(page: Page, address: str, status: int) -> None:
    answer = page.browser().get(address)
    assert answer.status_code == status and "<h1>" in answer.text


@pytest.mark.parametrize(
    "where, of, found",
    [
        ("", "messages", "queue="),
        ("qu", "messages", "queue="),
        ("state=pending ag", "messages", "state=pending age>"),
        ("queue=def", "messages", "queue=default"),
        ("state=pending,de", "messages", "state=pending,dead"),
        ("type=eff", "messages", "type=effect"),
        ("error=pl", "dead", "error=plain words"),
        ("age>", "dead", "age>2h"),
        ("state", "dead", None),
        ("nonsense=", "messages", None),
    ],
)
def test_the_filter_is_completed(
    database: Database, page: Page, where: str, of: str, found: str | None
) -> None:
    furnish(database)
    options = [
        unescape(text)
        for text in re.findall(
            r'<option value="([^"]*)"', shown(page.browser(), f"/completions?of={of}&where={quote(where)}")
        )
    ]
    assert found in options if found else options == []


def test_every_screen_has_an_address_here_and_its_links_lead_somewhere(
    database: Database, page: Page
) -> None:
    furnish(database)
    assert set(ADDRESSES) == {screen.path for screen in SCREENS}
    browser = page.browser()
    links = {
        link
        for address in addresses("plain words")
        for link in map(unescape, re.findall(r'(?:href|hx-get)="(/[^"#]*)"', shown(browser, address)))
    }
    assert len(links) > 40
    for link in sorted(links - set(addresses("plain words"))):
        answer = browser.get(link)
        assert answer.status_code == 200 and "where-problem" not in answer.text, link


def forms(**targets: str) -> Iterator[str]:
    """The form of each act, with its targets filled in."""
    for act in ACTS.values():
        given = {each.name: targets[each.name] for each in act.targets if each.name in targets}
        yield f"{act.path}?{urlencode(given)}"


def test_every_link_of_every_screen_and_form_stays_below_the_path_of_the_proxy(
    database: Database, open_page: Callable[..., Page]
) -> None:
    furnish(database)
    page = open_page(database, web_base_path="/packhorse")
    browser = page.browser(page.token("admin"))
    assert {cookie.path for cookie in browser.client.cookies.jar} == {"/packhorse"}
    found: set[str] = set()
    for address in [
        *addresses("plain words"),
        "/progress",
        *forms(id=str(WAITING), queue="default", schedule="hourly"),
    ]:
        for answer in (browser.get(address), browser.fragment(address)):
            if "/acts/" not in address:
                assert answer.status_code == 200, address
            found |= set(
                re.findall(r'(?:href|src|action|formaction|hx-[a-z]+|data-events)="(/[^"]*)"', answer.text)
            )
    assert len(found) > 100 and [link for link in found if not link.startswith("/packhorse/")] == []
    with browser.client.stream("GET", "/packhorse/live") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        assert next(events.iter_lines()).startswith("retry")
    assert browser.client.get("/live").status_code == 404
    form = "/acts/schedule.pause?schedule=hourly"
    answer = browser.post("/acts/schedule.pause", {"schedule": "hourly", "step": "do"}, form_on=form)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/packhorse/schedules/hourly?said=")


def test_hostile_texts_are_texts_on_every_form(database: Database, page: Page) -> None:
    furnish(database, HOSTILE)
    browser = page.browser(page.token("admin"))
    token = browser.csrf("/")
    seen = 0
    for act in ACTS.values():
        numbers = {"id": str(WAITING if act.name.startswith("message.") else DEAD)}
        given = {each.name: numbers.get(each.name, HOSTILE) for each in act.fields}
        origin = {"Origin": f"http://127.0.0.1:{page.port}"}
        answers = [browser.get(f"{act.path}?{urlencode(given)}")]
        for step in ("load", "preview"):
            if act.load if step == "load" else act.preview:
                fields = {**given, "step": step, "csrf": token, "reason": HOSTILE}
                answers.append(browser.client.post(act.path, data=fields, headers=origin))
        for answer in answers:
            assert answer.status_code in (200, 400, 404, 409), f"{act.name}: {answer.status_code}"
            html = answer.text
            assert "alert(1)</script>" not in html and "<img" not in html, act.name
            assert html.count("</textarea>") == html.count("<textarea"), act.name
            # what the visitor wrote himself stays in its field as it is
            said = re.sub(r'value="[^"]*"|<textarea.*?</textarea>', "", html, flags=re.DOTALL)
            harm = re.search(".{0,80}[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", said, re.S)
            assert not harm, (act.name, harm[0])
            seen += "&lt;script&gt;" in html
    assert seen > len(ACTS)


def test_the_other_screens_say_what_is_there(database: Database, page: Page) -> None:
    furnish(database)
    database.query(
        "insert into message_queue (id, queue, message_type, state, lease_holder, lease_token, lease_expires_at, claimed_at)"
        " values (99, 'default', 'effect', 'running', gen_random_uuid(), 8, now() - interval '1 minute', now())"
    )
    browser = page.browser()
    queues = words(shown(browser, "/queues"))
    assert "5 at once, 1 per key, 10 starts per 00:00:01, parks a type after 9 failures" in queues
    assert "nobody ! not declared" in queues and "default" in queues
    workers = words(shown(browser, "/workers"))
    assert (
        "0 of 4 slots busy. 1 process of 0.1.0" in workers
        and "plain words:4242" in workers
        and "! asked: quiet" in workers
    )
    assert (
        workers.index("plain words:4242")
        < workers.index(f" {RUNNING} effect")
        < workers.index("Held by nobody known")
        < workers.index(" 99 effect")
    )
    assert "lease is over" in workers
    schedules = words(shown(browser, "/schedules"))
    assert "hourly ✕ problem plain words" in schedules and schedules.count("often") == 10, (
        "nine of the next ten, and its line"
    )
    assert schedules.count("and on by its cron expression") == 1
    assert words(shown(browser, "/schedules/often")).count("Z ·") == 10
    hourly = words(shown(browser, "/schedules/hourly"))
    assert (
        "run once for all that were missed" in hourly
        and "packhorse schedule next hourly" in hourly
        and f"{SCHEDULED}" in hourly
    )
    maintenance = shown(browser, "/maintenance")
    assert (
        "held by plain words" in words(maintenance)
        and "30 of 40 rows of plain words" in words(maintenance)
        and '<progress max="1" value="0.7500"' in maintenance
    )
    assert "retention.events ✕ failed" in words(maintenance)
    assert (
        "backfill.people"
        not in words(shown(browser, "/maintenance?task=retention.events")).partition("Runs of")[2]
    )
    archive = words(shown(browser, "/partitions"))
    assert (
        "message_archive" in archive
        and "Inserts find a partition until" in archive
        and "made by the day" in archive
    )
    services = words(shown(browser, "/services"))
    assert "whatsapp plain words ✕ open" in services and re.search("actor:effect .*! parked", services)
    found = words(shown(browser, "/database"))
    assert "PostgreSQL" in found and "message_queue" in found and "web" in found
    letters = words(shown(browser, "/dead-letters"))
    assert "1 dead letter of 1 cause" in letters


def test_the_timeline_of_a_table_is_to_scale() -> None:
    def row(name: str, lower: str | None, upper: str | None, rows: float = 1.0) -> dict[str, object]:
        return {
            "partition": name,
            "lower_bound": lower,
            "upper_bound": upper,
            "estimated_rows": rows,
            "bytes": 8192,
            "is_default": lower is None,
            "detach_pending": False,
        }

    table = partitions.table_of(
        "t",
        [
            row("a", "2026-01-01", "2026-01-02"),
            row("b", "2026-01-02 00:00:00+00", "2026-01-05 00:00:00+00"),
            row("rest", None, None),
        ],
        None,
        datetime(2026, 1, 3, tzinfo=UTC),
    )
    assert [(bar.name, bar.x, bar.width) for bar in table.bars] == [("a", 0, 249), ("b", 250, 749)]
    assert (
        table.now,
        table.bytes,
        table.rows,
        table.has_default,
        [other["partition"] for other in table.others],
    ) == (500, 3 * 8192, 3.0, True, ["rest"])
    late = partitions.table_of(
        "t", [row("a", "2026-01-01", "2026-01-02")], None, datetime(2026, 1, 5, tzinfo=UTC)
    )
    assert (late.now, late.bars[0].width) == (1000, 249), "the runway is over"
    nothing = partitions.table_of(
        "t",
        [{"partition": None, "lower_bound": None, "upper_bound": None}],
        None,
        datetime(2026, 1, 5, tzinfo=UTC),
    )
    assert (nothing.bars, nothing.now, nothing.bytes) == ((), None, 0)
    ranges = partitions.table_of("t", [row("a", "1", "100")], None, datetime(2026, 1, 5, tzinfo=UTC))
    assert ranges.bars == () and len(ranges.others) == 1, "bounds that are no times"


def test_an_entry_of_a_history_that_nobody_wrote_by_the_rules_is_shown_as_far_as_it_can_be() -> None:
    ada = Visitor("ada", Role.ADMIN, "", "loopback")
    found = message.attempts_of(
        [{"attempt": "x", "at": "yesterday", "event": None}, 5, None, {"event": "retry", "error_class": "E"}],
        ada,
    )
    assert [(entry.event, entry.number, entry.at, entry.is_failure) for entry in found] == [
        ("retry", None, None, True),
        ("unknown", None, "yesterday", False),
    ]
    assert message.attempts_of({"not": "a list"}, ada) == () == message.attempts_of(None, ada)


def test_the_command_beside_a_screen_is_one_that_the_command_line_knows(
    database: Database, page: Page, tmp_path: Path
) -> None:
    furnish(database)
    browser, cli = page.browser(), Cli(tmp_path, database.url)
    commands = set()
    for address in (*addresses("plain words"), "/messages?where=queue%3Ddefault+key%3D%22plain+words%22"):
        commands |= {
            unescape(text)
            for text in re.findall(
                r'<div class="head">.*?<code class="cli"[^>]*>(packhorse [^<]*)</code>',
                shown(browser, address),
                re.DOTALL,
            )
        }
    assert len(commands) > 20
    for command in sorted(commands):
        ran = cli(*shlex.split(command)[1:])
        assert ran.code in (EXIT_OK, EXIT_FAILED), f"{command}: {ran.code} {ran.err}"


def test_every_screen_needs_no_more_than_the_rights_of_a_reader(
    database: Database, open_page: Callable[..., Page]
) -> None:
    furnish(database)
    page = open_page(database, web_databases={"shop": database.admin_url, "mail": database.admin_url})
    browser = page.browser()
    for address in addresses("plain words"):
        shown(browser, f"/shop{address}")
    assert page.sites[0]._begin == "web_begin_as_reader"


def with_keys(database: Database) -> str:
    """Furnished, and every message with keys that name a person, one of which an error quotes."""
    key = "Zanzibar 77"
    furnish(database)
    for table in ("message_queue", "message_archive", "dead_letters"):
        database.query(
            f"update packhorse.{table} set conversation_key = %s where conversation_key is not null", key
        )
    for table in ("message_queue", "dead_letters"):
        database.query(f"update packhorse.{table} set concurrency_key = %s", f"of {key}")
    database.query("update packhorse.dead_letters set error_message = %s, traceback = %s", key, f"at {key}")
    return key


def test_no_screen_shows_a_viewer_a_key_nor_leads_him_to_an_address_with_one(
    page: Page, database: Database
) -> None:
    """A conversation key may be a phone number: it is masked as payloads are, in lists, texts and links."""
    key = with_keys(database)
    operator, viewer = page.browser(page.token("operator")), page.browser(page.token("viewer"))
    followed = []
    for address in addresses("nobody"):
        for html in (shown(viewer, address), viewer.fragment(address).text):
            assert "Zanzibar" not in unescape(html).replace("+", " "), address
            followed += re.findall(r'href="(/conversations\?of=\d+)">••• ([0-9a-f]{6})</a>', html)
    assert len({label for _, label in followed}) == 1, "messages of one conversation are seen to be of one"
    html = shown(viewer, followed[0][0])
    assert f"Conversation ••• {followed[0][1]}</h1>" in html and "Zanzibar" not in html
    assert f'href="/messages/{BLOCKED}"' in html, "it is the conversation itself"
    assert key in shown(operator, f"/messages/{BLOCKED}") and key in shown(operator, followed[0][0])
    assert viewer.get("/conversations?of=999999").status_code == 404


def test_a_viewer_asks_for_what_he_knows_and_cannot_feel_his_way_to_what_he_does_not(
    page: Page, database: Database
) -> None:
    key = with_keys(database)
    operator, viewer = page.browser(page.token("operator")), page.browser(page.token("viewer"))
    exactly = "/messages?where=" + quote(f'key="{key}"')
    assert f'href="/messages/{BLOCKED}"' in shown(viewer, exactly)
    for term in ("key=Zan*", "payload.n>1", "payload.name=a*", "concurrency=of*", "payload.n<=5"):
        path = "/dead-letters" if term.startswith("concurrency") else "/messages"
        address = f"{path}?where={quote(term)}"
        assert "is compared exactly by viewers" in shown(viewer, address), term
        assert "is compared exactly" not in shown(operator, address), term


def test_bounds_and_estimates_of_dead_letters_are_said(
    database: Database, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(database)
    browser = page.browser()
    assert "1 dead letter of 1 cause." in words(shown(browser, "/dead-letters"))
    monkeypatch.setattr(browse, "MOST_LETTERS", 0)
    monkeypatch.setattr(browse, "NEWEST_LETTERS", 0)
    page.sites[0].forget()
    assert "1 dead letter of 1 cause, among the newest 0" in words(
        shown(browser, "/dead-letters?where=attempts%3E0")
    )
    assert "None of the newest 0 dead letters matches" in words(
        shown(browser, "/dead-letters?where=attempts%3E99")
    )
    assert "0 letters or more" in words(shown(browser, "/dead-letters/groups/cause"))
    monkeypatch.setattr(browse, "MOST_CAUSES", 1)
    assert "other causes are not shown" in words(shown(browser, "/dead-letters"))
