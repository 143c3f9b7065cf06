"""`packhorse web` and `packhorse token` as processes: where it starts, what it prints, how it ends;
`packhorse up` brings the page along.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import psycopg
import pytest

from packhorse.worker.exits import EXIT_OK, EXIT_USAGE
from tests.support.cli import Cli
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path):
    running = []

    def started(cli, *arguments):
        output = tmp_path / f"output-{len(running)}"
        process = cli.start(*arguments, output=output)
        running.append(process)
        found: list[str] = []

        def said() -> bool:
            found[:] = re.findall(r"^Page +(http://\S+)", output.read_text(), re.MULTILINE)
            return bool(found) or process.poll() is not None

        wait_until(said, 60)
        assert found, output.read_text()
        return process, found[0], output

    yield started
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_its_address_serves_and_ends_with_0_though_somebody_watches(
    tmp_path, database, start, number
):
    process, url, output = start(Cli(tmp_path, database.url), "web", "--port", "0")
    assert "<h1>Overview</h1>" in httpx.get(url).text
    with httpx.stream("GET", f"{url}live", timeout=20) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("retry")
        process.send_signal(number)
        assert [line for line in lines if "tick" not in line and "data" not in line and line] == []
    assert process.wait(20) == EXIT_OK, output.read_text()
    assert "Traceback" not in output.read_text() and "web_request_failed" not in output.read_text()


SIGNAL_WHILE_IT_STARTS = """
import os, signal, sys
from packhorse.worker.config import load_settings
from packhorse.worker.web.serve import run
run(load_settings(web_port=0), say=lambda address: os.kill(os.getpid(), int(sys.argv[1])))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_it_starts_ends_it(database, number):
    """Between its address and the server's own handlers: whoever reads the address may stop it at once."""
    environment = Cli(ROOT, database.url).environment
    ended = subprocess.run(
        [sys.executable, "-c", SIGNAL_WHILE_IT_STARTS, str(int(number))],
        env=environment,
        capture_output=True,
        timeout=30,
    )
    assert ended.returncode == EXIT_OK, ended.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "environment", "problem"),
    [
        (["--host", "0.0.0.0"], {}, "web_insecure"),
        (["--host", "0.0.0.0"], {"PACKHORSE_WEB_INSECURE": "1"}, "web_hosts"),
        (
            ["--host", "0.0.0.0"],
            {"PACKHORSE_WEB_INSECURE": "1", "PACKHORSE_WEB_HOSTS": "q.example"},
            "packhorse token create",
        ),
        ([], {"PACKHORSE_WEB_USER_HEADER": "X-User"}, "web_trusted_proxies"),
        ([], {"PACKHORSE_WEB_BASE_PATH": "packhorse"}, "web_base_path"),
        ([], {"PACKHORSE_WEB_TRUSTED_PROXIES": "proxy.example"}, "web_trusted_proxies"),
        ([], {"PACKHORSE_WEB_DATABASES": '{"login": "postgresql://h/d"}'}, "web_databases"),
        ([], {"PACKHORSE_WEB_SECRET": "short"}, "32 characters"),
    ],
)
def test_what_would_be_open_or_makes_no_sense_does_not_start(
    tmp_path, database, arguments, environment, problem
):
    ran = Cli(tmp_path, database.url)("web", "--port", "0", *arguments, **environment)
    assert ran.code == EXIT_USAGE and problem in ran.err and "short" not in ran.err, ran.err


def test_beyond_loopback_with_a_token_everybody_logs_in(tmp_path, database, start):
    cli = Cli(tmp_path, database.url, PACKHORSE_WEB_INSECURE="1", PACKHORSE_WEB_HOSTS="localhost")
    token = cli("token", "create", "ann", "--role", "admin", "--reason", "first").out.strip()
    _, url, _ = start(cli, "web", "--host", "0.0.0.0", "--port", "0")
    assert httpx.get(url).status_code == 303
    with httpx.Client(base_url=url) as client:
        form = re.search(r'name="csrf" value="(\w+)"', client.get("/login").text)[1]
        answer = client.post(
            "/login", data={"csrf": form, "token": token}, headers={"Origin": url.rstrip("/")}
        )
        assert answer.status_code == 303 and "Secure" not in answer.headers["set-cookie"], (
            "plain HTTP was asked for"
        )
        assert "ann" in client.get("/").text


def test_a_taken_port_is_a_problem_that_names_it(tmp_path, database, start):
    _, url, _ = start(Cli(tmp_path, database.url), "web", "--port", "0")
    port = url.rstrip("/").rpartition(":")[2]
    ran = Cli(tmp_path, database.url)("web", "--port", port)
    assert ran.code == EXIT_USAGE and "web_port" in ran.err and port in ran.err


def test_tokens_are_shown_once_listed_without_and_revoked(tmp_path, database):
    cli = Cli(tmp_path, database.url)
    made = cli("token", "create", "vera", "--reason", "support")
    token = made.out.strip()
    assert re.fullmatch(r"phk_[\w-]{43}", token)
    assert cli("token", "create", "vera").code == EXIT_USAGE, "one in force has the name"
    other = cli("token", "create", "ann", "--role", "admin", "--json").document
    assert other["role"] == "admin" and other["token"] != token
    listed = cli("token", "list", "--json")
    assert [row["name"] for row in listed.document] == ["ann", "vera"] and token not in listed.out
    near = cli("token", "revoke", "vero", "--json").error
    assert near["field"] == "name" and "vera" in near["hint"]
    assert cli("token", "revoke", "vera", "--operator", "boss").out == "revoked: vera\n"
    assert cli("token", "revoke", "vera").code == EXIT_USAGE
    assert cli("token", "create", "vera").code == EXIT_OK, "the name is free again"
    with psycopg.connect(database.admin_url) as connection:
        rows = connection.execute(
            "select action, operator, reason, details ->> 'name' from packhorse.operator_actions order by id"
        ).fetchall()
        assert rows[0][0] == "create_access_token" and rows[0][2:] == ("support", "vera")
        assert ("revoke_access_token", "boss", None, "vera") in rows
        kept = connection.execute(
            "select string_agg(t::text, ' ') from packhorse.access_tokens t"
        ).fetchone()[0]
        assert token.removeprefix("phk_") not in kept


@pytest.mark.parametrize("arguments", [["", "--role", "viewer"], ["x" * 101], ["a\nb"]])
def test_a_bad_name_of_a_token_is_refused(tmp_path, database, arguments):
    error = Cli(tmp_path, database.url)("token", "create", *arguments, "--json").error
    assert error["field"] == "name"


def test_up_brings_the_page_along_and_takes_it_with_it(start):
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp") as name:  # a short path: the socket is inside
        up, url, output = start(Cli(Path(name)), "up")
        assert "<h1>Overview</h1>" in httpx.get(url, timeout=20).text
        up.send_signal(signal.SIGINT)
        assert up.wait(40) == EXIT_OK, output.read_text()
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_the_page_ends_when_up_is_killed(start):
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp") as name:
        up, url, _ = start(Cli(Path(name)), "up")
        pid = int((Path(name) / ".packhorse/postgres/postmaster.pid").read_text().split()[0])
        try:
            up.kill()
            up.wait(10)

            def gone() -> bool:
                try:
                    httpx.get(url)
                except httpx.TransportError:
                    return True
                return False

            wait_until(gone, 20)
        finally:
            os.kill(pid, signal.SIGQUIT)
