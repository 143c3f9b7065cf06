"""packhorse worker: processes that run handlers until they are told to stop."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from packhorse.worker.cli.common import configure_logging, database_url
from packhorse.worker.config import Settings, has_policies, load_settings
from packhorse.worker.errors import ConfigError

#: The module that tells the database what packhorse.toml says of retention; last, so that it joins the broker
#: of users' modules.
DECLARE = "packhorse.schedules.declare"

Modules = Annotated[
    list[str] | None,
    typer.Argument(
        help="Modules that declare actors; default: the setting `actors`.", metavar="[MODULES]..."
    ),
]
Processes = Annotated[
    int | None, typer.Option("--processes", "-p", help="Worker processes; default: the setting `processes`.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", help="Handler threads per process; default: the setting `threads`."),
]
Reload = Annotated[
    bool,
    typer.Option(
        "--reload", help="For development: load the code anew when a Python file changes (extra `reload`)."
    ),
]
Queues = Annotated[str | None, typer.Option("--queues", "-q", help="Only these queues, separated by commas.")]


Burst = Annotated[
    bool,
    typer.Option(
        "--burst", help="Stop when nothing is left to do now; exit code 1 when a message failed or died."
    ),
]


Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        help="postgres, or amqp: handle messages of forwarded queues from RabbitMQ (extra `amqp`).",
    ),
]


def worker(
    modules: Modules = None,
    processes: Processes = None,
    threads: Threads = None,
    queues: Queues = None,
    burst: Burst = False,
    reload: Reload = False,
    broker: Broker = None,
) -> int:
    """Run handlers. SIGTERM or Ctrl-C drains, a second one interrupts, SIGHUP restarts one process at a
    time.
    """
    from packhorse.worker.db.embedded import Embedded
    from packhorse.worker.fleet.reload import check_reload, reloading
    from packhorse.worker.fleet.supervisor import Supervisor
    from packhorse.worker.observe.systemd import Notifier

    given: dict[str, Any] = {
        "actors": ",".join(modules) if modules else None,
        "processes": processes,
        "threads": threads,
        "queues": queues,
        "broker": broker,
    }
    settings = load_settings(**given)
    if not settings.actors:
        # imported here: it brings dramatiq, and the parent of ordinary workers does without
        from packhorse.worker.calls.push.declarations import require_handlers

        require_handlers(settings)
    if settings.broker == "amqp":
        _check_amqp(settings, burst)
    if reload:
        if burst:
            raise ConfigError(["reload: a burst ends by itself; leave out one of --burst, --reload"])
        check_reload()
    # an unreachable server is waited for; none at all is an error
    url = database_url(settings)
    embedded = Embedded(settings.data_dir) if settings.database_url is None else None
    configure_logging(settings)
    chosen = load_settings(**given, database_url=url)
    if has_policies():
        chosen = chosen.model_copy(update={"actors": (*chosen.actors, DECLARE)})
    watched = reloading(settings.actors, ignored=[settings.data_dir]) if reload else nullcontext()
    with embedded or nullcontext(), watched:  # keeps the server up when `packhorse up` ends before us
        if burst:
            from packhorse.worker.fleet.burst import BurstSupervisor, start_of_burst

            return BurstSupervisor(chosen, start_of_burst(chosen), notifier=Notifier(os.environ)).run()
        return Supervisor(chosen, notifier=Notifier(os.environ)).run()


def _check_amqp(settings: Settings, burst: bool) -> None:
    """What can be known before anything starts. Raises ConfigError."""
    from packhorse.worker.amqp import require_pika

    require_pika()
    problems = []
    if settings.amqp_url is None:
        problems.append("amqp_url: not set; amqp://user@host:5672/vhost (PACKHORSE_AMQP_URL)")
    if burst:
        problems.append("burst: nobody knows when RabbitMQ is empty; leave out one of --burst, --broker amqp")
    if problems:
        raise ConfigError(problems)
