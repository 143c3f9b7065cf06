"""A small local stand-in of an AI service: slow, now and then broken, sometimes too busy, and once down for
some seconds.

Loopback only. Its bad moments follow from how many questions it has got, so they are the same in each run. A
message that has met one is spared all others, here and by the Cloud API: it has four attempts. It notes for
which message it has given an answer: each of them was paid for.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from examples.whatsapp.events import Events

ANSWER_SECONDS = 0.15
SLOW_SECONDS = 1.0
DOWN_SECONDS = 4.0
RETRY_AFTER_SECONDS = 1
#: The fifth question finds it down, and then one in so many.
DOWN_AT, DOWN_EVERY = 5, 400
#: Of the questions that it gets for the first time, each so many-th; the next request for it goes through.
SLOW_EVERY, ERROR_EVERY, BUSY_EVERY = 10, 8, 17
#: Messages that are remembered, oldest forgotten first: `run` may go on for days.
REMEMBERED = 100_000


class AssistantApi:
    """A context manager: serves while it is open. `url` is the endpoint for the handlers.

    known: is this wamid of this run? An earlier one may have left messages. spare: is told each wamid that
    has met a bad moment. paid: wamid of this run -> answers given. answers: HTTP status -> how often.
    outages: how often it went down.
    """

    def __init__(self, events: Events, known: Callable[[str], bool], spare: Callable[[str], None]) -> None:
        self.paid: dict[str, int] = {}
        self.answers: dict[int, int] = {}
        self.outages = 0
        self._events = events
        self._known = known
        self._spare = spare
        self._lock = threading.Lock()
        self._asked: dict[
            str, None
        ] = {}  # wamids of questions: while it is up their next request goes through
        self._questions = 0
        self._up_again = 0.0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="assistant-api", daemon=True
        )

    def __enter__(self) -> AssistantApi:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def down(self) -> bool:
        """Whether it answers nothing but 503 now."""
        return time.monotonic() < self._up_again

    def ask(self, question: str, wamid: str) -> tuple[int, dict[str, Any]]:
        """Status and body for one question, after as long as it takes."""
        status, seconds = self._mood(wamid)
        if status == 200:
            time.sleep(seconds)  # the slowness of the service is what is shown here
        else:
            self._spare(wamid)
        with self._lock:
            self.answers[status] = self.answers.get(status, 0) + 1
            if status == 200 and self._known(wamid):
                self.paid[wamid] = self.paid.pop(wamid, 0) + 1
                if len(self.paid) > REMEMBERED:
                    del self.paid[next(iter(self.paid))]
        if status != 200:
            return status, {
                "error": {"type": {429: "rate_limited", 500: "internal", 503: "overloaded"}[status]}
            }
        return 200, {"answer": f"Thank you! You wrote {len(question)} characters; I have noted them all."}

    def given(self) -> dict[str, int]:
        """A copy of `paid`."""
        with self._lock:
            return dict(self.paid)

    def _mood(self, wamid: str) -> tuple[int, float]:
        """What becomes of this request: the status, and how long an answer takes."""
        with self._lock:
            is_known = wamid in self._asked
            self._asked[wamid] = None
            if len(self._asked) > REMEMBERED:
                del self._asked[next(iter(self._asked))]
            if self.down:
                return 503, 0.0
            if is_known:
                return 200, ANSWER_SECONDS
            goes_down = (self._questions + 1) % DOWN_EVERY == DOWN_AT
            if goes_down and self.outages <= self._questions // DOWN_EVERY:
                self.outages += 1
                self._up_again = time.monotonic() + DOWN_SECONDS
                self._events.add(
                    f"the assistant is down for {DOWN_SECONDS:.0f} s: it answers 503 to everybody"
                )
                return 503, 0.0
            self._questions += 1
            if self._questions % ERROR_EVERY == 0:
                self._events.add("the assistant answers 500: retry with backoff")
                return 500, 0.0
            if self._questions % BUSY_EVERY == 0:
                self._events.add(f"the assistant answers 429: all questions rest for {RETRY_AFTER_SECONDS} s")
                return 429, 0.0
            return 200, SLOW_SECONDS if self._questions % SLOW_EVERY == 0 else ANSWER_SECONDS


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    api: AssistantApi


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        """A question."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path == "/v1/answers":
            self._answer(*self.server.api.ask(body["question"], body["metadata"]["wamid"]))
        else:
            self._answer(404, {"error": {"type": "not_found"}})

    def do_GET(self) -> None:
        """How it is; everything else is unknown."""
        if self.path == "/v1/health":
            self._answer(503 if self.server.api.down else 200, {})
        else:
            self._answer(404, {"error": {"type": "not_found"}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", str(RETRY_AFTER_SECONDS))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the view shows what happens."""
