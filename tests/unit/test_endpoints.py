"""The HTTP server of metrics and probes (worker/observe/endpoints.py): small, bounded, not to be confused."""

from __future__ import annotations

import http.client
import json
import socket
import threading

import pytest

from tests.support.waiting import wait_until
from worker.observe.endpoints import MAX_REQUESTS, Answer, Endpoints, probe_answer


@pytest.fixture
def errors():
    return []


@pytest.fixture
def port(errors):
    """A server with a few routes on a free port; its thread ends with the process."""

    def broken(_accept):
        raise RuntimeError("no")

    routes = {"/ok": lambda accept: Answer(accept.encode() or b"plain"), "/broken": broken, "/probe": lambda _: probe_answer(["a", "b"])}
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
    [("GET", "/", 404), ("GET", "/../ok", 404), ("POST", "/ok", 405), ("DELETE", "/ok", 405), ("GET", "/" + 70_000 * "x", 414)],
)
def test_everything_else_is_refused_in_words_that_machines_read(port, method, path, status):
    found, body, answer = ask(port, method, path)
    assert found == status and json.loads(body)["error"]
    assert (answer.getheader("Allow") == "GET, HEAD") == (status == 405)


def served(port):
    try:
        return ask(port, "GET", "/ok")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


@pytest.fixture
def impatient(monkeypatch):
    """What a server that is made after it gives a silent client: a second instead of five."""
    monkeypatch.setattr("worker.observe.endpoints.TIMEOUT_SECONDS", 1.0)


@pytest.mark.slow
def test_clients_that_say_nothing_do_not_keep_others_out_for_ever(impatient, port):
    """They hold every place; one that comes then is refused, and served when they were given up."""
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_REQUESTS)]
    wait_until(lambda: served(port), 20)
    for client in silent:
        client.close()


def test_threads_that_cannot_be_started_use_up_no_places(port, monkeypatch):
    """A limit of processes: once there is room again, probes are answered again."""
    with monkeypatch.context() as limited:
        limited.setattr("socketserver.threading.Thread.start", _no_thread)
        for _ in range(MAX_REQUESTS):
            with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
                ask(port, "GET", "/ok")
    assert ask(port, "GET", "/ok")[0] == 200


def _no_thread(_thread):
    raise RuntimeError("can't start new thread")


def test_garbage_does_not_stop_it(port):
    for garbage in (b"\x00" * 5000, b"GET\r\n\r\n", b"GET /ok HTTP/9.9\r\n\r\n", b"A" * 100_000 + b"\r\n\r\n"):
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
