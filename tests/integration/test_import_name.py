"""An installation makes one name importable, `packhorse`: whatever the application calls its own modules
(SPEC N1).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.support.wheel import install
from tests.support.workers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

APP = """\
import dramatiq
import packhorse
from packhorse import PostgresBroker
{imports}

dramatiq.set_broker(PostgresBroker())


@dramatiq.actor
def greet(name: str) -> None:
    print(f"hello {{name}} from {{MINE}}", flush=True)


async def app(scope, receive, send):
    assert scope["type"] == "lifespan" or scope["type"] == "http"
    if scope["type"] == "http":
        await send({{"type": "http.response.start", "status": 200}})
        await send({{"type": "http.response.body", "body": MINE.encode()}})
"""
LAYOUTS = {
    "packages": {
        "worker/__init__.py": "MINE = 'my worker'\n",
        "schedules/__init__.py": "",
        "migrations/0001_mine.sql": "select 1;\n",
    },
    "modules": {"worker.py": "MINE = 'my worker'\n", "schedules.py": "", "migrations.py": ""},
}
TEST = "import my_app\n\n\ndef test_mine():\n    assert my_app.MINE == 'my worker' and my_app.packhorse.__version__\n"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with the wheel, pytest and uvicorn; its bin/."""
    return install(tmp_path_factory.mktemp("wheel"), "pytest", "uvicorn")[0] / "bin"


