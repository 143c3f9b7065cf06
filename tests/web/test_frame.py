"""The frame: pages and fragments, errors as pages, files, several databases, a path of a proxy (SPEC O6)."""

from __future__ import annotations

import hashlib
import re

import psycopg
import pytest

from packhorse.worker.web.access import HEADERS
from packhorse.worker.web.render import FOLDER, STATIC


def test_the_overview_is_a_page_and_a_fragment(page):
    browser = page.browser()
    whole = browser.get("/")
    assert whole.status_code == 200 and "<h1>Overview</h1>" in whole.text and whole.text.count("<html") == 1
    assert "default" in whole.text, "the queue"
    part = browser.fragment("/")
    assert part.status_code == 200 and "<h1>Overview</h1>" in part.text and "<html" not in part.text


def test_every_answer_has_the_headers_errors_and_files_too(page):
    browser = page.browser()
    for path, status in [
        ("/", 200),
        ("/nothing", 404),
        ("/static/app.css", 200),
        ("/static/nothing", 404),
        ("/healthz", 200),
        ("/login", 200),
    ]:
        answer = browser.get(path)
        assert answer.status_code == status, path
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, path
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert (
        browser.get("/", headers={"Host": "evil.example"}).headers["Content-Security-Policy"]
        == HEADERS["Content-Security-Policy"]
    )


def test_there_is_no_inline_script_or_style_and_no_filter_that_ends_escaping():
    for path in sorted((FOLDER / "templates").rglob("*.html")):
        text = path.read_text()
        assert not re.search(
            r"<style|\sstyle=|<script(?![^>]*\ssrc=)|\son[a-z]+\s*=|javascript:|hx-on", text
        ), path.name
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", text), path.name
    for path in sorted(FOLDER.rglob("*.py")):
        for call in re.findall(r"Markup\((?!'|\"|\n\s*')[^)]*\)", path.read_text()):
            raise AssertionError(f"{path.name}: {call}: put values in by Markup.format")


def test_vendored_files_are_what_their_list_says():
    listed = {}
    for line in (STATIC / "vendor/VERSIONS").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version, licence, digest = line.split()
            listed[name] = digest
            text = (STATIC / "vendor" / name).read_text()
            assert version in text or name.endswith(".css"), "a style sheet does not say its version"
            assert (STATIC / "vendor" / licence).exists()
    there = {path.name for path in (STATIC / "vendor").iterdir() if path.suffix in (".js", ".css")}
    assert set(listed) == there
    assert {
        name: hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() for name in listed
    } == listed


@pytest.mark.parametrize("base", ["", "/packhorse"])
def test_every_link_and_file_of_a_page_is_below_the_path_of_the_proxy(database, open_page, base):
    page = open_page(database, web_base_path=base)
    browser = page.browser()
    html = browser.get("/").text
    links = re.findall(r'(?:href|src|action|hx-get|data-events)="([^"]*)"', html)
    assert len(links) > 5
    assert [link for link in links if not link.startswith((f"{base}/", "#"))] == []
    for link in re.findall(r'(?:href|src)="([^"#]*static[^"]*)"', html):
        assert browser.client.get(link).status_code == 200, link
    if base:
        assert browser.client.get("/").status_code == 404


def test_several_databases_have_names_in_their_paths(database, server, open_page):
    other = server.create_database()
    try:
        with other.session() as connection:
            connection.execute("select packhorse.declare_queue('only-here')")
        page = open_page(database, web_databases={"shop": database.url, "mail": other.url})
        browser = page.browser()
        assert browser.get("/").headers["location"] == "/shop/"
        assert "only-here" not in browser.get("/shop/").text
        html = browser.get("/mail/").text
        assert "only-here" in html and 'href="/shop/"' in html
        assert browser.get("/nowhere/").status_code == 404
        page.close()
    finally:
        other.drop()


@pytest.fixture
def shop_and_mail(database, server, open_page, tmp_path, monkeypatch):
    """A page of two databases with one packhorse.toml, and the second of them."""
    toml = tmp_path / "packhorse.toml"
    toml.write_text(
        '[retention.orders]\ntable = "public.orders"\ncolumn = "done_at"\nkeep = "7d"\n'
        f'[web_databases]\nshop = "{database.url}"\n'
    )
    monkeypatch.setenv("PACKHORSE_CONFIG", str(toml))
    other = server.create_database()
    yield open_page(database, web_databases={"shop": database.url, "mail": other.url}), other
    other.drop()


