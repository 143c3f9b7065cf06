"""The actors of a worker process: the modules that the settings name are imported, and their broker is taken."""

from __future__ import annotations

import importlib
import os
import sys

import dramatiq

from packhorse.worker import folder
from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.config import Settings
from packhorse.worker.errors import ConfigError, InvalidArgument


def load_broker(settings: Settings) -> PostgresBroker:
    """Import the actors' modules and return their broker. Raises ConfigError that names the module."""
    if not settings.actors:
        raise ConfigError(["actors: none given; name the modules that declare actors, e.g. packhorse worker my_app.actors"])
    if settings.app_dir is not None:
        folder.enter(settings.app_dir)
    broker = PostgresBroker(settings=settings)
    dramatiq.set_broker(broker)
    sys.path.insert(0, os.getcwd())
    for name in settings.actors:
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError, InvalidArgument) as error:  # what another try does not mend
            raise ConfigError([f"actors: cannot import {name!r}: {error}"]) from error
    chosen = dramatiq.get_broker()
    if not isinstance(chosen, PostgresBroker):
        raise ConfigError([f"actors: the module sets a {type(chosen).__name__}; Packhorse needs its PostgresBroker (or none: it sets one)"])
    if chosen is not broker:
        chosen.configure(settings)
    if not chosen.actors:
        raise ConfigError([f"actors: {', '.join(settings.actors)} declare no actors on this broker"])
    return chosen
