"""The first week of a new team: the wheel in an empty environment, an application with its own tests and
types, three kinds of producers, counts that add up.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from tests.support.waiting import wait_until
from tests.support.wheel import install

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TASKS = '''
"""Five handlers: plain, asynchronous, transactional, one that needs a second attempt, one that gives up."""

import asyncio

import dramatiq
import packhorse
from packhorse import Bury, Retry, step_async

broker = packhorse.PostgresBroker()
dramatiq.set_broker(broker)


async def ask(text: str) -> str:
    await asyncio.sleep(0.01)
    return text.upper()


@packhorse.actor(queue_name="shop")
def confirm(order: int) -> None:
    print(f"confirmed {order}", flush=True)


@packhorse.actor(queue_name="shop", time_limit_class="ai_agent")
async def answer(phone: str, text: str) -> None:
    words = await step_async("answer", ask, text)
    await confirm.send_async(order=len(words))


@packhorse.actor(queue_name="shop", transactional=True)
def charge(order: int) -> None:
    packhorse.current_connection().execute("update orders set charged = charged + 1 where id = %s", (order,))


@packhorse.actor(queue_name="shop", max_attempts=2)
def ship(order: int) -> None:
    message = packhorse.current_message()
    if message is not None and message.attempt == 1:
        raise Retry(0.1)


@packhorse.actor(queue_name="shop")
def refuse(order: int) -> None:
    raise Bury("nobody wants it")
'''
WEB = """
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg  # type: ignore[import-untyped]
import packhorse
from fastapi import FastAPI, Request


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def order(request: Request, item: str) -> dict[str, int]:
    async with request.app.state.pool.acquire() as connection, connection.transaction():
        number: int = await connection.fetchval("insert into orders (item) values ($1) returning id", item)
        for task in ("charge", "ship"):
            await packhorse.enqueue_async(connection, task, {"order": number}, queue="shop", conversation_key=f"order-{number}")
    return {"order": number}
"""
TESTS = """
import asyncio
import os

import psycopg
import pytest
from fastapi.testclient import TestClient
from packhorse import Bury

from shop import tasks
from shop.web import app


def test_a_handler_is_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    tasks.confirm(7)
    assert capsys.readouterr().out == "confirmed 7\\n"
    with pytest.raises(Bury):
        tasks.refuse(1)
    assert asyncio.run(tasks.ask("tea")) == "TEA"


def test_an_order_is_there_with_its_messages() -> None:
    with TestClient(app) as client:
        number = client.post("/orders", params={"item": "tea"}).json()["order"]
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        found = connection.execute("select message_type from packhorse.all_messages where conversation_key = %s order by id", (f"order-{number}",)).fetchall()
    assert found == [("charge",), ("ship",)]
"""
WRONG = """
import packhorse
from shop.tasks import confirm

packhorse.enqueue(None, "confirm", {}, conversationkey="c")
confirm.send(order="seven")
"""
NODE = """
import pg from 'pg'
const client = new pg.Client({ host: process.env.PGHOST, user: process.env.PGUSER, database: process.env.PGDATABASE })
await client.connect()
await client.query('begin')
for (let n = 0; n < 5; n++)
  await client.query('select * from packhorse.enqueue_message($1, $2, $3, p_dedup_key => $4)', ['shop', 'answer', { phone: '250788000456', text: 'muraho' }, `wamid.${n}`])
await client.query('commit')
await client.query("select packhorse.enqueue_message('shop', 'answer', '{}', p_dedup_key => 'wamid.0')")
await client.end()
"""
SQL = """
create table orders (id bigint generated always as identity primary key, item text not null, charged integer not null default 0);
grant select, insert, update on orders to packhorse_worker;
create table returns (id bigint generated always as identity primary key);
create function note_return() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  perform packhorse.enqueue_message('shop', 'refuse', jsonb_build_object('order', new.id));
  return new;
end
$$;
create trigger note_return after insert on returns for each row execute function note_return();
"""


@pytest.fixture(scope="module")
def environment():
    """An environment with the wheel and what the application needs."""
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp") as name:
        folder = Path(name)
        yield folder, install(folder, "fastapi", "asyncpg", "httpx", "mypy", "pytest")[0]


def test_the_first_week(environment, server, tmp_path):
    folder, venv = environment
    (folder / "app/shop").mkdir(parents=True)
    (folder / "app/tests").mkdir()
    for path, text in {
        "shop/__init__.py": "",
        "shop/tasks.py": TASKS,
        "shop/web.py": WEB,
        "tests/test_shop.py": TESTS,
        "wrong.py": WRONG,
    }.items():
        (folder / "app" / path).write_text(text)
    database = server.create_empty_database()
    libpq = {"PGHOST": str(server.socket_dir), "PGUSER": "postgres", "PGDATABASE": database.name}
    variables = {
        "PATH": f"{venv}/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(folder / "app"),
        **libpq,
    }

    def run(*command: str, url: str = database.url, code: int = 0) -> str:
        ran = subprocess.run(
            command,
            cwd=folder / "app",
            env=variables | {"DATABASE_URL": url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout

    # Monday: the schema, the application's tests, its types
    run("packhorse", "migrate", "up", url=database.admin_url)
    with psycopg.connect(database.admin_url, autocommit=True) as owner:
        owner.execute(SQL)
        owner.execute("select packhorse.declare_queue('shop')")
    run("pytest", "-q", "tests")
    run("mypy", "--strict", "shop")
    refused = run("mypy", "--strict", "wrong.py", code=1)
    assert (
        '"conversationkey"' in refused
        and 'incompatible type "str"; expected "int"' in refused
        and "Found 2 errors" in refused
    )

    # Tuesday: producers in three languages
    output = tmp_path / "worker"
    with output.open("wb") as stream:
        worker = subprocess.Popen(
            ["packhorse", "worker", "shop.tasks"],
            cwd=folder / "app",
            env=variables | {"DATABASE_URL": database.url},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        assert _node(tmp_path, variables)
        with psycopg.connect(database.admin_url, autocommit=True) as shop:
            shop.execute("insert into returns select from generate_series(1, 3)")
        run("packhorse", "enqueue", "confirm", '{"order": 1}', "--queue", "shop", "--allow-unknown-type")

        # Wednesday: counts that add up. The test's order made 2; Node 5, each of which sends one more; the
        # trigger 3; the command line 1
        wait_until(
            lambda: (
                database.value("select count(*) from packhorse.message_queue") == 0
                or worker.poll() is not None
            ),
            60,
        )
        assert worker.poll() is None, output.read_text()
        ends = database.query(
            "select message_type, state, count(*) from packhorse.all_messages group by 1, 2 order by 1, 2"
        )
        assert ends == [
            ("answer", "done", 5),
            ("charge", "done", 1),
            ("confirm", "done", 6),
            ("refuse", "dead", 3),
            ("ship", "done", 1),
        ]
        assert (
            database.value("select charged from orders") == 1 and output.read_text().count("confirmed ") == 6
        )
        groups = json.loads(run("packhorse", "dead-letter", "groups", "--json"))
        assert [group["count"] for group in groups] == [3]
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0, output.read_text()
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
        database.drop()


def _node(folder: Path, variables: dict[str, str]) -> bool:
    """Enqueue from Node; skips the test where there is none."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    (folder / "producer.mjs").write_text(NODE)
    fetched = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "pg@8"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"npm could not fetch pg: {fetched.stderr[-200:]}")
    ran = subprocess.run(
        ["node", "producer.mjs"], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return True
