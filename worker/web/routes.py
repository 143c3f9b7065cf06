"""What the routes of the page share: the frame (settings, databases, access), a visit (one request that has
passed the door), an entry (a route).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from packhorse.worker.config import Settings
from packhorse.worker.version import __version__
from packhorse.worker.web import masks, render
from packhorse.worker.web.access import Access, Role, Visitor
from packhorse.worker.web.acts import ACTS
from packhorse.worker.web.forms import Notices
from packhorse.worker.web.live import Ticker
from packhorse.worker.web.long_acts import LongActs
from packhorse.worker.web.pages import SCREENS
from packhorse.worker.web.reading import Site


@dataclass(frozen=True, slots=True)
class Visit:
    """One request that has passed the door.

    site: None outside of the databases' paths. form: of a POST, the last value of each name; forms: all of
    them.
    """

    request: Request
    frame: Frame
    visitor: Visitor | None
    site: Site | None
    form: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def is_refresh(self) -> bool:
        """Does a page that is open ask for what is in it, and not a person for a page?"""
        return self.request.headers.get("hx-request") == "true"

    @property
    def here(self) -> str:
        """The address that is asked for."""
        url = self.request.url
        return url.path + (f"?{url.query}" if url.query else "")

    @property
    def notice(self) -> str | None:
        """What an act has said to this visitor, for this page."""
        return self.frame.notices.get(self.request.query_params.get("said", ""), self.visitor)

    @property
    def prefix(self) -> str:
        return self.frame.settings.web_base_path + (self.site.prefix if self.site else "")

    def link(self, path: str, query: Mapping[str, Any] | None = None) -> str:
        """An address below this database."""
        return render.link(self.prefix, path, query)

    def see(self, path: str, query: Mapping[str, Any] | None = None) -> Response:
        """After a change: go there (303)."""
        return RedirectResponse(self.link(path, query), 303)

    def page(
        self, template: str, title: str, model: Any = None, *, status: int = 200, **more: Any
    ) -> Response:
        """A page of the frame. more: further names for the template."""
        return self.frame.page(self, template, title, model, status=status, **more)


Endpoint = Callable[[Visit], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A route. role: the least that may; None: anybody who reaches the page. Paths are below a database,
    except those of `top`.
    """

    method: str
    path: str
    role: Role | None
    endpoint: Endpoint
    top: bool = False


class Frame:
    """What all requests share: settings, databases, access, ticks."""

    def __init__(self, settings: Settings, sites: list[Site]) -> None:
        self.settings = settings
        self.sites = sites
        self.access = Access(settings, sites[0])
        self.tickers = {site.name: Ticker(site) for site in sites}
        self.long_acts = {site.name: LongActs(site) for site in sites}
        self.notices = Notices()

    @property
    def home(self) -> str:
        return self.settings.web_base_path + self.sites[0].prefix + "/"

    def page(
        self, visit: Visit, template: str, title: str, model: Any = None, *, status: int = 200, **more: Any
    ) -> Response:
        names = {
            "layout": "fragment.html" if visit.is_refresh else "base.html",
            "title": title,
            "model": model,
            "site": visit.site,
            "sites": self.sites,
            "screens": SCREENS,
            "link": visit.link,
            "static": self._static,
            "base": self.settings.web_base_path,
            "here": visit.here,
            "can": lambda role: visit.visitor is not None and visit.visitor.may(Role[role.upper()]),
            "key_text": lambda key: self.key_text(visit.visitor, key),
            "error_text": lambda text: masks.error_text(text, visit.visitor),
            "log_text": lambda text: masks.log_text(text, visit.visitor),
            "query": dict(visit.request.query_params),
            "outdated": None,
            "moment": None,
            "live": False,
            "screen": None,
            "version": __version__,
            "acts": ACTS,
            "notice": visit.notice,
            **more,
        }
        if not (visit.is_refresh and names["screen"]):  # a refresh is for all of a role: see refreshes.py
            names |= {"visitor": visit.visitor, "csrf": self.access.csrf(visit.visitor)}
        html = render.environment().get_template(template).render(names)
        return HTMLResponse(html, status, {"Cache-Control": "no-store", "Vary": "HX-Request, Cookie"})

    def key_text(self, visitor: Visitor | None, key: str) -> str:
        """A key of a conversation, of concurrency or of dedup as this visitor may see it."""
        if visitor is not None and visitor.may(Role.OPERATOR):
            return key
        return self.access.stand_in(key)

    def _static(self, name: str) -> str:
        return f"{self.settings.web_base_path}/static/{name}?v={render.static_version(name)}"

    def stop(self) -> None:
        """End the streams, so that the server can end; long acts end after their batch."""
        for ticker in self.tickers.values():
            ticker.stop()
        for long_acts in self.long_acts.values():
            long_acts.stop()

    def close(self) -> None:
        for long_acts in self.long_acts.values():
            long_acts.close()
        for site in self.sites:
            site.close()
