"""A service over HTTP that behaves as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

MEBIBYTE = b"x" * 1_048_576
GZIP_HEAD, EMPTY_BLOCK = b"\x1f\x8b\x08" + bytes(6) + b"\x03", b"\x00\x00\x00\xff\xff"


class Request(NamedTuple):
    """at: monotonic seconds."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    mode: str


class FakeService:
    """mode: ok, 500, 429, 404, reset, hang, huge (2 GiB), endless, drip, bomb (gzip of 100 MiB), hollow
    (gzip that unpacks to nothing, without end), trailing (gzip, and what is none behind it, without end).
    `health` (200 or another status) is what /health answers. slow: seconds of each answer.
    """

    def __init__(self, mode: str = "ok", port: int = 0) -> None:
        self.mode = mode
        self.health = 200
        self.slow = 0.0
        self.answer_headers: dict[str, str] = {}
        self.requests: list[Request] = []
        self.checks = 0
        self.at_once = self.most_at_once = 0
        self.sent_bytes = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)

    def left(self) -> None:
        with self._lock:
            self.at_once -= 1

    def wait(self, seconds: float) -> None:
        """As long as the service lives."""
        self._ended.wait(seconds)

    @property
    def ended(self) -> bool:
        return self._ended.is_set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients go away


def _handler(service: FakeService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/health":
                service.checks += 1
                if service.mode == "hang":
                    service.wait(60)
                self._answer(service.health, b"")
                return
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            mode = service.mode
            service.note(
                Request(
                    self.command,
                    self.path,
                    {k.lower(): v for k, v in self.headers.items()},
                    body,
                    time.monotonic(),
                    mode,
                )
            )
            try:
                if service.slow:
                    service.wait(service.slow)
                self._behave(mode)
            finally:
                service.left()

        do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

        def _behave(self, mode: str) -> None:
            if mode == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif mode == "hang":
                service.wait(60)
            elif mode in ("huge", "endless", "drip", "hollow", "trailing"):
                self._stream(mode)
            elif mode == "bomb":
                self._answer(200, gzip.compress(bytes(100 * 1_048_576), 1), {"Content-Encoding": "gzip"})
            else:
                status = int(mode) if mode.isdigit() else 200
                self._answer(
                    status,
                    b"" if status == 204 else json.dumps({"path": self.path}).encode(),
                    {"Set-Cookie": "a=b", **service.answer_headers},
                )

        def _stream(self, mode: str) -> None:
            self.send_response(200)
            if mode == "huge":
                self.send_header("Content-Length", str(2 * 1024**3))
            elif mode in ("hollow", "trailing"):
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write({"hollow": GZIP_HEAD, "trailing": gzip.compress(b"taken")}.get(mode, b""))
            part = {"drip": b".", "hollow": EMPTY_BLOCK * 200_000}.get(mode, MEBIBYTE)
            while not service.ended:
                self.wfile.write(part)
                service.sent_bytes += len(part)
                if mode == "drip":
                    service.wait(0.05)

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
