"""O3: the correlation id goes from the enqueue in SQL through every line of the handler to the call it makes,
and on to what it enqueues.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def service():
    """Address of a service, and the correlation ids with which it was called."""
    heard: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["X-Correlation-ID"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="service")
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", heard
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_correlation_id_of_an_enqueue_reaches_every_line_and_the_call(database, start_daemon, service):
    url, heard = service
    database.query("select declare_queue('default')")
    daemon = start_daemon(
        database, None, "tests.support.calling_actors", log_format="json", log_outcomes="all", threads=2
    ).wait_ready()
    for name in ("order-17", "order-18"):
        database.query(
            "select enqueue_message('default', 'calls', jsonb_build_object('url', %s::text), p_correlation_id => %s, p_max_attempts => 1)",
            url,
            name,
        )
    wait_until(
        lambda: (
            database.value("select count(*) from message_archive") == 2
            and database.value("select count(*) from message_queue") <= 2
        )
    )
    wait_until(
        lambda: sorted(heard) == ["order-17"] * 2 + ["order-18"] * 2,
        message="each message and what it sent has made its call",
    )
    wait_until(lambda: daemon.log.count('"message_failed"') >= 2)
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    for name in ("order-17", "order-18"):
        events = [line["event"] for line in lines if line.get("correlation_id") == name]
        assert events.count("about to call") == events.count("calling") == 2, events
        assert events.count("message_ended") == 1 and events.count("message_failed") == 1, events
    assert not [
        line for line in lines if line["logger"].startswith("shop") and not line.get("correlation_id")
    ]
