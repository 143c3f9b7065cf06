"""The pages for applications that are there already: what stands on them is run as it stands."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import subprocess
import sys

import dramatiq
import psycopg
import pytest

import packhorse
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from tests.support.pages import Page, environment, imported, working
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.one_database]

ORDERS = "create table if not exists orders (id bigint generated always as identity primary key, item text not null, confirmed boolean default false)"
MESSAGES = "select message_type, payload, queue from message_queue order by id"


@pytest.fixture
def shop(database, monkeypatch):
    """A database with a table of the application's."""
    database.query("drop table if exists orders")
    database.query(ORDERS)
    database.query("grant all on orders to public")
    database.query("select packhorse.declare_queue('orders')")
    monkeypatch.setenv("DATABASE_URL", database.url)
    before = dramatiq.broker.global_broker
    yield database
    dramatiq.broker.global_broker = before
    database.query("drop table orders")


def test_fastapi(shop, tmp_path, monkeypatch, capsys):
    testclient = pytest.importorskip("fastapi.testclient")
    page = Page("fastapi.md")
    assert page.write(tmp_path) == ["shop/tasks.py", "shop/web.py"] and "uvicorn shop.web:app" in page.block(
        "uvicorn"
    )
    with (
        imported(tmp_path, "shop.tasks", "shop.web") as (tasks, web),
        testclient.TestClient(web.app) as client,
    ):
        answer = client.post("/orders", params={"item": "tea"})
        assert answer.status_code == 202, answer.text
        assert shop.query(MESSAGES) == [("confirm", {"order": answer.json()["order"]}, "orders")]
        shop.query("alter table orders add constraint no_milk check (item <> 'milk')")
        with pytest.raises(Exception, match="no_milk"):
            client.post("/orders", params={"item": "milk"})
        assert len(shop.query(MESSAGES)) == 1, "no order, no message"
        with working(dramatiq.get_broker(), shop, monkeypatch) as house:
            asyncio.run(tasks.confirm.send_async(order=7))
            house.drained()
    assert sorted(capsys.readouterr().out.split("\n")) == [
        "",
        f"confirmed {answer.json()['order']}",
        "confirmed 7",
    ]


SETTINGS = """
import os
SECRET_KEY = "x"
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "shop.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"], "HOST": os.environ["PGHOST"], "USER": os.environ["PGUSER"]}}
"""
URLS = "from django.urls import path\nfrom shop.views import order\nurlpatterns = [path('orders', order)]\n"
ASK = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
django.setup()
from django.db import connection
from django.test import RequestFactory
from shop.models import Order
from shop.views import order
with connection.schema_editor() as editor:
    editor.create_model(Order)
connection.close()
assert connection.connection is None
print(order(RequestFactory().post("/orders", {"item": "tea"})).content.decode())
import psycopg
assert isinstance(connection.connection, psycopg.Connection)
try:
    Order.objects.filter().update(item=None)
except Exception as error:
    print(type(error).__name__)
