"""The actors of a worker process: the modules that the settings name are imported, and their broker is
taken.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterable

import dramatiq

from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.calls.push.declarations import require_handlers
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.errors import ConfigError, WorkerError
from packhorse.worker.runtime import folder
from packhorse.worker.runtime.pushes import declare_pushes
from packhorse.worker.suggest import near_miss

logger = logging.getLogger("packhorse.process")


def load_broker(settings: Settings) -> PostgresBroker:
    """Import the actors' modules and return their broker. Raises ConfigError that names the module; its cause
    is what the import has raised.
    """
    require_handlers(settings)
    broker = import_modules(settings)
    chosen = dramatiq.get_broker()
    if not isinstance(chosen, PostgresBroker):
        raise ConfigError(
            [
                f"actors: the module sets a {type(chosen).__name__}; Packhorse needs its PostgresBroker (or none: it sets one)"
            ]
        )
    if chosen is not broker:
        chosen.configure(settings)
    declare_pushes(chosen)
    if not chosen.actors:
        raise ConfigError([f"actors: {', '.join(settings.actors)} declare no actors on this broker"])
    return chosen


def import_configured() -> None:
    """For what declares itself on import, such as backfills: the modules of this process's settings, where
    there are some. Raises ConfigError.
    """
    settings = load_settings()
    if settings.actors:
        import_modules(settings)


def import_modules(settings: Settings) -> PostgresBroker:
    """Import the modules of the setting `actors`, for a broker of their own; that broker. Raises ConfigError
    that names the module.
    """
    if settings.app_dir is not None:
        folder.enter(settings.app_dir)
    broker = PostgresBroker(settings=settings)
    dramatiq.set_broker(broker)
    sys.path.insert(0, os.getcwd())
    for name in settings.actors:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            # whatever it is: another try would most likely end the same way
            raise ConfigError([f"actors: cannot import {name!r}: {_said(error)}"]) from error
    return broker


def warn_of_idle_queues(broker: PostgresBroker, queues: Iterable[str], worker_id: object) -> None:
    """A queue that was asked for and that no actor here is on: a slip of the pen, most often; nothing is ever
    taken from it.
    """
    known = sorted({actor.queue_name for actor in broker.actors.values()})
    for queue in queues:
        if queue not in known:
            logger.warning(
                "queue_without_actors queue=%s near=%s worker_id=%s",
                queue,
                near_miss(queue, known),
                worker_id,
            )


def _said(error: BaseException) -> str:
    """What an import has raised, on one line."""
    try:
        text = str(error)
    except Exception:  # __str__ is the code of others
        text = ""
    if isinstance(error, (ImportError, SyntaxError, WorkerError)) and text:
        return text
    return f"{type(error).__name__}{': ' if text else ''}{text[:500]}"
