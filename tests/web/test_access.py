"""Who may what: hosts, ways, tokens, sessions, proxies, origins, logins (SPEC O6, FAILURES 74)."""

from __future__ import annotations

import pytest

from packhorse.worker.errors import ConfigError
from packhorse.worker.web import serve
from packhorse.worker.web.app import ROUTES


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
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil", "[::2]", "localhost:80:80", ""):
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
        assert admin.client.post(path, json={"csrf": good}, headers={"Origin": origin}).status_code == 415, "a script of another page can send JSON"
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
        method = nobody.get if entry.method == "GET" else nobody.post
        assert method(path).status_code in (303, 401, 403) and "Overview" not in method(path).text
        for role, browser in browsers.items():
            if entry.role.label == "viewer" or (entry.role.label == "operator" and role == "admin") or entry.role.label == role:
                continue
            answer = browser.get(path) if entry.method == "GET" else browser.post(path, form_on="/")
            assert answer.status_code == 403 and f"needs the role {entry.role.label}" in answer.text, f"{role} {entry.path}"


def test_addresses_are_those_that_a_person_opens():
    from packhorse.worker.config import load_settings

    settings = load_settings({}, web_port=0, web_base_path="/q/")
    listening = serve.listen(settings)
    try:
        assert serve.address(settings, listening) == f"http://127.0.0.1:{listening.getsockname()[1]}/q/"
    finally:
        listening.close()