@pytest.fixture(params=LAYOUTS)
def application(request, tmp_path):
    for name, text in {
        **LAYOUTS[request.param],
        "test_my_app.py": TEST,
        "my_app.py": APP.format(imports="import schedules\nfrom worker import MINE"),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def run(environment: Path, application: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{environment}:{os.environ['PATH']}", "HOME": str(application), **more}
    return subprocess.run(
        [environment / command[0], *command[1:]],
        cwd=application,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        (
            "python",
            "-c",
            "import my_app, packhorse.worker.broker.postgres; assert my_app.PostgresBroker is packhorse.worker.broker.postgres.PostgresBroker; print(my_app.MINE)",
        ),
        ("python", "-m", "pytest", "-q", "test_my_app.py"),
        ("pytest", "-q", "--import-mode=importlib", "-o", "pythonpath=.", "test_my_app.py"),
    ],
    ids=["python -c", "python -m pytest", "pytest"],
)
def test_modules_of_the_application_keep_their_names(environment, application, command):
    done = run(environment, application, *command, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert done.returncode == 0, done.stdout + done.stderr


def test_uvicorn_serves_an_application_beside_them(environment, application):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"PATH": f"{environment}:{os.environ['PATH']}", "HOME": str(application)}
    server = subprocess.Popen(
        [environment / "uvicorn", "my_app:app", "--port", str(port)], cwd=application, env=variables
    )
    try:
        wait_until(lambda: answer(port) == "my worker" or server.poll() is not None, 30)
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait(30)


def answer(port: int) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
            return response.read().decode()
    except OSError:
        return None


@pytest.mark.parametrize(
    "command",
    [("packhorse", "worker", "my_app"), ("dramatiq", "my_app", "--processes", "1", "--threads", "1")],
    ids=["packhorse", "dramatiq"],
)
def test_a_worker_runs_the_application_beside_them(environment, application, database, command):
    variables = {
        "PATH": f"{environment}:{os.environ['PATH']}",
        "HOME": str(application),
        "DATABASE_URL": database.url,
    }
    database.query("select declare_queue('default')")
    database.query("select enqueue_message('default', 'greet', '{\"name\": \"you\"}')")
    log = application / "log"
    with log.open("wb") as stream:
        worker = subprocess.Popen(
            [environment / command[0], *command[1:]],
            cwd=application,
            env=variables,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "hello you from my worker" in log.read_text() or worker.poll() is not None, 60)
        wait_until(lambda: database.query("select state from all_messages") == [("done",)], 20)
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


def test_the_folders_of_the_repository_are_no_names_of_an_installation(environment, tmp_path):
    for name in ("worker", "schedules", "migrations"):
        assert run(environment, tmp_path, "python", "-c", f"import {name}").returncode != 0, name


TYPED = """\
import packhorse
from packhorse import Snooze, current_message


def order(connection: object) -> int:
    message = current_message()
    if message is not None and message.attempt > 3:
        raise Snooze(30)
    return packhorse.enqueue(connection, "reply", {"a": 1}, queue="q", priority=1, delay=3.0).id
"""


TYPED_CALLS = """\
from packhorse.calls import AgentError, is_retryable_error, safe_http_response, with_error_boundary, with_timeout


@with_error_boundary("fetch", agent_type="support", step=1)
async def fetch(url: str) -> str:
    async with with_error_boundary("inner", user_phone="+250788000456") as operation:
        headers = {"X-Correlation-ID": operation.correlation_id}
    return await with_timeout(other(url, headers), "external_api", "other")


async def other(url: str, headers: dict[str, str]) -> str:
    raise AgentError("no", "BUSY", {"url": url}, agent_type="support")


async def number() -> int:
    return 1


@with_error_boundary("charge")
def charge(amount: int) -> int:
    return with_timeout(lambda: amount + 1, 500.0)


async def main() -> int:
    text: str = await fetch("x")
    status, body, headers = safe_http_response(ValueError())
    if is_retryable_error(ValueError()):
        return status
    return charge(1) + len(text) + len(body) + len(headers) + await with_timeout(number, "database")
"""


TYPED_STEPS = """\
from packhorse import step, step_async


def ask(question: str, *, model: str) -> dict[str, int]:
    return {"price": 3}


async def ask_later(question: str) -> str:
    return question


def in_thread() -> int:
    answer: dict[str, int] = step("answer", ask, "why?", model="m")
    return answer["price"]


async def in_coroutine() -> str:
    text: str = await step_async("later", ask_later, "why?")
    answer: dict[str, int] = await step_async("answer", ask, "why?", model="m")
    return text * answer["price"]
"""


TYPED_ACTORS = """
import packhorse


@packhorse.actor(queue_name="calls", max_in_flight=20, services=["openai"])
async def reply(phone: str, text: str) -> int:
    answer: str = await packhorse.step_async("answer", ask, text)
    rows = await packhorse.current_async_connection().execute("select 1")
    return len(answer) + rows.rowcount


@packhorse.actor
def forget(phone: str) -> None:
    reply.send(phone, "gone")


async def ask(text: str) -> str:
    return text


async def main() -> None:
    await reply.send_async("+250788000456", "Muraho")
    await forget.send_with_options_async(args=("+250788000456",), delay=1000)
"""


CHECKERS = {
    "mypy": ["mypy", "--strict", "--cache-dir", "cache"],
    "basedpyright": ["basedpyright", "--level", "error", "--pythonpath", sys.executable],
}


def checked(folder: Path, checker: str, text: str) -> subprocess.CompletedProcess[str]:
    """A small application, looked at by a type checker that finds this checkout."""
    (folder / "typed_app.py").write_text(text)
    command = [sys.executable, "-m", *CHECKERS[checker], "typed_app.py"]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_knows_the_public_calls_and_refuses_a_misspelt_option(tmp_path, checker):
    good = checked(tmp_path, checker, TYPED)
    assert good.returncode == 0, good.stdout + good.stderr
    for wrong, word in [("priorty=1", "priorty"), ('priority="first"', "priority")]:
        bad = checked(tmp_path, checker, TYPED.replace("priority=1", wrong))
        assert bad.returncode == 1 and word in bad.stdout, bad.stdout + bad.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_knows_actors_and_their_options(tmp_path, checker):
    good = checked(tmp_path, checker, TYPED_ACTORS)
    assert good.returncode == 0, good.stdout + good.stderr
    for right, wrong in [
        ("max_in_flight=20", "max_in_fligth=20"),
        ('send_async("+250788000456", "Muraho")', "send_async(1)"),
        ("answer: str", "answer: int"),
    ]:
        bad = checked(tmp_path, checker, TYPED_ACTORS.replace(right, wrong, 1))
        assert bad.returncode == 1, (wrong, bad.stdout + bad.stderr)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_knows_what_is_around_calls(tmp_path, checker):
    """A decorated function keeps its type, and what with_timeout returns is what its operation returns."""
    good = checked(tmp_path, checker, TYPED_CALLS)
    assert good.returncode == 0, good.stdout + good.stderr
    for right, wrong in [
        ('"external_api"', '"external_ap"'),
        ("charge(1)", 'charge("1")'),
        ("text: str", "text: int"),
    ]:
        bad = checked(tmp_path, checker, TYPED_CALLS.replace(right, wrong, 1))
        assert bad.returncode == 1, (wrong, bad.stdout + bad.stderr)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_knows_what_a_step_takes_and_returns(tmp_path, checker):
    good = checked(tmp_path, checker, TYPED_STEPS)
    assert good.returncode == 0, good.stdout + good.stderr
    for right, wrong in [
        ('model="m"', 'modl="m"'),
        ('"why?"', "7"),
        ("text: str", "text: int"),
        ("answer: dict[str, int]", "answer: str"),
    ]:
        bad = checked(tmp_path, checker, TYPED_STEPS.replace(right, wrong))
        assert bad.returncode == 1, (wrong, bad.stdout + bad.stderr)
