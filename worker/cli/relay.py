"""packhorse relay: processes that publish the messages of forwarded queues to RabbitMQ."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packhorse.worker.cli.common import configure_logging, database_url
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.errors import ConfigError

if TYPE_CHECKING:
    from packhorse.worker.runtime.process import WorkerProcess

Processes = Annotated[
    int | None, typer.Option("--processes", "-p", help="Relay processes; default: the setting `processes`.")
]
Queues = Annotated[
    str | None,
    typer.Option(
        "--queues", "-q", help="Only these queues, separated by commas; default: all that are forwarded."
    ),
]


def relay(processes: Processes = None, queues: Queues = None) -> int:
    """Publish the messages of forwarded queues to RabbitMQ. SIGTERM or Ctrl-C waits for the last confirms and
    ends.
    """
    from packhorse.worker.amqp import require_pika
    from packhorse.worker.db.embedded import Embedded
    from packhorse.worker.fleet.supervisor import Supervisor
    from packhorse.worker.observe.systemd import Notifier

    require_pika()
    given: dict[str, Any] = {"processes": processes, "queues": queues}
    settings = load_settings(**given)
    if settings.amqp_url is None:
        raise ConfigError(["amqp_url: not set; amqp://user@host:5672/vhost (PACKHORSE_AMQP_URL)"])
    url = database_url(settings)
    embedded = Embedded(settings.data_dir) if settings.database_url is None else None
    configure_logging(settings)
    # no actors, no threads and no coroutines: nothing runs here
    chosen = load_settings(**given, database_url=url).model_copy(
        update={"actors": (), "threads": 0, "coroutines": 0}
    )
    with embedded or nullcontext():
        return Supervisor(chosen, notifier=Notifier(os.environ), make_process=_process).run()


def _process(settings: Settings, *args: Any) -> WorkerProcess:
    """What a child is; loaded there, for the parent needs none of it."""
    from packhorse.worker.amqp.relay import RelayProcess

    return RelayProcess(settings, *args)
