"""The application: one table of routes, one door that each passes, and errors as pages.

A request passes in this order: the Host header, the way it came, who visits, the origin of a change, the
role. Every answer has the headers of access.HEADERS. A database that is away gives the last answer with its
age, or a page that says so, never a traceback.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packhorse.worker.config import Settings
from packhorse.worker.errors import InvalidArgument, NotFound, StoreConflict, StoreError, StoreUnavailable
from packhorse.worker.web import acting, render
from packhorse.worker.web.access import COOKIE, CSRF_FIELD, HEADERS, Refused, Role
from packhorse.worker.web.enqueue_api import EnqueueApi
from packhorse.worker.web.pages import SCREENS
from packhorse.worker.web.reading import Reader, Site
from packhorse.worker.web.refreshes import Refresh
from packhorse.worker.web.routes import Endpoint, Entry, Frame, Visit
from packhorse.worker.web.screens import Query, Screen

logger = logging.getLogger("packhorse.web")

#: A form holds a payload (1 MiB at most) as it was and as it is to be, and each may grow threefold in
#: transit.
MOST_FORM_BYTES = 8 * 1_048_576


def _show(screen: Screen) -> Endpoint:
    async def whole(visit: Visit) -> Response:
        assert visit.site is not None and visit.visitor is not None
        reader = Reader(visit.site)
        query = Query(visit.request.path_params, dict(visit.request.query_params), visit.visitor)
        model = await screen.load(reader, query)
        title = getattr(model, "title", screen.title)
        return visit.page(
            screen.template,
            title,
            model,
            outdated=reader.outdated,
            moment=reader.moment,
            live=True,
            screen=screen,
        )

    async def body(visit: Visit) -> bytes:
        return bytes((await whole(visit)).body)

    async def show(visit: Visit) -> Response:
        if not visit.is_refresh:
            return await whole(visit)
        assert visit.site is not None and visit.visitor is not None
        key = (visit.here, visit.visitor.role, visit.notice)
        return _refreshed(visit, await visit.site.refreshes.get(key, partial(body, visit)))

    return show


def _refreshed(visit: Visit, refresh: Refresh) -> Response:
    headers = {"Cache-Control": "no-store", "Vary": "HX-Request, Cookie, Accept-Encoding"}
    if refresh.compressed is None or "gzip" not in visit.request.headers.get("accept-encoding", ""):
        return HTMLResponse(refresh.body, headers=headers)
    return HTMLResponse(refresh.compressed, headers={**headers, "Content-Encoding": "gzip"})


async def _live(visit: Visit) -> Response:
    assert visit.site is not None
    ticker = visit.frame.tickers[visit.site.name]
    if ticker.is_full:
        raise Refused(
            503,
            "Too many windows watch already.",
            "This one shows what it has; load it again to see what is new.",
        )
    return StreamingResponse(
        ticker.events(),
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        media_type="text/event-stream",
    )


async def _home(visit: Visit) -> Response:
    return RedirectResponse(visit.frame.home, 303)


async def _login_page(visit: Visit) -> Response:
    then = _own_path(visit, visit.request.query_params.get("then", ""))
    return visit.page(
        "login.html", "Log in", then=then, problem=None, login_csrf=visit.frame.access.csrf(None)
    )


async def _log_in(visit: Visit) -> Response:
    then = _own_path(visit, visit.form.get("then", ""))
    try:
        session = await visit.frame.access.log_in(visit.request, visit.form.get("token", "").strip())
    except Refused as refused:
        answer = visit.page(
            "login.html",
            "Log in",
            status=refused.status,
            then=then,
            problem=refused,
            login_csrf=visit.frame.access.csrf(None),
        )
        answer.headers.update(refused.headers)
        return answer
    answer = RedirectResponse(then or visit.frame.home, 303)
    answer.set_cookie(**visit.frame.access.cookie(session, path=visit.frame.settings.web_base_path or "/"))
    return answer


async def _log_out(visit: Visit) -> Response:
    answer = RedirectResponse(f"{visit.frame.settings.web_base_path}/login", 303)
    answer.delete_cookie(COOKIE, path=visit.frame.settings.web_base_path or "/")
    return answer


async def _healthz(visit: Visit) -> Response:
    return PlainTextResponse("ok\n")


def _own_path(visit: Visit, path: str) -> str:
    """A path of this page, or nothing: a login must not lead to another host."""
    base = visit.frame.settings.web_base_path
    return (
        path
        if path.startswith(f"{base}/")
        and not path.startswith("//")
        and "\\" not in path
        and path.isprintable()
        else ""
    )


#: Every route: screens, acts, and those of the frame.
ROUTES: tuple[Entry, ...] = (
    *(Entry("GET", screen.path, screen.role, _show(screen)) for screen in SCREENS),
    *acting.ENTRIES,
    Entry("GET", "/live", Role.VIEWER, _live),
    Entry("GET", "/login", None, _login_page, top=True),
    Entry("POST", "/login", None, _log_in, top=True),
    Entry("POST", "/logout", Role.VIEWER, _log_out, top=True),
    Entry("GET", "/healthz", None, _healthz, top=True),
)


def create_app(settings: Settings, sites: list[Site]) -> Starlette:
    """The ASGI application for these databases; their connections end with its lifespan."""
    frame = Frame(settings, sites)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        yield
        frame.close()
        for api in apis:
            api.close()

    apis = [] if settings.web_api == "off" else [EnqueueApi(sites[0], frame.access.check_way)]
    routes: list[BaseRoute] = [Mount("/v1", routes=api.routes) for api in apis]
    routes += [
        _route(frame, entry, None)
        for entry in ROUTES
        if entry.top and (settings.web_api != "only" or entry.path == "/healthz")
    ]
    if settings.web_api != "only":
        routes += _of_the_page(frame)
    base = settings.web_base_path
    app = Starlette(
        routes=[Mount(base, routes=routes)] if base else routes,
        lifespan=lifespan,
        exception_handlers={404: _lost(frame), 405: _lost(frame)},
    )
    app.state.frame = frame
    app.add_middleware(GZipMiddleware, minimum_size=500, compresslevel=6)  # leaves the event stream alone
    app.add_middleware(Headers)
    return app


def _of_the_page(frame: Frame) -> list[BaseRoute]:
    """Files, and what each database has."""
    routes: list[BaseRoute] = [Mount("/static", _Files(directory=render.STATIC))]
    for site in frame.sites:
        routes += [_route(frame, entry, site) for entry in ROUTES if not entry.top]
    if frame.sites[0].prefix:
        routes.append(_route(frame, Entry("GET", "/", None, _home, top=True), None))
    return routes


class _Files(StaticFiles):
    """Our own files: addresses carry a checksum, so browsers keep them."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        answer = super().file_response(*args, **kwargs)
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return answer