@pytest.mark.slow
def test_several_databases_share_one_file_and_their_maintenance_says_so(database, open_page, shop_and_mail):
    browser = shop_and_mail[0].browser()
    for name in ("shop", "mail"):
        html = browser.get(f"/{name}/maintenance").text
        assert "deletes where done_at is older than 7 days" in html, "what it does is said from the file"
        assert "not planned by a scheduler" in html
        assert (
            f"which all of its databases share: shop, mail. A scheduler of {name} with another file" in html
        )
    alone = open_page(database).browser().get("/maintenance").text
    assert "which all of its databases share" not in alone and "deletes where done_at" in alone
    shop_and_mail[0].close()


@pytest.mark.slow
def test_of_several_databases_tokens_are_those_of_the_first_and_acts_those_of_each(database, shop_and_mail):
    page, other = shop_and_mail
    browser = page.browser(page.token("operator", "olu"))
    answer = browser.post(
        "/mail/acts/queue.pause",
        {"queue": "default", "step": "do", "reason": "a look"},
        form_on="/mail/acts/queue.pause?queue=default",
    )
    assert answer.status_code == 303 and answer.headers["location"].startswith("/mail/queues/default")
    paused = "select paused_by from queues where name = 'default'"
    audit = "select action, operator, reason from operator_actions where action = 'pause_queue'"
    with other.session() as connection:
        assert connection.execute(paused).fetchone() == ("olu",)
        assert connection.execute(audit).fetchall() == [("pause_queue", "olu", "a look")]
    assert database.query(paused) == [(None,)] and database.query(audit) == []
    assert browser.get("/mail/acts/queue.delete?queue=default").status_code == 403, "an operator here as well"
    assert "a look" in browser.get("/mail/audit").text and "a look" not in browser.get("/shop/audit").text
    page.close()


def test_a_number_in_the_address_that_is_none_is_an_error_that_names_it(page):
    from packhorse.worker.errors import InvalidArgument
    from packhorse.worker.web.access import Role, Visitor
    from packhorse.worker.web.screens import Query

    visitor = Visitor("v", Role.VIEWER, "", "session")
    assert Query({"id": "12"}, {}, visitor).integer("id") == 12
    for given in ("-1", "x", "9" * 30, "٣", "1 or 1=1"):
        with pytest.raises(InvalidArgument, match="id: "):
            Query({"id": given}, {}, visitor).integer("id")


def test_pages_and_files_come_compressed_and_the_event_stream_does_not(page):
    browser = page.browser()
    for path in ("/", "/static/app.css", "/static/vendor/htmx.min.js"):
        with browser.client.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip", path
            assert "Accept-Encoding" in answer.headers["Vary"], path
            sent = sum(map(len, answer.iter_raw()))
            assert sent < len(browser.get(path, headers={"Accept-Encoding": "identity"}).content) * 0.6, path
    with browser.client.stream("GET", "/live", headers={"Accept-Encoding": "gzip"}) as events:
        assert "Content-Encoding" not in events.headers
        assert next(events.iter_lines()) == "retry: 3000", "at once, before the first tick"


def test_a_form_token_is_another_text_each_time_so_that_no_compressed_page_tells_it(page):
    browser = page.browser(page.token("operator"))
    first, second = (
        browser.csrf("/acts/queue.pause?queue=default"),
        browser.csrf("/acts/queue.pause?queue=default"),
    )
    assert first[:16] != second[:16] and first[16:] != second[16:]
    for token in (first, second):
        assert browser.post("/acts/queue.pause", {"queue": "default", "csrf": token}).status_code == 303
    mixed = {"queue": "default", "csrf": first[:16] + second[16:]}
    assert browser.post("/acts/queue.pause", mixed).status_code == 403


def test_every_screen_says_where_it_is_in_the_navigation(page, database):
    """aria-current: `page` on a screen of the navigation, `true` on that which a detail belongs to."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        message = connection.execute(
            "insert into packhorse.message_queue (queue, message_type, payload, run_at, created_at) "
            "values ('default', 't', '{}', now(), now()) returning id"
        ).fetchone()[0]
    browser = page.browser()
    for path, mark, where in [
        ("/", "page", "Overview"),
        ("/queues", "page", "Queues"),
        ("/queues/default", "true", "Queues"),
        (f"/messages/{message}", "true", "Messages"),
        ("/dead-letters/groups/none", "true", "Dead letters"),
        ("/audit", "page", "Audit"),
    ]:
        nav = browser.get(path).text.split('<nav class="main"')[1].split("</nav>")[0]
        assert re.findall(r'aria-current="(\w+)">([^<]+)<', nav) == [(mark, where)], path
