"""A small HTTP server for machines: GET and HEAD on fixed paths, nothing else (SPEC O2, O4).

Names and numbers only, no input but the path. Bounded: MAX_REQUESTS at a time, TIMEOUT_SECONDS for a client to say
what it wants. A route that raises answers 500 and is counted; the server goes on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from socketserver import TCPServer
from typing import Any

MAX_REQUESTS = 16
TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route gives back."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


def json_answer(content: Any, status: int = 200) -> Answer:
    """An answer as one JSON document."""
    return Answer(json.dumps(content).encode() + b"\n", "application/json", status)


def probe_answer(problems: list[str]) -> Answer:
    """200 when there is no problem, else 503 and the problems."""
    return json_answer({"status": "failing" if problems else "ok", "problems": problems}, 503 if problems else 200)


#: The `Accept` header -> answer.
Route = Callable[[str], Answer]


class Endpoints:
    """Listens from the constructor on, which raises OSError when it cannot; `serve` runs until the process ends."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Route], on_error: Callable[[Exception], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = TIMEOUT_SECONDS
            server_version, sys_version = "packhorse", ""

            def do_GET(self) -> None:
                with_route(self, body=True)

            def do_HEAD(self) -> None:
                with_route(self, body=False)

            def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
                """What the library refuses: a method that nobody serves, a line or header that is none or too long."""
                self.close_connection = True
                unserved = code == HTTPStatus.NOT_IMPLEMENTED
                answer(self, json_answer({"error": message or HTTPStatus(code).phrase}, 405 if unserved else code), allow=unserved)

            def log_message(self, *_: Any) -> None:
                pass  # a scrape is not an event

        def with_route(request: Handler, *, body: bool) -> None:
            route = routes.get(request.path.partition("?")[0])
            try:
                found = route(request.headers.get("Accept", "")) if route else json_answer({"error": "no such path", "paths": sorted(routes)}, 404)
            except Exception as error:  # one broken route must not take the others with it
                on_error(error)
                found = json_answer({"error": type(error).__name__}, 500)
            answer(request, found, body=body)

        def answer(request: Handler, content: Answer, *, body: bool = True, allow: bool = False) -> None:
            headers = {"Content-Type": content.content_type, "Content-Length": str(len(content.body)), "Cache-Control": "no-store"}
            try:
                request.send_response(content.status)
                for name, value in (headers | ({"Allow": "GET, HEAD"} if allow else {})).items():
                    request.send_header(name, value)
                request.end_headers()
                if body:
                    request.wfile.write(content.body)
            except OSError:
                pass  # the client went away

        self._server = _Server((host, port), Handler)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def serve(self) -> None:
        self._server.serve_forever()


class _Server(ThreadingHTTPServer):
    """A thread per request, MAX_REQUESTS at most: a connection beyond that is closed."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self._places = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the DNS for our name, which nobody needs and may take seconds
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started: nobody else gives the place back
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that broke off in the middle
