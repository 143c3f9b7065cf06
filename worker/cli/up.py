"""packhorse up: database, schema, workers and the page from one command, with nothing installed but
Python.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Annotated, Any

import typer

from packhorse.worker.calls.push.declarations import declared_pushes
from packhorse.worker.cli.common import MIGRATE_SECONDS, configure_logging, database_url
from packhorse.worker.cli.worker import Modules, Processes, Reload, Threads
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.exits import EXIT_OK, EXIT_USAGE

#: The page gets so long to end.
PAGE_END_SECONDS = 10.0

_NO_ACTORS = """\
No actors are configured, so no worker runs. Write some, for example in my_actors.py:

    import dramatiq
    import packhorse

    dramatiq.set_broker(packhorse.PostgresBroker())

    @dramatiq.actor
    def greet(name: str) -> None:
        print(f"hello {name}")

and start them:   packhorse up my_actors
then, elsewhere:  packhorse enqueue greet '{"name": "world"}'\
"""


def up(
    modules: Modules = None,
    actors: Annotated[
        list[str] | None, typer.Option("--actors", "-a", help="The same as MODULES; may be repeated.")
    ] = None,
    processes: Processes = None,
    threads: Threads = None,
    reload: Reload = False,
) -> int:
    """Start everything: an embedded PostgreSQL unless DATABASE_URL is set, the schema, the workers, the page.
    Ctrl-C drains and stops.
    """
    named = [*(modules or []), *(actors or [])]
    given: dict[str, Any] = {"actors": ",".join(named) or None, "processes": processes, "threads": threads}
    settings = load_settings(**given)
    if reload:
        from packhorse.worker.fleet.reload import check_reload

        check_reload()
    # until the workers run, SIGTERM ends this like Ctrl-C: the server must not be left behind
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    configure_logging(settings)
    return (
        _with_database_of_theirs(settings, reload)
        if settings.database_url is not None
        else _with_embedded(settings, given, reload)
    )


def _with_database_of_theirs(settings: Settings, reload: bool) -> int:
    from packhorse.worker.config import mask_url
    from packhorse.worker.db import migrate
    from packhorse.worker.db.sessions import open_work

    url = database_url(settings)
    connection = open_work(settings, "up", deadline_seconds=MIGRATE_SECONDS)
    try:
        applied = migrate.up(connection)
    finally:
        connection.close()
    _say(f"Database   {mask_url(url)}")
    _say(f"Schema     {_schema_line(applied)}")
    return _run(settings, reload, keep_up=False)


def _with_embedded(settings: Settings, given: dict[str, Any], reload: bool) -> int:
    from packhorse.worker.db.embedded import Embedded
    from packhorse.worker.db.sessions import names_of

    server = Embedded(settings.data_dir)
    try:
        server.start()
        applied = server.prepare(names_of(settings))
        # handlers find the database where any program looks for it
        os.environ["DATABASE_URL"] = server.url
        os.environ.setdefault("PACKHORSE_MAINTENANCE_URL", server.owner_url)
        _say(
            f"Database   PostgreSQL {'started' if server.started_it else 'runs already'} in {server.data_dir}, log in {server.log_path.name}"
        )
        _say(f"           psql '{server.url}'")
        _say(f"Schema     {_schema_line(applied)}")
        _say(
            "Look       packhorse queue list | packhorse stats | packhorse workers      (from this folder, in another terminal)"
        )
        return _run(load_settings(**given), reload, keep_up=True)
    finally:
        # a second Ctrl-C must not leave the server half stopped
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if server.held:
            _say("Database   stopped" if server.stop() else "Database   left to the others that use it")


def _run(settings: Settings, reload: bool, *, keep_up: bool) -> int:
    """Workers until a signal; without actors the database alone, when there is one to keep up."""
    if settings.actors or declared_pushes(queues=settings.queues):
        from packhorse.schedules.registry import QUEUE
        from packhorse.worker.cli.scheduler import MODULE
        from packhorse.worker.fleet.reload import reloading
        from packhorse.worker.fleet.supervisor import Supervisor

        _say(
            f"Workers    {settings.processes} x {settings.threads} threads: {', '.join(settings.actors)}      (Ctrl-C drains and stops)"
        )
        _say("Schedules  packhorse schedule list | packhorse maintenance list")
        queues = (*settings.queues, QUEUE) if settings.queues else ()
        watched = reloading(settings.actors, ignored=[settings.data_dir]) if reload else nullcontext()
        settings = settings.model_copy(update={"actors": (*settings.actors, MODULE), "queues": queues})
        with _page(settings), watched:
            return Supervisor(settings).run()
    _say("", _NO_ACTORS)
    if not keep_up:
        return EXIT_USAGE
    _say("", "The database stays up until Ctrl-C.")
    with _page(settings):
        _wait_for_signal()
    return EXIT_OK


@contextmanager
def _page(settings: Settings) -> Iterator[None]:
    """The page as a process of its own, which says its address itself; without the extra `web` a line that
    says so. It ends after the workers.
    """
    from packhorse.worker.cli.web import PAGE_NEEDS, missing
    from packhorse.worker.fleet.child import end_with_parent

    if missing() is not None:
        _say(f"Page       {PAGE_NEEDS}")
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "packhorse.worker.cli.program", "web", "--port", str(_port(settings))],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is ours: one may look on while workers drain
        preexec_fn=partial(end_with_parent, os.getpid()),
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PAGE_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _port(settings: Settings) -> int:
    """That of the settings; any free one when it is taken, by another `packhorse up` say."""
    try:
        with socket.create_server((settings.web_host, settings.web_port)):
            return settings.web_port
    except OSError:
        return 0


def _wait_for_signal() -> None:
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: asked.set())
    asked.wait()


def _schema_line(applied: list[str]) -> str:
    return f"{len(applied)} migration(s) applied" if applied else "up to date"


def _say(*lines: Any) -> None:
    for line in lines:
        print(line)
    sys.stdout.flush()
