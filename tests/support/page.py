"""The page for a test: its real server in a thread, and browsers without a window."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import httpx

from packhorse.worker.config import Settings, load_settings
from packhorse.worker.db.connection import connect
from packhorse.worker.store import tokens
from packhorse.worker.web import serve
from packhorse.worker.web.reading import Site
from tests.support.postgres import Database
from tests.support.waiting import wait_until


def declare_bank(database: Database) -> None:
    """A service with one endpoint, `a`."""
    row = {
        "endpoint": "a",
        "open_ratio": 0.5,
        "least_calls": 5,
        "close_after": 1,
        "reset_after": 30,
        "judged_over": 60,
        "probe_lease": 60,
        "check_every": 30,
    }
    database.query("select declare_service('bank', %s::jsonb)", json.dumps([row]))


class Page:
    """A server of the page on this database; settings: those of load_settings."""

    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        given = {"web_port": 0, **settings}
        if "web_databases" not in given:
            given["database_url"] = database.url
        self.settings: Settings = load_settings({}, **given)
        serve.check(self.settings)
        listening = serve.listen(self.settings)
        self.port: int = listening.getsockname()[1]
        self.sites: list[Site] = serve.sites_of(self.settings)
        self.server = serve.PageServer(self.settings, self.sites)
        self.thread = threading.Thread(target=self.server.run, args=([listening],), name="page")
        self.thread.start()
        wait_until(lambda: self.server.started or not self.thread.is_alive())
        self._clients: list[httpx.Client] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.settings.web_base_path}"

    def token(self, role: str, name: str | None = None) -> str:
        """A token with this role; from the first one on, everybody has to log in."""
        connection = connect(self.database.url)
        try:
            token = tokens.create(connection, name or role, role, "test", None)
        finally:
            connection.close()
        self.server.page_frame.access._looked_at = float("-inf")
        return token

    def browser(self, token: str | None = None, **headers: str) -> Browser:
        """Somebody with cookies of his own; logged in when a token is given."""
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=20)
        self._clients.append(client)
        found = Browser(client, self)
        if token is not None:
            answer = found.log_in(token)
            assert answer.status_code == 303, answer.text
        return found

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.server.should_exit = True
        self.thread.join(15)
        assert not self.thread.is_alive()


class Browser:
    """get and post with paths below the base path; post finds the CSRF token of its form as a browser
    does.
    """

    def __init__(self, client: httpx.Client, page: Page) -> None:
        self.client = client
        self.page = page
        self.base = page.settings.web_base_path

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        return self.client.get(self.base + path, **options)

    def fragment(self, path: str = "/") -> httpx.Response:
        """What a script gets when it refreshes."""
        return self.get(path, headers={"HX-Request": "true"})

    def csrf(self, path: str = "/") -> str:
        """The token in some form of this page; that of the visitor when it has none."""
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', self.get(path).text)
        assert found, f"no form on {path}"
        return found[1]

    def post(
        self, path: str, fields: dict[str, Any] | None = None, *, form_on: str | None = None, **options: Any
    ) -> httpx.Response:
        """form_on: the page whose form is sent; its CSRF token goes along."""
        headers = {"Origin": f"http://127.0.0.1:{self.page.port}", **options.pop("headers", {})}
        sent = dict(fields or {})
        if form_on is not None:
            sent.setdefault("csrf", self.csrf(form_on))
        return self.client.post(self.base + path, data=sent, headers=headers, **options)

    def log_in(self, token: str, then: str = "") -> httpx.Response:
        return self.post("/login", {"token": token, "then": then}, form_on="/login")