"""


def test_django(database, tmp_path, start_daemon):
    pytest.importorskip("django")
    page = Page("django.md")
    assert page.write(tmp_path) == [
        "shop/models.py",
        "shop/views.py",
        "shop/tasks.py",
    ] and "packhorse worker shop.tasks" in page.block("manage.py")
    (tmp_path / "shop/settings.py").write_text(SETTINGS)
    (tmp_path / "shop/urls.py").write_text(URLS)
    database.query("select packhorse.declare_queue('orders')")
    libpq = {"PGDATABASE": database.name, "PGHOST": str(database.server.socket_dir)}
    ran = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=tmp_path,
        env=environment(database, **libpq, PGUSER="postgres", PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[:2] == ['{"order": 1}', "IntegrityError"]
    assert database.query(MESSAGES) == [("confirm", {"order": 1}, "orders")]
    database.query("grant all on shop_order to public")
    start_daemon(database, actors="shop.tasks", cwd=tmp_path, extra={**libpq, "PGUSER": "packhorse_test"})
    wait_until(lambda: database.value("select confirmed from shop_order"), 30)
    database.query("drop table shop_order")


def test_sqlalchemy(shop, tmp_path):
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("greenlet", reason="sqlalchemy[asyncio] is not installed")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.orm import Session

    page = Page("sqlalchemy.md")
    assert page.write(tmp_path) == ["shop/models.py", "shop/orders.py", "shop/main.py"]
    place = f"packhorse_test@/{shop.name}?host={shop.server.socket_dir}"
    with imported(tmp_path, "shop.orders", "shop.main") as (orders, main):
        first = main.main(f"postgresql+psycopg://{place}")

        async def ask() -> int:
            engine = create_async_engine(f"postgresql+asyncpg://{place}")
            async with AsyncSession(engine) as session:
                async with session.begin():
                    second = await orders.place_async(session, "milk")
                await orders.place_async(session, "rolled back")
                await session.rollback()
            await engine.dispose()
            return second

        second = asyncio.run(ask())
        engine = main.create_engine(f"postgresql+psycopg://{place}")
        with Session(engine) as session:
            nested = session.begin_nested()
            orders.place(session, "taken back")
            nested.rollback()
            session.commit()
        engine.dispose()
    assert shop.query("select id, item from orders order by id") == [(first, "tea"), (second, "milk")]
    assert [payload["order"] for _, payload, _ in shop.query(MESSAGES)] == [first, second]


def test_results(database, tmp_path, monkeypatch, capsys):
    page = Page("results.md")
    assert page.write(tmp_path) == ["shop/tasks.py"]
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setattr("dramatiq.broker.global_broker", None)  # what the page sets is gone afterwards
    with imported(tmp_path, "shop.tasks") as (tasks,), working(tasks.broker, database, monkeypatch) as house:
        values = _values(page.block("get_result"), vars(tasks))
        house.drained()
    assert values == [6, [3, 4], 15.0]
    assert capsys.readouterr().out == "all of them are priced\n"


def _values(block, names):
    """Run a block; the values of its lines whose comment tells them."""
    found = []
    for node in ast.parse(block).body:
        if isinstance(node, ast.Expr) and ast.unparse(node).split("(")[0] in (
            "message.get_result",
            "list",
            "steps.get_result",
        ):
            found.append(eval(compile(ast.Expression(node.value), "page", "eval"), names))  # noqa: S307 - our own page
        else:
            exec(compile(ast.Module([node], []), "page", "exec"), names)  # noqa: S102 - our own page
    return found


@pytest.mark.parametrize("page", ["from-celery.md", "from-procrastinate.md"])
def test_coming_from_another_queue(shop, page, monkeypatch):
    """Our side is run; theirs is read by the compiler, for nothing of theirs is installed here."""
    blocks = Page(page)
    compile(blocks.block("# with Celery" if "celery" in page else "# with Procrastinate"), page, "exec")
    names: dict = {"insert_order": lambda session, item: 7}
    exec(compile(blocks.block("# with Packhorse"), page, "exec"), names)  # noqa: S102 - our own page
    names["packhorse"] = packhorse
    if "celery" in page:
        shop.query("select packhorse.declare_queue('payments')")
        with psycopg.connect(shop.url) as connection:
            names["place"](connection, "tea")
            names["place"](connection, "tea")
        assert shop.query(MESSAGES) == [("charge", {"order": 7}, "payments")], "a dedup key makes one of two"
        assert (
            names["charge"].options["time_limit"] == 60_000
            and names["charge"].options["min_backoff"] == 2_000
        )
    else:

        async def place() -> None:
            async with await psycopg.AsyncConnection.connect(shop.url) as connection:
                await names["place"](connection, 7)

        asyncio.run(place())
        shop.query("""create table procrastinate_jobs (id bigint generated always as identity, task_name text, status text, queue_name text,
            args jsonb default '{}', scheduled_at timestamptz, lock text)""")
        shop.query("""insert into procrastinate_jobs (task_name, status, queue_name, args, scheduled_at, lock)
            values ('shop.tasks.confirm', 'todo', 'orders', '{"order": 8}', now() + interval '1 day', 'order-8'), ('shop.tasks.confirm', 'doing', 'orders', '{}', null, null)""")
        shop.query(blocks.block("procrastinate_jobs where").replace("%", "%%"))
        assert [payload for _, payload, _ in shop.query(MESSAGES)] == [{"order": 7}, {"order": 8}]
        assert (
            shop.value(
                "select run_at > now() + interval '23 hours' from message_queue where conversation_key = 'order-8'"
            )
            is True
        )
        assert shop.value("select count(*) from procrastinate_jobs") == 1, "what runs there is theirs"
        shop.query("drop table procrastinate_jobs")


SERVER = """
import http.server, sys
print("web up", flush=True)
http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler).serve_forever()
"""


@pytest.mark.parametrize("how", ["told to stop", "the web server dies"])
def test_one_container(database, tmp_path, how):
    page = Page("web-process.md")
    assert page.write(tmp_path) == ["run.py"]
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/tasks.py").write_text(
        "import dramatiq, packhorse\ndramatiq.set_broker(packhorse.PostgresBroker())\n@packhorse.actor\ndef nothing(): ...\n"
    )
    web = [sys.executable, "-c", SERVER]
    commands = [[sys.executable, "-m", "packhorse.worker.cli.program", "worker", "shop.tasks"], web]
    output = tmp_path / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import sys, run; sys.exit(run.main({commands!r}))"],
            cwd=tmp_path,
            env=environment(database),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: (
                ("worker_started" in output.read_text() and "web up" in output.read_text())
                or process.poll() is not None
            ),
            40,
        )
        if how == "told to stop":
            process.terminate()
            assert process.wait(40) == 0, output.read_text()
        else:
            pids = subprocess.run(
                ["pgrep", "-P", str(process.pid), "-f", "serve_forever"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            os.kill(int(pids[0]), signal.SIGKILL)
            assert process.wait(40) == 1, output.read_text()
        assert "worker_stopped" in output.read_text(), "the worker has drained"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_supabase(server, tmp_path):
    """Its roles and default privileges, without its poolers and without PostgREST, which calls the function
    as here.
    """
    page = Page("supabase.md")
    database = server.create_empty_database()
    connection = connect(database.admin_url, deadline_seconds=60)
    for role in ("anon", "authenticated", "service_role"):
        connection.execute(
            f"do $$ begin create role {role}; exception when duplicate_object then null; end $$",
            prepare=False,
        )
    connection.execute(
        "alter default privileges in schema public grant all on functions to anon, authenticated, service_role",
        prepare=False,
    )
    connection.execute(
        "alter default privileges in schema public grant all on tables to anon, authenticated, service_role",
        prepare=False,
    )
    migrate.up(connection, sets=["public-api"])
    connection.close()
    database.query("drop role if exists app_worker")
    for block in (block for block in page.blocks if block.language == "sql"):
        database.query(block.text.replace("…", "secret").replace("%", "%%"))
    database.query("select packhorse.declare_queue('orders'), packhorse.declare_queue('whatsapp')")
    named = page.block("supabase.rpc")
    with psycopg.connect(database.admin_url, autocommit=True) as caller:
        caller.execute("set role service_role")
        for argument in ("p_queue", "p_message_type", "p_payload", "p_conversation_key", "p_dedup_key"):
            assert f"{argument}:" in named
        caller.execute("""select * from enqueue_message(p_queue => 'whatsapp', p_message_type => 'reply', p_payload => '{"phone": "250788000456"}',
            p_conversation_key => 'wa:250788000456', p_dedup_key => 'wamid.HBgM')""")
        caller.execute("reset role; set role anon")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            caller.execute("select * from enqueue_message(p_queue => 'whatsapp', p_message_type => 'reply')")
        caller.execute("insert into orders (item) values ('tea')")
    assert database.query("select message_type, payload from packhorse.message_queue order by id") == [
        ("reply", {"phone": "250788000456"}),
        ("confirm", {"order": 1}),
    ]
    exports = dict(
        line.removeprefix("export ").replace("'", "").split("=", 1)
        for line in page.block("export").splitlines()
    )
    ran = subprocess.run(
        [sys.executable, "-m", "packhorse.worker.cli.program", "config", "check"],
        cwd=tmp_path,
        env=environment(database, **exports),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    database.drop()
    server.command("drop role app_worker")


def test_retries(shop, tmp_path):
    page = Page("retries.md")
    rows = [
        line.strip("| ").split(" | ")
        for line in (text for text in _text("retries.md").splitlines())
        if line.startswith("| ") and line[2].isdigit()
    ]
    assert len(rows) == 4
    for attempts, initial, longest, outlasts in rows:
        seconds = shop.value(
            "select extract(epoch from packhorse.retry_span(%s, %s::interval, 2, %s::interval))::float8",
            int(attempts),
            initial,
            longest,
        )
        assert seconds == pytest.approx(
            shop.value(
                "select extract(epoch from %s::interval)::float8", outlasts.replace("10.4 h", "10 h 24 min")
            ),
            rel=0.01,
        )
    set_, show = page.block("queue set default").splitlines()
    for line in (set_, show):
        ran = subprocess.run(
            ["sh", "-ec", line],
            cwd=tmp_path,
            env=environment(shop),
            capture_output=True,
            text=True,
            check=True,
        )
    assert ran.stdout.strip().splitlines()[-1] == show.partition("… ")[2]
    with psycopg.connect(shop.url) as connection:
        before = dramatiq.broker.global_broker
        dramatiq.set_broker(packhorse.PostgresBroker())
        code = compile(page.block("send_with_options"), "retries.md", "exec")
        exec(code, {"packhorse": packhorse, "connection": connection})  # noqa: S102
        dramatiq.broker.global_broker = before
    assert shop.query("select max_attempts from message_queue order by id") == [(1,), (20,)]


def _text(name):
    from tests.support.workers import ROOT

    return (ROOT / "docs" / name).read_text()


#: In front of the page's module: what sentry-sdk would send goes to a file.
TRANSPORT = """
import functools, json, os
import sentry_sdk

