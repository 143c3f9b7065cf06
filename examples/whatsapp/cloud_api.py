"""A small local stand-in of WhatsApp's Cloud API: sending messages and fetching media, with bad moments.

Loopback only. Every ninth new reply gets a 500, every thirteenth a 429 with Retry-After; the second try of
the same reply goes through. What it was asked, it notes in the OrderBook before it answers.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from examples.whatsapp.events import Events
from examples.whatsapp.order import OrderBook

RETRY_AFTER_SECONDS = 1
MEDIUM = b"\xff\xd8\xff\xe0" + bytes(4096)
ERRORS = {
    401: {
        "message": "Invalid OAuth access token - Cannot parse access token",
        "type": "OAuthException",
        "code": 190,
    },
    404: {
        "message": "Unsupported request. Object does not exist",
        "type": "GraphMethodException",
        "code": 100,
    },
    429: {"message": "(#130429) Rate limit hit", "type": "OAuthException", "code": 130429},
    500: {"message": "An unknown error has occurred.", "type": "OAuthException", "code": 1},
    503: {"message": "Service temporarily unavailable", "type": "OAuthException", "code": 2},
}


class CloudApi:
    """A context manager: serves while it is open. `url` is the base for the handlers, `token` the only one it
    accepts.

    late_media: id -> answers with 503 still to come. slow_media: id -> seconds that its content takes.
    Written by the feed.
    """

    def __init__(self, book: OrderBook, events: Events) -> None:
        self.book = book
        self.events = events
        self.token = secrets.token_urlsafe(16)
        self.late_media: dict[str, int] = {}
        self.slow_media: dict[str, float] = {}
        self._lock = threading.Lock()
        self._tried: OrderedDict[str, None] = OrderedDict()  # wamids whose next reply goes through
        self._first_requests = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v23.0"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="cloud-api", daemon=True
        )

    def __enter__(self) -> CloudApi:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def send(self, message: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body for one reply."""
        phone, wamid = message["to"], message["context"]["message_id"]
        status = self._mood(wamid)
        number = self.book.note(phone, wamid, status)
        unnumbered = "a reminder" if wamid.startswith("reminder:") else "from an earlier run"
        name = f"+{phone} #{number}" if number else f"+{phone} ({unnumbered})"
        if status == 500:
            self.events.add(f"{name}: Cloud API answers 500, retry with backoff")
        elif status == 429:
            self.events.add(f"{name}: Cloud API answers 429, snoozed for {RETRY_AFTER_SECONDS} s")
        if status != 200:
            return status, {"error": ERRORS[status]}
        return 200, {
            "messaging_product": "whatsapp",
            "contacts": [{"input": phone, "wa_id": phone}],
            "messages": [{"id": f"wamid.{secrets.token_hex(12)}"}],
        }

    def spare(self, wamid: str) -> None:
        """Its reply goes through at once: its medium is the bad moment it has."""
        with self._lock:
            self._go_through(wamid)

    def _go_through(self, wamid: str) -> None:
        self._tried[wamid] = None
        if len(self._tried) > 100_000:
            self._tried.popitem(last=False)

    def _mood(self, wamid: str) -> int:
        with self._lock:
            if wamid in self._tried:
                return 200
            self._go_through(wamid)
            self._first_requests += 1
            return 500 if self._first_requests % 9 == 0 else 429 if self._first_requests % 13 == 0 else 200

    def medium(self, media_id: str) -> tuple[int, dict[str, Any]]:
        """Where the content of a medium is; 503 while it is late."""
        with self._lock:
            left = self.late_media.pop(media_id, 0)
            if left > 1:
                self.late_media[media_id] = left - 1
        if left:
            self.events.add("an image is not ready yet: Cloud API answers 503, retry with backoff")
            return 503, {"error": ERRORS[503]}
        return 200, {
            "messaging_product": "whatsapp",
            "url": f"{self.url}/content/{media_id}",
            "mime_type": "image/jpeg",
            "file_size": len(MEDIUM),
            "id": media_id,
        }

    def content(self, media_id: str) -> bytes:
        """The bytes of a medium, after as long as it takes."""
        seconds = self.slow_media.pop(media_id, 0.0)
        if seconds:
            self.events.add(f"a document takes {seconds:.0f} s: its conversation waits, the others go on")
            time.sleep(seconds)  # the slowness of the service is what is shown here
        return MEDIUM


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    api: CloudApi


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._refuse():
            self._answer(*self.server.api.send(json.loads(body)))

    def do_GET(self) -> None:
        if self._refuse():
            return
        *_, kind, name = self.path.split("/")
        if kind == "content":
            self._write(200, "image/jpeg", self.server.api.content(name))
        else:
            self._answer(*self.server.api.medium(name))

    def _refuse(self) -> bool:
        status = (
            401
            if self.headers.get("Authorization") != f"Bearer {self.server.api.token}"
            else 404
            if not self.path.startswith("/v23.0/")
            else 0
        )
        if status:
            self._answer(status, {"error": ERRORS[status]})
        return bool(status)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self._write(status, "application/json", json.dumps(body).encode())

    def _write(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", str(RETRY_AFTER_SECONDS))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the view shows what happens."""