class Headers:
    """Puts access.HEADERS on every answer, whoever made it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, told if scope["type"] == "http" else send)


def _route(frame: Frame, entry: Entry, site: Site | None) -> Route:
    async def endpoint(request: Request) -> Response:
        return await _through_the_door(frame, entry, site, request)

    return Route((site.prefix if site else "") + entry.path, endpoint, methods=[entry.method])


async def _through_the_door(frame: Frame, entry: Entry, site: Site | None, request: Request) -> Response:
    """The checks of every request, then what the route does; whatever goes wrong becomes a page."""
    visit = Visit(request, frame, None, site)
    try:
        if entry.path == "/healthz":  # a kubelet comes by address, and learns nothing
            return await entry.endpoint(visit)
        frame.access.check_host(request)
        frame.access.check_way(request)
        if entry.method == "GET":
            frame.access.check_reader(request)
        form: dict[str, list[str]] = {}
        if entry.method != "GET":
            form = await _form(request)
        visitor = (
            await frame.access.visitor(request) if entry.role is not None or entry.method == "GET" else None
        )
        visit = Visit(
            request, frame, visitor, site, {name: values[-1] for name, values in form.items()}, form
        )
        if entry.method != "GET":
            frame.access.check_change(request, visitor, visit.form.get(CSRF_FIELD, ""))
        if entry.role is not None:
            if visitor is None:
                return _to_login(visit)
            if not visitor.may(entry.role):
                raise Refused(
                    403,
                    f"This needs the role {entry.role.label}; you are {visitor.role.label}.",
                    "An admin can make a token with that role.",
                )
        return await entry.endpoint(visit)
    except Refused as refused:
        answer = _error(visit, refused.status, refused.text, refused.hint)
        answer.headers.update(refused.headers)
        return answer
    except NotFound as error:
        return _error(visit, 404, str(error))
    except InvalidArgument as error:
        return _error(visit, 400, str(error))
    except StoreUnavailable as error:
        return _error(visit, 503, "The database does not answer.", _detail(visit, error))
    except StoreConflict as error:
        return _error(visit, 409, "Somebody else changes this at the moment.", str(error))
    except StoreError as error:
        return _error(visit, 503, "The database refuses this.", _detail(visit, error))
    except Exception:  # a bug of ours is in the log; the visitor gets a page like any other
        logger.error("web_request_failed path=%s", request.url.path, exc_info=True)
        return _error(visit, 500, "The page has failed; its log says why.")


def _detail(visit: Visit, error: StoreError) -> str:
    """What the database or libpq says: it may name hosts and roles, which are nothing for who only looks."""
    return (
        str(error)
        if visit.visitor is not None and visit.visitor.may(Role.OPERATOR)
        else "Load the page again in a moment."
    )


def _to_login(visit: Visit) -> Response:
    path = f"{visit.frame.settings.web_base_path}/login"
    if visit.request.method != "GET" or visit.is_refresh:
        return _error(visit, 401, "You are not logged in.", "Load the page again.")
    return RedirectResponse(
        render.link(
            "",
            path,
            {
                "then": visit.request.url.path
                + (f"?{visit.request.url.query}" if visit.request.url.query else "")
            },
        ),
        303,
    )


def _error(visit: Visit, status: int, text: str, hint: str = "") -> Response:
    return visit.page("error.html", text, status=status, status_code=status, text=text, hint=hint)


def _lost(frame: Frame) -> Any:
    """404 and 405, as pages; to who comes by a wrong name or way not even that."""

    async def answer(request: Request, error: Any) -> Response:
        async def nothing_here(visit: Visit) -> Response:
            text = (
                "There is no such page."
                if error.status_code == 404
                else "This address takes no such request."
            )
            return _error(visit, error.status_code, text)

        return await _through_the_door(
            frame, Entry("GET", request.url.path, None, nothing_here, top=True), None, request
        )

    return answer


async def _form(request: Request) -> dict[str, list[str]]:
    """The fields of a form, decoded. Raises Refused for what is none of ours."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "A form of this page is application/x-www-form-urlencoded.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM_BYTES:
            raise Refused(413, f"The form has more than {MOST_FORM_BYTES} bytes.")
    try:
        return parse_qs(
            body.decode("ascii"),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=2000,
        )
    except ValueError as error:
        raise Refused(400, "The form cannot be read.", str(error)[:200]) from None
