"""The server of the page: where it may listen, the databases it shows, and its life (SPEC O6)."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn

from packhorse.worker.config import Settings
from packhorse.worker.db import schema_version
from packhorse.worker.db.sessions import open_work
from packhorse.worker.errors import ConfigError, StoreUnavailable
from packhorse.worker.store import tokens
from packhorse.worker.web.access import is_loopback
from packhorse.worker.web.app import create_app
from packhorse.worker.web.protocol import BoundedHttp
from packhorse.worker.web.reading import Site
from packhorse.worker.web.routes import Frame

#: At the end, requests that run have so long.
END_SECONDS = 5
#: An idle connection is kept longer than a page waits for its next refresh: one that ends just when a request
#: comes is an error for a proxy.
KEEP_SECONDS = 75


def sites_of(settings: Settings, embedded_url: str | None = None) -> list[Site]:
    """The databases of the page; each below its name when there are several."""
    if not settings.web_databases:
        return [Site("default", "", settings, embedded_url)]
    several = len(settings.web_databases) > 1
    return [
        Site(name, f"/{name}" if several else "", settings.of_database(url))
        for name, url in settings.web_databases.items()
    ]


def check(settings: Settings, embedded_url: str | None = None) -> None:
    """Refuse what would be open to strangers, and databases that this code does not understand.

    Raises ConfigError, SchemaMismatch. A database that is away is no reason: nobody gets in before it is
    back.
    """
    problems = []
    beyond = not is_loopback(settings.web_host)
    if beyond and not settings.web_insecure and not settings.web_trusted_proxies:
        problems.append(
            f"web_insecure: {settings.web_host} is beyond loopback and the page has no TLS of its own; put a proxy with TLS before it and name it in "
            "web_trusted_proxies, or set web_insecure = true"
        )
    if _is_unspecified(settings.web_host) and not settings.web_hosts:
        problems.append(
            "web_hosts: not set, so only localhost would be answered; name the hosts by which browsers reach the page"
        )
    if problems:
        raise ConfigError(problems)
    if settings.web_api == "only":  # nobody logs in, and a producer's login may look at nothing
        return
    for place, site in enumerate(sites_of(settings, embedded_url)):
        try:
            connection = open_work(site.settings, "web", url=embedded_url)
            try:
                schema_version.check(connection)
                has_tokens = place > 0 or tokens.any_in_force(connection)
            finally:
                connection.close()
        except StoreUnavailable:
            continue
        if beyond and not has_tokens and not settings.web_user_header:
            raise ConfigError(
                [
                    f"web_host: {settings.web_host} is beyond loopback, and nobody could log in: make a token with "
                    "`packhorse token create NAME --role admin`, or set web_user_header and web_trusted_proxies"
                ]
            )


def listen(settings: Settings) -> socket.socket:
    """The socket of the page. Raises ConfigError when its address is taken, or none of this machine."""
    host = settings.web_host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, settings.web_port))
    except OSError as error:
        found.close()
        raise ConfigError(
            [
                f"web_port: {settings.web_host} port {settings.web_port} cannot be had: {error.strerror or error}"
            ]
        ) from None
    return found


def address(settings: Settings, listening: socket.socket) -> str:
    """What a person opens in a browser."""
    host = "localhost" if _is_unspecified(settings.web_host) else settings.web_host
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{shown}:{listening.getsockname()[1]}{settings.web_base_path}/"


class PageServer(uvicorn.Server):
    """uvicorn, whose first signal also ends the streams of events: else it would wait for browsers that never
    go away.
    """

    def __init__(self, settings: Settings, sites: Sequence[Site], **options: Any) -> None:
        app = create_app(settings, list(sites))
        self.page_frame: Frame = app.state.frame
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                proxy_headers=False,  # access.py decides whose headers count
                server_header=False,
                ws="none",
                lifespan="on",
                http=BoundedHttp,
                limit_concurrency=1000,
                timeout_keep_alive=KEEP_SECONDS,
                timeout_graceful_shutdown=END_SECONDS,
                **options,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.page_frame.stop()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.page_frame.stop()
        await super().shutdown(sockets)


def run(settings: Settings, embedded_url: str | None = None, say: Callable[[str], Any] = print) -> None:
    """Serve until SIGTERM or SIGINT. say: gets the address. Raises ConfigError, SchemaMismatch."""
    check(settings, embedded_url)
    listening = listen(settings)
    try:
        server = PageServer(settings, sites_of(settings, embedded_url))
        # before uvicorn's own: a signal that comes while it starts ends it as well; and after them, for it
        # raises the signal again at its end
        signal.signal(signal.SIGTERM, server.handle_exit)
        signal.signal(signal.SIGINT, server.handle_exit)
        say(address(settings, listening))
        server.run([listening])
    finally:
        listening.close()


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
