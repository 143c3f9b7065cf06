"""What comes before anybody has said who he is may not fill the memory."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import httpx
import pytest

from packhorse.worker.web.protocol import MOST_HEAD_BYTES
from tests.support.page import Page
from tests.support.postgres import Database

pytestmark = [pytest.mark.slow, pytest.mark.one_database]
PIECE = 8_192
MOST_TAKEN = 64 * 1_048_576  # far more than the buffers of the sockets hold
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: aaaa\r\n"),
    "one header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"a"),
    "a path": (b"GET /", b"a"),
    "trailers": (CHUNKED + b"0\r\n", b"X: aaaa\r\n"),
    "one trailer": (CHUNKED + b"0\r\nX: ", b"a"),
    "an extension of a chunk": (CHUNKED + b"1;", b"a"),
}


@pytest.mark.parametrize("part", ENDLESS)
def test_what_never_ends_is_not_read(database: Database, part: str) -> None:
    page = Page(database)
    first, again = ENDLESS[part]
    try:
        address = urlsplit(page.url)
        with socket.create_connection((address.hostname, address.port), timeout=20) as client:
            client.sendall(first)
            sent = 0
            with pytest.raises((ConnectionError, TimeoutError)):
                while sent < MOST_TAKEN:
                    client.sendall(again * (PIECE // len(again)))
                    sent += PIECE
            assert sent > MOST_HEAD_BYTES / 2
        assert httpx.get(page.url).status_code == 200
    finally:
        page.close()


def test_long_headers_within_the_bound_and_a_long_body_are_read(database: Database) -> None:
    """A body counts anew with each of its parts."""
    page = Page(database)
    try:
        headers = {"X-Long": "a" * (MOST_HEAD_BYTES - 4_096)}
        with httpx.Client(base_url=page.url, headers=headers) as client:
            for _ in range(3):
                assert client.get("/").status_code == 200
            assert client.post("/nothing", content=b"a" * 10 * MOST_HEAD_BYTES).status_code != 400
    finally:
        page.close()