class Transport(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        with open(os.environ["SENT"], "a") as file:
            file.writelines(json.dumps(item.payload.json) + "\\n" for item in envelope.items if item.type == "event")

sentry_sdk.init = functools.partial(sentry_sdk.init, dsn="http://key@localhost/1", transport=Transport())
"""
#: Behind it: handlers that end in every way.
HANDLERS = """
import asyncio
from packhorse.calls import CircuitOpen

WAYS = {
    "snooze": packhorse.Snooze(3600), "retry": packhorse.Retry(3600), "cancel": packhorse.Cancel(), "after": packhorse.RetryAfter(3600),
    "open": CircuitOpen("ai", 3600), "bury": packhorse.Bury("given up"), "fail": ValueError("a real one"),
}

@packhorse.actor(max_retries=0)
def handle(how):
    raise WAYS[how]

@packhorse.actor(max_retries=0)
async def handle_async(how):
    await asyncio.sleep(0)
    raise WAYS[how]
"""


def test_sentry(database, tmp_path, start_daemon):
    pytest.importorskip("sentry_sdk")
    page = Page("sentry.md")
    assert page.write(tmp_path) == ["shop/tasks.py"] and len(page.blocks) == 1
    (tmp_path / "shop/__init__.py").write_text(TRANSPORT)
    with (tmp_path / "shop/tasks.py").open("a") as module:
        module.write(HANDLERS)
    sent = tmp_path / "sent"
    sent.touch()
    ways = ["snooze", "retry", "cancel", "after", "open", "bury", "fail"]
    daemon = start_daemon(database, actors="shop.tasks", cwd=tmp_path, extra={"SENT": str(sent)}).wait_ready()
    with psycopg.connect(database.url) as connection:
        for actor in ("handle", "handle_async"):
            packhorse.enqueue_payloads(connection, actor, [{"how": how} for how in ways])
    # a message of each actor is cancelled, three are dead; the others wait for their hour
    wait_until(
        lambda: database.value("select count(*) from all_messages where finished_at is not null") == 8, 30
    )
    wait_until(
        lambda: (
            database.value(
                "select count(*) from message_queue where state = 'pending' and claimed_at is not null"
            )
            == 6
        ),
        30,
    )
    assert daemon.stop() == 0
    events = [json.loads(line) for line in sent.read_text().splitlines()]
    raised = sorted(
        (event["tags"]["actor"], event["exception"]["values"][-1]["type"], str(event["tags"]["attempt"]))
        for event in events
    )
    assert raised == [
        (actor, kind, "1") for actor in ("handle", "handle_async") for kind in ("Bury", "ValueError")
    ]


PAGES = {
    "fastapi.md": test_fastapi,
    "django.md": test_django,
    "sqlalchemy.md": test_sqlalchemy,
    "results.md": test_results,
    "from-celery.md": test_coming_from_another_queue,
    "from-procrastinate.md": test_coming_from_another_queue,
    "web-process.md": test_one_container,
    "supabase.md": test_supabase,
    "retries.md": test_retries,
    "sentry.md": test_sentry,
}


@pytest.mark.parametrize("page", PAGES)
def test_no_block_of_python_is_left_out(page):
    """A block names its file, or the test of its page looks for it by words of it."""
    known = ("# with ", "get_result", "send_with_options")
    assert [
        block.text
        for block in Page(page).blocks
        if block.language == "python" and not block.path and not any(word in block.text for word in known)
    ] == []
