"""A small HTTP server for machines: GET and HEAD on fixed paths, nothing else (SPEC O2, O4).

Names and numbers only, no input but the path. One loop reads all clients at once, so a slow one holds up
nobody: a request has HEAD_SECONDS in all to arrive, however its bytes come, and its answer ANSWER_SECONDS to
be taken. At most MOST_CLIENTS are connected; one more drops the client that has been silent about its request
for longest. Each connection is for one request. A route that raises answers 500 and is counted; the server
goes on.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from typing import Any

HEAD_SECONDS = 5.0
ANSWER_SECONDS = 10.0
#: With its answer each takes at most as much memory as /metrics is long, and a descriptor.
MOST_CLIENTS = 256
#: Connections that wait to be accepted, and that are accepted in one turn of the loop.
BACKLOG = 128
LONGEST_LINE = 8192
LONGEST_HEAD = 32768


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route gives back."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


def json_answer(content: Any, status: int = 200) -> Answer:
    """An answer as one JSON document."""
    return Answer(json.dumps(content).encode() + b"\n", "application/json", status)


def probe_answer(problems: list[str], warnings: list[str] | None = None) -> Answer:
    """200 when there is no problem, else 503 and the problems. warnings: what fails and is no reason for
    503.
    """
    beside = {"warnings": warnings} if warnings else {}
    return json_answer(
        {"status": "failing" if problems else "ok", "problems": problems, **beside}, 503 if problems else 200
    )


#: The `Accept` header -> answer. Called in the loop: it must not wait for anything.
Route = Callable[[str], Answer]


class Endpoints:
    """Listens from the constructor on, which raises OSError when it cannot; `serve` runs until `stop`."""

    def __init__(
        self, host: str, port: int, routes: Mapping[str, Route], on_error: Callable[[Exception], None]
    ) -> None:
        self._routes = routes
        self._on_error = on_error
        self._clients: dict[_Client, None] = {}  # in the order in which they came
        self._socket = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def serve(self) -> None:
        """Answer until `stop` is called; closes the socket. Once."""
        asyncio.run(self._serve())

    def stop(self) -> None:
        """Any thread: `serve` returns soon, or at once when it has not begun yet."""
        self._stopping = True
        if self._loop is not None and self._ended is not None:
            with suppress(RuntimeError):  # it has returned
                self._loop.call_soon_threadsafe(self._ended.set)

    async def _serve(self) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        server = await loop.create_server(lambda: _Client(self, loop), sock=self._socket, backlog=BACKLOG)
        self._ended, self._loop = ended, loop
        if not self._stopping:
            await ended.wait()
        server.close()
        for client in list(self._clients):
            client.drop()

    # -- for its clients ------------------------------------------------------------------------------
    def arrived(self, client: _Client) -> None:
        """One more: the oldest whose request is not complete makes room for it, else the oldest that does not
        take its answer.
        """
        self._clients[client] = None
        if len(self._clients) > MOST_CLIENTS:
            next((other for other in self._clients if not other.answered), next(iter(self._clients))).drop()

    def left(self, client: _Client) -> None:
        self._clients.pop(client, None)

    def answer(self, head: bytes) -> bytes:
        """The whole answer to a complete head."""
        line, _, rest = head.partition(b"\n")
        words = line.decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return refusal(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _rendered(json_answer({"error": f"Unsupported method ({method[:20]!r})"}, 405), allow=True)
        try:
            headers = parse_headers(io.BytesIO(rest))
        except (HTTPException, ValueError):
            return refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        route = self._routes.get(target.partition("?")[0])
        try:
            found = (
                route(headers.get("Accept", ""))
                if route
                else json_answer({"error": "no such path", "paths": sorted(self._routes)}, 404)
            )
        except Exception as error:  # one broken route must not take the others with it
            self._on_error(error)
            found = json_answer({"error": type(error).__name__}, 500)
        return _rendered(found, body=method == "GET")


class _Client(asyncio.Protocol):
    """One connection: a request comes in, an answer goes out, the client closes."""

    def __init__(self, endpoints: Endpoints, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoints = endpoints
        self._loop = loop
        self._head = b""
        self.answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._deadline = self._loop.call_later(HEAD_SECONDS, self.drop)
        self._endpoints.arrived(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._deadline.cancel()
        self._endpoints.left(self)

    def data_received(self, data: bytes) -> None:
        if self.answered:
            # the rest of a request that was refused, or another one behind it: read, so that closing does not
            # cut the answer off
            return
        self._head += data
        end = min(
            (at for at in (self._head.find(b"\r\n\r\n"), self._head.find(b"\n\n")) if at >= 0), default=-1
        )
        if b"\n" not in self._head[: LONGEST_LINE + 1] and len(self._head) > LONGEST_LINE:
            self._answer(refusal(HTTPStatus.REQUEST_URI_TOO_LONG))
        elif end > LONGEST_HEAD or (end < 0 and len(self._head) > LONGEST_HEAD):
            self._answer(refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        elif end >= 0:
            self._answer(self._endpoints.answer(self._head[:end] + b"\n\n"))

    def eof_received(self) -> bool:
        """The client says no more. What was written to it still goes out."""
        return False

    def drop(self) -> None:
        """Out of time, or out of places."""
        self._endpoints.left(self)
        self._transport.abort()

    def _answer(self, whole: bytes) -> None:
        self.answered = True
        self._head = b""
        self._deadline.cancel()
        self._deadline = self._loop.call_later(ANSWER_SECONDS, self.drop)
        self._transport.write(whole)
        if self._transport.can_write_eof():
            self._transport.write_eof()  # and wait for the client to close


def refusal(status: HTTPStatus) -> bytes:
    """What is no request, or too long."""
    return _rendered(json_answer({"error": status.phrase}, status))


def _rendered(content: Answer, *, body: bool = True, allow: bool = False) -> bytes:
    headers = {
        "Content-Type": content.content_type,
        "Content-Length": str(len(content.body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        **({"Allow": "GET, HEAD"} if allow else {}),
    }
    lines = [
        f"HTTP/1.1 {int(content.status)} {HTTPStatus(content.status).phrase}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (content.body if body else b"")
