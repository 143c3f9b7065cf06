"""The HTTP server of metrics and probes (worker/observe/endpoints.py): small, bounded, not to be confused."""

from __future__ import annotations

import http.client
import json
import resource
import select
import selectors
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from packhorse.worker.observe.endpoints import HEAD_SECONDS, MOST_CLIENTS, Answer, Endpoints, probe_answer

LONG = 2_000_000  # more than the buffers of both ends take


@pytest.fixture
def errors():
    return []


@pytest.fixture
def port(errors):
    """A server with a few routes on a free port; its thread ends with the process."""

    def broken(_accept):
        raise RuntimeError("no")

    routes = {
        "/ok": lambda accept: Answer(accept.encode() or b"plain"),
        "/broken": broken,
        "/probe": lambda _: probe_answer(["a", "b"]),
    }
    routes["/long"] = lambda _: Answer(b"x" * LONG)
    endpoints = Endpoints("127.0.0.1", 0, routes, errors.append)
    threading.Thread(target=endpoints.serve, daemon=True).start()
    return endpoints.port


def ask(port, method, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer


def test_a_route_answers_whatever_the_query_and_head_has_no_body(port):
    assert ask(port, "GET", "/ok?x=1", Accept="text/x")[:2] == (200, b"text/x")
    status, body, answer = ask(port, "HEAD", "/ok")
    assert (status, body, answer.headers["Content-Length"]) == (200, b"", "5")


def test_a_probe_that_fails_is_503_and_says_why(port):
    status, body, _ = ask(port, "GET", "/probe")
    assert status == 503 and json.loads(body) == {"status": "failing", "problems": ["a", "b"]}


def test_a_broken_route_is_500_is_counted_and_harms_no_other(port, errors):
    status, body, _ = ask(port, "GET", "/broken")
    assert status == 500 and json.loads(body) == {"error": "RuntimeError"}, "its text stays inside"
    assert len(errors) == 1 and ask(port, "GET", "/ok")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/../ok", 404),
        ("POST", "/ok", 405),
        ("DELETE", "/ok", 405),
        ("GET", "/" + 70_000 * "x", 414),
    ],
)
def test_everything_else_is_refused_in_words_that_machines_read(port, method, path, status):
    found, body, answer = ask(port, method, path)
    assert found == status and json.loads(body)["error"]
    assert (answer.getheader("Allow") == "GET, HEAD") == (status == 405)


@pytest.fixture
def many_sockets():
    """Room for a thousand clients and their server in one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as opened:
        yield opened
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def dropped(clients):
    """Those that the server has closed, after a moment."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(0.2)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [16, MOST_CLIENTS, 1000])
def test_clients_that_send_a_byte_a_second_keep_nobody_from_an_answer(port, many_sockets, count):
    """They come again when they are dropped; a probe is answered all the while, for longer than a request may
    take.
    """
    clients, until = [], time.monotonic() + HEAD_SECONDS + 1
    while time.monotonic() < until:
        while len(clients) < count:
            clients.append(
                many_sockets.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            )
        for client in clients:
            with suppress(ConnectionError):  # it was dropped
                client.send(b"x")
        assert ask(port, "GET", "/ok")[0] == 200
        for client in dropped(clients):
            clients.remove(client)
            client.close()


@pytest.fixture
def impatient(monkeypatch):
    """What a server gives a client, cut to a second."""
    monkeypatch.setattr("packhorse.worker.observe.endpoints.HEAD_SECONDS", 1.0)
    monkeypatch.setattr("packhorse.worker.observe.endpoints.ANSWER_SECONDS", 1.0)


def closed_after(client, sent, every_seconds):
    """Send a byte again and again; the seconds until the server closes."""
    began = time.monotonic()
    while True:
        try:
            client.send(sent)
            if select.select([client], [], [], every_seconds)[0] and not client.recv(100):
                return time.monotonic() - began
        except ConnectionError:
            return time.monotonic() - began
        assert time.monotonic() - began < 20


def test_the_deadline_is_for_the_whole_request_not_for_each_byte(impatient, port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        assert closed_after(client, b"x", 0.2) >= 0.7


def test_a_client_that_says_nothing_or_never_closes_is_dropped(impatient, port):
    with (
        socket.create_connection(("127.0.0.1", port)) as silent,
        socket.create_connection(("127.0.0.1", port)) as lingering,
    ):
        lingering.sendall(b"GET /ok HTTP/1.1\r\n\r\n")
        silent.settimeout(20)
        lingering.settimeout(20)
        assert silent.recv(100) == b""
        assert lingering.recv(1000).endswith(b"plain") and lingering.recv(100) == b""
        closed_after(lingering, b"x", 0.2)


def test_one_client_more_than_there_are_places_drops_the_oldest_incomplete_one(port):
    with ExitStack() as opened:
        clients = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(MOST_CLIENTS)
        ]
        assert ask(port, "GET", "/ok")[0] == 200
        assert select.select(clients, [], [], 20)[0] == clients[:1]


def test_a_client_that_does_not_take_a_long_answer_holds_up_nobody(port):
    with socket.create_connection(("127.0.0.1", port)) as deaf:
        deaf.sendall(b"GET /long HTTP/1.1\r\n\r\n")
        assert ask(port, "GET", "/ok")[0] == 200
    status, body, _ = ask(port, "GET", "/long")
    assert (status, len(body)) == (200, LONG)


def raw(port, sent):
    """All that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(sent)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_one_connection_is_for_one_request(port):
    """Pipelined ones get one answer that says so; one that asks to keep the connection is told no."""
    answer = raw(port, b"GET /ok HTTP/1.1\r\nConnection: keep-alive\r\n\r\n" * 50)
    assert (
        answer.startswith(b"HTTP/1.1 200")
        and answer.count(b"HTTP/1.1") == 1
        and b"Connection: close" in answer
    )


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /ok HTTP/1.1\r\nX: " + 40_000 * b"x" + b"\r\n\r\n", b"431"),
        (b"GET /ok HTTP/1.1\r\n" + 500 * b"X: x\r\n" + b"\r\n", b"431"),
        (b"GET /ok\r\n\r\n", b"400"),
        (b"GET /ok HTTP/9.9\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /ok HTTP/1.0\n\n", b"200"),
    ],
)
def test_huge_heads_and_what_is_no_request(port, sent, status):
    assert raw(port, sent).split(b" ")[1] == status


def test_a_request_in_pieces_is_one_request(port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        for byte in b"GET /ok HTTP/1.1\r\nAccept: a/b\r\n\r\n":
            client.send(bytes([byte]))
        assert client.makefile("rb").read().endswith(b"a/b")


def test_a_client_that_has_said_all_gets_its_answer(port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /long HTTP/1.1\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert len(client.makefile("rb").read()) > LONG


def test_many_parallel_scrapes_are_all_answered(port):
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(lambda _: ask(port, "GET", "/long")[0], range(200))) == [200] * 200


def test_garbage_does_not_stop_it(port):
    for garbage in (
        b"\x00" * 5000,
        b"GET\r\n\r\n",
        b"GET /ok HTTP/9.9\r\n\r\n",
        b"A" * 100_000 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as client:
            try:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                client.recv(100)
            except OSError:
                pass
    assert ask(port, "GET", "/ok")[0] == 200


def test_a_port_in_use_is_an_os_error(port):
    with pytest.raises(OSError):
        Endpoints("127.0.0.1", port, {}, print)
