"""Who may what: hosts, ways, tokens, sessions, proxies, origins, logins (SPEC O6, FAILURES 74)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from packhorse.worker.errors import ConfigError
from packhorse.worker.store import tokens
from packhorse.worker.web import serve
from packhorse.worker.web.access import CHECK_SECONDS, COOKIE, FAILURE_SECONDS, MOST_FAILURES, SESSION_SECONDS
from packhorse.worker.web.app import ROUTES

pytestmark = pytest.mark.slow


def test_on_loopback_nobody_logs_in_until_there_is_a_token(page):
    stranger = page.browser()
    assert stranger.get("/").status_code == 200
    token = page.token("viewer", "vera")
    answer = stranger.get("/?a=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?then=%2F%3Fa%3D1")
    vera = page.browser(token)
    assert "vera" in vera.get("/").text


def test_a_role_of_a_token_is_what_its_session_may(page):
    for role in ("viewer", "operator", "admin"):
        assert f'<span class="badge">{role}</span>' in page.browser(page.token(role)).get("/").text


def test_a_host_that_is_not_ours_is_refused(page):
    browser = page.browser()
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil",
        "[::2]",
        "localhost:80:80",
        "",
    ):
        answer = browser.get("/", headers={"Host": host})
        assert answer.status_code in (400, 421) and "default" not in answer.text, host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8400", "[::1]:8400"):
        assert browser.get("/", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"web_host": "0.0.0.0", "web_hosts": ("q.example",)}, "web_insecure"),
        ({"web_host": "0.0.0.0", "web_insecure": True}, "web_hosts"),
        ({"web_host": "0.0.0.0", "web_hosts": ("q.example",), "web_insecure": True}, "web_host"),
        ({"web_host": "::", "web_hosts": ("q.example",), "web_trusted_proxies": ("10.0.0.0/8",)}, "web_host"),
    ],
)
def test_beyond_loopback_it_does_not_start_open(database, open_page, settings, field):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        open_page(database, **settings)


def test_without_a_form_of_ours_nothing_is_changed(page):
    """Walks the table of routes: no route that changes something may be left out."""
    admin = page.browser(page.token("admin"))
    good = admin.csrf("/")
    changing = [entry for entry in ROUTES if entry.method != "GET"]
    assert changing
    origin = f"http://127.0.0.1:{page.port}"
    for entry in changing:
        assert entry.method == "POST"
        path = entry.path.replace("{", "").replace("}", "")
        for name, fields, headers in [
            ("no token", {}, {"Origin": origin}),
            ("a wrong token", {"csrf": "0" * 64}, {"Origin": origin}),
            ("no origin", {"csrf": good}, {}),
            ("another origin", {"csrf": good}, {"Origin": "https://evil.example"}),
            ("another port", {"csrf": good}, {"Origin": "http://127.0.0.1:1"}),
            ("a null origin", {"csrf": good}, {"Origin": "null"}),
            ("another site", {"csrf": good}, {"Origin": origin, "Sec-Fetch-Site": "cross-site"}),
        ]:
            answer = admin.client.post(path, data=fields, headers=headers)
            assert answer.status_code in (403, 415), f"{entry.path}: {name}"
        assert admin.client.post(path, json={"csrf": good}, headers={"Origin": origin}).status_code == 415, (
            "a script of another page can send JSON"
        )
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
            if not any(other.path == entry.path and other.method == method for other in ROUTES):
                assert admin.client.request(method, path).status_code in (405, 404), f"{method} {entry.path}"


def test_each_role_is_refused_what_is_above_it(page):
    browsers = {role: page.browser(page.token(role)) for role in ("viewer", "operator", "admin")}
    nobody = page.browser()
    for entry in ROUTES:
        if entry.role is None or entry.path in ("/live", "/logout"):
            continue
        path = entry.path.replace("{", "").replace("}", "")
        method = nobody.get if entry.method == "GET" else partial(nobody.post, fields={"csrf": "none"})
        assert method(path).status_code in (303, 401, 403) and "Overview" not in method(path).text
        for role, browser in browsers.items():
            if (
                entry.role.label == "viewer"
                or (entry.role.label == "operator" and role == "admin")
                or entry.role.label == role
            ):
                continue
            answer = browser.get(path) if entry.method == "GET" else browser.post(path, form_on="/")
            assert answer.status_code == 403 and f"needs the role {entry.role.label}" in answer.text, (
                f"{role} {entry.path}"
            )


def test_a_session_ends_with_its_token_with_its_time_and_with_a_wrong_sign(page, database):
    browser = page.browser(page.token("admin", "ann"))
    access = page.server.page_frame.access
    assert browser.get("/").status_code == 200
    session = browser.client.cookies[COOKIE]
    stranger = page.browser()
    body, _, sign = session.rpartition(".")
    token_id, begun, nonce = body.split(".")
    for forged in (
        body,
        f"{body}.",
        f"{body}.{sign[:-1]}{'1' if sign[-1] == '0' else '0'}",
        f"{token_id}.{int(begun) + 1}.{nonce}.{sign}",
        "x",
        "...",
        "a.b.c.d",
        f"é.{sign}",
    ):
        assert (
            stranger.get("/", headers={"Cookie": f"{COOKIE}={forged}".encode("latin-1")}).status_code == 303
        ), forged
    assert stranger.get("/", headers={"Cookie": f"{COOKIE}={session}"}).status_code == 200, (
        "it is the cookie that counts"
    )
    wall = access._wall
    access._wall = lambda: wall() + SESSION_SECONDS
    assert browser.get("/").status_code == 303
    access._wall = wall
    assert browser.get("/").status_code == 200
    assert database.value("select packhorse.revoke_access_token('ann')")
    clock = access._clock
    access._clock = lambda: clock() + CHECK_SECONDS - 1e-3
    assert browser.get("/live").status_code == 303
    access._clock = clock


def test_a_cookie_is_for_the_server_alone(page, database, open_page):
    token = page.token("viewer")

    def cookie(page):
        return page.browser().log_in(token).headers["set-cookie"].lower()

    plain = cookie(page)
    assert (
        "httponly" in plain and "samesite=strict" in plain and "path=/;" in plain and "secure" not in plain
    ), "there is no TLS on loopback"
    behind = open_page(database, web_trusted_proxies=("127.0.0.1",), web_base_path="/q")
    secure = cookie(behind)
    assert "secure" in secure and "path=/q;" in secure


def test_login_leads_back_and_never_to_another_host(page):
    token = page.token("viewer")
    for then, expected in [
        ("/queues?x=1", "/queues?x=1"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nX: y", "/"),
    ]:
        answer = page.browser().log_in(token, then=then)
        assert (answer.status_code, answer.headers["location"]) == (303, expected), then
        assert "x" not in answer.headers


def test_a_wrong_token_is_refused_and_five_a_minute_are_the_end(page):
    good = page.token("admin")
    browser = page.browser()
    access = page.server.page_frame.access
    for number in range(MOST_FAILURES):
        answer = browser.log_in(f"phk_{number}")
        assert answer.status_code == 401 and "No token in force" in answer.text
    refused = browser.log_in("phk_x")
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 61
    assert page.browser().log_in(good).status_code == 429, (
        "a good one is not even looked at: else one could go on trying"
    )
    clock = access._clock
    access._clock = lambda: clock() + FAILURE_SECONDS + 1
    assert page.browser().log_in(good).status_code == 303
    access._clock = clock


def test_the_limit_is_of_the_address_that_the_proxy_names(database, open_page):
    page = open_page(database, web_trusted_proxies=("127.0.0.1", "10.0.0.0/8"))
    page.token("viewer")
    browser = page.browser()

    def attempt(forwarded):
        return browser.post(
            "/login", {"token": "x"}, form_on="/login", headers={"X-Forwarded-For": forwarded}
        ).status_code

    for place in range(MOST_FAILURES):  # what the browser itself puts in front does not count
        assert attempt(f"1.2.3.{place}, 203.0.113.7, 10.0.0.1") == 401
    assert attempt("9.9.9.9, 203.0.113.7") == 429
    assert attempt("203.0.113.8") == 401
    for place in range(MOST_FAILURES):
        assert attempt(f"2001:db8::{place + 1}") == 401
    assert attempt("2001:db8::ffff") == 429, "a network of IPv6 is one visitor's"


PROXY = {"web_trusted_proxies": ("127.0.0.1",), "web_user_header": "X-User", "web_role_header": "X-Role"}


@pytest.mark.parametrize(
    ("headers", "status", "shown"),
    [
        ([("X-User", "ann"), ("X-Role", "operator")], 200, "operator"),
        ([("X-User", "ann"), ("X-Role", "root")], 403, "no role"),
        ([("X-User", "ann")], 403, "no role"),
        ([("X-User", "ann"), ("X-User", "bob"), ("X-Role", "admin")], 403, "clearly"),
        ([("X-User", "ann"), ("X-Role", "viewer"), ("X-Role", "admin")], 403, "clearly"),
        ([("X-User", "a" * 101), ("X-Role", "admin")], 403, "clearly"),
        ([("X-Role", "admin")], 303, ""),
        ([("X-User", ""), ("X-Role", "admin")], 303, ""),
    ],
)
def test_a_proxy_says_who_it_is_once_or_nobody_is_it(database, open_page, headers, status, shown):
    answer = open_page(database, **PROXY).browser().client.get("/", headers=headers)
    assert answer.status_code == status and shown in answer.text


def test_headers_of_a_stranger_count_for_nothing(database, open_page):
    page = open_page(database, **{**PROXY, "web_trusted_proxies": ("10.0.0.0/8",)})
    assert page.browser().get("/", headers={"X-User": "ann", "X-Role": "admin"}).status_code == 303
    without = open_page(database)
    token = without.token("viewer")
    assert without.browser(**{"X-User": "ann", "X-Role": "admin"}).get("/").status_code == 303 and token


def test_a_proxy_without_a_header_for_roles_makes_viewers(database, open_page):
    page = open_page(database, web_trusted_proxies=("127.0.0.1",), web_user_header="X-User")
    html = page.browser(**{"X-User": "ann", "X-Role": "admin"}).get("/").text
    assert '<span class="badge">viewer</span>' in html


def test_beyond_loopback_only_the_proxy_may_come(database, open_page):
    settings = {"web_host": "0.0.0.0", "web_hosts": ("q.example",), "web_user_header": "X-User"}
    page = open_page(database, web_trusted_proxies=("10.0.0.0/8",), **settings)
    answer = page.browser(**{"X-User": "ann"}).get("/")
    assert answer.status_code == 403 and "through its proxy" in answer.text
    assert page.browser().get("/healthz").status_code == 200, "a kubelet comes by itself"
    other = open_page(database, web_trusted_proxies=("127.0.0.0/8",), **settings)
    assert other.browser(**{"X-User": "ann", "Host": "q.example"}).get("/").status_code == 200


def test_what_another_page_fetches_is_refused_and_what_it_links_to_is_shown(page):
    browser = page.browser()
    for site in ("cross-site", "same-site"):
        fetched = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert (
            browser.get("/", headers=fetched).status_code == 403
            and browser.get("/live", headers=fetched).status_code == 403
        )
        assert (
            browser.get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code
            == 200
        )
    assert (
        browser.get("/", headers={"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}).status_code
        == 200
    )


def test_a_logout_ends_the_session_of_the_browser(page):
    browser = page.browser(page.token("viewer"))
    assert browser.post("/logout", form_on="/").status_code == 303
    assert browser.get("/").status_code == 303


def test_an_outage_lets_nobody_in_and_keeps_who_is_there(own_server, open_page):
    database = own_server.create_database()
    page = open_page(database)
    browser = page.browser(page.token("viewer"))
    assert browser.get("/").status_code == 200
    own_server.kill()
    access = page.server.page_frame.access
    clock = access._clock
    access._clock = lambda: clock() + CHECK_SECONDS + 1
    assert browser.get("/").status_code == 200, "an old answer, and the session as it was last known"
    stranger = page.browser()
    assert stranger.get("/").status_code == 303
    refused = stranger.log_in("phk_x")
    assert refused.status_code == 503 and "socket" not in refused.text, "what libpq says names hosts"


def test_addresses_are_those_that_a_person_opens():
    from packhorse.worker.config import load_settings

    settings = load_settings({}, web_port=0, web_base_path="/q/")
    listening = serve.listen(settings)
    try:
        assert serve.address(settings, listening) == f"http://127.0.0.1:{listening.getsockname()[1]}/q/"
    finally:
        listening.close()


def test_the_tokens_of_all_who_look_are_checked_in_one_statement(page, monkeypatch):
    """Twenty people's windows are one query in CHECK_SECONDS; a revoked one's session ends with it."""
    browsers = [page.browser(page.token("viewer", f"vera{number}")) for number in range(5)]
    access, checks = page.server.page_frame.access, []
    ask = tokens.in_force
    monkeypatch.setattr(tokens, "in_force", lambda *args: checks.append(args[1]) or ask(*args))
    assert all(browser.get("/").status_code == 200 for browser in browsers)
    page.database.query("select revoke_access_token('vera3', 'test', null)")
    clock, checks[:] = access._clock, []
    access._clock = lambda: clock() + CHECK_SECONDS + 1
    assert [browser.get("/audit").status_code for browser in browsers] == [200, 200, 200, 303, 200]
    assert len(checks) == 1 and len(checks[0]) == 5
    access._clock = lambda: clock() + 5 * CHECK_SECONDS
    assert browsers[0].get("/audit").status_code == 200
    assert len(checks[1]) == 1, "who is away is not asked about"


def test_windows_that_refresh_at_once_ask_once_whether_there_are_tokens(page, monkeypatch):
    checks, ask = [], tokens.any_in_force

    def slowly(connection):
        checks.append(1)
        time.sleep(0.3)
        return ask(connection)

    monkeypatch.setattr(tokens, "any_in_force", slowly)
    browsers = [page.browser() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert {answer.status_code for answer in threads.map(lambda each: each.get("/audit"), browsers)} == {
            200
        }
    assert len(checks) == 1
